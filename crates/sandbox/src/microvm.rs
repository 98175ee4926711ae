//! The microVM backend: each sandbox is a machine with a kernel of its own, cloned from a snapshot.
//!
//! ```text
//!   server                        VMM process (jailed)            machine
//!   Live  ---- vmm::host -------- pause, drives, end
//!     |   ---- control, output, service (vsock) ----------------> agent (pid 1) --- tenant processes
//!     `------- control group: share of processors, freezer
//! ```
//!
//! What is the same for all sandboxes of a kind (kernel, agent, root, an interpreter that waits) is booted once, into a base
//! snapshot (`base`). A sandbox is a clone of it, with disks, limits and a network of its own (`live`).
//!
//! The tenants' limits of memory and processes are enforced by a control group inside the machine, the share of processors
//! and the whole machine's memory by one around its process. Freezing stops the process, and so all of the machine.

mod agent;
mod base;
mod initramfs;
mod keep;
mod live;
mod make;
mod size;
mod snapshot;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;
use vmm::host::{After, Attached, Extras, Jail, Launcher, MicroVm, Shell};
pub use vmm::probe;
use vmm::snapshot::SnapshotStore;

use self::base::{Base, Bases};
use self::live::Live;
use self::size::Size;
use crate::cgroup::{CgroupError, Cgroups, Entry, Group, Limits};
use crate::create::failed;
use crate::host::Loss;
use crate::net::{NetError, NetOptions, NetworkMode, Networks, TapSlot};
use crate::tmp_disk::{TmpDiskError, TmpImages};
use crate::{Backend, BoxFuture, CreateError, KeepError, Kept, Prestarts, Sandbox, SandboxSpec, Saved};

/// What the VMM takes beside the machine's memory, in bytes: its own memory, the kernel's tables, sockets.
const VMM_BYTES: u64 = 64 << 20;
/// Threads of a VMM process: two, and one for each vCPU, with room for those of the kernel's.
const VMM_TASKS: u32 = 64;

/// How the backend is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The guest's kernel: a vmlinux, as `scripts/guest-kernel` makes it.
    pub kernel: PathBuf,
    /// The guest's agent: a static program, as `scripts/guest` makes it.
    pub agent: PathBuf,
    /// Where base snapshots are kept.
    pub snapshots: PathBuf,
    /// Where the disks for `/tmp` are made.
    pub tmp: PathBuf,
    /// The VMM's program: one whose `main` begins with [`vmm::run_if_vmm`].
    pub program: vmm::host::Program,
    /// Name of the control group below which this and other servers keep theirs.
    pub cgroup_parent: String,
    /// What network the machines have. They have none of the host's.
    pub network: NetworkMode,
    /// Details of the network.
    pub net: NetOptions,
    /// The first of the users that VMM processes run as; each takes one.
    pub first_uid: u32,
    /// Most machines at a time, which is the length of that range.
    pub max_machines: u32,
    /// How many jailed processes with an empty machine of one vCPU are kept ready.
    pub pool_size: usize,
}

/// The first user of VMM processes unless told otherwise: in a range that no host gives to people, apart from that of the
/// namespace backend.
const FIRST_UID: u32 = 0x5f1e_0000;

impl Options {
    /// Defaults, with everything that is kept below `data_dir`.
    pub fn new(data_dir: &Path, kernel: PathBuf, agent: PathBuf) -> Options {
        Options {
            kernel,
            agent,
            snapshots: data_dir.join("snapshots"),
            tmp: data_dir.join("tmp"),
            program: vmm::host::Program::default(),
            cgroup_parent: "firelet".into(),
            network: NetworkMode::Nat,
            net: NetOptions::default(),
            first_uid: FIRST_UID,
            max_machines: 16_384,
            pool_size: 4,
        }
    }
}

