//! The namespace backend: processes of the host's kernel, each sandbox in namespaces, a root and a user of its own.
//!
//! ```text
//! server ---------- SOCK_SEQPACKET ---------- supervisor        clone, kill, "has ended"
//!   |                                             | clone3(NEWNS|NEWPID|NEWIPC|NEWUTS)
//!   `------ SOCK_SEQPACKET per sandbox ------ init (pid 1)      settle, build, spawn, signal, kill all, "process ended"
//!                                                 | clone3(INTO_CGROUP)
//!                                              tenant processes
//! ```
//!
//! A sandbox is `Cloned -> Settled -> Built -> Ended`. Settled ones, which have namespaces, a user and a control group but
//! no root yet, are kept ready in a pool: that is half of the work. Everything made for a sandbox reaches init as a
//! descriptor. Freezing and measuring go straight to the control group, which holds the tenants but not init.
//!
//! As root, sandboxes are also kept *prepared*: `Built` before anybody asks for them, with the first process started and waiting. The server attaches to them
//! what it learns only later, and hands the environment to the process ([`prepared`]). Where that process is an interpreter that may be
//! copied, an interpreter that has been started is the supervisor of its sandboxes, and the process a fork of it ([`zygotes`]).
//!
//! What remains when something dies: if the server dies, the supervisor and every init read the end of their sockets,
//! the inits exit, the kernel kills the rest, and the supervisor removes the control groups. If the supervisor dies, the
//! kernel kills the inits (`PR_SET_PDEATHSIG`), and the next creation starts another. If both are killed at once, the kernel does the same, and only the empty
//! directories of control groups stay until the next server starts; on version 1, processes that were frozen wait
//! for that too. Mounts, networks and disks have no names on the host and go with the last process.

mod attach;
mod control;
pub mod helper;
mod identity;
mod images;
mod kept;
mod link;
mod live;
mod options;
mod prepared;
mod refill;
mod running;
mod waiting;
mod zygotes;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub use helper::Helper;
pub use options::{Options, PrestartMode};
pub use zygotes::Turnover;

use self::attach::Attacher;
use self::helper::Role;
use self::identity::Identities;
use self::images::Images;
use self::link::{Ended, Link};
use self::live::{Live, Shell};
use self::prepared::{Kind, Prepared};
use self::refill::Creating;
use self::zygotes::{Zygote, Zygotes};
use crate::cgroup::{CgroupError, Cgroups};
use crate::host::Loss;
use crate::net::{NetError, NetworkMode, Networks};
use crate::pool::Pool;
use crate::stock::Stock;
use crate::tmp_disk::{TmpDiskError, TmpDisks};
use crate::{Backend, BoxFuture, CreateError, KeepError, Kept, Prestarts, Sandbox, SandboxSpec, Saved};

