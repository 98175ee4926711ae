//! The host: what all environments on it share, and how one is started.

mod code;
mod roster;
mod runtime;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use image::CodeCache;
use runtimes::{Catalog, Resolved};
use sandbox::{Backend, Prestarts, RootFs};
use telemetry::LogStore;
use telemetry::lines::InitType;
use telemetry::metrics::Metrics;
use tokio::sync::Notify;

pub(crate) use self::code::CodeInPlace;
pub(crate) use self::roster::Entry;
pub use self::roster::{ColdStart, EnvironmentInfo};

use self::roster::Environments;
use crate::disks::RootDisks;
use crate::environment::compile::{self, Compiling};
use crate::environment::{self, Environment, Notice};
use crate::lifecycle::RestoreFailure;
use crate::snapshots::Snapshots;
use crate::spec::EnvironmentSpec;
use crate::variables::IssueCredentials;

/// The rules of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long after the runtime asks for its next invocation it is frozen. A busy function, whose next invocation
    /// comes sooner, never pays for freezing.
    pub freeze_delay: Duration,
    /// Limit of a first initialization on demand.
    pub init_timeout: Duration,
    /// Limit of a first initialization ahead of time.
    pub provisioned_init_timeout: Duration,
    /// Limit of what a runtime and its hooks do after a restore from a snapshot.
    pub restore_timeout: Duration,
    /// Processes and threads of one environment together.
    pub max_tasks: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            freeze_delay: Duration::from_millis(10),
            init_timeout: crate::lifecycle::INIT_TIMEOUT,
            provisioned_init_timeout: Duration::from_secs(15 * 60),
            restore_timeout: crate::lifecycle::RESTORE_TIMEOUT,
            max_tasks: 1_024,
        }
    }
}

/// What a host is made of.
pub struct Parts {
    /// Makes the sandboxes.
    pub backend: Arc<dyn Backend>,
    /// The language runtimes.
    pub catalog: Catalog,
    /// How to look for them again when one is missing.
    pub catalog_options: runtimes::Options,
    /// Unpacked code.
    pub code: CodeCache,
    /// Images of roots, for a backend that takes images.
    pub root_disks: RootDisks,
    /// Where logs go.
    pub logs: LogStore,
    /// What invocations and cold starts are counted in.
    pub metrics: Arc<Metrics>,
    /// Asked once for each environment.
    pub credentials: IssueCredentials,
}

/// One host. Cheap to clone.
#[derive(Clone)]
pub struct Worker {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) logs: LogStore,
    metrics: Arc<Metrics>,
    pub(crate) credentials: IssueCredentials,
    pub(crate) code: CodeCache,
    pub(crate) compiling: Compiling,
    pub(crate) snapshots: Snapshots,
    root_disks: RootDisks,
    catalog: RwLock<Catalog>,
    catalog_options: runtimes::Options,
    resolved: RwLock<HashMap<String, Arc<Resolved>>>,
    /// Held by the one who looks for a runtime that is not in `resolved`.
    resolving: tokio::sync::Mutex<()>,
    environments: Mutex<Environments>,
    changed: Notify,
}

/// Why an environment did not come to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// No runtime on this host serves the function.
    #[error("{0}")]
    Runtime(String),
    /// The deployment package or a layer is not usable.
    #[error("{0}")]
    Code(String),
    /// The sandbox could not be made.
    #[error("{0}")]
    Sandbox(String),
    /// The host can hold no further environment now.
    #[error("{0}")]
    NoRoom(String),
    /// The version's snapshot is being made again, its old one being of no use.
    #[error("the snapshot of this version is not ready")]
    SnapshotNotReady,
    /// The version's snapshot could not be made again; it is tried once more.
    #[error("the snapshot of this version could not be made again: {0}")]
    SnapshotLost(String),
    /// The sandbox went on from its snapshot, and the function's hooks failed.
    #[error("{0}")]
    Restore(RestoreFailure),
    /// The sandbox broke.
    #[error("{0}")]
    Broken(String),
}