/// Why the backend could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Kernel or agent cannot be read.
    #[error("could not read {}: make it with `scripts/guest-kernel` and `scripts/guest`", .path.display())]
    Kit {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Without root there is no jail with users of their own, no network and no control groups.
    #[error("microVMs need root: run as root, or use --isolation namespace")]
    NeedsRoot,
    /// `/dev/kvm` cannot be opened.
    #[error("virtual machines cannot be made")]
    Launch(#[from] vmm::host::LaunchError),
    /// There is no place for snapshots.
    #[error("snapshots cannot be kept")]
    Store(#[from] vmm::snapshot::StoreError),
    /// The processor does not say what it is.
    #[error("the processor's features cannot be read")]
    Facts(#[from] vmm::snapshot::FactsError),
    /// There are no control groups.
    #[error("control groups cannot be used")]
    Cgroups(#[from] CgroupError),
    /// There is no network.
    #[error("the network of machines cannot be set up")]
    Network(#[from] NetError),
    /// There are no disks.
    #[error("disks for /tmp cannot be made")]
    TmpDisks(#[from] TmpDiskError),
}

/// The backend. Cheap to clone; [`Backend::shutdown`] ends it for all clones.
#[derive(Clone)]
pub struct MicroVms {
    host: Arc<Host>,
}

/// What the machines of one server share.
struct Host {
    launcher: Launcher,
    kernel: File,
    initramfs: File,
    /// Of kernel and agent.
    kit_digest: blake3::Hash,
    bases: Bases,
    cgroups: Cgroups,
    networks: Networks,
    tmp: TmpImages,
    last_key: AtomicU64,
    roster: Mutex<Roster>,
}

/// The machines that are not buried yet, by key.
#[derive(Default)]
struct Roster {
    live: HashMap<u64, Arc<Live>>,
    shut_down: bool,
}

impl MicroVms {
    /// Prepares the host. Called inside a tokio runtime; makes no machine yet.
    pub fn start(options: Options) -> Result<MicroVms, StartError> {
        if !rustix::process::geteuid().is_root() {
            return Err(StartError::NeedsRoot);
        }
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| StartError::Kit { path: path.to_owned(), source });
        let (kernel, agent) = (read(&options.kernel)?, read(&options.agent)?);
        let kit_digest = blake3::Hasher::new()
            .update(blake3::hash(&kernel).as_bytes())
            .update(blake3::hash(&agent).as_bytes())
            .finalize();
        let unread = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Kit { path, source }
        };
        let initramfs = initramfs::with_init(&agent).map_err(unread(&options.agent))?;
        let kernel = File::open(&options.kernel).map_err(unread(&options.kernel))?;
        let facts = vmm::snapshot::Host::of_this_machine()?;
        let store = SnapshotStore::open(&options.snapshots, facts)?;
        let cgroups = Cgroups::detect(&options.cgroup_parent)?;
        cgroups.remove_stale();
        let networks = Networks::start(options.network, options.net)?;
        let users = options.first_uid..options.first_uid.saturating_add(options.max_machines);
        let launcher = Launcher::new(vmm::host::Options {
            program: options.program,
            pool: [(1, options.pool_size)].into(),
            ..vmm::host::Options::new(Jail::with_users(users))
        })?;
        let host = Host {
            launcher,
            kernel,
            initramfs,
            kit_digest,
            bases: Bases::new(store),
            cgroups,
            networks,
            tmp: TmpImages::new(options.tmp)?,
            last_key: AtomicU64::new(0),
            roster: Mutex::default(),
        };
        Ok(MicroVms { host: Arc::new(host) })
    }

    /// What this host does not give to machines, and how it could.
    pub fn losses(&self) -> Vec<Loss> {
        let mut losses = self.host.cgroups.losses();
        losses.extend(self.host.networks.losses());
        losses
    }

    /// Works on the snapshot of that name where a thread may wait for the disk.
    fn blocking<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Arc<Host>, &str) -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let (host, name) = (Arc::clone(&self.host), name.to_owned());
        Box::pin(async move {
            let worked = tokio::task::spawn_blocking(move || work(&host, &name)).await;
            worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        })
    }
}

impl Backend for MicroVms {
    fn name(&self) -> &'static str {
        "microvm"
    }

    fn prestarts(&self) -> Prestarts {
        Prestarts::Cloned
    }

    fn takes_images(&self) -> bool {
        true
    }

    fn prepare<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<(), CreateError>> {
        Box::pin(async move { self.host.bases.get(&self.host, spec).await.map(drop) })
    }

    fn create<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Box<dyn Sandbox>, CreateError>> {
        Box::pin(async move {
            let machine = make::create(&self.host, spec).await?;
            Ok(Box::new(machine) as Box<dyn Sandbox>)
        })
    }

    fn snapshots(&self) -> bool {
        true
    }

    fn load_snapshot<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Kept>, KeepError>> {
        self.blocking(name, keep::load)
    }

    fn delete_snapshot<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), KeepError>> {
        self.blocking(name, |host, name| keep::delete(host, name))
    }

    fn saved_snapshots<'a>(&'a self) -> BoxFuture<'a, Result<Vec<Saved>, KeepError>> {
        self.blocking("", |host, _| keep::list(host))
    }

    fn ready(&self) -> Vec<(&'static str, usize)> {
        vec![("machines", self.host.launcher.pool().ready)]
    }

    fn shutdown<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(self.host.shut_down())
    }
}

