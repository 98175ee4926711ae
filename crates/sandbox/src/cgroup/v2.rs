//! The unified hierarchy (`Documentation/admin-guide/cgroup-v2.rst`).
//!
//! ```text
//! BASE/                cgroup.subtree_control: +cpu +memory +pids
//!   PARENT/            the same, no processes ("no internal processes" rule)
//!     PID-N/           this server's, the same
//!       SANDBOX/       limits; only tenant processes
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse::flat_key;
use super::tree::{self, Claim};
use super::{CPU_PERIOD_US, CgroupError, Limits, read_number, read_text};
use crate::Usage;

/// What limits need. Freezing and killing come with the hierarchy itself.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The name of the leaf that our own processes move to when their group must become an inner node.
pub(super) const SERVER_LEAF: &str = "firelet-server";

#[derive(Debug)]
pub(super) struct Tree {
    pub claim: Claim,
    /// Controllers that could not be had.
    pub missing: Vec<&'static str>,
}

impl Tree {
    /// Makes this server's part below `base`.
    ///
    /// `own` is the directory of the group that this process is in: when that is `base` itself, and not the root of all
    /// groups, which may have both, its processes move to a leaf below it.
    pub fn plant(base: &Path, own: &Path, parent: &str) -> Result<Tree, CgroupError> {
        let place = base.join(parent);
        match fs::create_dir(&place) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(CgroupError::File { action: "make", path: place, source });
            }
        }
        let mut missing = enable(base, Some(own));
        missing.extend(enable(&place, None));
        let claim = tree::claim(std::slice::from_ref(&place))?.remove(0);
        missing.extend(enable(&claim.path, None));
        missing.sort_unstable();
        missing.dedup();
        Ok(Tree { claim, missing })
    }

    pub fn create(&self, id: &str, limits: &Limits) -> Result<Leaf, CgroupError> {
        let path = self.claim.path.join(tree::group_name(id));
        fs::create_dir(&path).map_err(|source| CgroupError::File { action: "make", path: path.clone(), source })?;
        Leaf::set_up(&path, limits, &self.missing).inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })
    }
}

/// Hands controllers down to the groups below `dir`; returns those that cannot be.
pub(super) fn enable(dir: &Path, own: Option<&Path>) -> Vec<&'static str> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    let control = dir.join("cgroup.subtree_control");
    let available = read("cgroup.controllers");
    let mut missing = Vec::new();
    for name in CONTROLLERS {
        if has(&read("cgroup.subtree_control"), name) {
            continue;
        }
        if !has(&available, name) {
            missing.push(name);
            continue;
        }
        // To a group with processes the kernel refuses memory. It does not refuse cpu and pids, but makes the group the
        // root of a threaded subtree: memory is not to be had there any more, and new groups below take no process.
        let crowded = own == Some(dir) && dir.join("cgroup.type").exists() && !read("cgroup.procs").is_empty();
        let room = if crowded { evacuate(dir) } else { Ok(()) };
        if let Err(error) = room.and_then(|()| tree::write(&control, &format!("+{name}"))) {
            tracing::debug!(path = %control.display(), %error, controller = name, "controller not handed down");
            missing.push(name);
        }
    }
    missing
}

/// Moves the processes of our own group to a leaf below it.
pub(super) fn evacuate(dir: &Path) -> io::Result<()> {
    let leaf = dir.join(SERVER_LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _made_or_there => {}
    }
    tracing::info!(from = %dir.display(), to = %leaf.display(), "moving processes to make room for sandboxes beside them");
    // More may be forked while we move; a group that refuses to become empty is reported by the write that follows.
    for _round in 0..8 {
        let text = fs::read_to_string(dir.join("cgroup.procs"))?;
        if text.is_empty() {
            break;
        }
        for pid in text.lines() {
            match tree::write(&leaf.join("cgroup.procs"), pid) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _moved_or_ended => {}
            }
        }
    }
    Ok(())
}

/// One sandbox's group, with the files of the warm path open.
#[derive(Debug)]
pub(super) struct Leaf {
    pub path: PathBuf,
    dir: OwnedFd,
    freeze: File,
    /// `cgroup.kill`, Linux 5.14.
    kill: Option<File>,
    limits_memory: bool,
    limits_tasks: bool,
    cpu_max: Option<File>,
    cpu_stat: Option<File>,
    memory_current: Option<File>,
    /// `memory.peak`, Linux 5.19; can be reset through this very descriptor since 6.12.
    memory_peak: Option<File>,
    memory_events: Option<File>,
}

