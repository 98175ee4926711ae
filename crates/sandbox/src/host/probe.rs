//! How each fact is found out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{DiskFacts, HostFacts, LimitFacts, NetworkFacts};
use crate::cgroup;
use crate::net::rules::locate;

/// Bit of CAP_SYS_ADMIN in the sets of `/proc/self/status` (`capabilities(7)`).
const CAP_SYS_ADMIN: u32 = 21;
// <linux/landlock.h>
const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;

/// Namespaces that a sandbox has, user namespaces apart.
const NAMESPACES: [(&str, UnshareFlags); 6] = [
    ("mnt", UnshareFlags::NEWNS),
    ("pid", UnshareFlags::NEWPID),
    ("net", UnshareFlags::NEWNET),
    ("ipc", UnshareFlags::NEWIPC),
    ("uts", UnshareFlags::NEWUTS),
    ("cgroup", UnshareFlags::NEWCGROUP),
];

pub(super) fn all(data_dir: &Path) -> HostFacts {
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let sysctl = |name: &str| read(&format!("/proc/sys/{name}")).trim().parse::<u64>().ok();
    HostFacts {
        kernel_version: kernel_version(&kernel),
        kernel,
        machine: uname.machine().to_string_lossy().into_owned(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory_bytes(&read("/proc/meminfo")).unwrap_or(0),
        root: rustix::process::geteuid().is_root(),
        administrator: has_capability(&read("/proc/self/status"), CAP_SYS_ADMIN),
        cgroups: cgroup::survey(),
        forbidden_namespaces: NAMESPACES
            .into_iter()
            .filter(|(_, flag)| !may_unshare(*flag))
            .map(|(name, _)| name)
            .collect(),
        user_namespaces: user_namespaces().err().map(|error| error.to_string()),
        landlock_abi: landlock_abi(),
        seccomp: read("/proc/sys/kernel/seccomp/actions_avail").contains("errno"),
        network: NetworkFacts {
            nft: locate("nft"),
            iptables: locate("iptables"),
            ip_forward: sysctl("net/ipv4/ip_forward") == Some(1),
        },
        disk: DiskFacts {
            loop_devices: fs::File::open("/dev/loop-control").is_ok(),
            mkfs_ext4: locate("mkfs.ext4"),
            free_bytes: free_bytes(data_dir),
        },
        limits: LimitFacts {
            user_namespaces: sysctl("user/max_user_namespaces"),
            network_namespaces: sysctl("user/max_net_namespaces"),
            inotify_instances: sysctl("fs/inotify/max_user_instances"),
            inotify_watches: sysctl("fs/inotify/max_user_watches"),
            pid_max: sysctl("kernel/pid_max"),
            open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        },
    }
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
pub(super) fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB.
pub(super) fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether a bit is in the effective set of `/proc/PID/status`.
pub(super) fn has_capability(status: &str, bit: u32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).is_some_and(|set| set >> bit & 1 == 1)
}

/// Whether this process may make such a namespace. A thread does it that ends right after, and the namespace with it.
fn may_unshare(flag: UnshareFlags) -> bool {
    let attempt = std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
        // SAFETY: no flag used here separates memory or descriptors, and the thread does nothing afterwards.
        unsafe { unshare_unsafe(flag) }.is_ok()
    });
    attempt.is_ok_and(|thread| thread.join().unwrap_or(false))
}

/// Makes a user namespace in a child process, because only a process with one thread may.
fn user_namespaces() -> io::Result<()> {
    // SAFETY: the child calls nothing but two system calls, which are safe after a fork of a process with threads.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: system calls without memory arguments; `_exit` runs no handlers of the parent.
        unsafe {
            let failed = libc::unshare(libc::CLONE_NEWUSER) != 0;
            libc::_exit(if failed { *libc::__errno_location() } else { 0 });
        }
    }
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call, and the child is ours and not waited for by anybody else.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        0 => Err(io::Error::other("the attempt was killed")),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn landlock_abi() -> Option<u32> {
    // SAFETY: with this flag the kernel takes no attributes and returns a number (`landlock_create_ruleset(2)`).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Free bytes at a path or its nearest existing parent.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let absolute: PathBuf = std::path::absolute(path).ok()?;
    let space = absolute.ancestors().find_map(|place| rustix::fs::statvfs(place).ok())?;
    space.f_bavail.checked_mul(space.f_frsize)
}
