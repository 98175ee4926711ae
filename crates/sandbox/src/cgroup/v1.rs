//! One hierarchy per controller (`Documentation/admin-guide/cgroup-v1/`).
//!
//! A sandbox has a group of the same name in each hierarchy that could be had; processes join all of them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::parse::{Membership, Mount, flat_key};
use super::tree::{self, Claim};
use super::{CPU_PERIOD_US, CgroupError, Limits, read_number, read_text};
use crate::Usage;

/// The freezer first: whoever removes groups in this order thaws processes before waiting for them to die.
const CONTROLLERS: [&str; 5] = ["freezer", "cpu", "cpuacct", "memory", "pids"];

/// Sockets may hold this part of the memory, on top of it. The runtime's answer of 6 MiB has to pass below the smallest.
const SOCKET_SHARE: u64 = 4;

#[derive(Debug)]
pub(super) struct Tree {
    /// This server's directory in each hierarchy and the controllers there (`cpu` and `cpuacct` often share one).
    pub hierarchies: Vec<(Claim, Vec<&'static str>)>,
    /// Controllers that could not be had.
    pub missing: Vec<&'static str>,
    /// Held for what [`expect_joins`] does.
    #[cfg_attr(not(test), expect(dead_code, reason = "closed when dropped"))]
    pub joins: Option<OwnedFd>,
}

impl Tree {
    /// Makes this server's part in every hierarchy where that is allowed.
    pub fn plant(mounts: &[Mount], own: &[Membership], parent: &str) -> Result<Tree, CgroupError> {
        let mut places: Vec<(PathBuf, Vec<&'static str>)> = Vec::new();
        let mut missing = Vec::new();
        for controller in CONTROLLERS {
            match place(controller, mounts, own, parent) {
                None => missing.push(controller),
                Some(place) => match places.iter_mut().find(|(there, _)| *there == place) {
                    Some((_, controllers)) => controllers.push(controller),
                    None => places.push((place, vec![controller])),
                },
            }
        }
        let (paths, controllers): (Vec<_>, Vec<_>) = places.into_iter().unzip();
        let claims = tree::claim(&paths)?;
        for claim in &claims {
            // Before Linux 5.11 a group of the root hierarchy may not count what is below it unless told to.
            let _ = tree::write(&claim.path.join("memory.use_hierarchy"), "1");
        }
        let hierarchies: Vec<_> = claims.into_iter().zip(controllers).collect();
        if let Some((claim, _)) = hierarchies.iter().find(|(_, controllers)| controllers.contains(&"freezer")) {
            drop_anchor(&claim.path);
        }
        Ok(Tree { hierarchies, missing, joins: expect_joins() })
    }

    pub fn create(&self, id: &str, limits: &Limits) -> Result<Leaf, CgroupError> {
        let mut paths: Vec<PathBuf> = Vec::with_capacity(self.hierarchies.len());
        let made = self.hierarchies.iter().try_for_each(|(claim, _)| {
            let path = claim.path.join(tree::group_name(id));
            fs::create_dir(&path).map_err(|source| CgroupError::File { action: "make", path: path.clone(), source })?;
            paths.push(path);
            Ok(())
        });
        let leaf = made.and_then(|()| {
            let path_of = |controller| {
                let at = self.hierarchies.iter().position(|(_, controllers)| controllers.contains(&controller))?;
                Some(paths[at].as_path())
            };
            Leaf::set_up(&paths, path_of, limits)
        });
        leaf.inspect_err(|_| paths.iter().for_each(|path| drop(fs::remove_dir(path))))
    }
}

/// Name of the group that is always frozen.
pub(super) const ANCHOR: &str = "anchor";

/// Keeps one empty group frozen. While nothing is, the kernel's check for it is patched out of its code; patching it
/// in with the first frozen group and out with the last costs some 400 microseconds each time, on the warm path.
/// With another group frozen all the time, freezing and thawing cost 5 together.
fn drop_anchor(path: &Path) {
    let anchor = path.join(ANCHOR);
    let frozen = fs::create_dir(&anchor).and_then(|()| tree::write(&anchor.join("freezer.state"), "FROZEN"));
    if let Err(error) = frozen {
        tracing::debug!(%error, "freezing will be slower than it could be");
    }
}

/// Tells the kernel that processes will often be put into groups.
///
/// Otherwise each time it first waits until no processor is in the middle of a fork, 10 ms and more. It stops doing so
/// while any hierarchy is mounted with `favordynmods` (Linux 6.0), and forks become some nanoseconds dearer. That of
/// others is not ours to remount, so here is one without controllers: it shows as a line in `/proc/PID/cgroup`, is
/// mounted nowhere, and ends with the descriptor.
fn expect_joins() -> Option<OwnedFd> {
    let mount = || {
        let context = rustix::mount::fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_flag(context.as_fd(), "none")?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "name", format!("firelet-{}", std::process::id()))?;
        rustix::mount::fsconfig_set_flag(context.as_fd(), "favordynmods")?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let mounted: rustix::io::Result<OwnedFd> = mount();
    mounted.inspect_err(|error| tracing::debug!(%error, "putting processes into groups will be slow")).ok()
}

/// The directory named `parent` in a controller's hierarchy: at its root, else below our own group.
fn place(controller: &str, mounts: &[Mount], own: &[Membership], parent: &str) -> Option<PathBuf> {
    let mount =
        mounts.iter().find(|mount| !mount.unified && mount.options.iter().any(|option| option == controller))?;
    let own = own.iter().find(|group| group.controllers.iter().any(|name| name == controller));
    let below = own.map(|group| super::below(&mount.root, &group.path));
    [Some(mount.point.clone()), below.map(|path| mount.point.join(path))].into_iter().flatten().find_map(|base| {
        let place = base.join(parent);
        match fs::create_dir(&place) {
            // One that is there may be of a file system that is read-only for us.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                rustix::fs::access(&place, rustix::fs::Access::WRITE_OK).is_ok().then_some(place)
            }
            Err(_) => None,
            Ok(()) => Some(place),
        }
    })
}

/// One sandbox's groups, with the files of the warm path open.
#[derive(Debug)]
pub(super) struct Leaf {
    pub paths: Vec<PathBuf>,
    procs: Vec<File>,
    freezer: Option<(PathBuf, File)>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    cpu: Option<PathBuf>,
    cpu_usage: Option<File>,
    memory_usage: Option<File>,
    memory_peak: Option<File>,
    memory_oom: Option<File>,
}

impl Leaf {
    fn set_up<'a>(
        paths: &[PathBuf],
        path_of: impl Fn(&'static str) -> Option<&'a Path>,
        limits: &Limits,
    ) -> Result<Leaf, CgroupError> {
        let writer = |path: PathBuf| {
            let file = OpenOptions::new().read(true).write(true).open(&path);
            file.map_err(|source| CgroupError::File { action: "open", path, source })
        };
        let reader = |path: Option<&Path>, name: &str| path.and_then(|path| File::open(path.join(name)).ok());

        let memory = path_of("memory");
        let leaf = Leaf {
            paths: paths.to_vec(),
            procs: paths.iter().map(|path| writer(path.join("cgroup.procs"))).collect::<Result<_, _>>()?,
            freezer: match path_of("freezer") {
                Some(path) => Some((path.to_owned(), writer(path.join("freezer.state"))?)),
                None => None,
            },
            memory: memory.map(Path::to_owned),
            pids: path_of("pids").map(Path::to_owned),
            cpu: path_of("cpu").map(Path::to_owned),
            cpu_usage: reader(path_of("cpuacct"), "cpuacct.usage"),
            memory_usage: reader(memory, "memory.usage_in_bytes"),
            memory_peak: match memory {
                Some(path) => Some(writer(path.join("memory.max_usage_in_bytes"))?),
                None => None,
            },
            memory_oom: reader(memory, "memory.oom_control"),
        };
        leaf.set_limits(limits)?;
        Ok(leaf)
    }

