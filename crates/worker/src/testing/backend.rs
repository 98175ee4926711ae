//! Sandboxes in memory: a process is a task, its pipes and its connections are real.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use sandbox::{
    Backend, BoxFuture, CreateError, Exit, FreezeError, KeepError, Kept, ProcessId, ProcessSpec, Sandbox, SandboxSpec,
    Service, Signal, Snapshot, SnapshotError, SpawnError, Usage,
};
use tokio::net::unix::pipe::Sender;
use tokio::sync::{mpsc, oneshot, watch};

use super::process::{Place, Process, Script};
use super::snapshot::{Guest, Saved};

/// Memory that each process uses, in bytes.
const PROCESS_BYTES: u64 = 8 << 20;

/// The backend.
pub struct Memory {
    script: Script,
    /// While true, no sandbox is completed.
    held: watch::Sender<bool>,
    /// While true, no end of a process is told of.
    exits_held: Arc<watch::Sender<bool>>,
    creating: AtomicUsize,
    full: AtomicBool,
    freezers_broken: Arc<AtomicBool>,
    live: Arc<AtomicUsize>,
    sandboxes: Arc<Mutex<Vec<Weak<Inner>>>>,
    /// Where this backend has snapshots, those that are saved.
    saved: Option<Saved>,
}

impl Memory {
    pub(super) fn new(script: Script, snapshots: bool) -> Self {
        Self {
            saved: snapshots.then(Saved::default),
            script,
            held: watch::Sender::new(false),
            exits_held: Arc::new(watch::Sender::new(false)),
            creating: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            freezers_broken: Arc::default(),
            live: Arc::default(),
            sandboxes: Arc::default(),
        }
    }

    /// Sandboxes that are there now.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    /// Sandboxes that there have been.
    pub fn created(&self) -> usize {
        self.sandboxes().len()
    }

    /// Sandboxes that are frozen now.
    pub fn frozen(&self) -> usize {
        self.sandboxes().iter().filter_map(Weak::upgrade).filter(|inner| *inner.frozen.borrow()).count()
    }

    /// Creations that have begun and not ended.
    pub fn creating(&self) -> usize {
        self.creating.load(Ordering::SeqCst)
    }

    /// The CPU shares of the sandboxes that are there, in thousandths of a processor.
    pub fn cpu_millis(&self) -> Vec<u32> {
        let live = self.sandboxes().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        live.into_iter().map(|inner| inner.cpu_millis.load(Ordering::SeqCst)).collect()
    }

    /// Lets creations begin and not end, until told otherwise.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Lets processes end without telling of it, until told otherwise.
    pub fn hold_exits(&self, held: bool) {
        self.exits_held.send_replace(held);
    }

    /// The snapshots that are saved here. Panics where the backend has none.
    pub fn saved(&self) -> &Saved {
        self.saved.as_ref().expect("a backend with snapshots")
    }

    /// From now on there is no room for another sandbox.
    pub fn fill(&self) {
        self.full.store(true, Ordering::SeqCst);
    }

    /// From now on no sandbox can be thawed.
    pub fn break_freezers(&self) {
        self.freezers_broken.store(true, Ordering::SeqCst);
    }

    fn sandboxes(&self) -> MutexGuard<'_, Vec<Weak<Inner>>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// What all sandboxes of this backend have in common.
    fn common(&self) -> Common {
        Common {
            script: Arc::clone(&self.script),
            broken: Arc::clone(&self.freezers_broken),
            exits_held: Arc::clone(&self.exits_held),
            live: Arc::clone(&self.live),
            sandboxes: Arc::clone(&self.sandboxes),
            saved: self.saved.clone(),
        }
    }

    /// Served by the host, as namespace sandboxes are.
    fn with_listeners(&self, spec: SandboxSpec) -> std::io::Result<InMemory> {
        let listen = |_| TcpListener::bind("127.0.0.1:0");
        let listeners = spec.listen.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
        Ok(self.common().sandbox(spec, Some(Service::Host(listeners)), None))
    }

    /// Served inside, as microVMs are.
    fn with_guest(&self, spec: SandboxSpec) -> std::io::Result<InMemory> {
        let mut guest = Guest::new()?;
        let stream = guest.serve()?.into_std()?;
        let mut sandbox = self.common().sandbox(spec, Some(Service::Guest(stream)), Some(guest.address));
        sandbox.guest = Some(guest);
        Ok(sandbox)
    }
}

/// What a sandbox is made with.
#[derive(Clone)]
pub(super) struct Common {
    script: Script,
    broken: Arc<AtomicBool>,
    exits_held: Arc<watch::Sender<bool>>,
    live: Arc<AtomicUsize>,
    sandboxes: Arc<Mutex<Vec<Weak<Inner>>>>,
    pub(super) saved: Option<Saved>,
}

