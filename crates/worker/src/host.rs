//! The host: what all environments on it share, and how one is started.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use image::{CodeCache, Digest, Lease};
use runtimes::{Catalog, Resolved};
use sandbox::{Backend, Prestarts, RootFs};
use telemetry::LogStore;
use telemetry::lines::InitType;
use telemetry::metrics::{FunctionMetrics, Metrics};
use tokio::sync::Notify;

use crate::disks::RootDisks;
use crate::environment::compile::{self, Compiling, Uncompiled};
use crate::environment::{self, Environment, Notice};
use crate::lifecycle::RestoreFailure;
use crate::snapshots::Snapshots;
use crate::spec::{CodeRef, EnvironmentSpec};
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

#[derive(Default)]
struct Environments {
    next: u64,
    live: HashMap<u64, Arc<Entry>>,
    cold_starts: Vec<ColdStart>,
}

/// How many cold starts are remembered for [`Worker::cold_starts`].
const COLD_STARTS_KEPT: usize = 4_096;

/// What is known of a live environment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EnvironmentInfo {
    /// The function.
    pub function: String,
    /// Its version.
    pub version: String,
    /// The environment's log stream.
    pub log_stream: String,
    /// Memory in use when last looked at, in bytes.
    pub memory_bytes: u64,
    /// Invocations served.
    pub invocations: u64,
}

/// A live environment's entry in the list; its numbers are written on the warm path, so without a lock.
pub(crate) struct Entry {
    pub(crate) number: u64,
    function: String,
    version: String,
    log_stream: String,
    metrics: FunctionMetrics,
    memory_bytes: AtomicU64,
    invocations: AtomicU64,
}

impl Entry {
    /// So much memory is in use.
    pub(crate) fn measured(&self, memory_bytes: u64) {
        self.memory_bytes.store(memory_bytes, Ordering::Relaxed);
    }

    /// Another invocation was served.
    pub(crate) fn served(&self, memory_bytes: u64, took: Duration, failed: bool) {
        self.measured(memory_bytes);
        self.invocations.fetch_add(1, Ordering::Relaxed);
        self.metrics.invoked(took, failed);
    }

    fn info(&self) -> EnvironmentInfo {
        EnvironmentInfo {
            function: self.function.clone(),
            version: self.version.clone(),
            log_stream: self.log_stream.clone(),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            invocations: self.invocations.load(Ordering::Relaxed),
        }
    }
}

/// Where the time of one cold start went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ColdStart {
    /// Code and layers in place, in microseconds.
    pub code_us: u64,
    /// Sandbox made, in microseconds.
    pub sandbox_us: u64,
    /// Runtime started until it asked for the first invocation, in microseconds.
    pub init_us: u64,
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

/// The code of an environment, in place and kept there.
pub(crate) struct CodeInPlace {
    pub(crate) task: Lease,
    pub(crate) opt: Option<Lease>,
    /// File names in `/opt/extensions`, in the order of their start.
    pub(crate) extensions: Vec<String>,
    /// The program of a custom runtime, as a path inside; none where neither the function nor a layer has one.
    pub(crate) bootstrap: Option<&'static str>,
    /// Whether the dynamic linker may find libraries in it that it would otherwise find elsewhere, or not at all.
    pub(crate) libraries: bool,
    /// What may be compiled, for the next environments.
    pub(crate) uncompiled: Vec<Uncompiled>,
    /// The images of `task` and `opt`, for a backend that takes images.
    images: Option<(Lease, Option<Lease>)>,
}

