//! The versions of all functions, what they share, and the way in.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use worker::{EnvironmentSpec, InvokeReply, InvokeRequest, StartError, VersionKey, Worker};

use crate::core::{
    self, Concurrency, Event, Function, HistogramRules, KeepAlive, Rules, Throttle, ThrottleReason, VersionId,
    WorkerLimits,
};
use crate::figures::{Figures, FunctionReport, VersionReport};
use crate::version::{Tells, Version};
use crate::{InvokeError, ProvisionedStatus};

/// The rules of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long an idle environment is kept. Lambda keeps them 5 to 15 minutes.
    pub idle_timeout: Duration,
    /// Whether that is always so.
    pub keep_alive: Policy,
    /// How long an invocation waits for an environment that has answered and not yet asked for the next invocation.
    pub patience: Duration,
    /// How long an invocation waits for room on a full host before it is throttled.
    pub room_patience: Duration,
    /// Invocations in flight over all functions: the account's concurrency.
    pub account_concurrency: u32,
    /// Requests a second for each unit of concurrency. Lambda's: 10.
    pub requests_per_unit: u32,
    /// Environments of a function that may be started on demand in ten seconds. Lambda's: 1,000.
    pub scaling_environments: u32,
    /// Environments that this host may hold.
    pub max_environments: u32,
    /// Memory that may be promised to environments, in MiB. None: it does not matter how much is promised, since few
    /// environments use all that they may.
    pub max_memory_mb: Option<u64>,
    /// Environments on their way out that do not count against these limits, so that an invocation on a full host does
    /// not wait for a teardown.
    pub overlap: u32,
}

/// How it is decided how long an idle environment is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// All for the same time.
    #[default]
    Fixed,
    /// By how long the environments of its version have been idle before, where that shows a pattern; one is made ahead
    /// of the next invocation then.
    Histogram,
}

impl Default for Options {
    fn default() -> Self {
        let rules = Rules::default();
        Self {
            idle_timeout: Duration::from_secs(10 * 60),
            keep_alive: Policy::default(),
            patience: rules.patience,
            room_patience: rules.room_patience,
            account_concurrency: rules.account_concurrency,
            requests_per_unit: rules.requests_per_unit,
            scaling_environments: rules.scaling_environments,
            max_environments: 1_000,
            max_memory_mb: None,
            overlap: 16,
        }
    }
}

impl Options {
    fn rules(&self) -> Rules {
        Rules {
            account_concurrency: self.account_concurrency,
            requests_per_unit: self.requests_per_unit,
            scaling_environments: self.scaling_environments,
            patience: self.patience,
            room_patience: self.room_patience,
            keep_alive: match self.keep_alive {
                Policy::Fixed => KeepAlive::Fixed(self.idle_timeout),
                Policy::Histogram => {
                    KeepAlive::Histogram(HistogramRules { standard: self.idle_timeout, ..HistogramRules::default() })
                }
            },
            ..Rules::default()
        }
    }

    fn limits(&self) -> WorkerLimits {
        WorkerLimits {
            memory_mb: self.max_memory_mb.unwrap_or(u64::MAX),
            overlap: self.overlap,
            ..WorkerLimits::of_environments(self.max_environments)
        }
    }
}

/// Handle to the manager; cheap to clone.
#[derive(Clone)]
pub struct WorkerManager {
    shared: Arc<Shared>,
}

/// What the versions share.
pub(crate) struct Shared {
    pub(crate) worker: Worker,
    pub(crate) core: core::Shared,
    /// Read on the warm path, written when a version is first invoked, retired or forgotten.
    versions: RwLock<Versions>,
    shutting_down: AtomicBool,
    /// A version has given up on provisioned environments.
    pub(crate) fell_short: Notify,
}

/// The versions that are invoked, or were not long ago.
#[derive(Default)]
struct Versions {
    by_key: HashMap<VersionKey, Arc<Version>>,
    /// Those, and retired ones that have environments at work.
    by_id: HashMap<VersionId, Arc<Version>>,
    /// By name: those with versions here, and those with a setting.
    functions: HashMap<String, Arc<Function>>,
    /// The server goes down: no further version is taken in.
    closed: bool,
}

