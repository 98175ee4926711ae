//! Snapshots of sandboxes in memory. A task cannot be copied, so a clone does again, unseen, what was done before its
//! snapshot: the script runs up to the same call, and goes on from there.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest::runtime::{Remote, Slot, serve_owner};
use runtime_api::{Event, Options};
use sandbox::{
    BoxFuture, CreateError, KeepError, Kept, Process, ProcessId, ProcessSpec, Restored, SandboxSpec, Service, Snapshot,
    SnapshotError,
};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::backend::{Common, InMemory};

/// The Runtime API of a sandbox, served beside its processes.
pub(super) struct Guest {
    pub(super) address: SocketAddr,
    slot: Arc<tokio::sync::Mutex<Slot>>,
    serving: Option<JoinHandle<()>>,
}

impl Guest {
    pub(super) fn new() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        Ok(Self { address, slot: Arc::new(tokio::sync::Mutex::new(Slot::new(listener))), serving: None })
    }

    /// Serves an owner, the one before being gone; returns the owner's end.
    pub(super) fn serve(&mut self) -> std::io::Result<UnixStream> {
        self.cut();
        let (here, there) = UnixStream::pair()?;
        let slot = Arc::clone(&self.slot);
        self.serving = Some(tokio::spawn(async move {
            let _ = serve_owner(there, &mut *slot.lock().await, || {}).await;
        }));
        Ok(here)
    }

    /// The connection to the owner breaks, without a word.
    fn cut(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.cut();
    }
}

/// By name, with their notes.
type All = BTreeMap<String, (Model, Vec<u8>)>;

/// Snapshots that are saved, as if on a disk.
#[derive(Clone, Default)]
pub struct Saved {
    all: Arc<Mutex<All>>,
    damaged: Arc<AtomicBool>,
    refused: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
}

impl Saved {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// What is saved now cannot be read any more.
    pub fn damage(&self) {
        self.damaged.store(true, Ordering::SeqCst);
    }

    /// From now on what runs in sandboxes cannot be kept, and nothing goes on from what is.
    pub fn refuse(&self) {
        self.refused.store(true, Ordering::SeqCst);
    }

    pub(super) fn refuses(&self) -> bool {
        self.refused.load(Ordering::SeqCst)
    }

    /// How often nothing went on from a snapshot because it was refused.
    pub fn failed_restores(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }

    /// What is saved now is of another interpreter.
    pub fn age(&self) {
        for (_, note) in self.lock().values_mut() {
            *note = String::from_utf8_lossy(note).replace("provided:", "provided:before.").into_bytes();
        }
    }

    pub(super) fn list(&self) -> Vec<sandbox::Saved> {
        let damaged = self.damaged.load(Ordering::SeqCst);
        let all = self.lock();
        let saved = all.iter().map(|(name, (_, note))| (name.clone(), Some(note.clone()).filter(|_| !damaged)));
        saved.map(|(name, note)| sandbox::Saved { name, note }).collect()
    }

    pub(super) fn load(&self, name: &str) -> Result<Option<Kept>, KeepError> {
        if self.damaged.load(Ordering::SeqCst) && self.lock().contains_key(name) {
            let source = std::io::ErrorKind::InvalidData.into();
            return Err(KeepError { name: name.to_owned(), step: "read it", source });
        }
        let found = self.lock().get(name).cloned();
        Ok(found.map(|(model, note)| Kept { snapshot: Arc::new(model), note }))
    }

    pub(super) fn delete(&self, name: &str) {
        self.lock().remove(name);
        self.damaged.store(false, Ordering::SeqCst);
    }
}

/// A sandbox as it was.
#[derive(Clone)]
pub(super) struct Model {
    common: Common,
    processes: Vec<(ProcessId, ProcessSpec)>,
}

