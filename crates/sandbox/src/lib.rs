//! What isolates one execution environment from the host and from all others.
//!
//! Owns the [`Backend`] and [`Sandbox`] traits and their implementations, namespaces and microVMs. Knows nothing of Lambda: it is told which
//! directories to mount where, which limits to enforce and which processes to run.

pub mod cgroup;
mod create;
pub mod host;
pub mod microvm;

pub mod namespace;
pub mod net;
mod pool;
pub mod snapshot;
pub mod stock;
pub mod tmp_disk;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use self::snapshot::{KeepError, Kept, Restored, Saved, Snapshot, SnapshotError};
pub use supervisor::Exit;

/// Does the work of a sandbox's process and exits, if this process was started for that; returns otherwise. Every program
/// that starts a backend calls it first thing in `main`, before any thread is there.
pub fn run_if_helper() {
    namespace::helper::run_if_helper();
    vmm::run_if_vmm();
}

/// A boxed future, because both traits are used as `dyn`; creation and teardown cost milliseconds, a box costs nothing.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a sandbox is made of. All paths on the left are the host's, all paths inside are absolute.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Unique among the live sandboxes of this backend; `[a-z0-9-]`, at most 40 characters.
    pub id: String,
    /// The read-only root file system, which many sandboxes have in common.
    pub root: RootFs,
    /// The same as an image (EROFS), for a backend that [takes images](Backend::takes_images). Its file name tells its
    /// content from any other.
    pub root_image: Option<PathBuf>,
    /// What only a few sandboxes have in common (code, layers), mounted on top of `root` like its binds: directories, or
    /// images of them for a backend that takes images.
    pub mounts: Vec<Bind>,
    /// Size that `/tmp` may grow to, in bytes. Enforced.
    pub tmp_bytes: u64,
    /// Limit on the memory of all processes together, in bytes. `/tmp` does not count where the backend can keep it out.
    pub memory_bytes: u64,
    /// CPU share in thousandths of one processor (1,000 = one full CPU).
    pub cpu_millis: u32,
    /// Processors that a sandbox with a kernel of its own shows, from 1.
    pub processors: u32,
    /// Limit on processes and threads together.
    pub max_tasks: u32,
    /// TCP addresses (loopback, inside the sandbox) to listen on before anything runs; handed back by
    /// [`Sandbox::take_service`] in this order. The sockets live in the sandbox's network namespace, the host accepts. A
    /// backend whose sandboxes are machines of their own serves inside of them instead.
    pub listen: Vec<SocketAddrV4>,
    /// The program that will be started with the same `argv`, where it can wait for its environment: what
    /// [`Backend::prestarts`] tells whether the backend makes use of it. Sandboxes whose runtime differs in nothing of it
    /// may have processes made ready for whichever comes first.
    pub prestart: Option<Prestart>,
    /// Whether [`Sandbox::snapshot`] will be asked for, once the first process is initialized: some backends have to know before
    /// they start that.
    pub keep: bool,
}

impl SandboxSpec {
    /// The program that may wait in what is cloned.
    fn clonable(&self) -> Option<&ProcessSpec> {
        self.prestart.as_ref().filter(|prestart| prestart.clonable).map(|prestart| &prestart.process)
    }
}

/// A program that is started before it is known what for.
///
/// It finds a socket in `FIRELET_PRESTART_FD`, writes one byte to it when it is ready, and reads the rest: a JSON object
/// with `env` (pairs) and `cwd`, which it takes over. At the end of the file without any it ends. The mounts of
/// [`SandboxSpec::mounts`] may be absent until it is given these. Where somebody waits for it from the beginning, a space is in the
/// socket when it starts: what it would do ahead would be in vain.
///
/// Beside the object may come two descriptors. If it has `become`, they are an image and the library that the process calls to become
/// what is in there. If it has not, they are a socket and the library: once it is initialized, the process shall read a byte from the socket and
/// then write an image of itself to it (`runtimes/python/firelet_image.py`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prestart {
    /// The program, with the environment and directory that it is started with.
    pub process: ProcessSpec,
    /// Whether the waiting process may be copied, memory and all, by a snapshot or a fork: the program draws again what
    /// it had drawn from chance. Where not, each is started on its own.
    ///
    /// Such a program is a Python interpreter that looks for `FIRELET_ZYGOTE` before it waits. The variable names a file, which
    /// it initializes as the extension module `firelet_zygote`; that fails (`SystemError`) in forks of it, which then wait. With
    /// a program that does not know of this, it is found out that no sandbox can be made, and each is started on its own.
    pub clonable: bool,
}

