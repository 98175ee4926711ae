//! What a decision costs, with the tables of a busy host: 500 functions and 5,000 idle environments. Prints a table; run
//! it with `cargo test --release -p worker-manager --test decision_cost -- --ignored --nocapture`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use worker_manager::core::{
    Action, EnvironmentId, Event, Function, HistogramRules, Initialized, KeepAlive, RequestId, Rules, Shared, Size,
    Told, Version, VersionId, WorkerLimits,
};

const FUNCTIONS: usize = 500;
const EACH: usize = 10;
const ENVIRONMENTS: u32 = (FUNCTIONS * EACH) as u32;
/// Functions that have none, and are invoked when all workers are full.
const OTHERS: usize = 10_000;
/// Invocations in flight while it is measured.
const IN_FLIGHT: usize = 64;

struct Host {
    shared: Shared,
    versions: Vec<Version>,
    places: HashMap<VersionId, usize>,
    actions: Vec<Action>,
    next_request: u64,
}

impl Host {
    /// All environments are idle.
    fn new(keep_alive: KeepAlive, workers: usize) -> Self {
        let rules = Rules {
            account_concurrency: 2 * ENVIRONMENTS,
            requests_per_unit: 1_000_000,
            scaling_environments: u32::MAX,
            keep_alive,
            ..Rules::default()
        };
        let now = Instant::now();
        let limits = vec![WorkerLimits::of_environments(ENVIRONMENTS / workers as u32); workers];
        let shared = Shared::new(rules, &limits, now);
        let functions: Vec<Arc<Function>> = (0..FUNCTIONS + OTHERS).map(|_| shared.function()).collect();
        let sizes = [128, 256, 512, 1_024];
        let version = |(at, function)| Version::new(&shared, function, Size::of_memory(sizes[at % 4]), 1, now);
        let versions: Vec<Version> = functions.iter().enumerate().map(version).collect();
        let places = versions.iter().map(Version::id).zip(0..).collect();
        let mut host = Self { shared, versions, places, actions: Vec::new(), next_request: 0 };
        for version in 0..FUNCTIONS {
            let mut started = Vec::new();
            for _ in 0..EACH {
                host.request(version);
                started.extend(host.started());
            }
            for id in &started {
                host.step(version, Event::Ready(*id, Initialized::Yes));
            }
            for id in &started {
                host.step(version, Event::Idle(*id));
            }
            assert_eq!(host.versions[version].figures().idle, EACH as u32);
        }
        assert_eq!(host.shared.figures().fleet.environments, ENVIRONMENTS);
        host
    }

    /// How long the step takes.
    fn step(&mut self, version: usize, event: Event) -> Duration {
        self.actions.clear();
        let now = Instant::now();
        self.versions[version].step(&self.shared, event, now, &mut self.actions);
        now.elapsed()
    }

    fn request(&mut self, version: usize) -> Duration {
        self.next_request += 1;
        self.step(version, Event::Request(RequestId(self.next_request)))
    }

    fn started(&self) -> Option<EnvironmentId> {
        self.actions.iter().find_map(|action| match action {
            Action::Start(id, _, _) => Some(*id),
            _ => None,
        })
    }

    fn dispatched(&self) -> Option<EnvironmentId> {
        self.actions.iter().find_map(|action| match action {
            Action::Dispatch(_, id) => Some(*id),
            _ => None,
        })
    }

    /// Delivers what versions have to say to each other, environments ending at once, until one is started.
    fn deliver(&mut self) -> Option<(usize, EnvironmentId)> {
        let mut tells: VecDeque<(VersionId, Told)> = VecDeque::new();
        loop {
            tells.extend(self.actions.iter().filter_map(|action| match action {
                Action::Tell(version, told) => Some((*version, *told)),
                _ => None,
            }));
            let (version, told) = tells.pop_front()?;
            let version = self.places[&version];
            self.step(version, Event::Told(told));
            if let Some(id) = self.started() {
                return Some((version, id));
            }
            if let Some(Action::Retire(id)) = self.actions.iter().find(|action| matches!(action, Action::Retire(_))) {
                let id = *id;
                self.step(version, Event::Gone(id));
            }
        }
    }
}

/// A small generator (xorshift), so that runs are alike.
fn numbers() -> impl FnMut(usize) -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

fn line(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{name:<44} {:>9} {:>9?} {:>9?} {:>9?} {:>9?}", times.len(), at(0.5), at(0.99), at(0.999), at(1.0));
}

/// Requests that find an environment; and what is told of it afterwards.
fn warm(name: &str, host: &mut Host) {
    let mut number = numbers();
    let mut in_flight = VecDeque::new();
    let (mut requests, mut settlings, mut idles) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..300_000 {
        let version = number(FUNCTIONS);
        let took = host.request(version);
        if let Some(id) = host.dispatched() {
            requests.push(took);
            in_flight.push_back((version, id));
        }
        if in_flight.len() > IN_FLIGHT
            && let Some((version, id)) = in_flight.pop_front()
        {
            settlings.push(host.step(version, Event::Settling(id)));
            idles.push(host.step(version, Event::Idle(id)));
        }
    }
    for (version, id) in in_flight {
        host.step(version, Event::Idle(id));
    }
    line(&format!("{name}: request, warm"), requests);
    line(&format!("{name}: answered"), settlings);
    line(&format!("{name}: idle again"), idles);
}

/// Requests of functions without an environment on full workers: each has an idle one of another function go.
fn full(name: &str, host: &mut Host) {
    let mut requests = Vec::new();
    for version in FUNCTIONS..FUNCTIONS + OTHERS {
        requests.push(host.request(version));
        let (version, id) = host.deliver().expect("another one goes");
        host.step(version, Event::Ready(id, Initialized::Yes));
        host.step(version, Event::Idle(id));
    }
    line(&format!("{name}: request, cold, on full workers"), requests);
}

#[test]
#[ignore = "prints figures"]
fn decision_cost() {
    println!("{:<44} {:>9} {:>9} {:>9} {:>9} {:>9}", "", "count", "p50", "p99", "p99.9", "most");
    let nothing = (0..300_000).map(|_| Instant::now().elapsed()).collect();
    line("the clock alone", nothing);
    for (name, keep_alive) in [
        ("fixed", KeepAlive::Fixed(Duration::from_secs(600))),
        ("histogram", KeepAlive::Histogram(HistogramRules::default())),
    ] {
        let mut host = Host::new(keep_alive, 1);
        warm(name, &mut host);
        full(name, &mut host);
    }
    let mut host = Host::new(KeepAlive::Fixed(Duration::from_secs(600)), 100);
    full("fixed, 100 workers", &mut host);
}
