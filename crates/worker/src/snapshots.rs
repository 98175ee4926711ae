//! Snapshots of function versions: initialized once, kept, and gone on from by each environment.
//!
//! ```text
//!            take                      find
//!   Unknown ------> Making --> Ready ------> an environment
//!      |  ^           ^  |---> Failed --find: made again--> Making
//!      |  |           |  '---> Unkept: environments initialize, each by itself
//!      |  '-forget    '-find: there is none on the disk, or it is of no use
//!      '--find: read from the disk--> Ready
//! ```
//!
//! A snapshot is made when its version is published, and again when what was kept turns out to be damaged, or to be of
//! another interpreter or host than the one there is. It is held in memory while it is used, and on the disk until it is
//! forgotten.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sandbox::{KeepError, Kept, ProcessId, Saved, Snapshot, SnapshotError};
use serde::{Deserialize, Serialize};
use telemetry::lines::InitType;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

use crate::environment::{self, Notice};
use crate::failure;
use crate::host::{Inner, StartError, Worker, chain};
use crate::lifecycle::Failure;
use crate::spec::{EnvironmentSpec, SnapshotName};

/// Initializations for snapshots that run at a time; the others wait. Each may take minutes.
const MAKERS: usize = 2;

/// A place for an initialization, to be held while it runs; absent where there will be none.
pub type Admitted = Pin<Box<dyn Future<Output = Option<Box<dyn Send>>> + Send>>;

/// Finds places for initializations.
type Admission = dyn Fn(Arc<EnvironmentSpec>) -> Admitted + Send + Sync;

/// Snapshots that are held in memory beside those in use; those on the disk are read again when they are wanted.
const MAX_IN_MEMORY: usize = 32;

/// Memory that those may take together, in bytes.
const MAX_BYTES: u64 = 2 << 30;

/// A version's snapshot, and what has to be known to go on from it.
pub(crate) struct FunctionSnapshot {
    pub(crate) snapshot: Arc<dyn Snapshot>,
    pub(crate) about: About,
}

/// What stands beside a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The interpreter that is in it.
    runtime_version: String,
    /// The root that it runs in, by its content.
    root: Option<String>,
    /// Whether the runtime waits in `restore/next`; it waits in `next` otherwise.
    pub(crate) hooks: bool,
    /// Number of the runtime's process.
    runtime: u32,
    /// Names of the external extensions, and the numbers of their processes.
    extensions: Vec<(String, u32)>,
    /// What the processes ask for credentials with, where the Runtime API is not in the snapshot.
    #[serde(default)]
    token: Option<String>,
}

impl About {
    pub(crate) fn new(
        runtime_version: String,
        root: Option<String>,
        hooks: bool,
        runtime: ProcessId,
        extensions: &[(String, ProcessId)],
    ) -> Self {
        let extensions = extensions.iter().map(|(name, id)| (name.clone(), id.0)).collect();
        Self { runtime_version, root, hooks, runtime: runtime.0, extensions, token: None }
    }

    pub(crate) fn with_token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// What a process is: an extension by its name, or the runtime; `None` for one that was in none of these.
    pub(crate) fn role(&self, process: ProcessId) -> Option<Option<&str>> {
        if process.0 == self.runtime {
            return Some(None);
        }
        self.extensions.iter().find(|(_, id)| *id == process.0).map(|(name, _)| Some(name.as_str()))
    }
}

/// Why a version has no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFailure {
    /// Its runtime or an extension failed to initialize, which is the function's own fault.
    #[error("{error_type}: {message}")]
    Initialization {
        /// `Runtime.ImportModuleError`, `Sandbox.Timedout`, ...
        error_type: String,
        /// What was said about it.
        message: String,
    },
    /// No environment could be made.
    #[error(transparent)]
    Start(StartError),
    /// The initialized environment could not be kept.
    #[error("{0}")]
    Kept(String),
    /// The version was forgotten meanwhile.
    #[error("the version was deleted while it was being initialized")]
    Forgotten,
}

impl SnapshotFailure {
    /// From what a runtime posted, or the platform says.
    pub(crate) fn initialization(failure: &Failure) -> Self {
        Self::Initialization { error_type: failure.error_type.clone(), message: failure::told(failure) }
    }
}

/// What an initialized environment became. `None` where the backend has no snapshots: it has ended then.
pub(crate) type Taken = Result<Option<FunctionSnapshot>, SnapshotFailure>;

/// All snapshots of a host.
pub(crate) struct Snapshots {
    slots: Mutex<HashMap<SnapshotName, Slot>>,
    makers: Semaphore,
    /// Without one the host has room for everything.
    admission: RwLock<Option<Arc<Admission>>>,
    uses: AtomicU64,
}

struct Slot {
    state: Arc<tokio::sync::Mutex<State>>,
    last_use: u64,
}