impl CodeInPlace {
    /// What is mounted at `/var/task`, and what at `/opt` if there are layers: directories, or images where the backend
    /// takes those.
    pub(crate) fn sources(&self) -> (&Path, Option<&Path>) {
        let (task, opt) = match &self.images {
            Some((task, opt)) => (task, opt.as_ref()),
            None => (&self.task, self.opt.as_ref()),
        };
        (task.path(), opt.map(Lease::path))
    }
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Environments> {
        self.environments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new environment into the list.
    pub(crate) fn enter(&self, spec: &EnvironmentSpec, log_stream: &str) -> Arc<Entry> {
        let mut environments = self.lock();
        environments.next += 1;
        let entry = Arc::new(Entry {
            number: environments.next,
            function: spec.function_name.clone(),
            version: spec.version.clone(),
            log_stream: log_stream.to_owned(),
            metrics: self.metrics.function(&spec.function_name),
            memory_bytes: AtomicU64::new(0),
            invocations: AtomicU64::new(0),
        });
        environments.live.insert(entry.number, Arc::clone(&entry));
        entry
    }

    pub(crate) fn cold_started(&self, entry: &Entry, kind: InitType, memory_bytes: u64, cold_start: ColdStart) {
        entry.measured(memory_bytes);
        let phases = [
            ("code", Duration::from_micros(cold_start.code_us)),
            ("sandbox", Duration::from_micros(cold_start.sandbox_us)),
            ("init", Duration::from_micros(cold_start.init_us)),
        ];
        self.metrics.cold_start(&entry.function, kind, &phases);
        let mut environments = self.lock();
        if environments.cold_starts.len() == COLD_STARTS_KEPT {
            environments.cold_starts.drain(..COLD_STARTS_KEPT / 2);
        }
        environments.cold_starts.push(cold_start);
    }

    pub(crate) fn leave(&self, entry: &Entry) {
        self.lock().live.remove(&entry.number);
        self.changed.notify_waiters();
    }

    /// The runtime for a name. What was added since the start of the server is found, too.
    pub(crate) async fn resolve(self: &Arc<Self>, runtime: &str) -> Result<Arc<Resolved>, StartError> {
        if let Some(resolved) = self.resolved(runtime) {
            return Ok(resolved);
        }
        // One at a time, on a thread that may wait: this reads directories and may run interpreters to learn their age.
        let _turn = self.resolving.lock().await;
        if let Some(resolved) = self.resolved(runtime) {
            return Ok(resolved);
        }
        let (inner, name) = (Arc::clone(self), runtime.to_owned());
        let work = tokio::task::spawn_blocking(move || inner.look_for(&name));
        work.await.unwrap_or_else(|panic| Err(StartError::Runtime(format!("looking for {runtime} failed: {panic}"))))
    }

    fn resolved(&self, runtime: &str) -> Option<Arc<Resolved>> {
        self.resolved.read().unwrap_or_else(PoisonError::into_inner).get(runtime).cloned()
    }

    fn look_for(&self, runtime: &str) -> Result<Arc<Resolved>, StartError> {
        let first = self.catalog.read().unwrap_or_else(PoisonError::into_inner).resolve(runtime);
        let resolved = match first {
            Ok(resolved) => resolved,
            Err(_) => {
                let catalog = Catalog::discover(&self.catalog_options);
                let again = catalog.resolve(runtime).map_err(|error| StartError::Runtime(chain(&error)));
                *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
                again?
            }
        };
        if let Some(warning) = &resolved.warning {
            tracing::warn!(runtime, "{warning}");
        }
        let resolved = Arc::new(resolved);
        self.resolved.write().unwrap_or_else(PoisonError::into_inner).insert(runtime.to_owned(), Arc::clone(&resolved));
        Ok(resolved)
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

    /// What a backend can mount of a tree: its directory, or an image of it.
    pub(crate) async fn mountable(&self, tree: &Lease) -> Result<Lease, StartError> {
        if !self.backend.takes_images() {
            return Ok(tree.clone());
        }
        let (cache, tree) = (self.code.clone(), tree.clone());
        let work = tokio::task::spawn_blocking(move || cache.image(&tree));
        let made = work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        made.map_err(|error| StartError::Code(chain(&error)))
    }

    /// Unpacks on a thread that may wait for the disk; immediate when everything is there already.
    /// With its modules compiled, if there is somebody to compile them and it has.
    pub(crate) async fn code_in_place(
        &self,
        spec: &Arc<EnvironmentSpec>,
        resolved: Option<&Resolved>,
    ) -> Result<CodeInPlace, StartError> {
        let kind = resolved.and_then(compile::kind);
        let (cache, takes_images) = (self.code.clone(), self.backend.takes_images());
        let spec = Arc::clone(spec);
        let work = tokio::task::spawn_blocking(move || {
            let unpack = |code: &CodeRef| {
                let digest: Digest =
                    code.digest.parse().map_err(|error: image::ParseDigestError| StartError::Code(chain(&error)))?;
                cache.unpacked(&digest, &code.path).map_err(|error| StartError::Code(chain(&error)))
            };
            let task = unpack(&spec.code)?;
            let layers = spec.layers.iter().map(unpack).collect::<Result<Vec<_>, _>>()?;
            let opt = match layers.is_empty() {
                true => None,
                false => Some(cache.merged(&layers).map_err(|error| StartError::Code(chain(&error)))?),
            };
            let mut uncompiled = Vec::new();
            let mut compiled = |tree: Lease, target| match kind.as_ref().map(|kind| cache.find_extended(&tree, kind)) {
                None => tree,
                Some(Some(extended)) => extended,
                Some(None) => {
                    uncompiled.push(Uncompiled { tree: tree.clone(), target });
                    tree
                }
            };
            let task = compiled(task, "/var/task");
            let opt = opt.map(|opt| compiled(opt, "/opt"));
            let extensions = opt.as_ref().map(|opt| extensions_in(opt.path())).unwrap_or_default();
            let libraries = has_libraries(task.path(), opt.as_ref().map(Lease::path));
            let bootstrap = bootstrap_in(task.path(), opt.as_ref().map(Lease::path));
            let image = |tree: &Lease| cache.image(tree).map_err(|error| StartError::Code(chain(&error)));
            let images = match takes_images {
                true => Some((image(&task)?, opt.as_ref().map(image).transpose()?)),
                false => None,
            };
            Ok(CodeInPlace { task, opt, extensions, bootstrap, libraries, uncompiled, images })
        });
        work.await.unwrap_or_else(|panic| Err(StartError::Code(format!("unpacking failed: {panic}"))))
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

/// The extensions of an environment, given its merged layers. The tree is hostile, so no link in it is followed: that
/// would show names of the host.
fn extensions_in(opt: &Path) -> Vec<String> {
    let dir = opt.join("extensions");
    if !dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return vec![];
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Whether there are shared libraries in the directories of `LD_LIBRARY_PATH`. A process that waited has been linked without
/// them, and its linker remembers which of the directories were not there.
fn has_libraries(task: &Path, opt: Option<&Path>) -> bool {
    let library = |name: &str| name == "glibc-hwcaps" || name.starts_with("lib") && name.contains(".so");
    let within = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(library))
    };
    let below = |tree: &Path| {
        // A link is not followed, and may lead to anything.
        let lib = tree.join("lib");
        lib.symlink_metadata().is_ok_and(|found| found.is_symlink() || found.is_dir() && within(&lib))
    };
    within(task) || below(task) || opt.is_some_and(below)
}

/// The program of a custom runtime: the function's own, or a layer's.
fn bootstrap_in(task: &Path, opt: Option<&Path>) -> Option<&'static str> {
    // Not followed: a link is the sandbox's to resolve, within its own root.
    let has = |host: &Path| host.join("bootstrap").symlink_metadata().is_ok_and(|found| !found.is_dir());
    let [in_task, in_opt] = Resolved::PROVIDED_BOOTSTRAPS;
    if has(task) { Some(in_task) } else { opt.is_some_and(has).then_some(in_opt) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_the_files_in_order_and_a_link_does_not_show_the_host() {
        let opt = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            std::fs::write(elsewhere.path().join(name), "").unwrap();
        }
        std::fs::create_dir(elsewhere.path().join("lib")).unwrap();
        assert_eq!(extensions_in(opt.path()), Vec::<String>::new());
        std::os::unix::fs::symlink(elsewhere.path(), opt.path().join("extensions")).unwrap();
        assert_eq!(extensions_in(opt.path()), Vec::<String>::new());
        std::fs::remove_file(opt.path().join("extensions")).unwrap();
        std::fs::rename(elsewhere.path(), opt.path().join("extensions")).unwrap();
        assert_eq!(extensions_in(opt.path()), ["a", "b"]);
    }

    #[test]
    fn shared_libraries_are_seen_where_the_linker_looks_for_them() {
        let (task, opt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found = || has_libraries(task.path(), Some(opt.path()));
        for dir in [task.path().join("lib"), opt.path().join("python")] {
            std::fs::create_dir(dir).unwrap();
        }
        for name in ["lib/function.jar", "_fast.cpython-312-x86_64-linux-gnu.so", "library.py"] {
            std::fs::write(task.path().join(name), "").unwrap();
        }
        assert!(!found());
        std::fs::write(task.path().join("lib/libown.so.3"), "").unwrap();
        assert!(found());
        std::fs::remove_file(task.path().join("lib/libown.so.3")).unwrap();
        std::os::unix::fs::symlink("python", opt.path().join("lib")).unwrap();
        assert!(found());
    }

    #[test]
    fn a_bootstrap_of_the_function_comes_before_that_of_a_layer() {
        let (task, opt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found = || bootstrap_in(task.path(), Some(opt.path()));
        assert_eq!(found(), None);
        std::fs::write(opt.path().join("bootstrap"), "").unwrap();
        assert_eq!(found(), Some("/opt/bootstrap"));
        std::fs::write(task.path().join("bootstrap"), "").unwrap();
        assert_eq!(found(), Some("/var/task/bootstrap"));
    }
}
