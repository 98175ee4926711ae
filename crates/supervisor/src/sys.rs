//! The system calls that neither std nor rustix offers, each behind a safe function.
//!
//! Everything here runs in the single-threaded processes of the backend (supervisor, inits, tenants on their way in), but for
//! [`mount_setattr`], which the server uses as well.

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Makes the mount read-only. (`linux/mount.h`)
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Ignores set-user-ID bits.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// Ignores device nodes.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// Refuses to execute.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// Which side of a fork this is.
pub(crate) enum Forked {
    Parent(Pid),
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_int(result: c_int) -> io::Result<()> {
    check(result.into()).map(drop)
}

/// Forks with `flags` (`CLONE_NEW*`), into the control group `group` if there is one. The caller is single-threaded.
pub(crate) fn clone3(flags: c_int, group: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    // `struct clone_args` of linux/sched.h; not libc's, because musl's and glibc's differ in what they name.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut args = CloneArgs { flags: flags as u32 as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack this is fork(2): the child gets a copy of this memory. The process has one
    // thread, so no lock can be held by a thread that the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    Ok(match Pid::from_raw(pid as i32) {
        Some(pid) => Forked::Parent(pid),
        None => Forked::Child,
    })
}

/// Forks as the C library does: with its handlers, and with the thread's number that it keeps. For a child that goes on in
/// an interpreter.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: the process has one thread, so the child lacks nothing.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok(match Pid::from_raw(pid as i32) {
        Some(pid) => Forked::Parent(pid),
        None => Forked::Child,
    })
}

/// Sets attributes on a mount, and on all mounts below it if `recursive`; makes it private to this namespace.
pub fn mount_setattr(mount: impl AsFd, set: u64, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attr = MountAttr { set, clear: 0, propagation: libc::MS_PRIVATE, userns: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let mount = mount.as_fd().as_raw_fd();
    // SAFETY: the path is an empty C string and the structure has the size that is told.
    check(unsafe {
        let attr = &raw const attr;
        libc::syscall(libc::SYS_mount_setattr, mount, c"".as_ptr(), flags, attr, size_of::<MountAttr>())
    })
    .map(drop)
}

/// `prctl(option, value)` for the options that take one number.
pub(crate) fn prctl(option: c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take numbers, no pointers.
    check_int(unsafe { libc::prctl(option, value, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong) })
}

/// Gives up every capability of this process.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [0u32; 6];
    // SAFETY: version 3 takes two structures of three 32-bit words, which `data` is.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Becomes `uid` and the group of the same number, for good, without supplementary groups.
pub(crate) fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: plain numbers; the raw calls, because glibc's would look for other threads.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()))?;
        check(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Restricts this process by a landlock ruleset. Needs no-new-privileges.
pub(crate) fn landlock_restrict_self(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a descriptor and no flags.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) }).map(drop)
}

/// Sends a signal to every process of this process namespace but the caller, who is its process 1.
pub(crate) fn signal_everything(signal: c_int) -> io::Result<()> {
    // SAFETY: plain numbers.
    check_int(unsafe { libc::kill(-1, signal) })
}

/// Takes every capability out of what an exec could ever bring back.
pub(crate) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Blocks every signal and returns a descriptor that reads as SIGCHLD arrives.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the sets are initialized by sigfillset and sigemptyset before they are read; the new descriptor is ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        check_int(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))?;
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check_int(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Gives every signal its default action and unblocks all: what a fresh program expects.
pub(crate) fn reset_signals() {
    // `struct sigaction` of the kernel, all zeroes: the default action, no flags, an empty mask. The raw call, because
    // the C library does not let go of the two signals that it uses itself.
    let default = [0u64; 4];
    const SET_BYTES: usize = 8;
    // SAFETY: default actions and an empty set; signals that cannot be changed return an error, which is meant.
    unsafe {
        for signal in 1..=64 {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, SET_BYTES);
        }
    }
    // Fails for no valid argument.
    let _ = unblock_signals();
}

/// Unblocks every signal.
pub(crate) fn unblock_signals() -> io::Result<()> {
    // SAFETY: the set is initialized by sigemptyset before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check_int(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))
    }
}

/// Makes `fd` the descriptor number `target`, which stays open on exec.
pub(crate) fn dup_to(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: closing what `target` was is what the callers want: they call it on numbers that nothing owns.
    check_int(unsafe { if fd == target { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, target) } })
}

/// Closes every descriptor from `first` on, whoever thinks to own it: for processes that are about to exec, or that
/// have just been forked and keep nothing of their parent's.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: see above; the callers forget the owners.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Closes every descriptor from `first` on when this process execs.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: c_int = 4;
    // SAFETY: only sets a flag.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Replaces the program. Returns only if that failed.
pub(crate) fn exec(argv: &[CString], env: &[CString]) -> io::Error {
    let Some(program) = argv.first() else {
        return io::Error::from_raw_os_error(libc::ENOENT);
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once, without running what the program that it was forked from registered.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

    use super::*;
    use crate::testing::UnifiedGroup;

    #[test]
    fn a_child_can_be_cloned_into_a_group_of_the_unified_hierarchy() {
        let Some(group) = UnifiedGroup::make("clone") else { return };
        match clone3(0, Some(group.dir().as_fd())).unwrap() {
            Forked::Child => loop {
                // SAFETY: waits for the signal that ends this process; nothing of the other threads is touched.
                unsafe { libc::pause() };
            },
            Forked::Parent(pid) => {
                let members = group.processes();
                kill_process(pid, Signal::KILL).unwrap();
                waitpid(Some(pid), WaitOptions::empty()).unwrap();
                assert_eq!(members.trim(), pid.as_raw_nonzero().to_string());
            }
        }
    }

    #[test]
    fn a_failing_exec_names_the_reason() {
        let program = CString::new("/no/such/program").unwrap();
        assert_eq!(exec(&[program], &[]).raw_os_error(), Some(libc::ENOENT));
        assert_eq!(exec(&[], &[]).raw_os_error(), Some(libc::ENOENT));
    }
}
