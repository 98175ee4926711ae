//! One machine as the server sees it: how it is made ready for its tenant, used, and buried.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest::control::{CONTROL, FileSystem, Mount, Network, RUNTIME, Reply, Request, STREAMS, Spawn, Step};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use vmm::host::MicroVm;

use super::Host;
use super::agent::{Agent, AskError};
use super::base::Base;
use crate::cgroup::Group;
use crate::create::failed;
use crate::net::TapSlot;
use crate::{
    BoxFuture, CreateError, FreezeError, Process, ProcessId, ProcessSpec, Sandbox, SandboxSpec, Service, Signal,
    SpawnError, Usage,
};

/// How long the agent of a running machine may take for an answer before the sandbox counts as broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a measurement may take; then what was known last has to do.
const USAGE_PATIENCE: Duration = Duration::from_millis(500);
/// When to complain that a killed machine does not end; it is waited for all the same.
const SLOW_END: Duration = Duration::from_secs(10);
/// Numbers of processes and streams that a base snapshot has used stay below this.
const FIRST_NUMBER: u32 = 1_000;

/// The drives of every machine, in order.
pub(super) mod drive {
    /// The runtime's root file system.
    pub const ROOT: u8 = 0;
    /// What a sandbox has mounted beside it, in order: two at most.
    pub const MOUNTS: [u8; 2] = [1, 2];
    /// `/tmp`.
    pub const TMP: u8 = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// What the host has of a machine. Shared between the sandbox and the backend, which buries what is left at its end.
pub(super) struct Live {
    vm: MicroVm,
    group: RwLock<Option<Group>>,
    /// Given back when the machine has ended.
    remains: tokio::sync::Mutex<Option<Remains>>,
}

/// What ends with a machine, in this order.
struct Remains {
    _tap: Option<TapSlot>,
}

impl Live {
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
    id: String,
    key: u64,
    host: Arc<Host>,
    live: Arc<Live>,
    agent: Agent,
    service: Option<std::os::unix::net::UnixStream>,
    /// The command that waits in the machine, as it was cloned.
    prestarted: Option<Vec<String>>,
    base: Arc<Base>,
    frozen: AtomicBool,
    usage: Mutex<Usage>,
    runtime: tokio::runtime::Handle,
}

/// What a sandbox has of its own, made while its machine is.
struct Own {
    drives: Vec<File>,
    tap: Option<TapSlot>,
}

/// Makes a machine and prepares it for its tenant.
pub(super) async fn create(host: &Arc<Host>, spec: SandboxSpec) -> Result<Machine, CreateError> {
    let began = Instant::now();
    let (base, own) = tokio::try_join!(host.bases.get(host, &spec), own(host, &spec))?;
    let prepared = began.elapsed();
    let (shell, group) = host.shell(base.size(), &spec).await?;
    let shelled = began.elapsed();
    let Own { drives, tap } = own;
    let sizes = drives.iter().map(disk_bytes).collect::<io::Result<Vec<u64>>>();
    let sizes = sizes.map_err(|error| failed("look at its disks", error))?;
    let network = tap.as_ref().map(network);
    let vm = host.restore(shell, &base, drives, tap.as_ref()).await?;
    let restored = began.elapsed();
    let live = Arc::new(Live {
        vm,
        group: RwLock::new(Some(group)),
        remains: tokio::sync::Mutex::new(Some(Remains { _tap: tap })),
    });
    let Some(key) = host.enroll(&live) else {
        live.bury().await;
        return Err(CreateError::SupervisorGone);
    };
    let connected = async {
        let control = live.vm.connect(CONTROL);
        let service = live.vm.connect(RUNTIME);
        tokio::try_join!(control, service)
    };
    let (control, service) = match connected.await {
        Ok(connected) => connected,
        Err(error) => {
            host.dismiss(key);
            live.bury().await;
            return Err(failed("reach its agent", io::Error::other(error)));
        }
    };
    let service = service.into_std().map_err(|error| failed("take its connection", error))?;
    let machine = Machine {
        id: spec.id.clone(),
        key,
        host: Arc::clone(host),
        live,
        agent: Agent::new(control, FIRST_NUMBER),
        service: Some(service),
        prestarted: spec.prestart.as_ref().map(|process| process.argv.clone()),
        base,
        frozen: AtomicBool::new(false),
        usage: Mutex::default(),
        runtime: tokio::runtime::Handle::current(),
    };
    match timeout(PATIENCE, machine.furnish(&spec, &sizes, network)).await {
        Ok(furnished) => furnished.map_err(|error| failed("prepare it", error))?,
        Err(_) => return Err(failed("prepare it", io::Error::from(io::ErrorKind::TimedOut))),
    }
    tracing::debug!(
        sandbox = machine.id,
        prepared_us = prepared.as_micros(),
        shell_us = (shelled - prepared).as_micros(),
        restored_us = (restored - shelled).as_micros(),
        ready_us = began.elapsed().as_micros(),
        "machine ready"
    );
    Ok(machine)
}

/// The disks and the cable of one sandbox.
async fn own(host: &Arc<Host>, spec: &SandboxSpec) -> Result<Own, CreateError> {
    if spec.mounts.len() > drive::MOUNTS.len() {
        return Err(failed("mount more than two directories", io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let tap = async { host.tap().await };
    let drives = async {
        let (host, root) = (Arc::clone(host), root_image(spec)?.to_owned());
        let mounts: Vec<_> = spec.mounts.iter().map(|mount| mount.source.clone()).collect();
        let tmp_bytes = spec.tmp_bytes;
        let opened = tokio::task::spawn_blocking(move || {
            let mut drives = vec![open(&root)?];
            for at in 0..drive::MOUNTS.len() {
                drives.push(match mounts.get(at) {
                    Some(image) => open(image)?,
                    None => nothing(false).map_err(|error| failed("make an empty disk", error))?,
                });
            }
            drives.push(host.tmp.make(tmp_bytes).map_err(|error| failed("make a disk for /tmp", error))?);
            Ok(drives)
        });
        opened.await.unwrap_or_else(|panic| Err(failed("open its disks", io::Error::other(panic))))
    };
    let (tap, drives) = tokio::try_join!(tap, drives)?;
    Ok(Own { drives, tap })
}

/// The image that the machine has as its root.
pub(super) fn root_image(spec: &SandboxSpec) -> Result<&Path, CreateError> {
    spec.root_image
        .as_deref()
        .ok_or_else(|| failed("find the image of its root", io::Error::from(io::ErrorKind::NotFound)))
}

/// Opens an image for reading.
pub(super) fn open(image: &Path) -> Result<File, CreateError> {
    File::open(image).map_err(|error| failed(&format!("open the image {}", image.display()), error))
}

/// A drive without content, in the place of one that comes later or not at all.
pub(super) fn nothing(writable: bool) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC)?);
    if writable { Ok(file) } else { File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) }
}

