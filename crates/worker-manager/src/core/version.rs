//! One function version: which environment serves which invocation, and when to start, keep or retire one.
//!
//! An environment waits for a place on a worker, starts, is up, and ends; while it is up it has as many slots as its
//! function's invocations may share (one, unless its configuration asks for more), and is idle when all of them are free:
//!
//! ```text
//!   wanted --room--> starting --ready--> idle <--> busy, settling
//!      |                |                  |         |
//!   cancelled          gone             leaving <----+ (gone)
//! ```
//!
//! Every request that was let in is dispatched at once or waits, and each waiting one is covered: by a slot of an environment
//! that is starting or waits for a place, or, for a while, by one that will soon be free.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::concurrency::{Function, Ticket};
use super::estimate::Estimate;
use super::event::{
    Action, EnvironmentId, Event, Initialized, Purpose, RequestId, Throttle, ThrottleReason, Told, VersionId,
};
use super::fleet::{Placement, Seat, Want};
use super::keep_alive::Keeper;
use super::placement::Size;
use super::shared::Shared;

mod ahead;
mod bounds;
mod cover;
mod figures;
mod serve;

pub use figures::{ProvisionFailure, Provisioned, VersionFigures};

/// A function version and its environments, as far as decisions go.
#[derive(Debug)]
pub struct Version {
    id: VersionId,
    function: Arc<Function>,
    size: Size,
    /// Invocations that an environment takes at once.
    slots: usize,
    environments: BTreeMap<EnvironmentId, Environment>,
    /// Told to end, and not gone yet.
    leaving: BTreeMap<EnvironmentId, Arc<Seat>>,
    /// Idle environments that may go, the last used last.
    idle: VecDeque<EnvironmentId>,
    /// Idle provisioned environments, the last used last.
    reserve: Vec<EnvironmentId>,
    /// Environments at work that have slots left; empty where there is but one.
    open: Vec<EnvironmentId>,
    waiting: VecDeque<Waiting>,
    /// Environments for waiting requests that have no place yet, the oldest first.
    wanted: VecDeque<EnvironmentId>,
    /// How many environments that waiting requests will get are starting.
    starting: usize,
    /// How many provisioned environments are starting, or wait for a place.
    provisioned_coming: usize,
    /// How many environments are for the version's snapshot.
    making: usize,
    /// How many invocations are answered whose slots are not free yet.
    settling: usize,
    next_id: u64,
    /// How many of `environments` are provisioned.
    provisioned: usize,
    provisioned_target: u32,
    provisioned_failed: Option<ProvisionFailure>,
    /// No more environments than this at once, where there is a number. Those that leave do not count, nor those that serve
    /// nobody.
    most: Option<u32>,
    keeper: Keeper,
    /// When one is to be made ahead of an expected invocation, and until when it is to be kept.
    expected: Option<(Instant, Instant)>,
    last_used: Instant,
    /// From the start of an environment until it is ready.
    cold: Estimate,
    /// From dispatch to answer.
    run: Estimate,
    /// The earliest wake-up that was asked for and has not come.
    alarm: Option<Instant>,
    /// No longer current: what becomes free goes.
    retired: bool,
    /// Nothing is started and nothing is served any more.
    ended: bool,
}

#[derive(Debug)]
struct Environment {
    purpose: Purpose,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Waits for a place.
    Wanted { since: Instant },
    /// Has one and is being made.
    Starting { seat: Arc<Seat>, since: Instant },
    /// Can serve.
    Up(Up),
}

#[derive(Debug)]
struct Up {
    seat: Arc<Seat>,
    /// Invocations in here that are not answered.
    flights: Vec<Flight>,
    /// Invocations that are answered and whose slots are not free yet.
    settling: usize,
    /// Idle since, where it is idle.
    last_used: Instant,
    /// Idle until, where it is idle and may go.
    keep_until: Instant,
    /// Invocations that it was given.
    uses: u32,
}

impl Up {
    fn taken(&self) -> usize {
        self.flights.len() + self.settling
    }
}

#[derive(Debug)]
struct Flight {
    since: Instant,
    /// Held for its drop.
    _ticket: Ticket,
}

#[derive(Debug)]
struct Waiting {
    request: RequestId,
    ticket: Ticket,
    since: Instant,
    /// From then on it counts on nobody but a new environment.
    patient_until: Instant,
}

