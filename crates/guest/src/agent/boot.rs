//! What only process 1 of a machine does, before it serves.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::{AgentError, Setup, Sockets, at, sys};

/// The first mounts: what, where, and how.
const MOUNTS: [(&str, &str, MountFlags); 4] = [
    ("proc", "/proc", MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV)),
    ("sysfs", "/sys", MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV)),
    ("devtmpfs", "/dev", MountFlags::NOSUID.union(MountFlags::NOEXEC)),
    ("cgroup2", "/sys/fs/cgroup", MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV)),
];

/// The kernel's switches that narrow what tenants can do to it. One that this kernel lacks is no loss.
const SWITCHES: [(&str, &str); 10] = [
    // No namespaces in which a tenant would be root.
    ("user/max_user_namespaces", "0"),
    ("kernel/unprivileged_bpf_disabled", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/io_uring_disabled", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/yama/ptrace_scope", "2"),
    ("vm/unprivileged_userfaultfd", "0"),
    // A core dump is nowhere to be put.
    ("kernel/core_pattern", ""),
    // As in a sandbox on a host with much memory: what a tenant asks for it gets, and is killed when it has used too much.
    ("vm/overcommit_memory", "1"),
];

/// Descriptors of the agent: pipes of many processes, connections of the Runtime API.
const MAX_FILES: u64 = 4096;
/// Before all tenant processes, which have to wait for it anyway.
const PRIORITY: i32 = -20;

/// Makes a machine out of a kernel: afterwards everything that the agent needs is there.
///
/// Refuses to where there is a machine already: anywhere but in the first process of a kernel, before the first mount, this
/// would mount over what others use and turn switches that are theirs.
pub fn machine() -> Result<Setup, AgentError> {
    if std::process::id() != 1 || Path::new("/proc/self").exists() {
        return Err(at("be process 1 of a machine: it is booted as /init, or started with --local")(
            io::ErrorKind::Unsupported.into(),
        ));
    }
    sys::ignore_broken_pipes();
    for (kind, target, flags) in MOUNTS {
        std::fs::create_dir_all(target).map_err(at("make the first directories"))?;
        match mount(kind, target, kind, flags, None) {
            // The kernel mounts /dev by itself, if it is built so.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(at("mount the kernel's file systems")(error.into())),
        }
    }
    open_standard().map_err(at("open the standard descriptors"))?;
    for (name, value) in SWITCHES {
        let path = Path::new("/proc/sys").join(name);
        if path.exists()
            && let Err(error) = std::fs::write(&path, value)
        {
            eprintln!("cannot set {name}: {error}");
        }
    }
    let files = rustix::process::Rlimit { current: Some(MAX_FILES), maximum: Some(MAX_FILES) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)
        .map_err(|error| at("raise the limit of files")(error.into()))?;
    rustix::process::setpriority_process(None, PRIORITY).map_err(|error| at("take precedence")(error.into()))?;
    Ok(Setup { root: "/tenant".into(), group: "/sys/fs/cgroup/tenant".into(), sockets: Sockets::Vsock, machine: true })
}

/// A kernel without a console starts process 1 without descriptors; the first files opened would take the standard numbers.
fn open_standard() -> io::Result<()> {
    loop {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        if number > 2 {
            return Ok(());
        }
        std::mem::forget(file);
    }
}
