//! The pools of all versions, the limits over them, and the clock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use worker::{EnvironmentSpec, InvokeReply, InvokeRequest, StartError, VersionKey, Worker};

use crate::pool::{self, Rules};
use crate::version::Version;
use crate::{InvokeError, ProvisionedStatus, ThrottleReason};

/// The rules of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long an idle environment is kept. Lambda keeps them 5 to 15 minutes.
    pub idle_timeout: Duration,
    /// How long an invocation waits for an environment that has answered and not yet asked for the next invocation.
    pub patience: Duration,
    /// Invocations in flight over all functions: the account's concurrency.
    pub account_concurrency: u32,
    /// Environments that this host may hold.
    pub max_environments: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10 * 60),
            patience: Duration::from_millis(20),
            account_concurrency: 1_000,
            max_environments: 1_000,
        }
    }
}

/// Handle to the manager; cheap to clone.
#[derive(Clone)]
pub struct WorkerManager {
    shared: Arc<Shared>,
}

/// What the pools share.
pub(crate) struct Shared {
    pub(crate) worker: Worker,
    pub(crate) options: Options,
    /// Read on the warm path, written when a version is first invoked or retired.
    versions: RwLock<HashMap<VersionKey, Arc<Version>>>,
    in_flight: AtomicU32,
    environments: AtomicU32,
    shutting_down: AtomicBool,
}

impl WorkerManager {
    /// A manager over one host. Needs a Tokio runtime: a task retires what has been idle for too long.
    pub fn new(worker: Worker, options: Options) -> Self {
        let shared = Arc::new(Shared {
            worker,
            options,
            versions: RwLock::default(),
            in_flight: AtomicU32::new(0),
            environments: AtomicU32::new(0),
            shutting_down: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&shared);
        // Idle timeouts are minutes; a look a second, or oftener where a test sets them short, is exact enough.
        let every = (shared.options.idle_timeout / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(every);
            loop {
                interval.tick().await;
                let Some(shared) = weak.upgrade() else { return };
                shared.tick();
            }
        });
        Self { shared }
    }

    /// Runs one invocation to its answer. Dropping the future gives up the answer, not the invocation.
    pub async fn invoke(
        &self,
        spec: &Arc<EnvironmentSpec>,
        request: InvokeRequest,
    ) -> Result<InvokeReply, InvokeError> {
        if self.shared.shutting_down.load(Ordering::Relaxed) {
            return Err(InvokeError::ShuttingDown);
        }
        if !self.shared.enter() {
            return Err(InvokeError::Throttled { reason: ThrottleReason::AccountConcurrency });
        }
        let (reply, answer) = oneshot::channel();
        self.shared.version(spec).request(&self.shared, request, reply);
        match answer.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(StartError::Runtime(text))) => Err(InvokeError::RuntimeUnavailable(text)),
            Ok(Err(StartError::NoRoom(text))) => {
                tracing::warn!("an invocation was throttled: {text}");
                Err(InvokeError::Throttled { reason: ThrottleReason::HostCapacity })
            }
            Ok(Err(error @ (StartError::Code(_) | StartError::Sandbox(_) | StartError::Broken(_)))) => {
                Err(InvokeError::Platform(error.to_string()))
            }
            Err(_) => Err(InvokeError::Platform("the execution environment ended unexpectedly".to_owned())),
        }
    }

    /// Unpacks the code of a version, so that the first cold start does not wait for it. The error says what is wrong
    /// with the package.
    pub async fn prepare(&self, spec: &Arc<EnvironmentSpec>) -> Result<(), String> {
        self.shared.worker.prepare(spec).await.map_err(|error| error.to_string())
    }

    /// Keeps `count` environments of this version initialized; 0 ends it.
    pub fn set_provisioned(&self, spec: &Arc<EnvironmentSpec>, count: u32) {
        self.shared.version(spec).step(&self.shared, pool::Event::SetProvisioned(count));
    }

    /// The state of a version's provisioned environments.
    pub fn provisioned(&self, key: &VersionKey) -> ProvisionedStatus {
        let versions = self.shared.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions.get(key).map(|version| version.provisioned()).unwrap_or_default()
    }

    /// The version is no longer current (updated or deleted): environments finish what they do and are retired.
    pub fn retire(&self, key: &VersionKey) {
        let retired = self.shared.versions.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(version) = retired {
            version.step(&self.shared, pool::Event::Retire);
        }
    }

    /// Invocations in flight now, over all functions.
    pub fn concurrency(&self) -> u32 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// The host that the environments are on.
    pub fn worker(&self) -> &Worker {
        &self.shared.worker
    }

    /// Refuses new invocations, gives those in flight `patience` to finish, then ends every environment.
    pub async fn shutdown(&self, patience: Duration) {
        self.shared.shutting_down.store(true, Ordering::Relaxed);
        let until = tokio::time::Instant::now() + patience;
        // Only here, on the way out: looking is simpler than a signal on the warm path.
        while self.concurrency() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let versions: Vec<_> =
            self.shared.versions.write().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, v)| v).collect();
        for version in versions {
            version.end_all();
        }
        self.shared.worker.shutdown(Duration::from_secs(5)).await;
    }
}

impl Shared {
    /// Counts an invocation in, unless the account's concurrency is used up.
    fn enter(&self) -> bool {
        let limit = self.options.account_concurrency;
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then_some(count + 1))
            .is_ok()
    }

    /// Counts an invocation out.
    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts an environment in, unless the host is full.
    pub(crate) fn take_place(&self) -> bool {
        let limit = self.options.max_environments;
        self.environments
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then_some(count + 1))
            .is_ok()
    }

    /// Counts an environment in for one that is about to go.
    pub(crate) fn take_place_of_leaver(&self) {
        self.environments.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an environment out.
    pub(crate) fn give_place_back(&self) {
        self.environments.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends the on-demand environment that has been idle longest, of any version. False where none is idle.
    pub(crate) fn give_up_one(self: &Arc<Self>) -> bool {
        let oldest = {
            let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
            versions
                .values()
                .filter_map(|version| Some((version.oldest_idle()?, Arc::clone(version))))
                .min_by_key(|(since, _)| *since)
        };
        let Some((_, version)) = oldest else { return false };
        version.step(self, pool::Event::GiveUpOne);
        true
    }

    fn version(&self, spec: &Arc<EnvironmentSpec>) -> Arc<Version> {
        if let Some(version) = self.versions.read().unwrap_or_else(PoisonError::into_inner).get(&spec.key) {
            return Arc::clone(version);
        }
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        let rules = Rules { patience: self.options.patience, idle_timeout: self.options.idle_timeout };
        let version = versions.entry(spec.key.clone()).or_insert_with(|| Version::new(Arc::clone(spec), rules));
        Arc::clone(version)
    }

    fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        let due: Vec<_> = {
            let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
            let expired = |since: Instant| now - since >= self.options.idle_timeout;
            versions.values().filter(|version| version.oldest_idle().is_some_and(expired)).cloned().collect()
        };
        for version in due {
            version.step(self, pool::Event::Tick);
        }
    }
}
