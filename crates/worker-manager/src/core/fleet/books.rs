//! The books: what each worker holds, which functions have how much of them, and who waits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::victims::{self, Candidates};
use super::{Fleet, Key, Seat, Want};
use crate::core::event::{Action, FunctionId, Told};
use crate::core::placement::{self, Load, Size, WorkerLimits};

#[derive(Debug)]
pub(super) struct Books {
    pub(super) hosts: Vec<Host>,
    pub(super) functions: BTreeMap<FunctionId, Share>,
    /// Functions with wants; the next first.
    pub(super) turns: VecDeque<FunctionId>,
    /// Places that were found for those who waited and that they have not taken yet.
    pub(super) granted: HashMap<Key, Arc<Seat>>,
    /// Environments that were asked to go and are still there, and for whom.
    pub(super) asked: HashMap<Key, (FunctionId, Key)>,
    pub(super) evictions: u64,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) limits: WorkerLimits,
    pub(super) load: Load,
    /// Environments that do not count though they have not ended.
    pub(super) lent: u32,
    pub(super) candidates: Candidates,
}

/// What a function has of the workers.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) seats: u32,
    pub(super) wants: VecDeque<Pending>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) want: Want,
    /// How many environments were asked to go for it and have neither gone nor declined.
    pub(super) asked: u32,
}

impl Books {
    pub(super) fn new(workers: &[WorkerLimits]) -> Self {
        let host = |limits: &WorkerLimits| Host {
            limits: *limits,
            load: Load::default(),
            lent: 0,
            candidates: Candidates::default(),
        };
        Self {
            hosts: workers.iter().map(host).collect(),
            functions: BTreeMap::new(),
            turns: VecDeque::new(),
            granted: HashMap::new(),
            asked: HashMap::new(),
            evictions: 0,
        }
    }

    pub(super) fn best_fit(&self, size: Size) -> Option<usize> {
        placement::best_fit(self.hosts.iter().map(|host| (&host.limits, &host.load)), size)
    }

    pub(super) fn seat(&mut self, want: Want, worker: usize, clock: &AtomicU64) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            want,
            worker,
            idle: AtomicBool::new(false),
            worth: AtomicU64::new(0),
            value: AtomicU64::new(want.value.to_bits()),
            since: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            lent: AtomicBool::new(false),
        });
        let host = &mut self.hosts[worker];
        host.load.add(want.size);
        if want.evictable {
            host.candidates.push_busy(Arc::clone(&seat), clock);
        }
        self.functions.entry(want.function).or_default().seats += 1;
        seat
    }

    /// The environment is no candidate any more, and its function has one less. Once.
    pub(super) fn leave(&mut self, seat: &Seat) {
        if seat.leaving.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.asked.contains_key(&seat.key()) {
            self.evictions += 1;
        }
        self.hosts[seat.worker].candidates.left();
        if let Some(share) = self.functions.get_mut(&seat.want.function) {
            share.seats -= 1;
        }
        self.forget(seat.want.function);
    }

    /// Its environment is no more, and the place is free, if it was not lent before.
    pub(super) fn free(&mut self, seat: &Seat) {
        self.answered(seat);
        let host = &mut self.hosts[seat.worker];
        if seat.lent.load(Ordering::Relaxed) {
            host.lent -= 1;
        } else {
            host.load.remove(seat.want.size);
        }
    }

    /// Whether an environment had been asked to go; now it has, or will not.
    pub(super) fn answered(&mut self, seat: &Seat) -> bool {
        let Some((function, key)) = self.asked.remove(&seat.key()) else { return false };
        if let Some(share) = self.functions.get_mut(&function)
            && let Some(pending) = share.wants.iter_mut().find(|pending| pending.want.key() == key)
        {
            pending.asked -= 1;
        }
        true
    }

    /// A function that has nothing and wants nothing is not kept.
    pub(super) fn forget(&mut self, function: FunctionId) {
        let Some(share) = self.functions.get(&function) else { return };
        if share.wants.is_empty() {
            self.turns.retain(|turn| *turn != function);
            if share.seats == 0 {
                self.functions.remove(&function);
            }
        }
    }

    /// Gives out places, then asks idle environments to go for those who still wait. `own` is told by the caller.
    pub(super) fn serve(&mut self, fleet: &Fleet, own: Option<Key>, actions: &mut Vec<Action>) {
        while let Some((want, worker)) = self.next() {
            fleet.hungry.fetch_sub(1, Ordering::Relaxed);
            let seat = self.seat(want, worker, &fleet.clock);
            self.granted.insert(want.key(), seat);
            if own != Some(want.key()) {
                actions.push(Action::Tell(want.version, Told::Room(want.environment)));
            }
            self.turns.retain(|turn| *turn != want.function);
            if let Some(share) = self.functions.get_mut(&want.function) {
                share.wants.retain(|pending| pending.want.key() != want.key());
                if !share.wants.is_empty() {
                    self.turns.push_back(want.function);
                }
            }
        }
        if !self.turns.is_empty() {
            self.ask(fleet, actions);
        }
    }

    /// The function with the fewest environments for whose next one there is room; among equals, the one whose turn it
    /// is.
    fn next(&self) -> Option<(Want, usize)> {
        let mut wanting: Vec<&Share> = self.turns.iter().filter_map(|function| self.functions.get(function)).collect();
        wanting.sort_by_key(|share| share.seats);
        let mut hopeless = Hopeless::default();
        wanting.into_iter().flat_map(|share| &share.wants).find_map(|Pending { want, .. }| {
            let fit = hopeless.unless(want.size, |size| self.best_fit(size));
            Some((*want, fit?))
        })
    }

    /// Asks idle environments to go for those who wait and for whom nobody was asked yet.
    fn ask(&mut self, fleet: &Fleet, actions: &mut Vec<Action>) {
        let Self { hosts, functions, turns, asked, .. } = self;
        let mut hopeless = Hopeless::default();
        for function in turns.iter() {
            let Some(share) = functions.get_mut(function) else { continue };
            for pending in share.wants.iter_mut().filter(|pending| pending.asked == 0) {
                if fleet.idle.iter().all(|idle| idle.load(Ordering::Relaxed) == 0) {
                    return;
                }
                let want = pending.want;
                let victims = hopeless.unless(want.size, |size| victims::choose(hosts, fleet, size));
                for seat in victims.unwrap_or_default() {
                    let worth = seat.worth.load(Ordering::Relaxed);
                    fleet.clock.fetch_max(worth, Ordering::Relaxed);
                    asked.insert(seat.key(), (want.function, want.key()));
                    pending.asked += 1;
                    actions.push(Action::Tell(seat.want.version, Told::Evict(seat.want.environment)));
                }
            }
        }
    }
}

/// The smallest size for which there was nothing: nothing as large has to be looked for again.
#[derive(Default)]
struct Hopeless(Option<Size>);

impl Hopeless {
    fn unless<T>(&mut self, size: Size, look: impl FnOnce(Size) -> Option<T>) -> Option<T> {
        if self.0.is_some_and(|hopeless| hopeless.is_within(size)) {
            return None;
        }
        let found = look(size);
        if found.is_none() {
            self.0 = Some(size);
        }
        found
    }
}