impl Host {
    /// An empty machine in a control group of its own.
    async fn shell(self: &Arc<Self>, size: Size, spec: &SandboxSpec) -> Result<(Shell, Group), CreateError> {
        let limits = Limits {
            memory_bytes: (u64::from(size.memory_mib) << 20) + VMM_BYTES,
            cpu_millis: spec.cpu_millis,
            cpu_share: spec.cpu_millis,
            max_tasks: VMM_TASKS,
        };
        let (host, name) = (Arc::clone(self), format!("vm-{}", self.last_key.fetch_add(1, Ordering::Relaxed) + 1));
        let made = tokio::task::spawn_blocking(move || {
            let group = host.cgroups.create(&name, &limits).map_err(|error| failed("make the control group", error))?;
            let procs = procs_of(&group).map_err(|error| failed("open the control group", error))?;
            Ok((group, procs))
        });
        let (group, cgroup_procs) =
            made.await.unwrap_or_else(|panic| Err(failed("make the control group", io::Error::other(panic))))?;
        let extras = Extras { cgroup_procs, netns: None };
        let shell = self.launcher.shell(size.vcpus, extras).await;
        Ok((shell.map_err(|error| failed("start its process", error))?, group))
    }

    /// An empty machine that is limited by nothing but its size; for what no tenant has touched.
    async fn fresh_shell(&self, vcpus: u8) -> Result<Shell, CreateError> {
        let shell = self.launcher.shell(vcpus, Extras::default()).await;
        shell.map_err(|error| failed("start a base machine's process", error))
    }

    async fn restore(
        &self,
        shell: Shell,
        base: &Base,
        drives: Vec<File>,
        tap: Option<&TapSlot>,
    ) -> Result<MicroVm, CreateError> {
        let tap = tap.map(|slot| slot.tap.try_clone()).transpose();
        let tap = tap.map_err(|error| failed("take its network", error))?;
        let attached = Attached { drives, tap, serial: None };
        let vm = shell.restore(&base.template(), attached, After::Running).await;
        vm.map_err(|error| failed("restore it from its base snapshot", error))
    }

    async fn tap(&self) -> Result<Option<TapSlot>, CreateError> {
        self.networks.acquire_tap().await.map_err(|error| failed("set up the network", error))
    }

    fn has_network(&self) -> bool {
        self.networks.subnet().is_some()
    }

    fn kernel(&self) -> Result<File, CreateError> {
        self.kernel.try_clone().map_err(|error| failed("take the kernel", error))
    }

    fn initramfs(&self) -> Result<File, CreateError> {
        self.initramfs.try_clone().map_err(|error| failed("take the agent", error))
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a machine into the list of those that a shutdown buries; `None` after the shutdown.
    fn enroll(&self, live: &Arc<Live>) -> Option<u64> {
        let mut roster = self.roster();
        if roster.shut_down {
            return None;
        }
        let key = self.last_key.fetch_add(1, Ordering::Relaxed) + 1;
        roster.live.insert(key, Arc::clone(live));
        Some(key)
    }

    fn dismiss(&self, key: u64) {
        self.roster().live.remove(&key);
    }

    async fn shut_down(&self) {
        let live: Vec<Arc<Live>> = {
            let mut roster = self.roster();
            roster.shut_down = true;
            roster.live.drain().map(|(_, live)| live).collect()
        };
        let mut burials = JoinSet::new();
        for live in live {
            burials.spawn(async move { live.bury().await });
        }
        while burials.join_next().await.is_some() {}
        self.bases.saved().await;
        self.networks.shutdown().await;
    }
}

/// The files of a control group that a process enters by being written to.
fn procs_of(group: &Group) -> io::Result<Vec<OwnedFd>> {
    use rustix::fs::{Mode, OFlags, openat};
    match group.entry() {
        Entry::None => Ok(Vec::new()),
        Entry::V1 { procs } => procs.into_iter().map(|procs| procs.try_clone_to_owned()).collect(),
        Entry::V2 { dir } => {
            let procs = openat(dir, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            Ok(vec![procs])
        }
    }
}