    /// Writes all limits; cheap while no process is in the group.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        let must = |path: &Path, name: &str, value: String| {
            let path = path.join(name);
            tree::write(&path, &value).map_err(|source| CgroupError::File { action: "write", path, source })
        };
        if let Some(path) = &self.memory {
            // Memory and swap together; there only where the kernel counts swap. It may never be below the limit of
            // memory alone, so where that one is refused it comes first.
            let both = || tree::write(&path.join("memory.memsw.limit_in_bytes"), &limits.memory_bytes.to_string());
            let alone = || must(path, "memory.limit_in_bytes", limits.memory_bytes.to_string());
            let counts_swap = if alone().is_ok() {
                both().is_ok()
            } else {
                let counts_swap = both().is_ok();
                alone()?;
                counts_swap
            };
            if !counts_swap {
                let _ = tree::write(&path.join("memory.swappiness"), "0");
            }
            // The first version counts what sockets hold apart, and only once it has a limit: without one, a function fills
            // the host's share for all of TCP with what it sends to itself. There where the kernel counts it at all.
            let sockets = limits.memory_bytes / SOCKET_SHARE;
            let _ = tree::write(&path.join("memory.kmem.tcp.limit_in_bytes"), &sockets.to_string());
        }
        if let Some(path) = &self.pids {
            must(path, "pids.max", limits.max_tasks.to_string())?;
        }
        if let Some(path) = &self.cpu {
            let shares = (u64::from(limits.cpu_share) * 1024 / 1000).clamp(2, 262_144);
            must(path, "cpu.shares", shares.to_string())?;
        }
        self.set_cpu(limits.cpu_millis).map_err(|source| CgroupError::File {
            action: "write",
            path: self.cpu.clone().unwrap_or_default().join("cpu.cfs_quota_us"),
            source,
        })
    }

    pub fn procs(&self) -> Vec<BorrowedFd<'_>> {
        self.procs.iter().map(File::as_fd).collect()
    }

    pub fn set_cpu(&self, millis: u32) -> io::Result<()> {
        let Some(path) = &self.cpu else { return Ok(()) };
        let quota = super::quota_us(millis);
        // The burst may not exceed the quota, so it steps aside while the quota changes.
        let _ = tree::write(&path.join("cpu.cfs_burst_us"), "0");
        tree::write(&path.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
        match tree::write(&path.join("cpu.cfs_quota_us"), &quota.to_string()) {
            // A group above us has less than that; its limit holds for us as well.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                let _ = tree::write(&path.join("cpu.cfs_burst_us"), &quota.to_string());
                Ok(())
            }
        }
    }

    pub fn freeze(&self) -> io::Result<()> {
        self.freezer.as_ref().map_or(Ok(()), |(_, state)| tree::put(state, "FROZEN"))
    }

    pub fn thaw(&self) -> io::Result<()> {
        self.freezer.as_ref().map_or(Ok(()), |(_, state)| tree::put(state, "THAWED"))
    }

    pub fn usage(&self) -> Usage {
        let number = |file: &Option<File>| file.as_ref().and_then(read_number).unwrap_or(0);
        let memory_bytes = number(&self.memory_usage);
        let oom = self.memory_oom.as_ref().and_then(read_text);
        Usage {
            memory_peak_bytes: number(&self.memory_peak).max(memory_bytes),
            memory_bytes,
            cpu: Duration::from_nanos(number(&self.cpu_usage)),
            oom_kills: oom.and_then(|text| flat_key(&text, "oom_kill")).unwrap_or(0),
        }
    }

    pub fn reset_peak(&self) {
        if let Some(file) = &self.memory_peak {
            let _ = tree::put(file, "0");
        }
    }

    /// Freezes first, because frozen processes cannot fork away from the list that is worked off.
    pub fn kill_all(&self) -> io::Result<()> {
        let Some(path) = self.freezer.as_ref().map(|(path, _)| path).or(self.paths.first()) else {
            return Ok(());
        };
        self.freeze()?;
        self.wait_until_frozen();
        let killed = tree::signal_all(path);
        self.thaw()?;
        // Without a freezer, or with a process that would not freeze, some may have been born meanwhile.
        tree::signal_until_empty(path)?;
        killed.map(drop)
    }

    /// Freezing is done a moment after it is asked for; a process deep in a system call may delay it.
    fn wait_until_frozen(&self) {
        let Some((_, state)) = &self.freezer else {
            return;
        };
        let deadline = Instant::now() + Duration::from_millis(50);
        while read_text(state).is_some_and(|text| text.trim() != "FROZEN") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