/// What a backend does with programs that can wait for their environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prestarts {
    /// It starts none before their sandbox is asked for; [`SandboxSpec::prestart`] is not looked at.
    No,
    /// It starts each on its own, and may clone those that are [clonable](Prestart::clonable).
    Alone,
    /// It has nothing but clones: those that are not [clonable](Prestart::clonable) are started when they are asked for.
    Cloned,
}

/// A read-only root file system put together from host directories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RootFs {
    /// Bind mounts, parents first: host directory or file, path inside. All read-only, nosuid, nodev.
    pub binds: Vec<Bind>,
    /// Symbolic links: path inside, target as written.
    pub symlinks: BTreeMap<PathBuf, PathBuf>,
    /// Small files: path inside, content (mode 0644, owned by root).
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Empty directories to make (mount points of `binds`, `/tmp`, `/proc` and `/dev` are made anyway).
    pub dirs: Vec<PathBuf>,
    /// Host paths of the programs for whose sake the system's own directories are among `binds`: who copies the root
    /// instead of binding it may leave out what neither these nor a small base system need.
    pub programs: Vec<PathBuf>,
}

/// One read-only bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bind {
    /// Existing host path.
    pub source: PathBuf,
    /// Absolute path inside the sandbox.
    pub target: PathBuf,
}

/// A process to start inside a sandbox, as the unprivileged user, without capabilities, under the seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Program (absolute path inside) and arguments.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory inside.
    pub cwd: PathBuf,
    /// Name of the environment variable that tells the number of an extra pipe's write end
    /// (Lambda's `_LAMBDA_TELEMETRY_LOG_FD`); its read end comes back as [`Process::log`].
    pub log_fd_env: Option<String>,
}

/// A started process. Dropping it does not end it.
#[derive(Debug)]
pub struct Process {
    /// Names the process in [`Sandbox::signal`].
    pub id: ProcessId,
    /// Read end of its standard output, non-blocking.
    pub stdout: OwnedFd,
    /// Read end of its standard error, non-blocking.
    pub stderr: OwnedFd,
    /// Read end of the extra pipe, if one was asked for, non-blocking.
    pub log: Option<OwnedFd>,
    /// Resolves once, when the process has ended. A sandbox that dies as a whole reports `Exit::Signal(9)`.
    pub exit: tokio::sync::oneshot::Receiver<Exit>,
}

/// Numbers processes within one sandbox, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// Who answers on the addresses that a sandbox listens on.
#[derive(Debug)]
pub enum Service {
    /// The host: its listening sockets, in order, non-blocking.
    Host(Vec<std::net::TcpListener>),
    /// An agent inside: the host's connection to it.
    Guest(std::os::unix::net::UnixStream),
}

/// Signals that the platform sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: the shutdown grace period begins.
    Terminate,
    /// SIGKILL.
    Kill,
}

impl Signal {
    /// As the kernel counts it.
    fn number(self) -> i32 {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        }
    }
}

/// What a sandbox has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Highest memory use, in bytes, since creation or the last [`Sandbox::reset_peak`].
    pub memory_peak_bytes: u64,
    /// Memory in use now, in bytes.
    pub memory_bytes: u64,
    /// CPU time of all processes.
    pub cpu: Duration,
    /// How often the kernel killed for memory.
    pub oom_kills: u64,
}

/// Makes sandboxes of one kind. Lives as long as the host; cheap to share behind an `Arc`.
pub trait Backend: Send + Sync {
    /// Short name for messages: `namespace`, `microvm`.
    fn name(&self) -> &'static str;

    /// Whether file systems are to be given as images: the sandboxes have kernels of their own.
    fn takes_images(&self) -> bool {
        false
    }

    /// What becomes of [`SandboxSpec::prestart`]. Asked before each creation; does not change.
    fn prestarts(&self) -> Prestarts {
        Prestarts::No
    }

    /// Makes ready what sandboxes like this have in common, if it is not yet; what is theirs alone is not looked at.
    fn prepare<'a>(&'a self, _spec: &'a SandboxSpec) -> BoxFuture<'a, Result<(), CreateError>> {
        Box::pin(async { Ok(()) })
    }

    /// Makes a sandbox in which no tenant process runs yet. Called once per environment, off the warm path.
    fn create<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Box<dyn Sandbox>, CreateError>>;

    /// Whether [`Sandbox::snapshot`] works. Does not change.
    fn snapshots(&self) -> bool {
        false
    }

    /// Whether it works for all that runs in a sandbox: where not, [`SnapshotError::Unfit`] is to be expected. Does not change.
    fn keeps_everything(&self) -> bool {
        true
    }

