//! The account's concurrency, what functions have of it for themselves, and the rates that follow from it.
//!
//! The account has a number of places. Some belong to functions: with reserved concurrency a function has so many and no
//! others, with provisioned concurrency it has so many and takes further ones from the pool, which is what belongs to
//! nobody. An invocation holds a [`Ticket`] for its place from the moment it is let in until it is answered. Letting one
//! in is a few atomic steps; no invocation waits for another function's.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::event::{FunctionId, Purpose, Throttle, ThrottleReason};
use super::rate::{Allowance, Rate};
use super::shared::Rules;

/// How much of the account's concurrency belongs to a function, over all its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// Places come from the pool, but for the first `kept`, which nobody else can take.
    Shared {
        /// Concurrent invocations.
        kept: u32,
    },
    /// So many places, and never more: 0 lets nothing in.
    Reserved(u32),
}

impl Default for Concurrency {
    fn default() -> Self {
        Self::Shared { kept: 0 }
    }
}

impl Concurrency {
    /// Places that the pool goes without.
    fn kept(self) -> u32 {
        match self {
            Self::Shared { kept } | Self::Reserved(kept) => kept,
        }
    }

    /// In one word, so that a change is seen whole.
    fn pack(self) -> u64 {
        match self {
            Self::Shared { kept } => u64::from(kept),
            Self::Reserved(kept) => RESERVED | u64::from(kept),
        }
    }

    fn unpack(word: u64) -> Self {
        let kept = (word & u64::from(u32::MAX)) as u32;
        if word & RESERVED == 0 { Self::Shared { kept } } else { Self::Reserved(kept) }
    }
}

const RESERVED: u64 = 1 << 32;

/// What the caller is told to wait where nobody knows when a place will be free.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// The places of the account.
#[derive(Debug)]
pub(crate) struct Account {
    limit: u32,
    /// Requests a second for each unit of concurrency.
    requests_per_unit: u32,
    /// Environments that a function may have started on demand.
    scaling: Allowance,
    /// Invocations in flight over all functions.
    in_flight: AtomicU32,
    /// Those of them whose place is from the pool.
    pooled: AtomicU32,
    /// How many places the pool has.
    pool: AtomicU32,
    /// The places that functions keep. Locked when a setting changes.
    kept: Mutex<u32>,
    /// Requests to functions without a reservation.
    requests: Rate,
}

impl Account {
    pub(crate) fn new(rules: &Rules) -> Self {
        Self {
            limit: rules.account_concurrency,
            requests_per_unit: rules.requests_per_unit,
            scaling: Allowance::new(u64::from(rules.scaling_environments), rules.scaling_period),
            in_flight: AtomicU32::new(0),
            pooled: AtomicU32::new(0),
            pool: AtomicU32::new(rules.account_concurrency),
            kept: Mutex::new(0),
            requests: Rate::default(),
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    fn requests_allowed(&self, places: u32) -> Allowance {
        Allowance::new(u64::from(places) * u64::from(self.requests_per_unit), Duration::from_secs(1))
    }
}

/// A function: the way in for the invocations of all its versions.
#[derive(Debug)]
pub struct Function {
    id: FunctionId,
    account: Arc<Account>,
    setting: AtomicU64,
    /// The function's invocations in flight.
    in_flight: AtomicU32,
    /// Those of them whose place is the function's own.
    own: AtomicU32,
    requests: Rate,
    scaling: Rate,
    counters: Counters,
}

/// What has happened to a function since it is known.
#[derive(Debug, Default)]
struct Counters {
    /// The most invocations in flight at once since somebody looked.
    peak: AtomicU32,
    invocations: AtomicU64,
    spilled: AtomicU64,
    throttled: [AtomicU64; ThrottleReason::ALL.len()],
    started: [AtomicU64; 4],
}

/// How many invocations each limit has throttled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttles([u64; ThrottleReason::ALL.len()]);

impl Throttles {
    /// By this limit.
    pub fn by(&self, reason: ThrottleReason) -> u64 {
        self.0[reason as usize]
    }
}

/// What is to be told of a function. Counts are since the function is known here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FunctionFigures {
    /// Invocations in flight.
    pub in_flight: u32,
    /// The most in flight at once since the figures were last asked for.
    pub peak: u32,
    /// Invocations let in.
    pub invocations: u64,
    /// Invocations throttled.
    pub throttles: Throttles,
    /// Environments started because invocations waited.
    pub started_on_demand: u64,
    /// Environments started for the provisioned-concurrency setting.
    pub started_provisioned: u64,
    /// Environments started ahead of an expected invocation.
    pub started_prewarm: u64,
    /// Initializations of versions for their snapshots.
    pub started_snapshot: u64,
    /// Invocations of versions with provisioned concurrency that were served by other environments.
    pub spilled: u64,
}

impl Function {
    pub(crate) fn new(id: FunctionId, account: &Arc<Account>) -> Arc<Self> {
        Arc::new(Self {
            id,
            account: Arc::clone(account),
            setting: AtomicU64::new(Concurrency::default().pack()),
            in_flight: AtomicU32::new(0),
            own: AtomicU32::new(0),
            requests: Rate::default(),
            scaling: Rate::default(),
            counters: Counters::default(),
        })
    }