impl Version {
    /// A version of `function` without environments, each of which will be of that size and take `slots` invocations at
    /// once.
    pub fn new(shared: &Shared, function: &Arc<Function>, size: Size, slots: u32, now: Instant) -> Self {
        Self {
            id: shared.version_id(),
            function: Arc::clone(function),
            size,
            slots: slots.max(1) as usize,
            environments: BTreeMap::new(),
            leaving: BTreeMap::new(),
            idle: VecDeque::new(),
            reserve: Vec::new(),
            open: Vec::new(),
            waiting: VecDeque::new(),
            wanted: VecDeque::new(),
            starting: 0,
            provisioned_coming: 0,
            making: 0,
            settling: 0,
            next_id: 0,
            provisioned: 0,
            provisioned_target: 0,
            provisioned_failed: None,
            most: None,
            keeper: Keeper::new(shared.rules.keep_alive),
            expected: None,
            last_used: now,
            cold: Estimate::default(),
            run: Estimate::default(),
            alarm: None,
            retired: false,
            ended: false,
        }
    }

    /// Its name in the core.
    pub fn id(&self) -> VersionId {
        self.id
    }

    /// Whether it has nothing and waits for nothing.
    pub fn is_empty(&self) -> bool {
        self.environments.is_empty()
            && self.leaving.is_empty()
            && self.waiting.is_empty()
            && self.provisioned_target == 0
    }

    /// Whether provisioned environments are missing that are not made any more, since that has failed.
    pub fn falls_short(&self) -> bool {
        self.provisioned_failed.is_some() && self.provisioned < self.to_provision()
    }

    /// Whether nothing is lost if it is forgotten: a new one would do the same.
    pub fn is_forgettable(&self, now: Instant) -> bool {
        let learned = || self.keeper.remembers(now.saturating_duration_since(self.last_used));
        let remembers = !self.retired && (self.most.is_some() || learned());
        self.is_empty() && self.expected.is_none() && !remembers
    }

