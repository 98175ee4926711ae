//! The driver in virtual time: what the server does with real environments, done with imagined ones.
//!
//! All decisions are the worker manager's own core's ([`worker_manager::core`]); in here is only what environments and
//! time would do: a start takes as long as it takes, an invocation as long as the trace says, an end a little while. Time
//! jumps from one event to the next, so a day is as long as its events are many.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use worker_manager::core::{
    Action, EnvironmentId, Event, HistogramRules, Initialized, KeepAlive, RequestId, Rules, Shared, Size, Version,
    VersionId, WorkerLimits,
};

use crate::outcome::Outcome;
use crate::policy::Policy;
use crate::random::Random;
use crate::tally::Tally;
use crate::trace::{Arrival, Trace};

/// The hosts that a trace is replayed on, and the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// How many workers, all alike.
    pub workers: u32,
    /// Memory that a worker gives to environments, in MiB.
    pub memory_mib: u64,
    /// Environments that a worker holds.
    pub environments: u32,
    /// Processors of a worker; `None` where they are no limit.
    pub cpus: Option<u32>,
    /// Invocations in flight over all functions.
    pub account_concurrency: u32,
    /// From the answer until the environment can take the next invocation.
    pub settling: Duration,
    /// From the decision to end an environment until its place is free.
    pub teardown: Duration,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            workers: 100,
            memory_mib: 16 << 10,
            environments: 1_000,
            cpus: None,
            account_concurrency: 100_000,
            settling: Duration::from_millis(1),
            teardown: Duration::from_millis(20),
        }
    }
}

impl Cluster {
    fn limits(&self) -> WorkerLimits {
        WorkerLimits {
            environments: self.environments,
            memory_mb: self.memory_mib,
            cpu_millis: self.cpus.map_or(u64::MAX, |cpus| u64::from(cpus) * 1_000),
            overlap: 0,
        }
    }

    fn rules(&self, policy: Policy) -> Rules {
        let keep_alive = match policy {
            Policy::Fixed(kept) => KeepAlive::Fixed(kept),
            Policy::Histogram(standard) => KeepAlive::Histogram(HistogramRules { standard, ..Default::default() }),
        };
        Rules { account_concurrency: self.account_concurrency, keep_alive, ..Rules::default() }
    }
}

/// Replays a trace under one policy. `progress` hears the virtual time, about once for each hour of it.
pub fn run(trace: &Trace, cluster: &Cluster, policy: Policy, progress: &mut dyn FnMut(Duration)) -> Outcome {
    let mut simulation = Simulation::new(trace, cluster, policy);
    let mut hour = Duration::ZERO;
    for arrival in trace.arrivals() {
        simulation.until(arrival.at);
        simulation.arrive(arrival);
        if arrival.at >= hour {
            progress(arrival.at);
            hour = arrival.at + Duration::from_secs(3_600);
        }
    }
    simulation.until(trace.length);
    simulation.finish(policy)
}