    /// A snapshot that was [saved](Snapshot::save) here, by this server or an earlier one; `None` if there is none. One that is
    /// damaged, or was made on a host or with parts that differ, is an error: delete it and make it again.
    fn load_snapshot<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Option<Kept>, KeepError>> {
        Box::pin(async { Ok(None) })
    }

    /// Deletes what was saved under a name, and its key first; what is not there is no error.
    fn delete_snapshot<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<(), KeepError>> {
        Box::pin(async { Ok(()) })
    }

    /// The names of all that was saved, with their notes, without the snapshots themselves.
    fn saved_snapshots<'a>(&'a self) -> BoxFuture<'a, Result<Vec<Saved>, KeepError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What it keeps ready, by what it is; the names do not change.
    fn ready(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }

    /// Ends every sandbox and removes what the backend left on the host. Called once, last.
    fn shutdown<'a>(&'a self) -> BoxFuture<'a, ()>;
}

/// One sandbox. Dropping it without [`Sandbox::destroy`] still kills everything inside, without waiting for it.
pub trait Sandbox: Send + Sync {
    /// What serves the addresses of [`SandboxSpec::listen`]; `None` the second time.
    fn take_service(&mut self) -> Option<Service>;

    /// Starts a process. Allowed in a thawed sandbox at any time, also after another process ended.
    fn spawn<'a>(&'a self, process: ProcessSpec) -> BoxFuture<'a, Result<Process, SpawnError>>;

    /// Sends a signal; a process that has already ended is not an error.
    fn signal(&self, process: ProcessId, signal: Signal);

    /// Kills every tenant process (not the sandbox): used when an environment is reset. `/tmp` stays.
    fn kill_all<'a>(&'a self) -> BoxFuture<'a, ()>;

    /// Stops all tenant processes where they are. Idempotent. Costs microseconds: called between invocations.
    fn freeze(&self) -> Result<(), FreezeError>;

    /// Lets them go on. Idempotent, on the warm path.
    fn thaw(&self) -> Result<(), FreezeError>;

    /// Changes the CPU share, in thousandths of one processor: an initialization gets more than its function has later.
    /// Costs microseconds. Called at most once per initialization, and never on the warm path.
    fn set_cpu(&self, cpu_millis: u32);

    /// What has been used so far; of a frozen sandbox that is a machine of its own, what was known when it was frozen.
    /// Costs microseconds.
    fn usage<'a>(&'a self) -> BoxFuture<'a, Usage>;

    /// Starts a new measurement of [`Usage::memory_peak_bytes`], where the kernel can.
    fn reset_peak(&self);

    /// Stops it where it is and keeps that as the model of others; ends it, also where that fails. Frozen or not, and off the
    /// request path: writing out what is the sandbox's own takes some ten milliseconds at least.
    /// Unsupported unless the backend says otherwise.
    fn snapshot(self: Box<Self>) -> BoxFuture<'static, Result<Arc<dyn Snapshot>, SnapshotError>> {
        let destroyed = self.destroy();
        Box::pin(async move {
            destroyed.await;
            Err(SnapshotError::Unsupported)
        })
    }

    /// Kills everything and removes all that the sandbox had on the host. Off the request path.
    fn destroy(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A step of the set-up failed.
    #[error("could not make the sandbox: {step}")]
    Step {
        /// What was being done, with the path or name concerned.
        step: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The host is out of something (disk, cgroups, processes).
    #[error("this host has no room for another sandbox: {0}")]
    NoRoom(String),
    /// The backend is shutting down or its supervisor died.
    #[error("the sandbox supervisor is gone")]
    SupervisorGone,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program could not be executed (absent, not executable, wrong architecture).
    #[error("fork/exec {program}")]
    Exec {
        /// Path inside the sandbox.
        program: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The working directory is not there.
    #[error("working directory {path}")]
    Cwd {
        /// Path inside the sandbox.
        path: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The sandbox has ended.
    #[error("the sandbox has ended")]
    SandboxGone,
    /// Anything else on the way to the start.
    #[error("could not start {program}: {step}")]
    Step {
        /// Path inside the sandbox.
        program: String,
        /// What was being done.
        step: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Why freezing or thawing failed, that the sandbox has ended among the reasons; the environment is to be discarded.
#[derive(Debug, thiserror::Error)]
#[error("could not change the freezer state of sandbox {id}")]
pub struct FreezeError {
    /// The sandbox.
    pub id: String,
    /// The kernel's reason.
    pub source: std::io::Error,
}
