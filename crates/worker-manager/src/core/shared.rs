//! What all versions have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::concurrency::{Account, Function};
use super::event::{FunctionId, VersionId};
use super::fleet::{Fleet, FleetFigures};
use super::keep_alive::KeepAlive;
use super::placement::WorkerLimits;

/// The rules that hold for everybody.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Invocations in flight over all functions.
    pub account_concurrency: u32,
    /// Requests a second for each unit of concurrency: of the reserved concurrency where a function has some, else of
    /// the account's, for all others together. Lambda's: 10.
    pub requests_per_unit: u32,
    /// So many environments may be started on demand for a function in each `scaling_period`, continuously regained.
    /// Lambda's: 1,000 in 10 seconds.
    pub scaling_environments: u32,
    /// See `scaling_environments`.
    pub scaling_period: Duration,
    /// How long a request waits for an environment that has answered and not yet asked for the next invocation, before
    /// one is started for it.
    pub patience: Duration,
    /// How long a request waits, at most, for a busy environment that is expected to be free sooner than a new one is
    /// ready.
    pub longest_wait: Duration,
    /// How long a request waits for room on full workers before it is throttled.
    pub room_patience: Duration,
    /// How long idle environments are kept.
    pub keep_alive: KeepAlive,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            account_concurrency: 1_000,
            requests_per_unit: 10,
            scaling_environments: 1_000,
            scaling_period: Duration::from_secs(10),
            patience: Duration::from_millis(20),
            longest_wait: Duration::from_millis(250),
            room_patience: Duration::from_secs(1),
            keep_alive: KeepAlive::Fixed(Duration::from_secs(600)),
        }
    }
}

/// Handed to every step.
#[derive(Debug)]
pub struct Shared {
    pub(crate) rules: Rules,
    pub(crate) fleet: Fleet,
    account: Arc<Account>,
    /// From when on times are counted.
    epoch: Instant,
    names: AtomicU64,
    pub(crate) prewarms_used: AtomicU64,
    pub(crate) prewarms_unused: AtomicU64,
}

/// What is to be told of all versions together. Counts are since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFigures {
    /// Invocations in flight.
    pub in_flight: u32,
    /// Environments made ahead of an invocation that came.
    pub prewarms_used: u64,
    /// Environments made ahead of an invocation that did not come while they were there.
    pub prewarms_unused: u64,
    /// The workers and their places.
    pub fleet: FleetFigures,
}

impl Shared {
    /// With these workers; times before `now` count as `now`.
    pub fn new(rules: Rules, workers: &[WorkerLimits], now: Instant) -> Self {
        let account = Arc::new(Account::new(&rules));
        Self {
            rules,
            fleet: Fleet::new(workers),
            account,
            epoch: now,
            names: AtomicU64::new(0),
            prewarms_used: AtomicU64::new(0),
            prewarms_unused: AtomicU64::new(0),
        }
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// A further function, with no concurrency of its own.
    pub fn function(&self) -> Arc<Function> {
        Function::new(FunctionId(self.name()), &self.account)
    }

    /// Invocations in flight over all functions.
    pub fn in_flight(&self) -> u32 {
        self.account.in_flight()
    }

    /// What is to be told.
    pub fn figures(&self) -> SharedFigures {
        SharedFigures {
            in_flight: self.in_flight(),
            prewarms_used: self.prewarms_used.load(Ordering::Relaxed),
            prewarms_unused: self.prewarms_unused.load(Ordering::Relaxed),
            fleet: self.fleet.figures(),
        }
    }

    pub(crate) fn version_id(&self) -> VersionId {
        VersionId(self.name())
    }

    /// Nanoseconds since the beginning.
    pub(crate) fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    fn name(&self) -> u64 {
        self.names.fetch_add(1, Ordering::Relaxed)
    }
}