impl Common {
    pub(super) fn sandbox(&self, spec: SandboxSpec, service: Option<Service>, api: Option<SocketAddr>) -> InMemory {
        self.live.fetch_add(1, Ordering::SeqCst);
        let inner = Arc::new(Inner {
            id: spec.id.clone(),
            script: Arc::clone(&self.script),
            api: api.map(|address| address.to_string()),
            frozen: watch::Sender::new(false),
            broken: Arc::clone(&self.broken),
            exits_held: Arc::clone(&self.exits_held),
            alive: watch::Sender::new(0),
            peak: AtomicU64::new(0),
            cpu_millis: AtomicU32::new(spec.cpu_millis),
            next: AtomicU32::new(1),
            starts: Mutex::default(),
            processes: Mutex::default(),
        });
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&inner));
        InMemory { service, inner, guest: None, common: self.clone() }
    }
}

impl Backend for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn create<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Box<dyn Sandbox>, CreateError>> {
        Box::pin(async move {
            self.creating.fetch_add(1, Ordering::SeqCst);
            // The sender lives as long as the backend.
            let _ = self.held.subscribe().wait_for(|held| !held).await;
            self.creating.fetch_sub(1, Ordering::SeqCst);
            if self.full.load(Ordering::SeqCst) {
                return Err(CreateError::NoRoom("the test says so".to_owned()));
            }
            let made = if self.saved.is_some() { self.with_guest(spec) } else { self.with_listeners(spec) };
            let made = made.map_err(|source| CreateError::Step { step: "listen on loopback".to_owned(), source })?;
            Ok(Box::new(made) as Box<dyn Sandbox>)
        })
    }

    fn snapshots(&self) -> bool {
        self.saved.is_some()
    }

    fn keeps_everything(&self) -> bool {
        !self.saved.as_ref().is_some_and(Saved::refuses)
    }

    fn load_snapshot<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Kept>, KeepError>> {
        Box::pin(std::future::ready(self.saved().load(name)))
    }

    fn delete_snapshot<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), KeepError>> {
        self.saved().delete(name);
        Box::pin(std::future::ready(Ok(())))
    }

    fn saved_snapshots<'a>(&'a self) -> BoxFuture<'a, Result<Vec<sandbox::Saved>, KeepError>> {
        Box::pin(std::future::ready(Ok(self.saved().list())))
    }

    fn shutdown<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

pub(super) struct InMemory {
    pub(super) service: Option<Service>,
    pub(super) inner: Arc<Inner>,
    pub(super) guest: Option<Guest>,
    common: Common,
}

pub(super) struct Inner {
    id: String,
    script: Script,
    /// Where the Runtime API really is, where that is not what the variables say.
    api: Option<String>,
    frozen: watch::Sender<bool>,
    broken: Arc<AtomicBool>,
    exits_held: Arc<watch::Sender<bool>>,
    /// Processes that have not ended.
    alive: watch::Sender<usize>,
    peak: AtomicU64,
    cpu_millis: AtomicU32,
    next: AtomicU32,
    /// How often a process of each name was started.
    starts: Mutex<HashMap<String, u32>>,
    processes: Mutex<HashMap<ProcessId, Running>>,
}

struct Running {
    spec: ProcessSpec,
    signals: mpsc::UnboundedSender<i32>,
    ignores_terminate: Arc<AtomicBool>,
}

