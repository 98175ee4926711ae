//! The workers and the places that environments have on them: who gets one, who waits for one, who gives one up.
//!
//! A new environment goes where it fits best ([`placement`]). Where it fits nowhere, the least valuable idle ones go:
//! GreedyDual-Size-Frequency, as FaasCache has it for environments (Fuerst and Sharma, ASPLOS 2021). An idle environment is
//! worth `clock + uses * cost / size`, cost being the time that a start takes and size its memory; evicting one sets the
//! clock to its worth, so that what is not used grows old. Of those that wait for a place the function with the fewest
//! environments comes first, so that the one with the most requests does not get them all.
//!
//! The books are behind a lock which cold starts, ends and evictions take. Warm invocations do not: an environment's
//! [`Seat`] has its worth and whether it is idle as atomics, which the books look at when they need a victim.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::{Action, EnvironmentId, FunctionId, Told, VersionId, WorkerId};
use super::placement::{self, Load, Size, WorkerLimits};
use victims::Candidates;

mod victims;

/// An environment's place on a worker.
#[derive(Debug)]
pub(crate) struct Seat {
    want: Want,
    worker: usize,
    idle: AtomicBool,
    /// The bits of a float that is not negative, so that they are ordered as it is.
    worth: AtomicU64,
    /// Idle since, in nanoseconds: the longest idle first among those that are worth the same.
    since: AtomicU64,
    /// The environment is ending or has ended.
    leaving: AtomicBool,
    /// It does not count any more, though it has not ended.
    lent: AtomicBool,
}

impl Seat {
    pub(crate) fn worker(&self) -> WorkerId {
        WorkerId(self.worker)
    }

    fn key(&self) -> Key {
        (self.want.version, self.want.environment)
    }
}

/// Who needs a place, and how large.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    pub(crate) function: FunctionId,
    pub(crate) version: VersionId,
    pub(crate) environment: EnvironmentId,
    pub(crate) size: Size,
    /// Whether it may be given up when it is idle.
    pub(crate) evictable: bool,
}

/// What comes of asking for a place.
#[derive(Debug)]
pub(crate) enum Placement {
    /// Here it is.
    Placed(Arc<Seat>),
    /// There will be word, by [`Told::Room`], unless [`Fleet::cancel`] comes first.
    Waiting,
    /// There is none now.
    Full,
    /// There will never be one: it is larger than every worker.
    TooLarge,
}

/// What is to be told of the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetFigures {
    /// Environments that have a place, those on their way out included.
    pub environments: u32,
    /// Memory promised to them in MiB.
    pub memory_mb: u64,
    /// Environments that wait for a place.
    pub waiting: u32,
    /// Idle environments that had to go for others since the start.
    pub evictions: u64,
    /// The limits of all workers together: environments and MiB, the latter `u64::MAX` where there is none.
    pub limits: (u64, u64),
}

type Key = (VersionId, EnvironmentId);

/// The workers.
#[derive(Debug)]
pub(crate) struct Fleet {
    books: Mutex<Books>,
    /// The clock of GreedyDual, as the bits of a float.
    clock: AtomicU64,
    /// How many wait for a place: looked at without the lock.
    hungry: AtomicU32,
    /// Idle environments of each worker that may be given up.
    idle: Vec<AtomicU32>,
}

#[derive(Debug)]
struct Books {
    hosts: Vec<Host>,
    functions: BTreeMap<FunctionId, Share>,
    /// Functions with wants; the next first.
    turns: VecDeque<FunctionId>,
    /// Places that were found for those who waited and that they have not taken yet.
    granted: HashMap<Key, Arc<Seat>>,
    /// Environments that were asked to go and are still there, and for whom.
    asked: HashMap<Key, (FunctionId, Key)>,
    evictions: u64,
}

#[derive(Debug)]
struct Host {
    limits: WorkerLimits,
    load: Load,
    /// Environments that do not count though they have not ended.
    lent: u32,
    candidates: Candidates,
}

/// What a function has of the workers.
#[derive(Debug, Default)]
struct Share {
    seats: u32,
    wants: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    want: Want,
    /// How many environments were asked to go for it and have neither gone nor declined.
    asked: u32,
}

