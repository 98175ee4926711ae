//! Control groups: one per sandbox, for limits, freezing, killing and measuring.
//!
//! Owns where the groups live and both kernel interfaces. Does not start processes: they enter through [`Entry`].
//!
//! Only tenant processes belong in a group. Whatever keeps the sandbox itself alive (its init) stays outside, so that
//! freezing never stops it and killing for memory never takes it.
//!
//! Where: at the root of the hierarchy that is mounted here, as container engines do, because groups there depend on
//! nothing but the kernel; below our own group if systemd has delegated that to us (then the unit's limits hold for
//! all sandboxes together) or if the root is not ours to write.
//!
//! CPU: quotas are per 100 ms. Lambda enforces with 20 ms slices; at 128 MB (72/1000 of a processor) a slice holds
//! 1.4 ms, less than most interpreters need per invocation, so that nearly every invocation would wait for the next
//! slice. Within 100 ms there are 7 ms, and what one period leaves unused may be used in the next (burst).

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Usage;
use crate::host::{CgroupFacts, Loss};

mod parse;
mod tree;
mod v1;
mod v2;

#[cfg(test)]
pub(crate) mod tests;

/// Length of a CPU period in microseconds; see the module's documentation.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below a millisecond.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes together, in bytes; no swap on top.
    pub memory_bytes: u64,
    /// CPU time in thousandths of one processor, at most.
    pub cpu_millis: u32,
    /// Its share where there is less CPU time than all want: in proportion to this, which for functions is `cpu_millis`.
    pub cpu_share: u32,
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
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The name cannot be that of a directory.
    #[error("`{0}` cannot name a control group: use letters, digits, `-`, `_` and `.`")]
    Name(String),
}

/// Makes the groups of one server. They are removed, with all that runs in them, when it is dropped.
#[derive(Debug)]
pub struct Cgroups {
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    V1(v1::Tree),
    V2(v2::Tree),
    None,
}

impl Cgroups {
    /// Finds the place for groups and makes this server's part of a directory named `parent` there, which it shares
    /// with other servers. Where none can be made the result says so ([`Version::None`]); that is not an error.
    pub fn detect(parent: &str) -> Result<Cgroups, CgroupError> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|source| CgroupError::File {
                action: "read",
                path: path.into(),
                source,
            })
        };
        let own = parse::memberships(&read("/proc/self/cgroup")?);
        let mounts = parse::mounts(&read("/proc/self/mountinfo")?);
        if !is_name(parent) {
            return Err(CgroupError::Name(parent.to_owned()));
        }
        // The unified hierarchy, if it is the one that counts memory; hybrid systems leave that to version 1.
        let unified = mounts.iter().find(|mount| mount.unified);
        let counts_memory = |mount: &&parse::Mount| mount.controllers().any(|name| name == "memory");
        let v2 = || unified.and_then(|mount| unify(mount, &own, parent)).map(Tree::V2);
        let v1 = || {
            let tree = patiently(|| v1::Tree::plant(&mounts, &own, parent)).ok()?;
            (!tree.hierarchies.is_empty()).then_some(Tree::V1(tree))
        };
        let tree = if unified.filter(counts_memory).is_some() { v2().or_else(v1) } else { v1().or_else(v2) };
        let cgroups = Cgroups { tree: tree.unwrap_or(Tree::None) };
        tracing::debug!(version = ?cgroups.version(), missing = ?cgroups.missing(), "control groups");
        Ok(cgroups)
    }

    /// The interface in use.
    pub fn version(&self) -> Version {
        match self.tree {
            Tree::V1(_) => Version::V1,
            Tree::V2(_) => Version::V2,
            Tree::None => Version::None,
        }
    }

    /// What sandboxes go without, because a controller could not be had.
    pub fn losses(&self) -> Vec<Loss> {
        let remedy = match self.tree {
            Tree::V2(_) => "run as root, or as a systemd service with `Delegate=cpu memory pids`",
            Tree::V1(_) => {
                "boot with the controller enabled (`cgroup_enable=memory` on some boards), or mount it writable"
            }
            Tree::None => {
                "run as root, or below a delegated group: `systemd-run --user --scope -p Delegate=yes firelet serve`"
            }
        };
        let loss = |what: &str| Loss { what: what.to_owned(), remedy: remedy.to_owned() };
        let lost = |controller: &str| match controller {
            "memory" => Some(loss("memory limits: a function can use up the memory of the host")),
            "cpu" => Some(loss("CPU shares: every function gets as much CPU time as is free")),
            "pids" => Some(loss("process limits: a function can use up the process numbers of the host")),
            "freezer" => Some(loss("freezing: functions go on running between invocations")),
            _accounting_only => None,
        };
        match &self.tree {
            // Processes are then counted by user, and stopped by signals: see the namespace backend.
            Tree::None => ["memory", "cpu"].into_iter().filter_map(lost).collect(),
            _some => self.missing().iter().copied().filter_map(lost).collect(),
        }
    }

    /// Makes the group of one sandbox.
    ///
    /// # Errors
    /// The file that refused; among others when `id` is taken.
    pub fn create(&self, id: &str, limits: &Limits) -> Result<Group, CgroupError> {
        if !is_name(id) {
            return Err(CgroupError::Name(id.to_owned()));
        }
        let leaf = match &self.tree {
            Tree::V1(tree) => Leaf::V1(tree.create(id, limits)?),
            Tree::V2(tree) => Leaf::V2(tree.create(id, limits)?),
            Tree::None => Leaf::None,
        };
        Ok(Group { leaf })
    }

    /// Removes what dead servers left below the same parent, and kills what still runs there.
    pub fn remove_stale(&self) {
        for path in self.claims() {
            path.parent().into_iter().for_each(tree::remove_abandoned);
        }
    }

    fn claims(&self) -> Vec<&Path> {
        match &self.tree {
            Tree::V1(tree) => tree.hierarchies.iter().map(|(claim, _)| claim.path.as_path()).collect(),
            Tree::V2(tree) => vec![tree.claim.path.as_path()],
            Tree::None => Vec::new(),
        }
    }

    fn missing(&self) -> &[&'static str] {
        match &self.tree {
            Tree::V1(tree) => &tree.missing,
            Tree::V2(tree) => &tree.missing,
            Tree::None => &[],
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in self.claims() {
            tree::remove_tree(path, Duration::from_secs(1));
            // The last server removes the shared directory; others keep it by being in it.
            path.parent().into_iter().for_each(|parent| drop(std::fs::remove_dir(parent)));
        }
    }
}

