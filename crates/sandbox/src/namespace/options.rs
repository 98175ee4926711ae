//! How the backend is set up.

use std::path::PathBuf;

use super::{Helper, Turnover};
use crate::net::{NetOptions, NetworkMode};
use crate::stock::Bounds;
use crate::tmp_disk::TmpDiskOptions;

/// How the backend is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The supervisor's program.
    pub helper: Helper,
    /// Name of the control group below which this and other servers keep theirs.
    pub cgroup_parent: String,
    /// What network the sandboxes have.
    pub network: NetworkMode,
    /// Details of the network.
    pub net: NetOptions,
    /// Where the disks for `/tmp` are kept.
    pub tmp: TmpDiskOptions,
    /// The first of the users that sandboxes run as: each takes one, and the group of the same number. `None` picks a
    /// range that no host gives to people (between 2^30 and 2^31), or the upper end of what a container may use.
    pub first_uid: Option<u32>,
    /// Most sandboxes at a time, which is the length of that range.
    pub max_sandboxes: u32,
    /// How many half-made sandboxes are kept ready for the limits that were asked for last.
    pub pool_size: usize,
    /// How processes are started ahead of a demand.
    pub prestart: PrestartMode,
    /// How many prepared sandboxes are kept.
    pub prepared: Bounds,
    /// How long an interpreter serves of which there are forks in them.
    pub turnover: Turnover,
    /// Where images of initialized processes are kept.
    pub snapshots: PathBuf,
}

/// How the processes of runtimes that can wait for their environment are started. Needs root; without it each is started
/// when it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrestartMode {
    /// Ahead, in sandboxes that are kept prepared; those that may be [copied](crate::Prestart::clonable) as forks of an
    /// interpreter that is started once, others each by an exec of its own.
    Zygote,
    /// Ahead, in sandboxes that are kept prepared, each by an exec of its own.
    Exec,
    /// When it is wanted.
    Off,
}

impl Options {
    /// Defaults, with the disks for `/tmp` in `tmp_dir`: NAT as root, the host's network otherwise.
    pub fn new(tmp_dir: PathBuf) -> Options {
        let root = rustix::process::geteuid().is_root();
        Options {
            helper: Helper::default(),
            cgroup_parent: "firelet".into(),
            network: if root { NetworkMode::Nat } else { NetworkMode::Host },
            net: NetOptions::default(),
            snapshots: tmp_dir.with_file_name("process-snapshots"),
            tmp: TmpDiskOptions { dir: tmp_dir, pool_size: 4 },
            first_uid: None,
            max_sandboxes: 16_384,
            pool_size: 8,
            prestart: PrestartMode::Zygote,
            prepared: Bounds::default(),
            turnover: Turnover::default(),
        }
    }
}