pub(super) async fn take(mut sandbox: Box<InMemory>) -> Result<Arc<dyn Snapshot>, SnapshotError> {
    let processes = sandbox.inner.running();
    let guest = sandbox.guest.take();
    let common = sandbox.common().clone();
    sandbox::Sandbox::destroy(sandbox).await;
    if common.saved.as_ref().is_some_and(Saved::refuses) {
        return Err(SnapshotError::Unfit("the test says so".to_owned()));
    }
    match guest {
        Some(_) => Ok(Arc::new(Model { common, processes })),
        None => Err(SnapshotError::Unsupported),
    }
}

impl Snapshot for Model {
    fn restore<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Restored, CreateError>> {
        Box::pin(async move {
            if let Some(saved) = self.common.saved.as_ref().filter(|saved| saved.refuses()) {
                saved.failed.fetch_add(1, Ordering::SeqCst);
                let source = std::io::ErrorKind::InvalidData.into();
                return Err(CreateError::Step { step: "go on".to_owned(), source });
            }
            let again = tokio::time::timeout(super::PATIENCE, self.again(spec)).await;
            let again = again.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            again.map_err(|source| CreateError::Step { step: "do again what was done".to_owned(), source })
        })
    }

    fn memory_bytes(&self) -> u64 {
        self.processes.len() as u64
    }

    fn save<'a>(&'a self, name: &'a str, note: Vec<u8>) -> BoxFuture<'a, Result<(), KeepError>> {
        if let Some(saved) = &self.common.saved {
            saved.lock().insert(name.to_owned(), (self.clone(), note));
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Model {
    async fn again(&self, spec: SandboxSpec) -> std::io::Result<Restored> {
        let mut guest = Guest::new()?;
        let stream = guest.serve()?;
        let variable = |process: &ProcessSpec| {
            let token = process.env.iter().find(|(name, _)| name == "AWS_CONTAINER_AUTHORIZATION_TOKEN");
            token.map(|(_, token)| token.clone())
        };
        let token = self.processes.iter().find_map(|(_, process)| variable(process));
        let options = Options { snapshot: true, credentials_token: token, ..Options::default() };
        let (owner, mut events) = Remote::open(stream, options);
        let mut sandbox = self.common.sandbox(spec, None, Some(guest.address));
        let name = |process: &ProcessSpec| {
            process.argv.first().and_then(|program| program.strip_prefix("/opt/extensions/")).map(str::to_owned)
        };
        let (extensions, runtime): (Vec<_>, Vec<_>) =
            self.processes.iter().partition(|(_, process)| name(process).is_some());
        let mut processes = Vec::new();
        if !extensions.is_empty() {
            let _ = owner.expect_extensions(extensions.iter().filter_map(|(_, process)| name(process)));
            let _ = owner.settled().await;
            for (id, process) in extensions {
                processes.push(sandbox.inner.start(*id, process.clone(), true)?);
            }
            until(&mut events, |event| *event == Event::ExtensionsRegistered).await?;
        }
        for (id, process) in runtime {
            processes.push(sandbox.inner.start(*id, process.clone(), true)?);
        }
        until(&mut events, |event| matches!(event, Event::RestoreReady | Event::InitDone)).await?;
        // Closed by the break, the handle says nothing when it goes.
        guest.cut();
        while events.recv().await.is_some() {}
        drop(owner);
        for process in &processes {
            discard(&process.stdout);
            discard(&process.stderr);
        }
        sandbox.service = Some(Service::Guest(guest.serve()?.into_std()?));
        sandbox.guest = Some(guest);
        processes.sort_by_key(|process: &Process| process.id);
        Ok(Restored { sandbox: Box::new(sandbox), processes })
    }
}

async fn until(
    events: &mut tokio::sync::mpsc::UnboundedReceiver<Event>,
    wanted: impl Fn(&Event) -> bool,
) -> std::io::Result<()> {
    while let Some(event) = events.recv().await {
        if wanted(&event) {
            return Ok(());
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// What was said before the snapshot was heard then.
fn discard(pipe: &OwnedFd) {
    let mut buffer = [0; 4096];
    while rustix::io::read(pipe, &mut buffer).is_ok_and(|count| count > 0) {}
}
