//! The pool of one function version: which environment serves which invocation, and when to start or retire one.
//!
//! Pure: events and times come in, actions go out. Every request in here is either dispatched at once or waits, and
//! each waiting request is covered: by an environment that is starting, or, for a short while, by one that has
//! answered its caller and is about to ask for more.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// An environment of this pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnvironmentId(pub u64);

/// An invocation that asks for an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The pool's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a request waits for an environment that has answered and not yet asked for the next invocation,
    /// before one is started for it.
    pub patience: Duration,
    /// How long an environment may be idle before it is retired.
    pub idle_timeout: Duration,
}

/// What happens to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An invocation asks for an environment.
    Request(RequestId),
    /// An environment has been through its first initialization.
    Ready(EnvironmentId, Initialized),
    /// A busy environment has answered its caller.
    Settling(EnvironmentId),
    /// A busy environment can take the next invocation.
    Idle(EnvironmentId),
    /// An environment has ended by itself.
    Gone(EnvironmentId),
    /// The host refused [`Action::Start`].
    StartRefused(EnvironmentId),
    /// Time has passed: [`Action::WakeAt`] came, or the regular look at idle environments.
    Tick,
    /// Keep so many environments initialized.
    SetProvisioned(u32),
    /// The version is no longer current: start nothing ahead of demand, keep nothing.
    Retire,
    /// The host needs room: give up the environment that has been idle longest.
    GiveUpOne,
    /// The server goes down: every environment ends, busy ones too, and none is started any more.
    End,
}

/// How a first initialization ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialized {
    /// The runtime waits for an invocation.
    Yes,
    /// It failed; an invocation will try again.
    Failed,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Hand the request to the environment.
    Dispatch(RequestId, EnvironmentId),
    /// Make an environment.
    Start(EnvironmentId, Purpose),
    /// End an environment. It serves nobody, except after [`Event::End`].
    Retire(EnvironmentId),
    /// There will be no environment for this request: the one started for it did not come to be, or the server goes
    /// down.
    Fail(RequestId),
    /// Send [`Event::Tick`] at this time at the latest.
    WakeAt(Instant),
}

/// What an environment is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Waiting invocations.
    OnDemand,
    /// The provisioned-concurrency setting.
    Provisioned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Busy,
    Settling,
    Idle,
}

#[derive(Debug, Clone, Copy)]
struct Environment {
    state: State,
    provisioned: bool,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    request: RequestId,
    since: Instant,
}

/// The state of a provisioned-concurrency setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Provisioned {
    /// Environments asked for.
    pub requested: u32,
    /// Initialized, busy ones included.
    pub allocated: u32,
    /// Initialized and idle.
    pub available: u32,
    /// An initialization failed since the setting was made.
    pub init_failed: bool,
}

/// One pool.
#[derive(Debug)]
pub struct Pool {
    rules: Rules,
    environments: HashMap<EnvironmentId, Environment>,
    /// Idle on-demand environments with the time since when, the last used last, so the longest idle first.
    idle: VecDeque<(EnvironmentId, Instant)>,
    /// Idle provisioned environments, the last used last.
    reserve: Vec<EnvironmentId>,
    waiting: VecDeque<Waiting>,
    next_id: u64,
    /// How many of `environments` are provisioned.
    provisioned: usize,
    provisioned_target: u32,
    provisioned_failed: bool,
    /// No longer current: what becomes free goes.
    retired: bool,
    /// Nothing is started and nothing is served any more.
    ended: bool,
}

