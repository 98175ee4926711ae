//! The account's concurrency, and what functions have of it for themselves.
//!
//! The account has a number of places. Some belong to functions: with reserved concurrency a function has so many and no
//! others, with provisioned concurrency it has so many and takes further ones from the pool, which is what belongs to
//! nobody. An invocation holds a [`Ticket`] for its place from the moment it is let in until it is answered. Letting one
//! in is a few atomic steps; no invocation waits for another function's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ThrottleReason;

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
    pub(crate) fn kept(self) -> u32 {
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

/// The places of the account.
#[derive(Debug)]
pub(crate) struct Account {
    limit: u32,
    /// Invocations in flight over all functions.
    in_flight: AtomicU32,
    /// Those of them whose place is from the pool.
    pooled: AtomicU32,
    /// How many places the pool has.
    pool: AtomicU32,
}

impl Account {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, in_flight: AtomicU32::new(0), pooled: AtomicU32::new(0), pool: AtomicU32::new(limit) }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Takes `kept` places in all out of the pool.
    pub(crate) fn keep(&self, kept: u32) {
        self.pool.store(self.limit.saturating_sub(kept), Ordering::SeqCst);
    }
}

/// The way in for the invocations of one function.
#[derive(Debug)]
pub(crate) struct Gate {
    account: Arc<Account>,
    setting: AtomicU64,
    /// The function's invocations in flight.
    in_flight: AtomicU32,
    /// Those of them whose place is the function's own.
    own: AtomicU32,
}

impl Gate {
    pub(crate) fn new(account: &Arc<Account>) -> Arc<Self> {
        Arc::new(Self {
            account: Arc::clone(account),
            setting: AtomicU64::new(Concurrency::default().pack()),
            in_flight: AtomicU32::new(0),
            own: AtomicU32::new(0),
        })
    }

    pub(crate) fn setting(&self) -> Concurrency {
        Concurrency::unpack(self.setting.load(Ordering::SeqCst))
    }

    /// From now on. Invocations in flight keep the places that they have.
    pub(crate) fn set(&self, setting: Concurrency) {
        self.setting.store(setting.pack(), Ordering::SeqCst);
    }

    /// Lets an invocation in.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Ticket, ThrottleReason> {
        let setting = self.setting();
        let ceiling = match setting {
            Concurrency::Reserved(places) => places,
            Concurrency::Shared { .. } => u32::MAX,
        };
        if !take(&self.in_flight, ceiling) {
            return Err(ThrottleReason::FunctionConcurrency);
        }
        let own = match setting {
            Concurrency::Reserved(_) => take(&self.own, u32::MAX),
            Concurrency::Shared { kept } => take(&self.own, kept),
        };
        let account = &self.account;
        if !own && !take(&account.pooled, account.pool.load(Ordering::SeqCst)) {
            give_back(&self.in_flight);
            return Err(ThrottleReason::AccountConcurrency);
        }
        // After a change of settings there may be invocations in flight whose places others have by now.
        if !take(&account.in_flight, account.limit) {
            give_back(if own { &self.own } else { &account.pooled });
            give_back(&self.in_flight);
            return Err(ThrottleReason::AccountConcurrency);
        }
        Ok(Ticket { gate: Arc::clone(self), own })
    }
}

/// An invocation's place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    own: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        give_back(if self.own { &self.gate.own } else { &self.gate.account.pooled });
        give_back(&self.gate.in_flight);
        give_back(&self.gate.account.in_flight);
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