/// Looks at what there is, without making anything.
pub(crate) fn survey() -> CgroupFacts {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let own = parse::memberships(&read("/proc/self/cgroup"));
    let mounts = parse::mounts(&read("/proc/self/mountinfo"));
    let writable = |mount: &parse::Mount| {
        let group = own.iter().find(|group| match group.controllers.first() {
            None => mount.unified,
            Some(name) => !mount.unified && mount.options.contains(name),
        });
        let own = group.map(|group| mount.point.join(below(&mount.root, &group.path)));
        let allowed = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
        allowed(&mount.point) || own.is_some_and(|path| allowed(&path))
    };
    let unified = mounts.iter().find(|mount| mount.unified);
    if let Some(mount) = unified.filter(|mount| mount.controllers().any(|name| name == "memory")) {
        let controllers = mount.controllers().collect();
        return CgroupFacts { version: Version::V2, controllers, writable: writable(mount) };
    }
    let (mut controllers, mut all_writable) = (Vec::new(), true);
    for name in ["cpu", "cpuacct", "freezer", "memory", "pids"] {
        if let Some(mount) = mounts.iter().find(|mount| !mount.unified && mount.options.iter().any(|o| o == name)) {
            controllers.push(name.to_owned());
            all_writable &= writable(mount);
        }
    }
    let version = match (controllers.is_empty(), unified) {
        (false, _) => Version::V1,
        (true, Some(_)) => Version::V2,
        (true, None) => Version::None,
    };
    CgroupFacts { version, controllers, writable: version != Version::None && all_writable }
}

/// This server's part of the unified hierarchy, at the first place that lets us.
fn unify(mount: &parse::Mount, own: &[parse::Membership], parent: &str) -> Option<v2::Tree> {
    let path = own.iter().find(|group| group.controllers.is_empty())?.path.as_str();
    let own = mount.point.join(below(&mount.root, path));
    let mut bases: Vec<PathBuf> = delegated(&own, &mount.point).into_iter().map(Path::to_owned).collect();
    bases.extend([mount.point.clone(), own.clone()]);
    bases.dedup();
    let attempts = bases.iter().filter_map(|base| {
        patiently(|| v2::Tree::plant(base, &own, parent))
            .inspect_err(|error| tracing::debug!(base = %base.display(), %error, "no control groups here"))
            .ok()
    });
    // A place where all limits work beats an earlier one where they do not.
    let mut best: Option<v2::Tree> = None;
    for tree in attempts {
        let better = best.as_ref().is_none_or(|best| tree.missing.len() < best.missing.len());
        let complete = tree.missing.is_empty();
        let other = if better { best.replace(tree) } else { Some(tree) };
        if let Some(other) = other {
            tree::remove_tree(&other.claim.path, Duration::ZERO);
            other.claim.path.parent().into_iter().for_each(|parent| drop(std::fs::remove_dir(parent)));
        }
        if complete {
            break;
        }
    }
    best
}

/// Tries again when another server that ends has removed the shared directory between two of our steps.
fn patiently<T>(plant: impl Fn() -> Result<T, CgroupError>) -> Result<T, CgroupError> {
    let vanished = |result: &Result<T, CgroupError>| match result {
        Err(CgroupError::File { source, .. }) => source.kind() == io::ErrorKind::NotFound,
        Err(CgroupError::Name(_)) | Ok(_) => false,
    };
    (0..8).map(|_| plant()).find(|result| !vanished(result)).unwrap_or_else(&plant)
}

