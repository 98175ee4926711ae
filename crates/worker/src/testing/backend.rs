//! Sandboxes in memory: a process is a task, its pipes and its connections are real.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use sandbox::{
    Backend, BoxFuture, CreateError, Exit, FreezeError, ProcessId, ProcessSpec, Sandbox, SandboxSpec, Service, Signal,
    SpawnError, Usage,
};
use tokio::net::unix::pipe::Sender;
use tokio::sync::{mpsc, oneshot, watch};

use super::process::{Process, Script};

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
    sandboxes: Mutex<Vec<Weak<Inner>>>,
}

impl Memory {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            held: watch::Sender::new(false),
            exits_held: Arc::new(watch::Sender::new(false)),
            creating: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            freezers_broken: Arc::default(),
            live: Arc::default(),
            sandboxes: Mutex::default(),
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
            let listen = |_| TcpListener::bind("127.0.0.1:0");
            let listeners = spec.listen.iter().map(listen).collect::<Result<Vec<_>, _>>();
            let listeners =
                listeners.map_err(|source| CreateError::Step { step: "listen on loopback".to_owned(), source })?;
            self.live.fetch_add(1, Ordering::SeqCst);
            let inner = Arc::new(Inner {
                id: spec.id,
                script: Arc::clone(&self.script),
                frozen: watch::Sender::new(false),
                broken: Arc::clone(&self.freezers_broken),
                exits_held: Arc::clone(&self.exits_held),
                alive: watch::Sender::new(0),
                peak: AtomicU64::new(0),
                cpu_millis: AtomicU32::new(spec.cpu_millis),
                next: AtomicU32::new(1),
                starts: Mutex::default(),
                processes: Mutex::default(),
            });
            self.sandboxes().push(Arc::downgrade(&inner));
            let live = Arc::clone(&self.live);
            Ok(Box::new(InMemory { listeners: Some(listeners), inner, live }) as Box<dyn Sandbox>)
        })
    }

    fn shutdown<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

struct InMemory {
    listeners: Option<Vec<TcpListener>>,
    inner: Arc<Inner>,
    live: Arc<AtomicUsize>,
}

struct Inner {
    id: String,
    script: Script,
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
    signals: mpsc::UnboundedSender<i32>,
    ignores_terminate: Arc<AtomicBool>,
}

impl Inner {
    fn processes(&self) -> MutexGuard<'_, HashMap<ProcessId, Running>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) {
        for process in self.processes().values() {
            let _ = process.signals.send(libc::SIGKILL);
        }
    }

    fn memory(&self) -> u64 {
        *self.alive.borrow() as u64 * PROCESS_BYTES
    }

    fn spawn(self: &Arc<Self>, spec: ProcessSpec) -> std::io::Result<sandbox::Process> {
        let program = spec.argv.first().cloned().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let start = {
            let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = starts.entry(name.clone()).or_default();
            std::mem::replace(count, *count + 1)
        };
        let ((stdout, stdout_in), (stderr, stderr_in)) = (pipe()?, pipe()?);
        let ignores_terminate = Arc::new(AtomicBool::new(false));
        let process = Process {
            name,
            start,
            env: spec.env,
            stdout: stdout_in,
            stderr: stderr_in,
            frozen: self.frozen.subscribe(),
            ignores_terminate: Arc::clone(&ignores_terminate),
            client: None,
        };
        let id = ProcessId(self.next.fetch_add(1, Ordering::Relaxed));
        let (signals, mut incoming) = mpsc::unbounded_channel();
        self.processes().insert(id, Running { signals, ignores_terminate });
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
        self.listeners.take().map(Service::Host)
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

    fn destroy(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.kill_all().await })
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.inner.kill();
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}