impl Pool {
    /// An empty pool.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            environments: HashMap::new(),
            idle: VecDeque::new(),
            reserve: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 0,
            provisioned: 0,
            provisioned_target: 0,
            provisioned_failed: false,
            retired: false,
            ended: false,
        }
    }

    /// Whether a new pool would be no different from this one, but for what it has seen.
    pub fn is_empty(&self) -> bool {
        self.environments.is_empty() && self.waiting.is_empty() && self.provisioned_target == 0
    }

    /// Whether the pool waits for this environment, serves with it or keeps it.
    pub fn has(&self, id: EnvironmentId) -> bool {
        self.environments.contains_key(&id)
    }

    /// Since when the environment that [`Event::GiveUpOne`] would take has been idle.
    pub fn oldest_idle(&self) -> Option<Instant> {
        self.idle.front().map(|(_, since)| *since)
    }

    /// The provisioned setting and how far it has been carried out.
    pub fn provisioned(&self) -> Provisioned {
        let count = |wanted: fn(State) -> bool| {
            let found = self.environments.values().filter(|e| e.provisioned && wanted(e.state)).count();
            u32::try_from(found).unwrap_or(u32::MAX)
        };
        Provisioned {
            requested: self.provisioned_target,
            allocated: count(|s| s != State::Starting),
            available: count(|s| s == State::Idle),
            init_failed: self.provisioned_failed,
        }
    }

    /// Takes one event; appends what to do to `actions`.
    pub fn step(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Request(request) => self.request(request, now, actions),
            Event::Ready(id, Initialized::Failed) if self.is_provisioned(id) => {
                self.provisioned_failed = true;
                if self.waiting.is_empty() {
                    self.retire(id, actions);
                } else {
                    self.free(id, now, actions);
                }
            }
            Event::Ready(id, _) | Event::Idle(id) => self.free(id, now, actions),
            Event::Settling(id) => self.set_state(id, State::Settling),
            Event::Gone(id) | Event::StartRefused(id) => self.gone(id, now, actions),
            Event::Tick => {
                self.expire(now, actions);
                self.cover(now, actions);
            }
            // Somebody still had hold of the pool when it was retired.
            Event::SetProvisioned(_) if self.retired => {}
            Event::SetProvisioned(count) => {
                self.provisioned_target = count;
                self.provisioned_failed = false;
                self.provision(actions);
            }
            Event::Retire => {
                self.retired = true;
                self.provisioned_target = 0;
                self.provision(actions);
                while self.give_up_idle(actions) {}
            }
            Event::GiveUpOne => {
                self.give_up_idle(actions);
            }
            Event::End => self.end(actions),
        }
    }

    fn request(&mut self, request: RequestId, now: Instant, actions: &mut Vec<Action>) {
        if self.ended {
            actions.push(Action::Fail(request));
            return;
        }
        // Provisioned environments first: what was paid for is used before what happens to be there.
        match self.reserve.pop().or_else(|| self.idle.pop_back().map(|(id, _)| id)) {
            Some(id) => {
                self.set_state(id, State::Busy);
                actions.push(Action::Dispatch(request, id));
            }
            None => {
                self.waiting.push_back(Waiting { request, since: now });
                self.cover(now, actions);
            }
        }
    }

    /// An environment is free: it serves the request that has waited longest, or rests.
    fn free(&mut self, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        if !self.environments.contains_key(&id) {
            return;
        }
        if let Some(next) = self.waiting.pop_front() {
            self.set_state(id, State::Busy);
            actions.push(Action::Dispatch(next.request, id));
        } else if self.retired || self.is_surplus(id) {
            self.retire(id, actions);
        } else {
            self.set_state(id, State::Idle);
            if self.is_provisioned(id) {
                self.reserve.push(id);
            } else {
                self.idle.push_back((id, now));
            }
        }
    }

    fn gone(&mut self, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let Some(gone) = self.remove(id) else { return };
        self.idle.retain(|(idle, _)| *idle != id);
        self.reserve.retain(|idle| *idle != id);
        if gone.state == State::Starting {
            if gone.provisioned {
                self.provisioned_failed = true;
            } else if self.waiting.len() > self.count(State::Starting)
                && let Some(waiting) = self.waiting.pop_front()
            {
                actions.push(Action::Fail(waiting.request));
            }
        }
        self.cover(now, actions);
        self.provision(actions);
    }

    /// Starts what the waiting requests need beyond what is on its way.
    fn cover(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(first) = self.waiting.front().copied() else { return };
        let impatient = self.waiting.iter().filter(|w| now - w.since >= self.rules.patience).count();
        let settling = self.count(State::Settling);
        let patient = self.waiting.len() - impatient;
        let needed = impatient + patient.saturating_sub(settling);
        for _ in self.count(State::Starting)..needed {
            self.start(Purpose::OnDemand, actions);
        }
        if patient > 0 && settling > 0 {
            let first_patient = self.waiting.get(impatient).map_or(first.since, |w| w.since);
            actions.push(Action::WakeAt(first_patient + self.rules.patience));
        }
    }

    fn provision(&mut self, actions: &mut Vec<Action>) {
        let target = self.provisioned_target as usize;
        while self.provisioned > target {
            // Idle ones go now; busy and starting ones are retired when they become free.
            let Some(id) = self.reserve.pop() else { break };
            self.retire(id, actions);
        }
        while self.provisioned < target && !self.provisioned_failed {
            self.start(Purpose::Provisioned, actions);
        }
    }

    /// Whether this provisioned environment is one more than the setting asks for.
    fn is_surplus(&self, id: EnvironmentId) -> bool {
        self.provisioned > self.provisioned_target as usize && self.is_provisioned(id)
    }

    fn start(&mut self, purpose: Purpose, actions: &mut Vec<Action>) {
        let id = EnvironmentId(self.next_id);
        self.next_id += 1;
        let provisioned = purpose == Purpose::Provisioned;
        self.environments.insert(id, Environment { state: State::Starting, provisioned });
        self.provisioned += usize::from(provisioned);
        actions.push(Action::Start(id, purpose));
    }

    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while self.oldest_idle().is_some_and(|since| now - since >= self.rules.idle_timeout) {
            self.give_up_idle(actions);
        }
    }

    /// Retires the on-demand environment that has been idle longest.
    fn give_up_idle(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some((id, _)) = self.idle.pop_front() else { return false };
        self.retire(id, actions);
        true
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        self.retired = true;
        self.ended = true;
        self.provisioned_target = 0;
        self.idle.clear();
        self.reserve.clear();
        actions.extend(self.waiting.drain(..).map(|waiting| Action::Fail(waiting.request)));
        actions.extend(self.environments.drain().map(|(id, _)| Action::Retire(id)));
        self.provisioned = 0;
    }

    fn retire(&mut self, id: EnvironmentId, actions: &mut Vec<Action>) {
        self.remove(id);
        actions.push(Action::Retire(id));
    }

    fn remove(&mut self, id: EnvironmentId) -> Option<Environment> {
        let removed = self.environments.remove(&id)?;
        self.provisioned -= usize::from(removed.provisioned);
        Some(removed)
    }

    fn set_state(&mut self, id: EnvironmentId, state: State) {
        if let Some(environment) = self.environments.get_mut(&id) {
            environment.state = state;
        }
    }

    fn count(&self, state: State) -> usize {
        // Only asked when nothing is idle, so the table is as small as the number of invocations in flight.
        self.environments.values().filter(|e| e.state == state && !(state == State::Starting && e.provisioned)).count()
    }

    fn is_provisioned(&self, id: EnvironmentId) -> bool {
        self.environments.get(&id).is_some_and(|e| e.provisioned)
    }
}

#[cfg(test)]
mod tests;