/// The nearest group from `own` up that systemd has handed over: ours, or with `DelegateSubgroup=` the one above.
fn delegated<'a>(own: &'a Path, root: &Path) -> Option<&'a Path> {
    own.ancestors().take_while(|path| path.starts_with(root)).find(|path| is_delegated(path))
}

/// Whether systemd has handed this group's subtree over to us (`systemd.resource-control(5)`, `Delegate=`).
fn is_delegated(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(path, *name, &mut value).is_ok_and(|length| &value[..length] == b"1")
    })
}

/// A group's path relative to a mount that shows the hierarchy from `root` on.
fn below(root: &str, path: &str) -> PathBuf {
    let path = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain { path.to_owned() } else { PathBuf::new() }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

fn quota_us(millis: u32) -> u64 {
    (u64::from(millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US)
}

fn read_text(file: &File) -> Option<String> {
    let mut buffer = [0u8; 4096];
    let length = rustix::io::pread(file, &mut buffer[..], 0).ok()?;
    String::from_utf8(buffer[..length].to_vec()).ok()
}

fn read_number(file: &File) -> Option<u64> {
    read_text(file)?.trim().parse().ok()
}

/// One sandbox's group. Dropping it without [`Group::remove`] kills what is inside and tries once to remove it; what
/// is left then goes with [`Cgroups`].
#[derive(Debug)]
pub struct Group {
    leaf: Leaf,
}

#[derive(Debug)]
enum Leaf {
    V1(v1::Leaf),
    V2(v2::Leaf),
    None,
}

impl Group {
    /// How a process enters.
    pub fn entry(&self) -> Entry<'_> {
        match &self.leaf {
            Leaf::V1(leaf) => Entry::V1 { procs: leaf.procs() },
            Leaf::V2(leaf) => Entry::V2 { dir: leaf.dir() },
            Leaf::None => Entry::None,
        }
    }

    /// Stops every process in the group, now and later. Idempotent. Asks only: a process may run for some
    /// microseconds after the return, until its next entry into the kernel.
    pub fn freeze(&self) -> io::Result<()> {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.freeze(),
            Leaf::V2(leaf) => leaf.freeze(),
            Leaf::None => Ok(()),
        }
    }

    /// Lets every process go on. Idempotent.
    pub fn thaw(&self) -> io::Result<()> {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.thaw(),
            Leaf::V2(leaf) => leaf.thaw(),
            Leaf::None => Ok(()),
        }
    }

    /// What the group has used. What the kernel does not count here is zero.
    pub fn usage(&self) -> Usage {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.usage(),
            Leaf::V2(leaf) => leaf.usage(),
            Leaf::None => Usage::default(),
        }
    }

    /// Starts a new measurement of the memory peak, where the kernel can (version 1; version 2 since Linux 6.12).
    pub fn reset_peak(&self) {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.reset_peak(),
            Leaf::V2(leaf) => leaf.reset_peak(),
            Leaf::None => {}
        }
    }

    /// Changes all limits; for a group that holds no process yet.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.set_limits(limits),
            Leaf::V2(leaf) => leaf.set_limits(limits),
            Leaf::None => Ok(()),
        }
    }

    /// Changes the CPU share, in thousandths of one processor. Lambda gives an initialization more than its function
    /// has later, and a start would take seconds otherwise.
    pub fn set_cpu(&self, millis: u32) -> io::Result<()> {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.set_cpu(millis),
            Leaf::V2(leaf) => leaf.set_cpu(millis),
            Leaf::None => Ok(()),
        }
    }

    /// Kills every process in the group, frozen ones too, and leaves it thawed. They are dying on return, not reaped. The
    /// last act of a group: kernels since 6.14 kill at once what is cloned into a group of version 2 that was killed before
    /// (they compare its count of kills with that of the parent's group). To kill and go on is for who holds the processes.
    pub fn kill_all(&self) -> io::Result<()> {
        match &self.leaf {
            Leaf::V1(leaf) => leaf.kill_all(),
            Leaf::V2(leaf) => leaf.kill_all(),
            Leaf::None => Ok(()),
        }
    }

    /// Removes the group and kills what is still in it; blocks the thread for up to two seconds until it is empty.
    pub fn remove(mut self) {
        self.dispose(Duration::from_secs(2));
    }

    fn dispose(&mut self, patience: Duration) {
        match std::mem::replace(&mut self.leaf, Leaf::None) {
            Leaf::V1(leaf) => leaf.paths.iter().for_each(|path| tree::remove(path, patience)),
            Leaf::V2(leaf) => tree::remove(&leaf.path, patience),
            Leaf::None => {}
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !matches!(self.leaf, Leaf::None) {
            let _ = self.kill_all();
            self.dispose(Duration::ZERO);
        }
    }
}