/// Length of a drive in bytes; what is not a whole sector at its end cannot be read.
pub(super) fn disk_bytes(drive: &File) -> io::Result<u64> {
    Ok(drive.metadata()?.len() / 512 * 512)
}

fn network(tap: &TapSlot) -> Network {
    Network {
        address: tap.address,
        prefix: 32,
        gateway: tap.gateway,
        resolv_conf: String::from_utf8_lossy(&tap.resolv_conf).into_owned(),
    }
}

impl Machine {
    /// Makes a clone this sandbox's own, and lets its processes run.
    async fn furnish(&self, spec: &SandboxSpec, sizes: &[u64], network: Option<Network>) -> Result<(), AskError> {
        // Before anything else: two clones must not draw the same numbers.
        self.agent.order(cloned()?).await?;
        let limits = Request::Limits { memory_bytes: spec.memory_bytes, max_tasks: spec.max_tasks };
        let mounts = spec
            .mounts
            .iter()
            .zip(drive::MOUNTS)
            .map(|(mount, drive)| (drive, mount.target.as_path(), FileSystem::Erofs));
        let tmp = (drive::TMP, Path::new("/tmp"), FileSystem::Ext4);
        let mut orders = vec![self.agent.order(limits)];
        for (drive, target, kind) in mounts.chain([tmp]) {
            let bytes = sizes.get(usize::from(drive)).copied().unwrap_or_default();
            let target = target.to_string_lossy().into_owned();
            orders.push(self.agent.order(Request::Mount(Mount { drive, target, kind, bytes })));
        }
        orders.extend(network.map(|network| self.agent.order(Request::Network(network))));
        for order in orders {
            order.await?;
        }
        self.agent.order(Request::Wake).await
    }

    async fn start(&self, spec: ProcessSpec) -> Result<Process, SpawnError> {
        let program = spec.argv.first().cloned().unwrap_or_default();
        let step = |step: &str, source| SpawnError::Step { program: program.clone(), step: step.to_owned(), source };
        let streams = [0, 1, 2].map(|at| if at < 2 || spec.log_fd_env.is_some() { self.agent.new_stream() } else { 0 });
        let [stdout, stderr, log] = streams.map(|stream| self.output(stream));
        let (stdout, stderr, log) =
            tokio::try_join!(stdout, stderr, log).map_err(|error| step("connect its output", error))?;
        let missing = || step("connect its output", io::ErrorKind::NotConnected.into());
        let (stdout, stderr) = (stdout.ok_or_else(missing)?, stderr.ok_or_else(missing)?);

        let (id, exit) = self.agent.announce().map_err(|_| SpawnError::SandboxGone)?;
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
    async fn output(&self, stream: u64) -> io::Result<Option<OwnedFd>> {
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
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn measure(&self) -> Usage {
        if !self.frozen.load(Ordering::Acquire)
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

/// Makes a clone differ from all others.
fn cloned() -> Result<Request, AskError> {
    let mut entropy = [0; 64];
    let filled = rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty());
    let unfilled =
        |source: io::Error| AskError::Failed { step: Step::Other, what: "draw random numbers".to_owned(), source };
    if filled.map_err(|error| unfilled(error.into()))? != entropy.len() {
        return Err(unfilled(io::ErrorKind::UnexpectedEof.into()));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Request::Cloned {
        entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
        now_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
    })
}

impl Sandbox for Machine {
    fn take_service(&mut self) -> Option<Service> {
        self.service.take().map(Service::Guest)
    }

    fn spawn<'a>(&'a self, process: ProcessSpec) -> BoxFuture<'a, Result<Process, SpawnError>> {
        Box::pin(self.start(process))
    }

    fn signal(&self, process: ProcessId, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        };
        // Sent at once; nobody waits for the answer.
        drop(self.agent.order(Request::Signal { process: process.0, signal }));
    }

    fn kill_all<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.agent.order(Request::KillAll).await {
                tracing::debug!(sandbox = self.id, %error, "processes were not killed one by one");
            }
        })
    }

    fn freeze(&self) -> Result<(), FreezeError> {
        self.frozen.store(true, Ordering::Release);
        self.with_group(Group::freeze)
    }

    fn thaw(&self) -> Result<(), FreezeError> {
        self.with_group(Group::thaw)?;
        self.frozen.store(false, Ordering::Release);
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
        self.runtime.spawn(async move { live.bury().await });
    }
}
