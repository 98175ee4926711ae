//! One function version: which environment serves which invocation, and when to start, keep or retire one.
//!
//! An environment waits for a place on a worker, starts, is up, and ends; while it is up it has as many slots as its
//! function's invocations may share (one, today), and is idle when all of them are free:
//!
//! ```text
//!   wanted --room--> starting --ready--> idle <--> busy, settling
//!      |                |                  |         |
//!   cancelled          gone             leaving <----+ (gone)
//! ```
//!
//! Every request that was let in is dispatched at once or waits, and each waiting one is covered: by an environment that
//! is starting or waits for a place, or, for a while, by one that will soon be free.

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
mod cover;
mod figures;

pub use figures::{Provisioned, VersionFigures};

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
    /// How many invocations are answered whose slots are not free yet.
    settling: usize,
    next_id: u64,
    /// How many of `environments` are provisioned.
    provisioned: usize,
    provisioned_target: u32,
    provisioned_failed: bool,
    keeper: Keeper,
    /// When one is to be made ahead of an expected invocation, and until when it is to be kept.
    expected: Option<(Instant, Instant)>,
    /// Invocations since there were environments.
    uses: u32,
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
    /// Whether it has served at all.
    used: bool,
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
            settling: 0,
            next_id: 0,
            provisioned: 0,
            provisioned_target: 0,
            provisioned_failed: false,
            keeper: Keeper::new(shared.rules.keep_alive),
            expected: None,
            uses: 0,
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

    /// Whether nothing is lost if it is forgotten: a new one would do the same.
    pub fn is_forgettable(&self, now: Instant) -> bool {
        let remembers = !self.retired && self.keeper.remembers(now.saturating_duration_since(self.last_used));
        self.is_empty() && self.expected.is_none() && !remembers
    }

    /// Takes one event; appends what to do to `actions`.
    pub fn step(&mut self, shared: &Shared, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Request(request) => self.request(shared, request, now, actions),
            Event::Ready(id, initialized) => self.ready(shared, id, initialized, now, actions),
            Event::Settling(id) => self.settling(id, now),
            Event::Idle(id) => self.slot_free(shared, id, now, actions),
            Event::Gone(id) => self.gone(shared, id, now, actions),
            Event::Tick => self.tick(shared, now, actions),
            // Somebody still had hold of the version when it was retired.
            Event::SetProvisioned(_) if self.retired => {}
            Event::SetProvisioned(count) => {
                self.provisioned_target = count;
                self.provisioned_failed = false;
                self.provision(shared, now, actions);
            }
            Event::Retire => {
                self.retired = true;
                self.expected = None;
                self.provisioned_target = 0;
                self.provision(shared, now, actions);
                while let Some(id) = self.idle.pop_front() {
                    self.retire(shared, id, actions);
                }
            }
            Event::End => self.end(shared, actions),
            Event::Told(Told::Room(id)) => self.room(shared, id, now, actions),
            Event::Told(Told::Evict(id)) => self.evict(shared, id, actions),
        }
    }

    fn request(&mut self, shared: &Shared, request: RequestId, now: Instant, actions: &mut Vec<Action>) {
        if self.ended {
            actions.push(Action::Fail(request));
            return;
        }
        let ticket = match self.function.enter(shared.nanos(now)) {
            Ok(ticket) => ticket,
            Err(throttle) => {
                actions.push(Action::Throttle(request, throttle));
                return;
            }
        };
        self.expected = None;
        match self.take_free(shared, now) {
            Some(id) => self.dispatch(shared, request, ticket, id, now, actions),
            None => {
                let patient_until = now + self.patience(shared, now);
                self.waiting.push_back(Waiting { request, ticket, since: now, patient_until });
                self.cover(shared, now, actions);
            }
        }
    }

    /// An environment with a free slot. First those at work, so that the idle ones stay idle; then provisioned ones:
    /// what was paid for is used before what happens to be there.
    fn take_free(&mut self, shared: &Shared, now: Instant) -> Option<EnvironmentId> {
        if let Some(id) = self.open.last() {
            return Some(*id);
        }
        let id = self.reserve.pop().or_else(|| self.idle.pop_back())?;
        if let Some(up) = self.up(id) {
            let idle = now.saturating_duration_since(up.last_used);
            shared.fleet.works(&up.seat);
            self.keeper.reused(idle);
        }
        Some(id)
    }

    fn dispatch(
        &mut self,
        shared: &Shared,
        request: RequestId,
        ticket: Ticket,
        id: EnvironmentId,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let slots = self.slots;
        let Some(Environment { purpose, stage: Stage::Up(up) }) = self.environments.get_mut(&id) else { return };
        let purpose = *purpose;
        up.flights.push(Flight { since: now, _ticket: ticket });
        let first = !std::mem::replace(&mut up.used, true);
        let has_slots = up.taken() < slots;
        if first && purpose == Purpose::Prewarm {
            shared.prewarms_used.fetch_add(1, Ordering::Relaxed);
        }
        if slots > 1 {
            self.open.retain(|open| *open != id);
            if has_slots {
                self.open.push(id);
            }
        }
        if self.provisioned_target > 0 && purpose != Purpose::Provisioned {
            self.function.spilled();
        }
        self.uses = self.uses.saturating_add(1);
        actions.push(Action::Dispatch(request, id));
    }

    fn ready(
        &mut self,
        shared: &Shared,
        id: EnvironmentId,
        initialized: Initialized,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let last_used = self.last_used;
        let Some(environment) = self.environments.get_mut(&id) else { return };
        let Stage::Starting { seat, since } = &environment.stage else { return };
        let took = now.saturating_duration_since(*since);
        // One that was made ahead is as old as the use that it takes over.
        let last_used = if environment.purpose == Purpose::Prewarm { last_used } else { now };
        let seat = Arc::clone(seat);
        let up = Up { seat, flights: Vec::new(), settling: 0, last_used, keep_until: now, used: false };
        environment.stage = Stage::Up(up);
        match environment.purpose {
            Purpose::OnDemand | Purpose::Prewarm => self.starting -= 1,
            Purpose::Provisioned => {}
        }
        match initialized {
            Initialized::Yes => self.cold.record(took),
            Initialized::Failed if self.is_provisioned(id) => {
                self.provisioned_failed = true;
                if self.waiting.is_empty() {
                    self.retire(shared, id, actions);
                    return;
                }
            }
            Initialized::Failed => {}
        }
        self.free(shared, id, now, actions);
    }

    /// An invocation is answered; its place in the account is free before the caller knows.
    fn settling(&mut self, id: EnvironmentId, now: Instant) {
        if let Some(up) = self.up(id)
            && !up.flights.is_empty()
        {
            let flight = up.flights.remove(0);
            up.settling += 1;
            self.settling += 1;
            self.run.record(now.saturating_duration_since(flight.since));
        }
    }

    fn slot_free(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let Some(up) = self.up(id) else { return };
        if up.settling == 0 {
            if up.flights.is_empty() {
                return;
            }
            self.settling(id, now);
        }
        let Some(up) = self.up(id) else { return };
        up.settling -= 1;
        up.last_used = now;
        self.settling -= 1;
        self.last_used = now;
        self.free(shared, id, now, actions);
    }

    /// An environment has a free slot, or several: it serves those who have waited longest, or rests.
    fn free(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let (slots, evictable) = (self.slots, !self.is_provisioned(id));
        let Some(up) = self.up(id) else { return };
        let (mut left, seat) = (slots - up.taken().min(slots), Arc::clone(&up.seat));
        let unused = left == slots;
        if unused && evictable && !self.waiting.is_empty() && shared.fleet.is_hungry() && shared.fleet.is_owed(&seat) {
            self.retire(shared, id, actions);
            self.cover(shared, now, actions);
            return;
        }
        let mut served = false;
        while left > 0
            && let Some(next) = self.waiting.pop_front()
        {
            self.dispatch(shared, next.request, next.ticket, id, now, actions);
            (left, served) = (left - 1, true);
        }
        if served {
            self.cancel_surplus(shared, actions);
        } else if unused {
            self.open.retain(|open| *open != id);
            if self.retired || self.is_surplus(id) {
                self.retire(shared, id, actions);
            } else {
                self.rest(shared, id, now, actions);
            }
        } else if !self.open.contains(&id) {
            self.open.push(id);
        }
    }

    /// An environment is idle.
    fn rest(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        if self.is_provisioned(id) {
            self.reserve.push(id);
            return;
        }
        self.idle.push_back(id);
        let value = self.value();
        self.keep(id, now, actions);
        if let Some(up) = self.up(id) {
            let seat = Arc::clone(&up.seat);
            shared.fleet.rests(&seat, value, shared.nanos(now));
            if shared.fleet.is_hungry() {
                shared.fleet.reconsider(actions);
            }
        }
    }

    /// What an idle environment saves, for a MiB: the time of a start, as often as it has been of use. Times of the same
    /// order are the same, since they vary by as much.
    fn value(&self) -> f64 {
        let cost = self.cold.mean().unwrap_or_default().as_millis().max(64);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX).checked_next_power_of_two().unwrap_or(1 << 63);
        f64::from(self.uses.max(1)) * cost as f64 / f64::from(self.size.memory_mb.max(1))
    }

    fn gone(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        if let Some(seat) = self.leaving.remove(&id) {
            shared.fleet.gone(&seat, actions);
            return;
        }
        let Some(gone) = self.remove(id) else { return };
        let provisioned = gone.purpose == Purpose::Provisioned;
        match gone.stage {
            // The driver has not heard of it.
            Stage::Wanted { .. } => {}
            Stage::Starting { seat, .. } => {
                if provisioned {
                    self.provisioned_failed = true;
                } else if self.waiting.len() > self.starting + self.wanted.len()
                    && let Some(waiting) = self.waiting.pop_front()
                {
                    drop(waiting.ticket);
                    actions.push(Action::Fail(waiting.request));
                }
                shared.fleet.gone(&seat, actions);
            }
            Stage::Up(up) => shared.fleet.gone(&up.seat, actions),
        }
        self.cover(shared, now, actions);
        self.provision(shared, now, actions);
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
                if environment.purpose == Purpose::Prewarm && !up.used {
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
        let on_demand = match removed.purpose {
            Purpose::OnDemand | Purpose::Prewarm => true,
            Purpose::Provisioned => false,
        };
        self.provisioned -= usize::from(!on_demand);
        match &removed.stage {
            Stage::Wanted { .. } => self.wanted.retain(|wanted| *wanted != id),
            Stage::Starting { .. } => self.starting -= usize::from(on_demand),
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
        if self.environments.is_empty() {
            self.uses = 0;
        }
        Some(removed)
    }

    fn want(&self, environment: EnvironmentId, purpose: Purpose) -> Want {
        let evictable = purpose != Purpose::Provisioned;
        Want { function: self.function.id(), version: self.id, environment, size: self.size, evictable }
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
        self.provisioned > self.provisioned_target as usize && self.is_provisioned(id)
    }
}

#[cfg(test)]
mod tests;
