//! The pools of all versions, the limits over them, and the clock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use worker::{EnvironmentSpec, InvokeReply, InvokeRequest, StartError, VersionKey, Worker};

use crate::concurrency::{Account, Concurrency, Gate};
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
    /// Read on the warm path, written when a version is first invoked, retired or forgotten.
    versions: RwLock<Versions>,
    account: Arc<Account>,
    environments: AtomicU32,
    shutting_down: AtomicBool,
}

/// The versions that are invoked, or were not long ago.
#[derive(Default)]
struct Versions {
    by_key: HashMap<VersionKey, Arc<Version>>,
    /// Retired ones that have environments at work.
    leaving: Vec<Arc<Version>>,
    /// By the name of the function: of those with versions here, and of those with a setting.
    gates: HashMap<String, Arc<Gate>>,
    /// The places that all of them keep.
    kept: u32,
    /// The server goes down: no further version is taken in.
    closed: bool,
}

impl Versions {
    fn gate(&mut self, function: &str, account: &Arc<Account>) -> Arc<Gate> {
        match self.gates.get(function) {
            Some(gate) => Arc::clone(gate),
            None => Arc::clone(self.gates.entry(function.to_owned()).or_insert_with(|| Gate::new(account))),
        }
    }
}

impl WorkerManager {
    /// A manager over one host. Needs a Tokio runtime: a task retires what has been idle for too long.
    pub fn new(worker: Worker, options: Options) -> Self {
        let account = Arc::new(Account::new(options.account_concurrency));
        let shared = Arc::new(Shared {
            worker,
            options,
            versions: RwLock::default(),
            account,
            environments: AtomicU32::new(0),
            shutting_down: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&shared);
        // Idle timeouts are minutes; a look a second, or oftener where a test sets them short, is exact enough.
        let every = (shared.options.idle_timeout / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(every);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
        let Some(version) = self.shared.version(spec) else { return Err(InvokeError::ShuttingDown) };
        let ticket = version.enter().map_err(|reason| InvokeError::Throttled { reason })?;
        // Looked at after the invocation was counted: a shutdown that begins now waits for it.
        if self.shared.is_shutting_down() {
            return Err(InvokeError::ShuttingDown);
        }
        let (reply, answer) = oneshot::channel();
        version.request(&self.shared, request, reply, ticket);
        match answer.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(StartError::Runtime(text))) => Err(InvokeError::RuntimeUnavailable(text)),
            Ok(Err(StartError::NoRoom(text))) => {
                tracing::warn!("an invocation was throttled: {text}");
                Err(InvokeError::Throttled { reason: ThrottleReason::HostCapacity })
            }
            Ok(Err(_)) | Err(_) if self.shared.is_shutting_down() => Err(InvokeError::ShuttingDown),
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
        if let Some(version) = self.shared.version(spec) {
            version.step(&self.shared, pool::Event::SetProvisioned(count));
        }
    }

    /// Says how much of the account's concurrency belongs to a function: holds from now on, for all its versions.
    pub fn set_concurrency(&self, function: &str, concurrency: Concurrency) {
        let mut versions = self.shared.write();
        if concurrency == Concurrency::default() && !versions.gates.contains_key(function) {
            return;
        }
        let gate = versions.gate(function, &self.shared.account);
        versions.kept = versions.kept.saturating_sub(gate.setting().kept()).saturating_add(concurrency.kept());
        gate.set(concurrency);
        self.shared.account.keep(versions.kept);
    }

    /// The state of a version's provisioned environments.
    pub fn provisioned(&self, key: &VersionKey) -> ProvisionedStatus {
        let versions = self.shared.read();
        versions.by_key.get(key).map(|version| version.provisioned()).unwrap_or_default()
    }

    /// The version is no longer current (updated or deleted): environments finish what they do and are retired.
    pub fn retire(&self, key: &VersionKey) {
        let retired = {
            let mut versions = self.shared.write();
            let retired = versions.by_key.remove(key);
            versions.leaving.extend(retired.clone());
            retired
        };
        if let Some(version) = retired {
            version.step(&self.shared, pool::Event::Retire);
        }
    }

    /// Invocations in flight now, over all functions.
    pub fn concurrency(&self) -> u32 {
        self.shared.account.in_flight()
    }

    /// The host that the environments are on.
    pub fn worker(&self) -> &Worker {
        &self.shared.worker
    }

    /// Refuses new invocations, gives those in flight `patience` to finish, then ends every environment. What was not
    /// shut down so lives on when the last handle is dropped.
    pub async fn shutdown(&self, patience: Duration) {
        self.shared.shutting_down.store(true, Ordering::SeqCst);
        let until = tokio::time::Instant::now() + patience;
        // Only here, on the way out: looking is simpler than a signal on the warm path.
        while self.concurrency() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let versions = {
            let mut versions = self.shared.write();
            versions.closed = true;
            let current = std::mem::take(&mut versions.by_key).into_values();
            current.chain(std::mem::take(&mut versions.leaving)).collect::<Vec<_>>()
        };
        for version in versions {
            version.end(&self.shared);
        }
        self.shared.worker.shutdown(Duration::from_secs(5)).await;
    }
}

impl Shared {
    fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::SeqCst)
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
        loop {
            let oldest = self
                .read()
                .by_key
                .values()
                .filter_map(|version| Some((version.oldest_idle()?, Arc::clone(version))))
                .min_by_key(|(since, _)| *since);
            let Some((_, version)) = oldest else { return false };
            // An invocation may have taken it since; then another one is looked for.
            if version.give_up_one(self) {
                return true;
            }
        }
    }

    /// The version's pool; none when the server goes down.
    fn version(&self, spec: &Arc<EnvironmentSpec>) -> Option<Arc<Version>> {
        if let Some(version) = self.read().by_key.get(&spec.key) {
            return Some(Arc::clone(version));
        }
        let mut versions = self.write();
        if versions.closed {
            return None;
        }
        let rules = Rules { patience: self.options.patience, idle_timeout: self.options.idle_timeout };
        let gate = versions.gate(&spec.function_name, &self.account);
        let new = || Version::new(Arc::clone(spec), rules, gate);
        Some(Arc::clone(versions.by_key.entry(spec.key.clone()).or_insert_with(new)))
    }

    fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        let expired = |since: Instant| now - since >= self.options.idle_timeout;
        let (mut due, mut empty) = (Vec::new(), false);
        let versions = self.read();
        for version in versions.by_key.values() {
            if version.oldest_idle().is_some_and(expired) {
                due.push(Arc::clone(version));
            }
            empty |= version.is_empty();
        }
        empty |= versions.leaving.iter().any(|version| version.is_empty());
        let unused = |gate: &Arc<Gate>| Arc::strong_count(gate) == 1 && gate.setting() == Concurrency::default();
        empty |= versions.gates.values().any(unused);
        drop(versions);
        for version in due {
            version.step(self, pool::Event::Tick);
        }
        if empty {
            // Who holds a version at this moment is about to put something into it.
            let wanted = |version: &Arc<Version>| Arc::strong_count(version) > 1 || !version.is_empty();
            let mut versions = self.write();
            versions.by_key.retain(|_, version| wanted(version));
            versions.leaving.retain(wanted);
            versions.gates.retain(|_, gate| !unused(gate));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Versions> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Versions> {
        self.versions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