enum State {
    /// Perhaps it is on the disk.
    Unknown,
    Making,
    Ready(Arc<FunctionSnapshot>),
    /// It cannot be kept: each environment is initialized.
    Unkept,
    /// The last attempt to make it again.
    Failed(SnapshotFailure),
    Forgotten,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            makers: Semaphore::new(MAKERS),
            admission: RwLock::default(),
            uses: AtomicU64::new(0),
        }
    }
}

impl Worker {
    /// Whether environments can go on from snapshots on this host.
    pub fn has_snapshots(&self) -> bool {
        self.inner.backend.snapshots()
    }

    /// Whether those of a version might: where not, there is nothing to try.
    pub async fn can_be_kept(&self, spec: &EnvironmentSpec) -> bool {
        self.has_snapshots() && environment::can_be_kept(&self.inner, spec).await
    }

    /// Initializes an environment of a version with SnapStart, which may take minutes, and keeps it for all others to go on
    /// from. Where the backend has no snapshots it only finds out whether the version can be initialized. Answers whether
    /// there is a snapshot.
    ///
    /// # Errors
    /// It cannot be initialized, or not be kept.
    pub async fn take_snapshot(&self, spec: &Arc<EnvironmentSpec>) -> Result<bool, SnapshotFailure> {
        take(&self.inner, spec).await
    }

    /// Has each initialization for a snapshot ask for a place: it begins when `admit` answers, and fails where that is
    /// nothing; what was answered is dropped when it is over. Takes the place of who was asked before.
    pub fn admit_by(&self, admit: impl Fn(Arc<EnvironmentSpec>) -> Admitted + Send + Sync + 'static) {
        let admission = &self.inner.snapshots.admission;
        *admission.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(admit));
    }

    /// Forgets the snapshot of a version that is no more. Environments that went on from it are not touched.
    pub async fn forget_snapshot(&self, name: &SnapshotName) {
        forget(&self.inner, name).await;
    }

    /// Deletes every kept snapshot but those of these versions: of versions that went while nobody was there to tell, and
    /// what is of no use on this host any more. Answers which there are.
    pub async fn retain_snapshots(&self, specs: &[Arc<EnvironmentSpec>]) -> Vec<SnapshotName> {
        retain(&self.inner, specs).await
    }
}

impl Snapshots {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SnapshotName, Slot>> {
        // Only whole entries are put in and taken out.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, name: &SnapshotName) -> Arc<tokio::sync::Mutex<State>> {
        let last_use = self.uses.fetch_add(1, Ordering::Relaxed);
        let mut slots = self.lock();
        if !slots.contains_key(name) {
            make_room(&mut slots);
        }
        let new = || Slot { state: Arc::new(tokio::sync::Mutex::new(State::Unknown)), last_use };
        let slot = slots.entry(name.clone()).or_insert_with(new);
        slot.last_use = last_use;
        Arc::clone(&slot.state)
    }
}

/// Lets those go that were not used for longest, where there are too many or they take too much. What is on the disk is read again.
fn make_room(slots: &mut HashMap<SnapshotName, Slot>) {
    let held = slots.iter().filter_map(|(name, slot)| {
        // Those that are being worked on are held by whoever does, and those without a snapshot take nothing.
        let state = slot.state.try_lock().ok().filter(|_| Arc::strong_count(&slot.state) == 1)?;
        let State::Ready(ready) = &*state else { return None };
        Some((slot.last_use, name.clone(), ready.snapshot.memory_bytes()))
    });
    let mut held: Vec<_> = held.collect();
    held.sort_unstable_by_key(|(last_use, ..)| *last_use);
    let (mut count, mut bytes) = (held.len(), held.iter().map(|(_, _, bytes)| bytes).sum::<u64>());
    for (_, name, freed) in held {
        if count <= MAX_IN_MEMORY && bytes <= MAX_BYTES {
            break;
        }
        slots.remove(&name);
        count -= 1;
        bytes -= freed;
    }
}

/// Initializes a version and keeps it; true if there is a snapshot now, false where the backend has none and the version has
/// only been tried.
async fn take(host: &Arc<Inner>, spec: &Arc<EnvironmentSpec>) -> Result<bool, SnapshotFailure> {
    let Some(name) = spec.snap_start.clone() else { return Ok(false) };
    if !host.backend.snapshots() {
        let _turn = turn(host, spec).await?;
        return make(host, spec).await.map(|_| false);
    }
    let slot = host.snapshots.slot(&name);
    *slot.lock().await = State::Making;
    make_again(host, spec, &name, &slot).await
}

