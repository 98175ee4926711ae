//! The workers and the places that environments have on them: who gets one, who waits for one, who gives one up.
//!
//! A new environment goes where it fits best ([`placement`](super::placement)). Where it fits nowhere, the least valuable idle ones go:
//! GreedyDual-Size-Frequency, as FaasCache has it for environments (Fuerst and Sharma, ASPLOS 2021). An idle environment is
//! worth `clock + uses * cost / size`, cost being the time that a start takes and size its memory; evicting one sets the
//! clock to its worth, so that what is not used grows old. Of those that wait for a place the function with the fewest
//! environments comes first, so that the one with the most requests does not get them all.
//!
//! The books are behind a lock which cold starts, ends and evictions take. Warm invocations do not: an environment's
//! [`Seat`] has its worth and whether it is idle as atomics, which the books look at when they need a victim.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::{Action, EnvironmentId, FunctionId, VersionId, WorkerId};
use super::placement::{Load, Size, WorkerLimits};
use books::{Books, Host, Pending};

mod books;
mod victims;

/// An environment's place on a worker.
#[derive(Debug)]
pub(crate) struct Seat {
    want: Want,
    worker: usize,
    idle: AtomicBool,
    /// The bits of a float that is not negative, so that they are ordered as it is.
    worth: AtomicU64,
    /// What it adds to the clock when it is idle next, as far as is known.
    value: AtomicU64,
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

    /// What it would be worth if it were idle from now on.
    fn next_worth(&self, clock: &AtomicU64) -> u64 {
        let value = f64::from_bits(self.value.load(Ordering::Relaxed));
        (f64::from_bits(clock.load(Ordering::Relaxed)) + value).to_bits()
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
    /// What it saves while it is idle, in milliseconds for a MiB.
    pub(crate) value: f64,
}

/// What comes of asking for a place.
#[derive(Debug)]
pub(crate) enum Placement {
    /// Here it is.
    Placed(Arc<Seat>),
    /// There will be word, by [`Told::Room`](super::event::Told::Room), unless [`Fleet::cancel`] comes first.
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

impl Fleet {
    pub(crate) fn new(workers: &[WorkerLimits]) -> Self {
        Self {
            books: Mutex::new(Books::new(workers)),
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
            return Placement::Placed(books.seat(want, worker, &self.clock));
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

    /// Takes the place that [`Told::Room`](super::event::Told::Room) spoke of.
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
            seat.value.store(value.to_bits(), Ordering::Relaxed);
            seat.worth.store(seat.next_worth(&self.clock), Ordering::Relaxed);
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

    /// Whether an environment has to go though its own function has use for it: another function waits for a place that
    /// this makes room for, and will still have no more environments than this one's. It counts as asked to go then.
    pub(crate) fn owes(&self, seat: &Seat) -> bool {
        let mut books = self.lock();
        let Books { hosts, functions, turns, asked, .. } = &mut *books;
        let own = functions.get(&seat.want.function).map_or(0, |share| share.seats);
        let host = &hosts[seat.worker];
        let mut without = host.load;
        without.remove(seat.want.size);
        for function in turns.iter().filter(|function| **function != seat.want.function) {
            let Some(share) = functions.get_mut(function) else { continue };
            // What was asked to go for it before counts as if it had gone.
            let coming = share.wants.iter().filter(|pending| pending.asked > 0).count() as u32;
            let fits = |pending: &&mut Pending| pending.asked == 0 && without.has_room(&host.limits, pending.want.size);
            if share.seats + coming + 2 <= own
                && let Some(pending) = share.wants.iter_mut().find(fits)
            {
                pending.asked += 1;
                asked.insert(seat.key(), (*function, pending.want.key()));
                return true;
            }
        }
        false
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
            books.hosts[seat.worker].candidates.push_busy(Arc::clone(seat), &self.clock);
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
