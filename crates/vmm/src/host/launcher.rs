//! Makes shells: prepared by the pool, or fresh.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::Link;
use super::pool::{Pool, PoolCounters};
use super::shell::{Shell, ShellReport};
use super::spawn::{self, Program};
use super::users;
use crate::config::{Exit, MAX_VCPUS};
use crate::process::monotonic_ns;
use crate::wire::{self, Call, Request, Start};

/// How VMM processes are launched.
#[derive(Debug, Clone)]
pub struct Options {
    /// What they run.
    pub program: Program,
    /// The device. Default: `/dev/kvm`.
    pub kvm: PathBuf,
    /// How they are confined.
    pub jail: Jail,
    /// How many shells are kept ready, for each number of vCPUs. Default: none.
    pub pool: BTreeMap<u8, usize>,
    /// How long a process may take for anything that it is asked before it is killed. Default: 60 s.
    pub patience: Duration,
}

impl Options {
    /// The defaults, with this jail.
    pub fn new(jail: Jail) -> Options {
        Options {
            program: Program::default(),
            kvm: "/dev/kvm".into(),
            jail,
            pool: BTreeMap::new(),
            patience: Duration::from_secs(60),
        }
    }
}

/// How VMM processes are confined.
#[derive(Debug, Clone)]
pub struct Jail {
    /// Who they run as.
    pub users: Users,
    /// Only writes to the kernel's log which system calls the filter would refuse, instead of killing. For finding
    /// missing ones; never for strangers' code.
    pub audit: bool,
}

impl Jail {
    /// A jail for a host process that is root: a user for each process out of this range, which nothing else uses.
    pub fn with_users(users: Range<u32>) -> Jail {
        Jail { users: Users::Range(users), audit: false }
    }

    /// A jail for a host process without root: a user namespace for each process.
    pub fn without_root() -> Jail {
        Jail { users: Users::Namespace, audit: false }
    }
}

/// Who VMM processes run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// One user (and group) each; takes root.
    Range(Range<u32>),
    /// The user of the host process, in a user namespace each.
    Namespace,
}