/// Makes what is being made, and says in its slot what became of it.
async fn make_again(
    host: &Arc<Inner>,
    spec: &Arc<EnvironmentSpec>,
    name: &SnapshotName,
    slot: &tokio::sync::Mutex<State>,
) -> Result<bool, SnapshotFailure> {
    let made = make_and_keep(host, spec, name).await;
    let mut state = slot.lock().await;
    if matches!(*state, State::Forgotten) {
        drop(state);
        delete(host, name).await;
        return Err(SnapshotFailure::Forgotten);
    }
    match made {
        Ok(Some(made)) => {
            *state = State::Ready(Arc::new(made));
            Ok(true)
        }
        Ok(None) => {
            *state = State::Unkept;
            Ok(false)
        }
        Err(failure) => {
            *state = State::Failed(failure.clone());
            Err(failure)
        }
    }
}

async fn make_and_keep(host: &Arc<Inner>, spec: &Arc<EnvironmentSpec>, name: &SnapshotName) -> Taken {
    let _turn = turn(host, spec).await?;
    match make(host, spec).await? {
        Some(made) => keep(name, &made).await.map(|()| Some(made)),
        None if host.backend.keeps_everything() => Err(SnapshotFailure::Kept(SnapshotError::Unsupported.to_string())),
        None => Ok(None),
    }
}

/// The right to initialize a version, with a place on the host: until what came of it is kept.
struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    _place: Option<Box<dyn Send>>,
}

async fn turn<'a>(host: &'a Inner, spec: &Arc<EnvironmentSpec>) -> Result<Turn<'a>, SnapshotFailure> {
    // The semaphore is never closed.
    let permit = host.snapshots.makers.acquire().await.map_err(|_| ended())?;
    Ok(Turn { _permit: permit, _place: admitted(host, spec).await? })
}

fn ended() -> SnapshotFailure {
    SnapshotFailure::Kept("the environment ended while it was being initialized".to_owned())
}

/// Initializes an environment and has it become a snapshot.
async fn make(host: &Arc<Inner>, spec: &Arc<EnvironmentSpec>) -> Taken {
    // Unbounded, but an environment says little.
    let (tell, mut notices) = mpsc::unbounded_channel();
    let observer = Box::new(move |notice| drop(tell.send(notice)));
    let environment = environment::start(Arc::clone(host), Arc::clone(spec), InitType::SnapStart, observer);
    match notices.recv().await {
        // Where it failed, the environment knows why.
        Some(Notice::Ready { .. }) => {}
        Some(Notice::Gone { error: Some(error) }) => return Err(SnapshotFailure::Start(error)),
        Some(Notice::Settling | Notice::Idle | Notice::Gone { error: None }) | None => return Err(ended()),
    }
    let (reply, taken) = oneshot::channel();
    environment.snapshot(reply);
    taken.await.unwrap_or_else(|_| Err(ended()))
}

/// Waits until the host has room for an environment more; to be held for as long as that is there.
async fn admitted(host: &Inner, spec: &Arc<EnvironmentSpec>) -> Result<Option<Box<dyn Send>>, SnapshotFailure> {
    let admission = host.snapshots.admission.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(admit) = admission else { return Ok(None) };
    match admit(Arc::clone(spec)).await {
        Some(place) => Ok(Some(place)),
        None => {
            let text = format!("this host has no room for an environment of {} MB", spec.memory_mb);
            Err(SnapshotFailure::Start(StartError::NoRoom(text)))
        }
    }
}

async fn keep(name: &SnapshotName, made: &FunctionSnapshot) -> Result<(), SnapshotFailure> {
    let note = serde_json::to_vec(&made.about).map_err(|error| SnapshotFailure::Kept(error.to_string()))?;
    made.snapshot.save(name.as_str(), note).await.map_err(|error| SnapshotFailure::Kept(chain(&error)))
}

/// The snapshot to go on from; `None` where the version cannot be kept, or where that is not known.
///
/// # Errors
/// It is not ready: it is made again meanwhile; or that has failed, and is tried once more.
pub(crate) async fn find(
    host: &Arc<Inner>,
    spec: &Arc<EnvironmentSpec>,
    name: &SnapshotName,
) -> Result<Option<Arc<FunctionSnapshot>>, StartError> {
    let slot = host.snapshots.slot(name);
    let mut state = slot.lock().await;
    let answer = match &*state {
        State::Ready(ready) => return Ok(Some(Arc::clone(ready))),
        State::Unkept => return Ok(None),
        // Where versions may have none, nobody has to wait for whether this one has.
        State::Making if !host.backend.keeps_everything() => return Ok(None),
        State::Making | State::Forgotten => return Err(StartError::SnapshotNotReady),
        State::Unknown => match load(host, spec, name).await {
            Some(loaded) => {
                *state = State::Ready(Arc::clone(&loaded));
                return Ok(Some(loaded));
            }
            None if !environment::can_be_kept(host, spec).await => {
                *state = State::Unkept;
                return Ok(None);
            }
            None if !host.backend.keeps_everything() => Ok(None),
            None => Err(StartError::SnapshotNotReady),
        },
        State::Failed(_) if !host.backend.keeps_everything() => Ok(None),
        State::Failed(failure) => Err(StartError::SnapshotLost(failure.to_string())),
    };
    *state = State::Making;
    drop(state);
    let (host, spec, name) = (Arc::clone(host), Arc::clone(spec), name.clone());
    tokio::spawn(async move {
        match make_again(&host, &spec, &name, &slot).await {
            Ok(_) => {
                tracing::info!(function = spec.function_name, version = spec.version, "its snapshot was made again")
            }
            Err(error) => {
                let (function, version) = (&spec.function_name, &spec.version);
                tracing::warn!(function, version, %error, "its snapshot could not be made again");
            }
        }
    });
    answer
}