    /// Its name in the core.
    pub fn id(&self) -> FunctionId {
        self.id
    }

    /// How much of the account's concurrency belongs to it.
    pub fn concurrency(&self) -> Concurrency {
        Concurrency::unpack(self.setting.load(Ordering::SeqCst))
    }

    /// From now on. Invocations in flight keep the places that they have.
    pub fn set_concurrency(&self, concurrency: Concurrency) {
        let mut kept = self.account.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Concurrency::unpack(self.setting.swap(concurrency.pack(), Ordering::SeqCst));
        *kept = kept.saturating_sub(before.kept()).saturating_add(concurrency.kept());
        self.account.pool.store(self.account.limit.saturating_sub(*kept), Ordering::SeqCst);
    }

    /// What is to be told of it; begins the next peak.
    pub fn figures(&self) -> FunctionFigures {
        let counters = &self.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let in_flight = self.in_flight.load(Ordering::SeqCst);
        let [started_on_demand, started_provisioned, started_prewarm, started_snapshot] =
            counters.started.each_ref().map(count);
        FunctionFigures {
            in_flight,
            peak: counters.peak.swap(in_flight, Ordering::Relaxed).max(in_flight),
            invocations: count(&counters.invocations),
            throttles: Throttles(ThrottleReason::ALL.map(|reason| count(&counters.throttled[reason as usize]))),
            started_on_demand,
            started_provisioned,
            started_prewarm,
            started_snapshot,
            spilled: count(&counters.spilled),
        }
    }

    /// Lets an invocation in. `now` in nanoseconds, for [`Rate`].
    pub(crate) fn enter(self: &Arc<Self>, now: u64) -> Result<Ticket, Throttle> {
        let setting = self.concurrency();
        let taken = self.take_place(setting);
        let entered = taken.and_then(|ticket| {
            let (rate, places, reason) = match setting {
                Concurrency::Reserved(places) => (&self.requests, places, ThrottleReason::FunctionRate),
                Concurrency::Shared { .. } => (&self.account.requests, self.account.limit, ThrottleReason::AccountRate),
            };
            match rate.take(self.account.requests_allowed(places), now) {
                Ok(()) => Ok(ticket),
                Err(retry_after) => Err(Throttle { reason, retry_after }),
            }
        });
        match &entered {
            Ok(_) => {
                self.counters.invocations.fetch_add(1, Ordering::Relaxed);
                self.counters.peak.fetch_max(self.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            Err(throttle) => self.throttled(throttle.reason),
        }
        entered
    }

    /// Takes one of the environments that may be started on demand in this time.
    pub(crate) fn scale(&self, now: u64) -> Result<(), Throttle> {
        let refused = |retry_after| Throttle { reason: ThrottleReason::ScalingRate, retry_after };
        self.scaling.take(self.account.scaling, now).map_err(refused)
    }

    /// The environment did not come to be for lack of a place.
    pub(crate) fn scale_back(&self) {
        self.scaling.give_back(self.account.scaling);
    }

    pub(crate) fn throttled(&self, reason: ThrottleReason) {
        self.counters.throttled[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn started(&self, purpose: Purpose) {
        self.counters.started[purpose as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn spilled(&self) {
        self.counters.spilled.fetch_add(1, Ordering::Relaxed);
    }

    fn take_place(self: &Arc<Self>, setting: Concurrency) -> Result<Ticket, Throttle> {
        let refused = |reason| Throttle { reason, retry_after: SOON };
        let ceiling = match setting {
            Concurrency::Reserved(places) => places,
            Concurrency::Shared { .. } => u32::MAX,
        };
        if !take(&self.in_flight, ceiling) {
            return Err(refused(ThrottleReason::FunctionConcurrency));
        }
        let own = match setting {
            Concurrency::Reserved(_) => take(&self.own, u32::MAX),
            Concurrency::Shared { kept } => take(&self.own, kept),
        };
        let account = &self.account;
        if !own && !take(&account.pooled, account.pool.load(Ordering::SeqCst)) {
            give_back(&self.in_flight);
            return Err(refused(ThrottleReason::AccountConcurrency));
        }
        // After a change of settings there may be invocations in flight whose places others have by now.
        if !take(&account.in_flight, account.limit) {
            give_back(if own { &self.own } else { &account.pooled });
            give_back(&self.in_flight);
            return Err(refused(ThrottleReason::AccountConcurrency));
        }
        Ok(Ticket { function: Arc::clone(self), own })
    }
}

/// An invocation's place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Ticket {
    function: Arc<Function>,
    own: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (function, account) = (&self.function, &self.function.account);
        give_back(if self.own { &function.own } else { &account.pooled });
        give_back(&function.in_flight);
        give_back(&account.in_flight);
    }
}

fn take(counter: &AtomicU32, limit: u32) -> bool {
    let next = |count| (count < limit).then_some(count + 1);
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok()
}

fn give_back(counter: &AtomicU32) {
    counter.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests;
