//! Facts about this host that decide how sandboxes can be made here.
//!
//! Looks, and changes nothing: for `firelet doctor`, for the log of a start, and for choosing a backend. What to do
//! about a fact is said in [`Loss`]; which backend to choose is the caller's decision.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::cgroup::Version;

mod probe;

#[cfg(test)]
mod tests;

/// Something that sandboxes go without on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// What is lost: a noun, and what follows from it.
    pub what: String,
    /// How to get it.
    pub remedy: String,
}

impl Loss {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Loss { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {}; {}", self.what, self.remedy)
    }
}

/// What there is.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Kernel release as `uname -r` prints it.
    pub kernel: String,
    /// Its first two numbers.
    pub kernel_version: (u32, u32),
    /// Machine as `uname -m` prints it.
    pub machine: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// Memory of the host, in bytes.
    pub memory_bytes: u64,
    /// Whether the effective user is root.
    pub root: bool,
    /// Whether root has its powers: in many containers it lacks CAP_SYS_ADMIN, and with it namespaces and mounts.
    pub administrator: bool,
    /// Control groups.
    pub cgroups: CgroupFacts,
    /// Namespaces that sandboxes need and this process may not make (`mnt`, `net`, `pid`, ...), without a user
    /// namespace around them.
    pub forbidden_namespaces: Vec<&'static str>,
    /// Why user namespaces cannot be made, with which sandboxes work without root; `None` if they can.
    pub user_namespaces: Option<String>,
    /// Version of the Landlock interface; `None` if the kernel has none or it is off.
    pub landlock_abi: Option<u32>,
    /// Whether system calls can be filtered.
    pub seccomp: bool,
    /// Network facts.
    pub network: NetworkFacts,
    /// Disk facts.
    pub disk: DiskFacts,
    /// Limits of the kernel.
    pub limits: LimitFacts,
}

/// Control groups, as they are mounted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupFacts {
    /// The interface that memory is limited through.
    pub version: Version,
    /// Controllers of that interface.
    pub controllers: Vec<String>,
    /// Whether groups can be made, at the root or below our own group.
    pub writable: bool,
}

/// What NAT needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFacts {
    /// The packet filter's program.
    pub nft: Option<PathBuf>,
    /// The older one, which container engines use; rules are added there only if it drops what is forwarded.
    pub iptables: Option<PathBuf>,
    /// Whether the kernel forwards packets already; it is made to when NAT starts.
    pub ip_forward: bool,
}

/// What disks for `/tmp` need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// Whether loop devices can be had.
    pub loop_devices: bool,
    /// The program that makes file systems.
    pub mkfs_ext4: Option<PathBuf>,
    /// Free bytes in the data directory, for an unprivileged user; `None` if it cannot be told.
    pub free_bytes: Option<u64>,
}

/// Limits that many sandboxes run into. `None` where the kernel does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitFacts {
    /// User namespaces per user.
    pub user_namespaces: Option<u64>,
    /// Network namespaces per user.
    pub network_namespaces: Option<u64>,
    /// Inotify instances per user (`firelet dev` needs one).
    pub inotify_instances: Option<u64>,
    /// Watched directories per user.
    pub inotify_watches: Option<u64>,
    /// Highest process number.
    pub pid_max: Option<u64>,
    /// Open files of this process (hard limit); a sandbox takes about twenty.
    pub open_files: u64,
}

impl HostFacts {
    /// Looks at the host. `data_dir` is where images and code are to be kept; its nearest existing parent counts.
    pub fn probe(data_dir: &Path) -> HostFacts {
        probe::all(data_dir)
    }

    /// What namespace sandboxes go without here, the worst first.
    pub fn losses(&self) -> Vec<Loss> {
        let mut losses = Vec::new();
        if !self.can_isolate() {
            let why = self.user_namespaces.as_deref().unwrap_or("no namespaces");
            losses.push(Loss::new(
                format!("sandboxes: neither as this user nor in user namespaces ({why})"),
                "run as root with CAP_SYS_ADMIN, or allow user namespaces: sysctl user.max_user_namespaces=15000, and \
                 on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0",
            ));
        }
        if !self.administrator {
            losses.push(Loss::new(
                "network of their own for sandboxes, disks for /tmp, separate users and sandboxes that are prepared ahead",
                if self.root {
                    "give this container CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged)"
                } else {
                    "run as root"
                },
            ));
        }
        losses.extend(self.cgroup_loss());
        if !self.seccomp {
            losses.push(Loss::new("system call filter", "use a kernel with CONFIG_SECCOMP_FILTER"));
        }
        if self.landlock_abi.is_none() {
            losses.push(Loss::new(
                "Landlock: file access is confined by mounts and users only",
                "use Linux 5.13 or later, with `landlock` among the kernel's lsm= parameter",
            ));
        }
        if self.network.nft.is_none() {
            losses.push(Loss::new("NAT for sandboxes: the nft program is absent", "install the package nftables"));
        }
        if !self.disk.loop_devices || self.disk.mkfs_ext4.is_none() {
            losses.push(Loss::new(
                "disks for /tmp: what functions write there counts against their memory",
                "install the package e2fsprogs, and load the kernel module `loop`",
            ));
        }
        losses
    }

    /// Whether namespace sandboxes can be made at all.
    pub fn can_isolate(&self) -> bool {
        (self.administrator && self.forbidden_namespaces.is_empty()) || self.user_namespaces.is_none()
    }

    fn cgroup_loss(&self) -> Option<Loss> {
        let CgroupFacts { version, controllers, writable } = &self.cgroups;
        let lacking: Vec<&str> = ["memory", "cpu", "pids"]
            .into_iter()
            .filter(|name| !controllers.iter().any(|controller| controller == name))
            .collect();
        if *version == Version::None || !writable {
            return Some(Loss::new(
                "limits of memory and CPU, and only signals instead of a freezer between invocations",
                "run as root, or below a delegated group: systemd-run --user --scope -p Delegate=yes firelet serve",
            ));
        }
        (!lacking.is_empty()).then(|| {
            Loss::new(
                format!("limits for: {}", lacking.join(", ")),
                "enable these controllers (kernel parameter cgroup_enable=, or a systemd unit with Delegate=yes)",
            )
        })
    }
}