impl Versions {
    fn function(&mut self, name: &str, core: &core::Shared) -> Arc<Function> {
        match self.functions.get(name) {
            Some(function) => Arc::clone(function),
            None => Arc::clone(self.functions.entry(name.to_owned()).or_insert_with(|| core.function())),
        }
    }
}

impl WorkerManager {
    /// A manager over one host. Needs a Tokio runtime: a task forgets versions that nobody invokes any more.
    pub fn new(worker: Worker, options: Options) -> Self {
        let shared = Arc::new(Shared {
            worker,
            core: core::Shared::new(options.rules(), &[options.limits()], Instant::now()),
            versions: RwLock::default(),
            shutting_down: AtomicBool::new(false),
            fell_short: Notify::new(),
        });
        let weak = Arc::downgrade(&shared);
        shared.worker.admit_by(move |spec| {
            let manager = weak.clone();
            Box::pin(async move {
                let shared = manager.upgrade()?;
                let place = shared.version(&spec)?.place(&shared).await?;
                Some(Box::new(place) as Box<dyn Send>)
            })
        });
        let weak = Arc::downgrade(&shared);
        // Idle timeouts are minutes; a look a second, or oftener where a test sets them short, is soon enough.
        let every = (options.idle_timeout / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(every);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                let Some(shared) = weak.upgrade() else { return };
                shared.forget();
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
        // A shutdown that begins after this either finds the invocation counted or ends the version under it, which
        // fails it.
        if self.shared.is_shutting_down() {
            return Err(InvokeError::ShuttingDown);
        }
        let Some(version) = self.shared.version(spec) else { return Err(InvokeError::ShuttingDown) };
        let (reply, answer) = oneshot::channel();
        let refusal = version.request(&self.shared, request, reply);
        match answer.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(StartError::Runtime(text))) => Err(InvokeError::RuntimeUnavailable(text)),
            Ok(Err(StartError::SnapshotNotReady)) => Err(InvokeError::SnapshotNotReady),
            Ok(Err(StartError::SnapshotLost(text))) => Err(InvokeError::SnapshotLost(text)),
            Ok(Err(StartError::Restore(failure))) => Err(InvokeError::Restore(failure)),
            Ok(Err(StartError::NoRoom(text))) => {
                tracing::warn!("an invocation was throttled: {text}");
                let retry_after = Duration::from_secs(1);
                Err(InvokeError::Throttled { reason: ThrottleReason::HostCapacity, retry_after })
            }
            Ok(Err(_)) | Err(_) if self.shared.is_shutting_down() => Err(InvokeError::ShuttingDown),
            Ok(Err(error @ (StartError::Code(_) | StartError::Sandbox(_) | StartError::Broken(_)))) => {
                Err(InvokeError::Platform(error.to_string()))
            }
            Err(_) => match refusal.get() {
                Some(Throttle { reason, retry_after }) => Err(InvokeError::Throttled { reason, retry_after }),
                None => Err(InvokeError::Platform("the execution environment ended unexpectedly".to_owned())),
            },
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
            version.step(&self.shared, Event::SetProvisioned(count));
        }
    }

    /// Never has more environments of this version at once than `most`, where there is a number: what does not find room in
    /// those is throttled by [`ThrottleReason::MostEnvironments`]. Environments that are ending do not count.
    pub fn set_most(&self, spec: &Arc<EnvironmentSpec>, most: Option<u32>) {
        if let Some(version) = self.shared.version(spec) {
            version.step(&self.shared, Event::SetMost(most));
        }
    }

    /// Says how much of the account's concurrency belongs to a function: holds from now on, for all its versions.
    pub fn set_concurrency(&self, function: &str, concurrency: Concurrency) {
        let mut versions = self.shared.write();
        if concurrency == Concurrency::default() && !versions.functions.contains_key(function) {
            return;
        }
        versions.function(function, &self.shared.core).set_concurrency(concurrency);
    }

    /// The state of a version's provisioned environments.
    pub fn provisioned(&self, key: &VersionKey) -> ProvisionedStatus {
        let versions = self.shared.read();
        versions.by_key.get(key).map(|version| version.provisioned()).unwrap_or_default()
    }

    /// Returns when provisioned environments of some version are missing and are not made any more; at once where that has
    /// come about since the last time.
    pub async fn fell_short(&self) {
        self.shared.fell_short.notified().await;
    }

    /// The version is no longer current (updated or deleted): environments finish what they do and are retired.
    pub fn retire(&self, key: &VersionKey) {
        let retired = self.shared.write().by_key.remove(key);
        if let Some(version) = retired {
            version.step(&self.shared, Event::Retire);
        }
    }

    /// Invocations in flight now, over all functions.
    pub fn concurrency(&self) -> u32 {
        self.shared.core.in_flight()
    }

    /// What the worker keeps ready for cold starts, by what it is.
    pub fn ready(&self) -> Vec<(&'static str, usize)> {
        self.shared.worker.ready()
    }

    /// What there is to measure. Looks at every environment, and begins the next peaks.
    pub fn figures(&self) -> Figures {
        let versions = self.shared.read();
        let mut functions: HashMap<&str, FunctionReport> = HashMap::new();
        for (name, function) in &versions.functions {
            let report = FunctionReport { name: name.clone(), counts: function.figures(), versions: Vec::new() };
            functions.insert(name, report);
        }
        for version in versions.by_id.values() {
            let spec = version.spec();
            if let Some(report) = functions.get_mut(spec.function_name.as_str()) {
                let (key, number) = (spec.key.clone(), spec.version.clone());
                report.versions.push(VersionReport { key, version: number, now: version.figures() });
            }
        }
        let mut functions: Vec<FunctionReport> = functions.into_values().collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        Figures { functions, totals: self.shared.core.figures() }
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
            versions.by_key.clear();
            // They stay known by number: their ends still have to be told to each other.
            versions.by_id.values().cloned().collect::<Vec<_>>()
        };
        for version in versions {
            version.end(&self.shared);
        }
        self.shared.worker.shutdown(Duration::from_secs(5)).await;
    }
}