/// How long the supervisor may take to kill what is left when the backend ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the backend could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The supervisor could not be started.
    #[error("could not start the sandbox supervisor {}", program.display())]
    Supervisor {
        /// Its program.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There are no control groups.
    #[error("control groups cannot be used")]
    Cgroups(#[from] CgroupError),
    /// There is no network.
    #[error("the network of sandboxes cannot be set up")]
    Network(#[from] NetError),
    /// There are no disks.
    #[error("disks for /tmp cannot be made")]
    TmpDisks(#[from] TmpDiskError),
    /// A thread could not be started.
    #[error("could not start a thread for the mounts of sandboxes")]
    Attacher(#[source] io::Error),
    /// The code that interpreters load could not be put where they find it.
    #[error("could not make a memory file for the library that interpreters load: try --prestart off")]
    Library(#[source] io::Error),
    /// The images of processes cannot be kept.
    #[error("could not use the directory for snapshots {}", path.display())]
    Snapshots {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not say which users there are.
    #[error("could not read /proc/self/uid_map")]
    Identities(#[source] io::Error),
    /// Without root, a network can only be had from the host.
    #[error("NAT for sandboxes needs root: run as root, or choose the network \"off\" or \"host\"")]
    NatNeedsRoot,
}

/// The backend. Cheap to clone; [`Backend::shutdown`] ends it for all clones, and so does dropping the last of them.
#[derive(Debug, Clone)]
pub struct Namespace {
    host: Arc<Host>,
}

/// What the sandboxes of one backend share.
#[derive(Debug)]
struct Host {
    helper: Helper,
    /// `None` after the shutdown.
    supervision: Mutex<Option<Supervision>>,
    last_key: AtomicU64,
    roster: Arc<Roster>,
    cgroups: Cgroups,
    /// `None`: every init makes a network of loopback alone for itself (no root, network off).
    networks: Option<Networks>,
    disks: TmpDisks,
    identities: Arc<Identities>,
    /// By the limit of tasks, the only one that cannot be changed afterwards.
    pool: Pool<u32, Shell>,
    /// Whether sandboxes are kept prepared at all.
    prepares: bool,
    stock: Mutex<Stock<Kind, Prepared>>,
    zygotes: Zygotes,
    /// `None` where processes cannot be kept.
    images: Option<Images>,
    attacher: Attacher,
    /// Creations under way: while there are any, the pool is not refilled.
    creating: AtomicUsize,
    refilling: AtomicBool,
    /// When the stock is to be looked at although nobody has asked for anything, if a task waits for that.
    ageing: Mutex<Option<Instant>>,
    losses: Vec<Loss>,
}

/// The sandboxes that are not buried yet, by key.
type Roster = Mutex<HashMap<u64, Arc<Live>>>;

/// A running supervisor.
#[derive(Debug)]
struct Supervision {
    link: Arc<Link>,
    child: Child,
}

impl Supervision {
    fn start(helper: &Helper) -> io::Result<Supervision> {
        let (child, socket) = helper.start(Role::Supervisor)?;
        Ok(Supervision { link: Link::new(socket)?, child })
    }

    /// Lets it end, and waits somewhere else, only so that it does not stay in the process list.
    fn let_go(mut self) {
        self.link.hang_up();
        std::thread::spawn(move || self.child.wait());
    }
}

impl Namespace {
    /// Starts the supervisor and removes what a dead predecessor left. Called inside a tokio runtime.
    pub fn start(options: Options) -> Result<Namespace, StartError> {
        let root = rustix::process::geteuid().is_root();
        let cgroups = Cgroups::detect(&options.cgroup_parent)?;
        cgroups.remove_stale();
        let networks = match options.network {
            NetworkMode::Nat if !root => return Err(StartError::NatNeedsRoot),
            NetworkMode::Off if !root => None,
            mode => Some(Networks::start(mode, options.net)?),
        };
        let disks = TmpDisks::start(options.tmp)?;
        let users = std::fs::read_to_string("/proc/self/uid_map").map_err(StartError::Identities)?;
        let failed = |source| StartError::Supervisor { program: options.helper.program.clone(), source };
        let supervision = Supervision::start(&options.helper).map_err(failed)?;
        let seed = supervision.child.id();
        let identities = Arc::new(Identities::new(root, options.first_uid, &users, seed, options.max_sandboxes));
        let mut losses = cgroups.losses();
        losses.extend(networks.iter().flat_map(Networks::losses));
        losses.extend(disks.loss().cloned());
        if !root {
            losses.push(Loss {
                what: "user of their own: sandboxes run as the user of the server, apart in user namespaces".into(),
                remedy: "run as root".into(),
            });
        }
        let prepares = root && options.prestart != PrestartMode::Off && options.prepared.count > 0;
        if !root && options.prestart != PrestartMode::Off {
            losses.push(Loss {
                what: "prepared sandboxes: every cold start is made from the beginning".into(),
                remedy: "run as root".into(),
            });
        }
        let forks = prepares && options.prestart == PrestartMode::Zygote;
        if forks && !zygotes::is_built() {
            losses.push(Loss {
                what: "forks of started interpreters: each Python process is started on its own".into(),
                remedy: "build for a target that has shared libraries (musl has none by default)".into(),
            });
        }
        let library = (prepares && zygotes::is_built()).then(zygotes::sealed_library).transpose();
        let library = library.map_err(StartError::Library)?.map(Arc::new);
        // In the host's network a clone's Runtime API would be elsewhere than it was.
        let images = library.clone().filter(|_| options.network != NetworkMode::Host);
        let failed = |source| StartError::Snapshots { path: options.snapshots.clone(), source };
        let images =
            images.map(|library| Images::open(&options.snapshots, library)).transpose().map_err(failed)?.flatten();
        let zygotes = Zygotes::new(options.helper.clone(), library.filter(|_| forks), options.turnover);
        let host = Host {
            helper: options.helper,
            supervision: Mutex::new(Some(supervision)),
            last_key: AtomicU64::new(0),
            roster: Arc::default(),
            cgroups,
            networks,
            disks,
            identities,
            pool: Pool::new(options.pool_size),
            prepares,
            stock: Mutex::new(Stock::new(options.prepared)),
            zygotes,
            images,
            attacher: Attacher::start().map_err(StartError::Attacher)?,
            creating: AtomicUsize::new(0),
            refilling: AtomicBool::new(false),
            ageing: Mutex::default(),
            losses,
        };
        Ok(Namespace { host: Arc::new(host) })
    }

    /// What this host does not give to sandboxes, and how it could.
    pub fn losses(&self) -> &[Loss] {
        &self.host.losses
    }

    /// How many sandboxes are prepared and wait.
    pub fn prepared(&self) -> usize {
        self.host.stock().len()
    }

    /// Process number of the supervisor, while it runs.
    pub fn supervisor_pid(&self) -> Option<u32> {
        let supervision = self.host.supervision.lock().unwrap_or_else(PoisonError::into_inner);
        supervision.as_ref().map(|supervision| supervision.child.id())
    }

    /// Process numbers of the interpreters that sandboxes are forked from.
    pub fn zygote_pids(&self) -> Vec<u32> {
        self.host.zygotes.pids()
    }
}

/// Whether this build has what [`PrestartMode::Zygote`] takes: the library that interpreters load.
pub fn can_fork_interpreters() -> bool {
    zygotes::is_built()
}

impl Backend for Namespace {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn prestarts(&self) -> Prestarts {
        if self.host.prepares { Prestarts::Alone } else { Prestarts::No }
    }

    fn prepare<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<(), CreateError>> {
        if let Some(kind) = Kind::of(spec).filter(|_| self.host.prepares) {
            self.host.stock().expect(&kind, Instant::now());
            self.host.refill();
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn create<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Box<dyn Sandbox>, CreateError>> {
        Box::pin(async move {
            let creating = Creating::new(&self.host);
            let sandbox = if spec.keep && self.host.can_keep(&spec) {
                let keeping = images::Keeping::new(&self.host, &spec);
                prepared::ready(&self.host, spec).await.map(|sandbox| sandbox.keep_by(keeping))
            } else {
                match prepared::take(&self.host, &spec).await {
                    Some(sandbox) => Ok(sandbox),
                    None => live::create(&self.host, spec).await,
                }
            };
            drop(creating);
            Ok(Box::new(sandbox?) as Box<dyn Sandbox>)
        })
    }

    fn snapshots(&self) -> bool {
        self.host.images.is_some()
    }

    fn keeps_everything(&self) -> bool {
        false
    }

    fn load_snapshot<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Kept>, KeepError>> {
        let name = name.to_owned();
        images::with(&self.host, Ok(None), move |host, _| kept::load(host, &name))
    }

    fn delete_snapshot<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), KeepError>> {
        let name = name.to_owned();
        images::with(&self.host, Ok(()), move |_, images| images.keepsakes.delete(&name))
    }

    fn saved_snapshots<'a>(&'a self) -> BoxFuture<'a, Result<Vec<Saved>, KeepError>> {
        images::with(&self.host, Ok(Vec::new()), |_, images| images.keepsakes.list())
    }

    fn ready(&self) -> Vec<(&'static str, usize)> {
        let networks = self.host.networks.as_ref().map_or(0, Networks::ready);
        vec![("namespaces", self.host.pool.ready()), ("prepared-sandboxes", self.prepared()), ("networks", networks)]
    }

    fn shutdown<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(self.host.shut_down())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(supervision) = self.supervision.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            supervision.let_go();
        }
    }
}

impl Host {
    fn stock(&self) -> MutexGuard<'_, Stock<Kind, Prepared>> {
        // Every method leaves it whole.
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what will run in such a sandbox can be kept.
    fn can_keep(&self, spec: &SandboxSpec) -> bool {
        self.images.is_some() && spec.clonable().is_some()
    }

    fn is_shut_down(&self) -> bool {
        self.supervision.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// A key for a new sandbox, with the supervisor to order it from. Starts another if the last one has died: its
    /// sandboxes are lost, those to come need not be.
    fn announce(
        &self,
        zygote: Option<&Arc<Zygote>>,
    ) -> Result<(Arc<Link>, u64, oneshot::Receiver<Ended>), CreateError> {
        let key = self.last_key.fetch_add(1, Relaxed) + 1;
        if let Some(zygote) = zygote {
            let ended = zygote.link().announce(key).ok_or(CreateError::SupervisorGone)?;
            return Ok((Arc::clone(zygote.link()), key, ended));
        }
        let mut slot = self.supervision.lock().unwrap_or_else(PoisonError::into_inner);
        let supervision = slot.as_mut().ok_or(CreateError::SupervisorGone)?;
        if let Some(ended) = supervision.link.announce(key) {
            return Ok((Arc::clone(&supervision.link), key, ended));
        }
        tracing::error!(pid = supervision.child.id(), "the sandbox supervisor has died, and all sandboxes with it");
        let failed = |source| CreateError::Step { step: "start another supervisor".into(), source };
        let fresh = Supervision::start(&self.helper).map_err(failed)?;
        std::mem::replace(supervision, fresh).let_go();
        let ended = supervision.link.announce(key).ok_or(CreateError::SupervisorGone)?;
        Ok((Arc::clone(&supervision.link), key, ended))
    }

    async fn shut_down(&self) {
        let supervision = self.supervision.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pool.clear();
        drop(self.stock().clear());
        let live: Vec<Arc<Live>> = {
            let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
            roster.drain().map(|(_, live)| live).collect()
        };
        let mut burials: JoinSet<()> = JoinSet::new();
        for live in live {
            burials.spawn(async move { live.bury().await });
        }
        while burials.join_next().await.is_some() {}
        let mut children = self.zygotes.shut_down();
        if let Some(Supervision { link, child }) = supervision {
            link.hang_up();
            children.push(child);
        }
        let waited = tokio::task::spawn_blocking(move || {
            // An error means that one has been waited for.
            children.iter_mut().for_each(|child| drop(child.wait()));
        });
        if tokio::time::timeout(PATIENCE, waited).await.is_err() {
            tracing::error!("a sandbox supervisor does not end");
        }
        if let Some(networks) = &self.networks {
            networks.shutdown().await;
        }
    }
}