/// No environment could go on from a snapshot although one can be initialized: they all are, from here on.
pub(crate) async fn give_up(host: &Inner, name: &SnapshotName) {
    let slot = host.snapshots.slot(name);
    let mut state = slot.lock().await;
    if matches!(*state, State::Ready(_)) {
        *state = State::Unkept;
    }
}

/// What is on the disk, if it is of use.
async fn load(host: &Arc<Inner>, spec: &Arc<EnvironmentSpec>, name: &SnapshotName) -> Option<Arc<FunctionSnapshot>> {
    let loaded = match host.backend.load_snapshot(name.as_str()).await {
        Ok(None) => return None,
        Ok(Some(Kept { snapshot, note })) => {
            fit(host, spec, &note).await.map(|about| FunctionSnapshot { snapshot, about })
        }
        Err(error) => Err(chain(&error)),
    };
    match loaded {
        Ok(loaded) => Some(Arc::new(loaded)),
        Err(reason) => {
            discard(host, spec, name, &reason).await;
            None
        }
    }
}

/// Reads the note of a snapshot, and whether that is of the runtime that there is now.
async fn fit(host: &Arc<Inner>, spec: &EnvironmentSpec, note: &[u8]) -> Result<About, String> {
    let about: About = serde_json::from_slice(note).map_err(|error| format!("its note cannot be read: {error}"))?;
    let resolved = host.resolve(&spec.runtime).await.map_err(|error| error.to_string())?;
    if resolved.runtime_version != about.runtime_version {
        return Err(format!("it is of {}, and the runtime is {} now", about.runtime_version, resolved.runtime_version));
    }
    let root = environment::root_name(host, &resolved).await.map_err(|error| error.to_string())?;
    if root != about.root {
        return Err("it is of another root file system than there is now".to_owned());
    }
    Ok(about)
}

/// Forgets the snapshot of a version that is no more.
async fn forget(host: &Arc<Inner>, name: &SnapshotName) {
    let slot = host.snapshots.slot(name);
    *slot.lock().await = State::Forgotten;
    host.snapshots.lock().remove(name);
    delete(host, name).await;
}

/// Forgets all that is on the disk but the snapshots of these versions; answers which of them are there and of use.
async fn retain(host: &Arc<Inner>, specs: &[Arc<EnvironmentSpec>]) -> Vec<SnapshotName> {
    let saved = match host.backend.saved_snapshots().await {
        Ok(saved) => saved,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the snapshots on the disk cannot be listed");
            return Vec::new();
        }
    };
    let mut kept = Vec::new();
    for Saved { name, note } in saved {
        let name = SnapshotName::new(name);
        let Some(spec) = specs.iter().find(|spec| spec.snap_start.as_ref() == Some(&name)) else {
            tracing::info!(snapshot = name.as_str(), "deleting the snapshot of a version that is no more");
            delete(host, &name).await;
            continue;
        };
        let fits = match note {
            Some(note) => fit(host, spec, &note).await.map(drop),
            None => Err("it is damaged, or was made on another host".to_owned()),
        };
        match fits {
            Ok(()) => kept.push(name),
            Err(reason) => discard(host, spec, &name, &reason).await,
        }
    }
    kept
}

/// Deletes what is going to be made again.
async fn discard(host: &Arc<Inner>, spec: &EnvironmentSpec, name: &SnapshotName, reason: &str) {
    let (function, version) = (&spec.function_name, &spec.version);
    tracing::warn!(function, version, reason, "a snapshot is of no use and is made again");
    delete(host, name).await;
}

async fn delete(host: &Arc<Inner>, name: &SnapshotName) {
    if let Err(error) = host.backend.delete_snapshot(name.as_str()).await {
        let error: &KeepError = &error;
        tracing::warn!(snapshot = name.as_str(), error = chain(error), "a snapshot cannot be deleted");
    }
}