impl Shared {
    /// Tells versions what others had to say to them. No version's lock is held.
    pub(crate) fn deliver(self: &Arc<Self>, tells: Tells) {
        if tells.is_empty() {
            return;
        }
        let mut tells = VecDeque::from(tells);
        while let Some((id, told)) = tells.pop_front() {
            let version = self.read().by_id.get(&id).cloned();
            // One that has been forgotten had no environment and waited for none.
            if let Some(version) = version {
                tells.extend(version.step_alone(self, Event::Told(told)));
            }
        }
    }

    fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::SeqCst)
    }

    /// The version; none when the server goes down.
    fn version(&self, spec: &Arc<EnvironmentSpec>) -> Option<Arc<Version>> {
        if let Some(version) = self.read().by_key.get(&spec.key) {
            return Some(Arc::clone(version));
        }
        let mut versions = self.write();
        if versions.closed {
            return None;
        }
        if let Some(version) = versions.by_key.get(&spec.key) {
            return Some(Arc::clone(version));
        }
        let function = versions.function(&spec.function_name, &self.core);
        let version = Version::new(self, Arc::clone(spec), &function);
        versions.by_key.insert(spec.key.clone(), Arc::clone(&version));
        versions.by_id.insert(version.id(), Arc::clone(&version));
        Some(version)
    }

    /// Forgets versions and functions about which there is nothing to know.
    fn forget(&self) {
        let now = Instant::now();
        let unused = |function: &Arc<Function>| {
            Arc::strong_count(function) == 1 && function.concurrency() == Concurrency::default()
        };
        let any = {
            let versions = self.read();
            versions.by_id.values().any(|version| version.is_forgettable(now))
                || versions.functions.values().any(unused)
        };
        if !any {
            return;
        }
        let mut versions = self.write();
        let Versions { by_key, by_id, functions, .. } = &mut *versions;
        by_id.retain(|_, version| {
            let key = &version.spec().key;
            let current = by_key.get(key).is_some_and(|current| Arc::ptr_eq(current, version));
            // Who holds a version beside these tables is about to put something into it.
            let held = Arc::strong_count(version) > 1 + usize::from(current);
            let wanted = held || !version.is_forgettable(now);
            if !wanted && current {
                by_key.remove(key);
            }
            wanted
        });
        functions.retain(|_, function| !unused(function));
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