/// Replays a trace under each of the policies, on as many threads as this machine has processors. `progress` hears
/// which policy is at what virtual time.
pub fn compare(
    trace: &Trace,
    cluster: &Cluster,
    policies: &[Policy],
    progress: &(dyn Fn(usize, Duration) + Sync),
) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let numbered: Vec<(usize, Policy)> = policies.iter().copied().enumerate().collect();
    let mut outcomes = Vec::with_capacity(policies.len());
    for group in numbered.chunks(threads) {
        std::thread::scope(|scope| {
            let running: Vec<_> = group
                .iter()
                .map(|&(index, policy)| {
                    scope.spawn(move || run(trace, cluster, policy, &mut |now| progress(index, now)))
                })
                .collect();
            for thread in running {
                match thread.join() {
                    Ok(outcome) => outcomes.push(outcome),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    outcomes
}

/// What happens to an environment or a version by and by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ready(EnvironmentId),
    Answered(EnvironmentId),
    Idle(EnvironmentId),
    Gone(EnvironmentId),
    Tick,
}

/// When, in which order among what happens at the same time, to which version, and what.
type Due = (Duration, u64, u32, What);

#[derive(Debug)]
struct Simulation<'a> {
    trace: &'a Trace,
    settling: Duration,
    teardown: Duration,
    shared: Shared,
    versions: Vec<Version>,
    places: HashMap<VersionId, u32>,
    /// What the core takes for the time at which the trace begins.
    epoch: Instant,
    now: Duration,
    agenda: BinaryHeap<Reverse<Due>>,
    order: u64,
    /// The invocation that is arriving; most are dispatched at once.
    arriving: Option<(u64, Arrival)>,
    /// Those that were not, by number.
    waiting: HashMap<u64, Arrival>,
    requests: u64,
    random: Random,
    tally: Tally,
    /// Kept for its room.
    actions: Vec<Action>,
    /// Steps to make before time goes on.
    steps: VecDeque<(u32, Event)>,
}

impl<'a> Simulation<'a> {
    fn new(trace: &'a Trace, cluster: &Cluster, policy: Policy) -> Self {
        let epoch = Instant::now();
        let limits = vec![cluster.limits(); cluster.workers as usize];
        let shared = Shared::new(cluster.rules(policy), &limits, epoch);
        let version = |function: &crate::trace::Function| {
            Version::new(&shared, &shared.function(), Size::of_memory(function.memory_mib), 1, epoch)
        };
        let versions: Vec<Version> = trace.functions.iter().map(version).collect();
        let places = versions.iter().map(Version::id).zip(0..).collect();
        Self {
            trace,
            settling: cluster.settling,
            teardown: cluster.teardown,
            shared,
            versions,
            places,
            epoch,
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            order: 0,
            arriving: None,
            waiting: HashMap::new(),
            requests: 0,
            // Not a sequence that a function's invocations are drawn from.
            random: Random::new(trace.seed, 1 << 40),
            tally: Tally::new(trace),
            actions: Vec::new(),
            steps: VecDeque::new(),
        }
    }

    /// Lets everything happen that does up to `end`.
    fn until(&mut self, end: Duration) {
        while let Some(Reverse((at, _, version, what))) =
            self.agenda.peek().copied().filter(|Reverse(due)| due.0 <= end)
        {
            self.agenda.pop();
            self.now = at;
            self.happen(version, what);
        }
        self.now = end;
    }

    fn happen(&mut self, version: u32, what: What) {
        let event = match what {
            What::Ready(id) => {
                self.tally.ready(self.now, version, id);
                Event::Ready(id, Initialized::Yes)
            }
            What::Answered(id) => {
                self.tally.answered(self.now, version, id);
                self.plan(self.settling, version, What::Idle(id));
                Event::Settling(id)
            }
            What::Idle(id) => Event::Idle(id),
            What::Gone(id) => {
                self.tally.gone(self.now, version, id);
                Event::Gone(id)
            }
            What::Tick => Event::Tick,
        };
        self.step(version, event);
    }

    fn arrive(&mut self, arrival: Arrival) {
        let request = self.requests;
        self.requests += 1;
        self.tally.arrived();
        self.arriving = Some((request, arrival));
        self.step(arrival.function, Event::Request(RequestId(request)));
        self.waiting.extend(self.arriving.take());
    }

    /// The request is decided upon.
    fn decided(&mut self, RequestId(request): RequestId) -> Option<Arrival> {
        match self.arriving.take_if(|(arriving, _)| *arriving == request) {
            Some((_, arrival)) => Some(arrival),
            None => self.waiting.remove(&request),
        }
    }

    /// One step of the core, and those that follow from it at the same moment.
    fn step(&mut self, version: u32, event: Event) {
        self.steps.push_back((version, event));
        while let Some((version, event)) = self.steps.pop_front() {
            let mut actions = std::mem::take(&mut self.actions);
            if let Some(stepping) = self.versions.get_mut(version as usize) {
                stepping.step(&self.shared, event, self.epoch + self.now, &mut actions);
            }
            for action in actions.drain(..) {
                self.carry_out(version, action);
            }
            self.actions = actions;
        }
    }

    fn carry_out(&mut self, version: u32, action: Action) {
        match action {
            Action::Dispatch(request, id) => {
                if let Some(arrival) = self.decided(request) {
                    self.tally.dispatched(self.now, version, id, arrival.at);
                    self.plan(arrival.duration, version, What::Answered(id));
                }
            }
            Action::Start(id, purpose, _) => {
                self.tally.started(self.now, version, id, purpose);
                let usual = self.trace.functions.get(version as usize).map_or(Duration::ZERO, |f| f.cold_start);
                // One start differs from the next by some 20 %.
                let took = usual.mul_f64(self.random.log_normal(0.0, 0.2));
                self.plan(took, version, What::Ready(id));
            }
            // Nothing here has snapshots.
            Action::Decline => {}
            Action::Retire(id) => self.plan(self.teardown, version, What::Gone(id)),
            Action::Throttle(request, throttle) => {
                self.decided(request);
                self.tally.throttled(throttle.reason);
            }
            Action::Fail(request) => {
                self.decided(request);
                self.tally.failed();
            }
            Action::Tell(other, told) => {
                if let Some(other) = self.places.get(&other) {
                    self.steps.push_back((*other, Event::Told(told)));
                }
            }
            Action::WakeAt(at) => {
                let at = at.saturating_duration_since(self.epoch);
                self.plan(at.saturating_sub(self.now), version, What::Tick);
            }
        }
    }

    fn plan(&mut self, after: Duration, version: u32, what: What) {
        self.order += 1;
        self.agenda.push(Reverse((self.now + after, self.order, version, what)));
    }

    /// Ends everything, so that what is left over shows, and adds up.
    fn finish(mut self, policy: Policy) -> Outcome {
        let unfinished = self.waiting.len() as u64;
        self.tally.close(self.now);
        let figures = self.shared.figures();
        let mut outcome = self.tally.outcome(policy, &figures, unfinished);

        self.agenda.clear();
        for version in 0u32.. {
            if version as usize >= self.versions.len() {
                break;
            }
            self.step(version, Event::End);
        }
        // Only ends are left: nothing is started any more.
        while let Some(Reverse((at, _, version, what))) = self.agenda.pop() {
            self.now = at;
            if matches!(what, What::Gone(_)) {
                self.happen(version, what);
            }
        }
        let figures = self.shared.figures();
        outcome.left_over =
            u64::from(figures.fleet.environments) + u64::from(figures.in_flight) + u64::from(figures.fleet.waiting);
        outcome
    }
}

#[cfg(test)]
mod tests;
