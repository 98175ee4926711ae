//! One machine as the server sees it: how it is used and buried.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use guest::control::{Reply, Request, STREAMS, Spawn, Step};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use vmm::host::MicroVm;

use super::Host;
use super::agent::{Agent, AskError};
use super::base::Base;
use super::make::Disks;
use crate::cgroup::Group;
use crate::net::TapSlot;
use crate::{
    BoxFuture, FreezeError, Process, ProcessId, ProcessSpec, Sandbox, Service, Signal, Snapshot, SnapshotError,
    SpawnError, Usage,
};

/// How long the agent of a running machine may take for an answer before the sandbox counts as broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a measurement may take; then what was known last has to do.
const USAGE_PATIENCE: Duration = Duration::from_millis(500);
/// When to complain that a killed machine does not end; it is waited for all the same.
const SLOW_END: Duration = Duration::from_secs(10);

/// What the host has of a machine. Shared between the sandbox and the backend, which buries what is left at its end.
pub(super) struct Live {
    pub vm: MicroVm,
    group: RwLock<Option<Group>>,
    /// Given back when the machine has ended.
    remains: tokio::sync::Mutex<Option<Remains>>,
}

/// What ends with a machine, in this order.
struct Remains {
    _tap: Option<TapSlot>,
}

impl Live {
    pub fn new(vm: MicroVm, group: Group, tap: Option<TapSlot>) -> Live {
        let remains = tokio::sync::Mutex::new(Some(Remains { _tap: tap }));
        Live { vm, group: RwLock::new(Some(group)), remains }
    }

    /// Kills the machine, waits until it is gone, and gives back what it had on the host.
    pub async fn bury(&self) {
        let mut remains = self.remains.lock().await;
        let Some(ending) = remains.take() else { return };
        self.vm.kill();
        let group = self.group.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(group) = &group {
            // On version 1, a frozen process dies only when thawed. If this fails the removal below tries again.
            let _ = group.thaw();
        }
        if timeout(SLOW_END, self.vm.gone()).await.is_err() {
            tracing::warn!(pid = self.vm.pid(), "a killed machine takes long to end");
            self.vm.gone().await;
        }
        if let Some(group) = group {
            // Blocks for as long as the kernel takes to count the last process out.
            let _ = tokio::task::spawn_blocking(move || group.remove()).await;
        }
        drop(ending);
    }
}

/// A machine that holds a sandbox.
pub(super) struct Machine {
    pub id: String,
    pub key: u64,
    pub host: Arc<Host>,
    pub live: Arc<Live>,
    pub agent: Agent,
    pub service: Option<std::os::unix::net::UnixStream>,
    /// The command that waits in the machine, as it was cloned.
    pub prestarted: Option<Vec<String>>,
    pub base: Arc<Base>,
    pub disks: Disks,
    pub state: State,
}

/// What changes of a machine while it is used.
pub(super) struct State {
    frozen: AtomicBool,
    usage: Mutex<Usage>,
    runtime: tokio::runtime::Handle,
}

impl State {
    /// Of a machine that runs, and is buried on this runtime.
    pub fn new() -> State {
        let runtime = tokio::runtime::Handle::current();
        State { frozen: AtomicBool::new(false), usage: Mutex::default(), runtime }
    }
}

impl Machine {
    async fn start(&self, spec: ProcessSpec) -> Result<Process, SpawnError> {
        let program = spec.argv.first().cloned().unwrap_or_default();
        let step = |step: &str, source| SpawnError::Step { program: program.clone(), step: step.to_owned(), source };
        let streams = [0, 1, 2].map(|at| if at < 2 || spec.log_fd_env.is_some() { self.agent.new_stream() } else { 0 });
        let [stdout, stderr, log] = streams.map(|stream| self.output(stream));
        let (stdout, stderr, log) =
            tokio::try_join!(stdout, stderr, log).map_err(|error| step("connect its output", error))?;
        let missing = || step("connect its output", io::ErrorKind::NotConnected.into());
        let (stdout, stderr) = (stdout.ok_or_else(missing)?, stderr.ok_or_else(missing)?);

        let (id, exit) = self.agent.announce(streams).map_err(|_| SpawnError::SandboxGone)?;
        let cwd = spec.cwd.display().to_string();
        let asked = self.agent.ask(Request::Spawn(Spawn {
            process: id.0,
            prestarted: self.prestarted.as_ref() == Some(&spec.argv),
            argv: spec.argv,
            env: spec.env,
            cwd: cwd.clone(),
            log_fd_env: spec.log_fd_env,
            streams,
        }));
        let error = match timeout(PATIENCE, asked).await {
            Ok(Ok(Reply::Spawned { .. })) => return Ok(Process { id, stdout, stderr, log, exit }),
            Ok(Ok(_)) => step("start it in its machine", io::ErrorKind::InvalidData.into()),
            Ok(Err(AskError::Gone(_))) => SpawnError::SandboxGone,
            Ok(Err(AskError::Failed { step: Step::Exec, source, .. })) => {
                SpawnError::Exec { program: program.clone(), source }
            }
            Ok(Err(AskError::Failed { step: Step::Cwd, source, .. })) => SpawnError::Cwd { path: cwd, source },
            Ok(Err(AskError::Failed { step: Step::Other, what, source })) => step(&what, source),
            Ok(Err(AskError::Confused)) => step("start it in its machine", io::ErrorKind::InvalidData.into()),
            Err(_) => step("start it in its machine", io::ErrorKind::TimedOut.into()),
        };
        self.agent.withdraw(id);
        Err(error)
    }