    /// Takes one event; appends what to do to `actions`.
    pub fn step(&mut self, shared: &Shared, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Request(request) => self.request(shared, request, now, actions),
            Event::Ready(id, initialized) => self.ready(shared, id, initialized, now, actions),
            Event::Settling(id) => self.settling(id, now),
            Event::Idle(id) => self.slot_free(shared, id, now, actions),
            Event::Gone(id) => self.gone(shared, id, ProvisionFailure::Initialization, now, actions),
            Event::Refused(id) => self.gone(shared, id, ProvisionFailure::NoRoom, now, actions),
            Event::Tick => self.tick(shared, now, actions),
            Event::Initialize => self.initialize(shared, now, actions),
            // Somebody still had hold of the version when it was retired.
            Event::SetProvisioned(_) | Event::SetMost(_) if self.retired => {}
            Event::SetProvisioned(count) => {
                self.provisioned_target = count;
                self.provisioned_failed = None;
                self.provision(shared, now, actions);
                self.cover(shared, now, actions);
            }
            Event::SetMost(most) => {
                if std::mem::replace(&mut self.most, most) != most {
                    self.bound(shared, now, actions);
                }
            }
            Event::Retire => {
                self.retired = true;
                self.expected = None;
                self.provisioned_target = 0;
                self.provision(shared, now, actions);
                while let Some(id) = self.idle.pop_front() {
                    self.retire(shared, id, actions);
                }
                self.cover(shared, now, actions);
            }
            Event::End => self.end(shared, actions),
            Event::Told(Told::Room(id)) => self.room(shared, id, now, actions),
            Event::Told(Told::Evict(id)) => self.evict(shared, id, actions),
        }
    }

    /// An environment has ended; `failure` is why, if it was never ready.
    fn gone(
        &mut self,
        shared: &Shared,
        id: EnvironmentId,
        failure: ProvisionFailure,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Some(seat) = self.leaving.remove(&id) {
            shared.fleet.gone(&seat, actions);
            return;
        }
        let Some(gone) = self.remove(id) else { return };
        match gone.stage {
            // The driver has not heard of it.
            Stage::Wanted { .. } => {}
            Stage::Starting { seat, .. } => {
                match gone.purpose {
                    Purpose::Provisioned => self.provisioned_failed = Some(failure),
                    Purpose::OnDemand | Purpose::Prewarm => self.fail_uncovered(actions),
                    Purpose::Snapshot => {}
                }
                shared.fleet.gone(&seat, actions);
            }
            Stage::Up(up) => shared.fleet.gone(&up.seat, actions),
        }
        self.cover(shared, now, actions);
        self.provision(shared, now, actions);
    }

    /// An environment did not come to be: as many requests as it would have served fail.
    fn fail_uncovered(&mut self, actions: &mut Vec<Action>) {
        let lost = self.waiting.len().saturating_sub(self.coming()).min(self.slots);
        for waiting in self.waiting.drain(..lost) {
            drop(waiting.ticket);
            actions.push(Action::Fail(waiting.request));
        }
    }

    fn evict(&mut self, shared: &Shared, id: EnvironmentId, actions: &mut Vec<Action>) {
        let at = self.idle.iter().position(|idle| *idle == id);
        let Some(up) = self.up(id) else { return };
        let (seat, last_used) = (Arc::clone(&up.seat), up.last_used);
        match at {
            Some(at) if shared.fleet.has_to_go(&seat) => {
                self.idle.remove(at);
                self.keeper.expired(last_used);
                self.retire(shared, id, actions);
            }
            Some(_) | None => shared.fleet.decline(&seat, actions),
        }
    }

    fn tick(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        self.alarm = self.alarm.filter(|alarm| *alarm > now);
        self.expire(shared, now, actions);
        self.prewarm(shared, now, actions);
        self.refuse(shared, now, actions);
        self.cover(shared, now, actions);
        // Of the wake-ups that were asked for, this was the only one to come.
        self.wake_for_room(shared, actions);
        self.wake_for_idle(actions);
    }

    fn end(&mut self, shared: &Shared, actions: &mut Vec<Action>) {
        self.retired = true;
        self.ended = true;
        self.expected = None;
        self.provisioned_target = 0;
        for Waiting { request, ticket, .. } in std::mem::take(&mut self.waiting) {
            drop(ticket);
            actions.push(Action::Fail(request));
        }
        let ids: Vec<EnvironmentId> = self.environments.keys().copied().collect();
        for id in ids {
            self.retire(shared, id, actions);
        }
        self.idle.clear();
        self.reserve.clear();
        self.open.clear();
    }

    /// Ends an environment. The caller has taken it out of the lists of the idle.
    fn retire(&mut self, shared: &Shared, id: EnvironmentId, actions: &mut Vec<Action>) {
        let Some(environment) = self.remove(id) else { return };
        let seat = match environment.stage {
            Stage::Wanted { .. } => {
                let want = self.want(id, environment.purpose);
                if environment.purpose == Purpose::OnDemand {
                    self.function.scale_back();
                }
                shared.fleet.cancel(&want, actions);
                return;
            }
            Stage::Starting { seat, .. } => seat,
            Stage::Up(up) => {
                if environment.purpose == Purpose::Prewarm && up.uses == 0 {
                    shared.prewarms_unused.fetch_add(1, Ordering::Relaxed);
                }
                up.seat
            }
        };
        actions.push(Action::Retire(id));
        shared.fleet.leave(&seat, actions);
        self.leaving.insert(id, seat);
    }

    /// Takes an environment out of the tables.
    fn remove(&mut self, id: EnvironmentId) -> Option<Environment> {
        let removed = self.environments.remove(&id)?;
        let on_demand = removed.purpose.is_on_demand();
        let provisioned = usize::from(removed.purpose == Purpose::Provisioned);
        self.provisioned -= provisioned;
        self.making -= usize::from(removed.purpose == Purpose::Snapshot);
        match &removed.stage {
            Stage::Wanted { .. } => {
                self.wanted.retain(|wanted| *wanted != id);
                self.provisioned_coming -= provisioned;
            }
            Stage::Starting { .. } => {
                self.starting -= usize::from(on_demand);
                self.provisioned_coming -= provisioned;
            }
            Stage::Up(up) => {
                self.settling -= up.settling;
                if up.taken() == 0 {
                    self.idle.retain(|idle| *idle != id);
                    self.reserve.retain(|idle| *idle != id);
                } else if self.slots > 1 {
                    self.open.retain(|open| *open != id);
                }
            }
        }
        Some(removed)
    }

    fn want(&self, environment: EnvironmentId, purpose: Purpose) -> Want {
        let evictable = purpose.is_on_demand();
        let value = self.value(1);
        Want { function: self.function.id(), version: self.id, environment, size: self.size, evictable, value }
    }

    /// Asks to be woken, unless that will happen earlier anyway.
    fn wake(&mut self, at: Instant, actions: &mut Vec<Action>) {
        if self.alarm.is_none_or(|alarm| at < alarm) {
            self.alarm = Some(at);
            actions.push(Action::WakeAt(at));
        }
    }

    fn up(&mut self, id: EnvironmentId) -> Option<&mut Up> {
        match &mut self.environments.get_mut(&id)?.stage {
            Stage::Up(up) => Some(up),
            Stage::Wanted { .. } | Stage::Starting { .. } => None,
        }
    }

    fn is_provisioned(&self, id: EnvironmentId) -> bool {
        self.environments.get(&id).is_some_and(|environment| environment.purpose == Purpose::Provisioned)
    }

    /// Whether this provisioned environment is one more than the setting asks for.
    fn is_surplus(&self, id: EnvironmentId) -> bool {
        self.provisioned > self.to_provision() && self.is_provisioned(id)
    }
}

#[cfg(test)]
mod tests;