impl Leaf {
    /// Writes the limits of a group that exists and opens its files.
    pub fn set_up(path: &Path, limits: &Limits, missing: &[&str]) -> Result<Leaf, CgroupError> {
        let error = |action, name: &str| {
            let path = path.join(name);
            move |source| CgroupError::File { action, path, source }
        };
        let reader = |name: &str| File::open(path.join(name)).ok();
        let writer = |name: &str| OpenOptions::new().write(true).open(path.join(name));

        let cpu_max = match missing.contains(&"cpu") {
            true => None,
            false => Some(writer("cpu.max").map_err(error("open", "cpu.max"))?),
        };
        let leaf = Leaf {
            path: path.to_owned(),
            dir: tree::open_dir(path).map_err(error("open", ""))?,
            freeze: writer("cgroup.freeze").map_err(error("open", "cgroup.freeze"))?,
            kill: writer("cgroup.kill").ok(),
            limits_memory: !missing.contains(&"memory"),
            limits_tasks: !missing.contains(&"pids"),
            cpu_max,
            cpu_stat: reader("cpu.stat"),
            memory_current: reader("memory.current"),
            memory_peak: OpenOptions::new()
                .read(true)
                .write(true)
                .open(path.join("memory.peak"))
                .ok()
                .or_else(|| reader("memory.peak")),
            memory_events: reader("memory.events"),
        };
        leaf.set_limits(limits)?;
        Ok(leaf)
    }

    /// Writes all limits; cheap while no process is in the group.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        let error = |name: &str| {
            let path = self.path.join(name);
            move |source| CgroupError::File { action: "write", path, source }
        };
        let must = |name: &str, value: String| tree::write(&self.path.join(name), &value).map_err(error(name));
        // Files that depend on the kernel's age or build.
        let may = |name: &str, value: &str| {
            let _ = tree::write(&self.path.join(name), value);
        };
        if self.limits_memory {
            must("memory.max", limits.memory_bytes.to_string())?;
            may("memory.swap.max", "0");
            // An environment that ran out of memory is discarded as a whole: half of its processes are of no use.
            may("memory.oom.group", "1");
        }
        if self.limits_tasks {
            must("pids.max", limits.max_tasks.to_string())?;
        }
        if self.cpu_max.is_some() {
            may("cpu.weight", &(limits.cpu_share / 10).clamp(1, 10_000).to_string());
        }
        self.set_cpu(limits.cpu_millis).map_err(error("cpu.max"))
    }

    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn set_cpu(&self, millis: u32) -> io::Result<()> {
        let Some(cpu_max) = &self.cpu_max else {
            return Ok(());
        };
        let quota = super::quota_us(millis);
        // The burst may not exceed the quota, so it steps aside while the quota changes.
        let burst = self.path.join("cpu.max.burst");
        let _ = tree::write(&burst, "0");
        tree::put(cpu_max, &format!("{quota} {CPU_PERIOD_US}"))?;
        let _ = tree::write(&burst, &quota.to_string());
        Ok(())
    }

    pub fn freeze(&self) -> io::Result<()> {
        tree::put(&self.freeze, "1")
    }

    pub fn thaw(&self) -> io::Result<()> {
        tree::put(&self.freeze, "0")
    }

    pub fn usage(&self) -> Usage {
        let number = |file: &Option<File>| file.as_ref().and_then(read_number).unwrap_or(0);
        let key = |file: &Option<File>, key| file.as_ref().and_then(read_text).and_then(|text| flat_key(&text, key));
        let memory_bytes = number(&self.memory_current);
        Usage {
            memory_peak_bytes: number(&self.memory_peak).max(memory_bytes),
            memory_bytes,
            cpu: Duration::from_micros(key(&self.cpu_stat, "usage_usec").unwrap_or(0)),
            oom_kills: key(&self.memory_events, "oom_kill").unwrap_or(0),
        }
    }

    pub fn reset_peak(&self) {
        if let Some(file) = &self.memory_peak {
            let _ = tree::put(file, "reset");
        }
    }

    pub fn kill_all(&self) -> io::Result<()> {
        match &self.kill {
            Some(kill) => tree::put(kill, "1")?,
            // Signals reach frozen processes of this version, and frozen ones cannot fork meanwhile.
            None => {
                self.freeze()?;
                tree::signal_until_empty(&self.path)?;
            }
        }
        self.thaw()
    }

    #[cfg(test)]
    pub fn without_kill_file(&mut self) {
        self.kill = None;
    }
}