    /// A connection on which the machine sends what one of its pipes holds; none for stream 0.
    pub async fn output(&self, stream: u64) -> io::Result<Option<OwnedFd>> {
        if stream == 0 {
            return Ok(None);
        }
        let mut connection: UnixStream = self.live.vm.connect(STREAMS).await.map_err(io::Error::other)?;
        connection.write_all(&stream.to_le_bytes()).await?;
        Ok(Some(connection.into_std()?.into()))
    }

    /// Fails if the machine has ended by itself, although its group is still there until it is buried.
    fn with_group(&self, act: impl FnOnce(&Group) -> io::Result<()>) -> Result<(), FreezeError> {
        let failed = |source| FreezeError { id: self.id.clone(), source };
        if !self.agent.is_open() || self.live.vm.has_ended() {
            return Err(failed(io::ErrorKind::NotConnected.into()));
        }
        match &*self.live.group.read().unwrap_or_else(PoisonError::into_inner) {
            Some(group) => act(group).map_err(failed),
            None => Err(failed(io::ErrorKind::NotConnected.into())),
        }
    }

    fn last_usage(&self) -> std::sync::MutexGuard<'_, Usage> {
        self.state.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn measure(&self) -> Usage {
        if !self.state.frozen.load(Ordering::Acquire)
            && let Ok(Ok(Reply::Usage { memory_peak_bytes, memory_bytes, cpu_us, oom_kills })) =
                timeout(USAGE_PATIENCE, self.agent.ask(Request::Usage)).await
        {
            let cpu = Duration::from_micros(cpu_us);
            *self.last_usage() = Usage { memory_peak_bytes, memory_bytes, cpu, oom_kills };
            self.base.used_once(&self.live.vm).await;
        }
        *self.last_usage()
    }
}

impl Sandbox for Machine {
    fn take_service(&mut self) -> Option<Service> {
        self.service.take().map(Service::Guest)
    }

    fn spawn<'a>(&'a self, process: ProcessSpec) -> BoxFuture<'a, Result<Process, SpawnError>> {
        Box::pin(self.start(process))
    }

    fn signal(&self, process: ProcessId, signal: Signal) {
        // Sent at once; nobody waits for the answer.
        drop(self.agent.order(Request::Signal { process: process.0, signal: signal.number() }));
    }

    fn kill_all<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.agent.order(Request::KillAll).await {
                tracing::debug!(sandbox = self.id, %error, "processes were not killed one by one");
            }
        })
    }

    fn freeze(&self) -> Result<(), FreezeError> {
        self.state.frozen.store(true, Ordering::Release);
        self.with_group(Group::freeze)
    }

    fn thaw(&self) -> Result<(), FreezeError> {
        self.with_group(Group::thaw)?;
        self.state.frozen.store(false, Ordering::Release);
        Ok(())
    }

    fn set_cpu(&self, cpu_millis: u32) {
        let group = self.live.group.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = group.as_ref().map(|group| group.set_cpu(cpu_millis)) {
            tracing::warn!(sandbox = self.id, %error, "could not change the CPU share");
        }
    }

    fn usage<'a>(&'a self) -> BoxFuture<'a, Usage> {
        Box::pin(self.measure())
    }

    fn reset_peak(&self) {
        drop(self.agent.order(Request::ResetPeak));
    }

    fn snapshot(self: Box<Self>) -> BoxFuture<'static, Result<Arc<dyn Snapshot>, SnapshotError>> {
        Box::pin(super::snapshot::take(self))
    }

    fn destroy(self: Box<Self>) -> BoxFuture<'static, ()> {
        let live = Arc::clone(&self.live);
        Box::pin(async move {
            self.host.dismiss(self.key);
            live.bury().await;
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // This much even if the runtime has no time left for the rest.
        self.live.vm.kill();
        self.host.dismiss(self.key);
        let live = Arc::clone(&self.live);
        self.state.runtime.spawn(async move { live.bury().await });
    }
}