impl Fleet {
    pub(crate) fn new(workers: &[WorkerLimits]) -> Self {
        let host = |limits: &WorkerLimits| Host {
            limits: *limits,
            load: Load::default(),
            lent: 0,
            candidates: Candidates::default(),
        };
        let books = Books {
            hosts: workers.iter().map(host).collect(),
            functions: BTreeMap::new(),
            turns: VecDeque::new(),
            granted: HashMap::new(),
            asked: HashMap::new(),
            evictions: 0,
        };
        Self {
            books: Mutex::new(books),
            clock: AtomicU64::new(0.0_f64.to_bits()),
            hungry: AtomicU32::new(0),
            idle: workers.iter().map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes a place. Where there is none and it `may_wait`, others are asked to go and there will be word.
    pub(crate) fn place(&self, want: Want, may_wait: bool, actions: &mut Vec<Action>) -> Placement {
        let mut books = self.lock();
        if !books.hosts.iter().any(|host| Load::default().has_room(&host.limits, want.size)) {
            return Placement::TooLarge;
        }
        // Whoever has waited longer comes first.
        if books.turns.is_empty()
            && let Some(worker) = books.best_fit(want.size)
        {
            return Placement::Placed(books.seat(want, worker));
        }
        if !may_wait {
            return Placement::Full;
        }
        let share = books.functions.entry(want.function).or_default();
        share.wants.push_back(Pending { want, asked: 0 });
        if share.wants.len() == 1 {
            books.turns.push_back(want.function);
        }
        self.hungry.fetch_add(1, Ordering::Relaxed);
        let key = (want.version, want.environment);
        books.serve(self, Some(key), actions);
        match books.granted.remove(&key) {
            Some(seat) => Placement::Placed(seat),
            None => Placement::Waiting,
        }
    }

    /// Takes the place that [`Told::Room`] spoke of.
    pub(crate) fn claim(&self, version: VersionId, environment: EnvironmentId) -> Option<Arc<Seat>> {
        self.lock().granted.remove(&(version, environment))
    }

    /// The place is not needed any more.
    pub(crate) fn cancel(&self, want: &Want, actions: &mut Vec<Action>) {
        let mut books = self.lock();
        let key = (want.version, want.environment);
        if let Some(seat) = books.granted.remove(&key) {
            books.leave(&seat);
            books.free(&seat);
        } else if let Some(share) = books.functions.get_mut(&want.function)
            && let Some(at) = share.wants.iter().position(|pending| pending.want.key() == key)
        {
            share.wants.remove(at);
            self.hungry.fetch_sub(1, Ordering::Relaxed);
            books.forget(want.function);
        }
        books.serve(self, None, actions);
    }

    /// An environment that may be given up is idle: it is worth so much more than one that is of no use, in
    /// milliseconds for a MiB.
    pub(crate) fn rests(&self, seat: &Seat, value: f64, since: u64) {
        if seat.want.evictable {
            let worth = f64::from_bits(self.clock.load(Ordering::Relaxed)) + value;
            seat.worth.store(worth.to_bits(), Ordering::Relaxed);
            seat.since.store(since, Ordering::Relaxed);
            seat.idle.store(true, Ordering::Relaxed);
            self.idle[seat.worker].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An environment is no longer idle.
    pub(crate) fn works(&self, seat: &Seat) {
        if seat.want.evictable && seat.idle.swap(false, Ordering::Relaxed) {
            self.idle[seat.worker].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether somebody waits for a place. May lag behind for a moment; nothing is decided by it alone.
    pub(crate) fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Relaxed) > 0
    }

    /// Looks for places again: an environment has become idle.
    pub(crate) fn reconsider(&self, actions: &mut Vec<Action>) {
        self.lock().serve(self, None, actions);
    }

    /// Whether an environment should go though its own function has use for it: another function waits for a place that
    /// this would make room for, and would still have no more environments than this one's.
    pub(crate) fn is_owed(&self, seat: &Seat) -> bool {
        let books = self.lock();
        let own = books.functions.get(&seat.want.function).map_or(0, |share| share.seats);
        let host = &books.hosts[seat.worker];
        let mut without = host.load;
        without.remove(seat.want.size);
        books.turns.iter().filter(|function| **function != seat.want.function).any(|function| {
            books.functions.get(function).is_some_and(|share| {
                let fits = share.wants.front().is_some_and(|first| without.has_room(&host.limits, first.want.size));
                // Those that were asked to go already make room enough.
                let unasked = share.wants.front().is_some_and(|first| first.asked == 0);
                share.seats + 2 <= own && fits && unasked
            })
        })
    }

    /// An environment is told to end.
    pub(crate) fn leave(&self, seat: &Seat, actions: &mut Vec<Action>) {
        self.works(seat);
        let mut books = self.lock();
        books.leave(seat);
        let host = &mut books.hosts[seat.worker];
        if host.lent < host.limits.overlap {
            host.lent += 1;
            host.load.remove(seat.want.size);
            seat.lent.store(true, Ordering::Relaxed);
            books.answered(seat);
        }
        books.serve(self, None, actions);
    }

    /// An environment has ended.
    pub(crate) fn gone(&self, seat: &Seat, actions: &mut Vec<Action>) {
        self.works(seat);
        let mut books = self.lock();
        books.leave(seat);
        books.free(seat);
        books.serve(self, None, actions);
    }

    /// Whether an environment that was asked to go still has to: those for whom it was may have found something else.
    pub(crate) fn has_to_go(&self, seat: &Seat) -> bool {
        let books = self.lock();
        books.asked.contains_key(&seat.key()) && !books.turns.is_empty()
    }

    /// An environment that was asked to go had found use, or does not have to.
    pub(crate) fn decline(&self, seat: &Arc<Seat>, actions: &mut Vec<Action>) {
        let mut books = self.lock();
        if books.answered(seat) {
            books.hosts[seat.worker].candidates.push(Arc::clone(seat));
        }
        books.serve(self, None, actions);
    }

    pub(crate) fn figures(&self) -> FleetFigures {
        let books = self.lock();
        let sum = |of: fn(&Host) -> u64| books.hosts.iter().map(of).fold(0, u64::saturating_add);
        FleetFigures {
            environments: books.hosts.iter().map(|host| host.load.environments + host.lent).sum(),
            memory_mb: sum(|host| host.load.memory_mb),
            waiting: self.hungry.load(Ordering::Relaxed),
            evictions: books.evictions,
            limits: (sum(|host| u64::from(host.limits.environments)), sum(|host| host.limits.memory_mb)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Want {
    fn key(&self) -> Key {
        (self.version, self.environment)
    }
}

impl Books {
    fn best_fit(&self, size: Size) -> Option<usize> {
        placement::best_fit(self.hosts.iter().map(|host| (&host.limits, &host.load)), size)
    }

    fn seat(&mut self, want: Want, worker: usize) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            want,
            worker,
            idle: AtomicBool::new(false),
            worth: AtomicU64::new(0),
            since: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            lent: AtomicBool::new(false),
        });
        let host = &mut self.hosts[worker];
        host.load.add(want.size);
        if want.evictable {
            host.candidates.push(Arc::clone(&seat));
        }
        self.functions.entry(want.function).or_default().seats += 1;
        seat
    }

    /// The environment is no candidate any more, and its function has one less. Once.
    fn leave(&mut self, seat: &Seat) {
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
    fn free(&mut self, seat: &Seat) {
        self.answered(seat);
        let host = &mut self.hosts[seat.worker];
        if seat.lent.load(Ordering::Relaxed) {
            host.lent -= 1;
        } else {
            host.load.remove(seat.want.size);
        }
    }

    /// Whether an environment had been asked to go; now it has, or will not.
    fn answered(&mut self, seat: &Seat) -> bool {
        let Some((function, key)) = self.asked.remove(&seat.key()) else { return false };
        if let Some(share) = self.functions.get_mut(&function)
            && let Some(pending) = share.wants.iter_mut().find(|pending| pending.want.key() == key)
        {
            pending.asked -= 1;
        }
        true
    }

    /// A function that has nothing and wants nothing is not kept.
    fn forget(&mut self, function: FunctionId) {
        let Some(share) = self.functions.get(&function) else { return };
        if share.wants.is_empty() {
            self.turns.retain(|turn| *turn != function);
            if share.seats == 0 {
                self.functions.remove(&function);
            }
        }
    }

    /// Gives out places, then asks idle environments to go for those who still wait. `own` is told by the caller.
    fn serve(&mut self, fleet: &Fleet, own: Option<Key>, actions: &mut Vec<Action>) {
        while let Some((want, worker)) = self.next() {
            fleet.hungry.fetch_sub(1, Ordering::Relaxed);
            let seat = self.seat(want, worker);
            self.granted.insert(want.key(), seat);
            if own != Some(want.key()) {
                actions.push(Action::Tell(want.version, Told::Room(want.environment)));
            }
            self.turns.retain(|turn| *turn != want.function);
            if let Some(share) = self.functions.get_mut(&want.function) {
                share.wants.pop_front();
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
        let wanting = self.turns.iter().filter_map(|function| self.functions.get(function));
        let mut wanting: Vec<(u32, Want)> =
            wanting.filter_map(|share| Some((share.seats, share.wants.front()?.want))).collect();
        wanting.sort_by_key(|(seats, _)| *seats);
        let mut too_large: Option<Size> = None;
        wanting.into_iter().find_map(|(_, want)| {
            if too_large.is_some_and(|size| size.is_within(want.size)) {
                return None;
            }
            let fit = self.best_fit(want.size);
            if fit.is_none() {
                too_large = Some(want.size);
            }
            Some((want, fit?))
        })
    }

    /// Asks idle environments to go for those who wait and for whom nobody was asked yet.
    fn ask(&mut self, fleet: &Fleet, actions: &mut Vec<Action>) {
        let Self { hosts, functions, turns, asked, .. } = self;
        for function in turns.iter() {
            let Some(share) = functions.get_mut(function) else { continue };
            for pending in share.wants.iter_mut().filter(|pending| pending.asked == 0) {
                if fleet.idle.iter().all(|idle| idle.load(Ordering::Relaxed) == 0) {
                    return;
                }
                let want = pending.want;
                let Some(victims) = victims::choose(hosts, &fleet.idle, want.size) else { break };
                for seat in victims {
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