impl Worker {
    /// A host made of these parts.
    pub fn new(parts: Parts, options: Options) -> Self {
        let Parts { backend, catalog, catalog_options, code, root_disks, logs, metrics, credentials } = parts;
        let inner = Inner {
            options,
            backend,
            logs,
            metrics,
            credentials,
            code,
            compiling: Compiling::default(),
            snapshots: Snapshots::default(),
            root_disks,
            catalog: RwLock::new(catalog),
            catalog_options,
            resolved: RwLock::default(),
            resolving: tokio::sync::Mutex::default(),
            environments: Mutex::default(),
            changed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Puts code and layers of a version in place, and has the backend make ready what it can, so that its first cold
    /// start does not wait for them.
    pub async fn prepare(&self, spec: &Arc<EnvironmentSpec>) -> Result<(), StartError> {
        let resolved = self.inner.resolve(&spec.runtime).await.ok();
        let code = self.inner.code_in_place(spec, resolved.as_deref()).await?;
        if let Some(resolved) = &resolved {
            compile::soon(&self.inner, spec, resolved, code.uncompiled);
        }
        let backend = &self.inner.backend;
        if (backend.takes_images() || backend.prestarts() != Prestarts::No)
            && let Err(error) = self.prepare_runtime(&spec.runtime, spec.memory_mb).await
        {
            // The first environment will meet the same error, and its caller is told.
            tracing::debug!(runtime = spec.runtime, %error, "a runtime could not be prepared");
        }
        Ok(())
    }

    /// Has the backend make ready what all environments of a runtime with so much memory have in common, if it is not yet.
    pub async fn prepare_runtime(&self, runtime: &str, memory_mb: u32) -> Result<(), StartError> {
        environment::prepare(&self.inner, runtime, memory_mb).await
    }

    /// Starts an environment. `observer` is told, from the environment's own task, what becomes of it; it must not block.
    pub fn start(
        &self,
        spec: Arc<EnvironmentSpec>,
        initialization_type: InitType,
        observer: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Environment {
        environment::start(Arc::clone(&self.inner), spec, initialization_type, Box::new(observer))
    }

    /// How many invocations an environment by this specification takes at once: as many as it says, but one
    /// where the environments go on from a snapshot.
    pub fn concurrency(&self, spec: &EnvironmentSpec) -> u32 {
        self.inner.concurrency(spec)
    }

    /// The live environments.
    pub fn environments(&self) -> Vec<EnvironmentInfo> {
        self.inner.lock().live.values().map(|entry| entry.info()).collect()
    }

    /// The most recent cold starts, oldest first.
    pub fn cold_starts(&self) -> Vec<ColdStart> {
        self.inner.lock().cold_starts.clone()
    }

    /// What is kept ready for cold starts: see [`Backend::ready`].
    pub fn ready(&self) -> Vec<(&'static str, usize)> {
        self.inner.backend.ready()
    }

    /// Waits until every environment has ended, then ends the backend. Retire the environments first.
    pub async fn shutdown(&self, patience: Duration) {
        let ended = async {
            loop {
                let changed = self.inner.changed.notified();
                if self.inner.lock().live.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            let left = self.inner.lock().live.len();
            tracing::warn!(left, "environments are still ending; their sandboxes are killed");
        }
        self.inner.backend.shutdown().await;
    }
}

impl Inner {
    /// See [`Worker::concurrency`].
    pub(crate) fn concurrency(&self, spec: &EnvironmentSpec) -> u32 {
        if spec.snap_start.is_some() { 1 } else { spec.max_concurrency.max(1) }
    }

    /// The image of a root, for a backend that takes images. Made when it is first asked for, which takes seconds.
    pub(crate) async fn root_image(&self, root: &RootFs) -> Result<Option<PathBuf>, StartError> {
        if !self.backend.takes_images() {
            return Ok(None);
        }
        let (disks, root) = (self.root_disks.clone(), root.clone());
        let made = tokio::task::spawn_blocking(move || disks.of(&root));
        let made = made.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        made.map(|disk| Some(disk.path.clone())).map_err(|error| StartError::Sandbox(chain(&error)))
    }
}

/// An error with all its sources, for people.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