impl Inner {
    fn processes(&self) -> MutexGuard<'_, HashMap<ProcessId, Running>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kill(&self) {
        for process in self.processes().values() {
            let _ = process.signals.send(libc::SIGKILL);
        }
    }

    fn memory(&self) -> u64 {
        *self.alive.borrow() as u64 * PROCESS_BYTES
    }

    /// The processes that have not ended, in order.
    pub(super) fn running(&self) -> Vec<(ProcessId, ProcessSpec)> {
        let processes = self.processes();
        let mut running: Vec<_> = processes.iter().map(|(id, running)| (*id, running.spec.clone())).collect();
        running.sort_by_key(|(id, _)| *id);
        running
    }

    fn spawn(self: &Arc<Self>, spec: ProcessSpec) -> std::io::Result<sandbox::Process> {
        let id = ProcessId(self.next.fetch_add(1, Ordering::Relaxed));
        self.start(id, spec, false)
    }

    /// Starts a process under a number; `again` where a clone does again what was done before its snapshot.
    pub(super) fn start(
        self: &Arc<Self>,
        id: ProcessId,
        spec: ProcessSpec,
        again: bool,
    ) -> std::io::Result<sandbox::Process> {
        self.next.fetch_max(id.0 + 1, Ordering::Relaxed);
        let program = spec.argv.first().cloned().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let start = {
            let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = starts.entry(name.clone()).or_default();
            std::mem::replace(count, *count + 1)
        };
        let ((stdout, stdout_in), (stderr, stderr_in)) = (pipe()?, pipe()?);
        let ignores_terminate = Arc::new(AtomicBool::new(false));
        let mut env = spec.env.clone();
        if let Some(api) = &self.api {
            env.retain(|(name, _)| name != "AWS_LAMBDA_RUNTIME_API");
            env.push(("AWS_LAMBDA_RUNTIME_API".to_owned(), api.clone()));
        }
        let host = env.iter().find(|(name, _)| name == "AWS_LAMBDA_RUNTIME_API").map(|(_, host)| host.clone());
        let process = Process {
            name,
            start,
            again,
            env,
            stdout: stdout_in,
            stderr: stderr_in,
            ignores_terminate: Arc::clone(&ignores_terminate),
            own: Place::new(host.unwrap_or_default(), self.frozen.subscribe()),
        };
        let (signals, mut incoming) = mpsc::unbounded_channel();
        self.processes().insert(id, Running { spec, signals, ignores_terminate });
        self.alive.send_modify(|alive| *alive += 1);
        self.peak.fetch_max(self.memory(), Ordering::SeqCst);
        let (exited, exit) = oneshot::channel();
        let (inner, scripted) = (Arc::clone(self), (self.script)(process));
        tokio::spawn(async move {
            let exit = tokio::select! {
                biased;
                Some(signal) = incoming.recv() => Exit::Signal(signal),
                exit = scripted => exit.unwrap_or(Exit::Code(1)),
            };
            inner.processes().remove(&id);
            inner.alive.send_modify(|alive| *alive -= 1);
            let _ = inner.exits_held.subscribe().wait_for(|held| !held).await;
            let _ = exited.send(exit);
        });
        Ok(sandbox::Process { id, stdout, stderr, log: None, exit })
    }
}

/// A pipe whose ends do not block: the host's and the process's.
fn pipe() -> std::io::Result<(OwnedFd, Sender)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((read, Sender::from_owned_fd(write)?))
}

impl Sandbox for InMemory {
    fn take_service(&mut self) -> Option<Service> {
        self.service.take()
    }

    fn spawn<'a>(&'a self, process: ProcessSpec) -> BoxFuture<'a, Result<sandbox::Process, SpawnError>> {
        Box::pin(async move {
            let program = process.argv.first().cloned().unwrap_or_default();
            if program.ends_with("/absent") {
                return Err(SpawnError::Exec { program, source: std::io::Error::from_raw_os_error(libc::ENOENT) });
            }
            let failed =
                |step: &str, source| SpawnError::Step { program: program.clone(), step: step.to_owned(), source };
            if *self.inner.frozen.borrow() {
                return Err(failed("start in a frozen sandbox", std::io::ErrorKind::WouldBlock.into()));
            }
            self.inner.spawn(process).map_err(|source| failed("make its pipes", source))
        })
    }

    fn signal(&self, process: ProcessId, signal: Signal) {
        let processes = self.inner.processes();
        let Some(running) = processes.get(&process) else { return };
        let _ = match signal {
            Signal::Kill => running.signals.send(libc::SIGKILL),
            Signal::Terminate if running.ignores_terminate.load(Ordering::Relaxed) => Ok(()),
            Signal::Terminate => running.signals.send(libc::SIGTERM),
        };
    }

    fn kill_all<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async {
            self.inner.kill();
            let _ = self.inner.alive.subscribe().wait_for(|alive| *alive == 0).await;
        })
    }

    fn freeze(&self) -> Result<(), FreezeError> {
        self.inner.frozen.send_replace(true);
        Ok(())
    }

    fn thaw(&self) -> Result<(), FreezeError> {
        if self.inner.broken.load(Ordering::SeqCst) {
            return Err(FreezeError { id: self.inner.id.clone(), source: std::io::ErrorKind::Other.into() });
        }
        self.inner.frozen.send_replace(false);
        Ok(())
    }

    fn usage<'a>(&'a self) -> BoxFuture<'a, Usage> {
        let usage = Usage {
            memory_peak_bytes: self.inner.peak.load(Ordering::SeqCst),
            memory_bytes: self.inner.memory(),
            cpu: Duration::ZERO,
            oom_kills: 0,
        };
        Box::pin(std::future::ready(usage))
    }

    fn set_cpu(&self, cpu_millis: u32) {
        self.inner.cpu_millis.store(cpu_millis, Ordering::SeqCst);
    }

    fn reset_peak(&self) {
        self.inner.peak.store(self.inner.memory(), Ordering::SeqCst);
    }

    fn snapshot(self: Box<Self>) -> BoxFuture<'static, Result<Arc<dyn Snapshot>, SnapshotError>> {
        Box::pin(super::snapshot::take(self))
    }

    fn destroy(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.kill_all().await })
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.inner.kill();
        self.common.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl InMemory {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }
}