/// What belongs to one process from its beginning.
#[derive(Debug, Default)]
pub struct Extras {
    /// `cgroup.procs` files of the control groups to join, open for writing.
    pub cgroup_procs: Vec<OwnedFd>,
    /// The network namespace to be in. A machine's tap device does not need it: its descriptor works from anywhere.
    pub netns: Option<OwnedFd>,
}

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The device cannot be opened.
    #[error("cannot open {path}; is virtualization on, and may this user use it?")]
    Kvm {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A machine with so many vCPUs cannot be.
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// All users of the range are taken.
    #[error("all users for VMM processes are taken; give the jail a longer range")]
    Users,
    /// More control groups than there is room for.
    #[error("{0} control groups are too many for one process")]
    Groups(usize),
    /// The process could not be started.
    #[error("cannot start a VMM process")]
    Spawn(#[source] io::Error),
    /// The process could not be moved into its control group.
    #[error("cannot move a VMM process into its control group")]
    Join(#[source] io::Error),
    /// The process could not become a shell.
    #[error("a VMM process did not become a shell: {0}")]
    Failed(String),
    /// It did not say in time that it is one, and was killed.
    #[error("a VMM process was not ready within {0:?} and was killed")]
    Late(Duration),
}

/// Launches VMM processes. Cheap to clone. When the last one is gone, so are the shells that wait in its pool; shells and
/// machines that were handed out stay.
#[derive(Debug, Clone)]
pub struct Launcher {
    maker: Arc<Maker>,
    pool: Arc<Pool>,
}

impl Launcher {
    /// A launcher; its pool starts to fill at once. Call it in a tokio runtime.
    ///
    /// # Errors
    /// [`LaunchError::Kvm`] if the device cannot be opened, [`LaunchError::Vcpus`] if the pool is to hold what cannot be.
    pub fn new(options: Options) -> Result<Launcher, LaunchError> {
        let kvm = OpenOptions::new().read(true).write(true).open(&options.kvm);
        let kvm = kvm.map_err(|source| LaunchError::Kvm { path: options.kvm.clone(), source })?;
        if let Some(&vcpus) = options.pool.keys().find(|vcpus| !(1..=MAX_VCPUS).contains(*vcpus)) {
            return Err(LaunchError::Vcpus(vcpus));
        }
        let users = match &options.jail.users {
            Users::Range(range) => Some(users::Users::new(range.clone())),
            Users::Namespace => None,
        };
        let sizes = options.pool.clone();
        let maker = Arc::new(Maker { options, kvm: kvm.into(), users });
        Ok(Launcher { pool: Pool::start(sizes, &maker), maker })
    }

    /// A shell with `vcpus` vCPUs: one of the pool's, if it has one and a namespace of one's own is not asked for; else a
    /// fresh one.
    pub async fn shell(&self, vcpus: u8, extras: Extras) -> Result<Shell, LaunchError> {
        if extras.netns.is_some() {
            return self.maker.make(vcpus, extras).await;
        }
        match self.pool.take(vcpus) {
            Some(shell) => {
                shell.join(&extras.cgroup_procs).map_err(LaunchError::Join)?;
                Ok(shell)
            }
            None => self.maker.make(vcpus, extras).await,
        }
    }

    /// A shell that was not in the pool.
    pub async fn fresh(&self, vcpus: u8, extras: Extras) -> Result<Shell, LaunchError> {
        self.maker.make(vcpus, extras).await
    }

    /// How the pool does.
    pub fn pool(&self) -> PoolCounters {
        self.pool.counters()
    }
}

/// What it takes to make a shell.
#[derive(Debug)]
pub(super) struct Maker {
    options: Options,
    kvm: OwnedFd,
    users: Option<Arc<users::Users>>,
}

impl Maker {
    pub async fn make(&self, vcpus: u8, extras: Extras) -> Result<Shell, LaunchError> {
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(LaunchError::Vcpus(vcpus));
        }
        let user = match &self.users {
            Some(users) => Some(users.take().ok_or(LaunchError::Users)?),
            None => None,
        };
        let begun = Instant::now();
        let start = Start {
            vcpus,
            user: user.as_ref().map(users::User::id),
            has_netns: extras.netns.is_some(),
            groups: u8::try_from(extras.cgroup_procs.len())
                .ok()
                .filter(|groups| usize::from(*groups) <= wire::MAX_FDS - 2)
                .ok_or(LaunchError::Groups(extras.cgroup_procs.len()))?,
            audit: self.options.jail.audit,
            begun_ns: monotonic_ns(),
        };
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.kvm.as_fd()];
        fds.extend(extras.netns.as_ref().map(AsFd::as_fd));
        fds.extend(extras.cgroup_procs.iter().map(AsFd::as_fd));
        let (ours, theirs) = wire::pair().map_err(LaunchError::Spawn)?;
        let packet = wire::encode(&Request { id: 0, call: Call::Start(start) })
            .map_err(|error| LaunchError::Spawn(io::Error::other(error)))?;
        // Lies in the socket when the process begins.
        wire::send(&ours, &packet, &fds, false).map_err(LaunchError::Spawn)?;
        let spawned = spawn::spawn(self.options.program.clone(), theirs, self.users.is_none()).await;
        let spawned = spawned.map_err(LaunchError::Spawn)?;
        let patience = self.options.patience;
        let (link, ready) = Link::new(spawned, ours, user, patience).map_err(LaunchError::Spawn)?;
        match tokio::time::timeout(patience, ready).await {
            Ok(Ok(times)) => Ok(Shell::new(link, vcpus, ShellReport { inside: times, total: begun.elapsed() })),
            Ok(Err(_)) => Err(LaunchError::Failed(match link.exited().await {
                Exit::Failed(reason) => reason,
                other => format!("{other:?}"),
            })),
            Err(_) => Err(LaunchError::Late(patience)),
        }
    }
}
