//! System calls that neither std nor rustix offers, each behind a safe function. The agent has one thread.

use std::ffi::{CString, c_int, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// The context identifier of the host (`VMADDR_CID_HOST`).
const HOST: u32 = 2;

/// Which side of a fork this is.
pub(super) enum Forked {
    Parent(Pid),
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks, into the control group whose directory is `group`, if there is one.
pub(super) fn fork_into(group: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    // `struct clone_args` up to `cgroup` (linux/sched.h).
    let mut args = [0u64; 11];
    const FLAGS: usize = 0;
    const EXIT_SIGNAL: usize = 4;
    const CGROUP: usize = 10;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    args[EXIT_SIGNAL] = libc::SIGCHLD as u64;
    if let Some(group) = group {
        args[FLAGS] = CLONE_INTO_CGROUP;
        args[CGROUP] = group.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork(2): the child gets a copy of this memory. There is one thread, so no lock is held
    // by a thread that the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) })?;
    Ok(Pid::from_raw(pid as i32).map_or(Forked::Child, Forked::Parent))
}

/// `prctl(option, value)` for the options that take one number.
pub(super) fn prctl(option: c_int, value: c_ulong) -> io::Result<()> {
    let zero: c_ulong = 0;
    // SAFETY: the options used here take numbers, no pointers.
    check(unsafe { libc::prctl(option, value, zero, zero, zero) }.into()).map(drop)
}

/// Takes every capability out of what an exec could ever bring back.
pub(super) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // The first number that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

/// Gives up every capability of this process.
pub(super) fn drop_capabilities() -> io::Result<()> {
    // `_LINUX_CAPABILITY_VERSION_3` and process 0, which is this one; then two times three empty sets.
    let (header, sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both have the sizes that version 3 has.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

/// Becomes this user and group for good, without supplementary groups.
pub(super) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain numbers, and an empty list.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Makes `fd` the descriptor `target`, open on exec.
pub(super) fn dup_to(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: for a child that is about to exec: what `target` was has no owner any more.
    let result = unsafe { if fd == target { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, target) } };
    check(result.into()).map(drop)
}

/// Closes every descriptor from `first` on when this process execs.
pub(super) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: c_int = 4;
    // SAFETY: sets a flag.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Default actions for all signals, and none blocked: what a program expects.
pub(super) fn reset_signals() {
    // The kernel's `struct sigaction` and `sigset_t`: all zeroes. Its call and not the C library's, which keeps two signals.
    let (zeroes, set_bytes) = ([0_u64; 4], 8);
    let nowhere = std::ptr::null_mut::<u64>();
    // SAFETY: reads the zeroes and writes nothing. Signals whose action cannot be changed are meant to fail.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, zeroes.as_ptr(), nowhere, set_bytes);
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, zeroes.as_ptr(), nowhere, set_bytes);
    }
}

/// Ignores SIGPIPE, which Rust does at the start of programs that have its start.
pub(super) fn ignore_broken_pipes() {
    // SAFETY: an action without a handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Replaces the program; returns only if that failed.
pub(super) fn exec(argv: &[CString], env: &[CString]) -> io::Error {
    let Some(program) = argv.first() else { return io::Error::from_raw_os_error(libc::ENOENT) };
    let ended = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (ended(argv), ended(env));
    // SAFETY: lists of C strings that outlive the call, ended by null pointers.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process without anything that the one it was forked from would do at its end.
pub(super) fn exit_now(code: c_int) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

fn vsock_address(port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    address
}

/// A listening vsock socket, non-blocking.
pub(super) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let socket = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) }.into())?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as RawFd) };
    let address = vsock_address(port);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address has the length that is told.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }.into())?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// A connection of the host's, non-blocking; `None` for one that came from elsewhere, which is closed.
pub(super) fn accept_vsock(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut address = vsock_address(0);
    let mut length = size_of_val(&address) as libc::socklen_t;
    let listener = listener.as_fd().as_raw_fd();
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: writes an address of at most the length that is told.
    let socket = check(unsafe { libc::accept4(listener, (&raw mut address).cast(), &raw mut length, flags) }.into())?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as RawFd) };
    Ok((address.svm_cid == HOST).then_some(socket))
}

/// `ioctl` on the interface `name`, with a request that `fill` completes.
pub(super) fn interface(name: &str, request: c_ulong, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<()> {
    // SAFETY: all zeroes is a valid request.
    let mut content: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = content.ifr_name.len() - 1;
    for (to, from) in content.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    fill(&mut content);
    inet_ioctl(request, &raw const content)
}

/// `ioctl` on an IPv4 socket with a request that the kernel reads.
pub(super) fn inet_ioctl<T>(request: c_ulong, content: *const T) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the callers give the structure that the request reads; it outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, content) }.into()).map(drop)
}

/// Feeds the kernel's random generator, and makes it use that at once.
pub(super) fn feed_random(entropy: &[u8; 64]) -> io::Result<()> {
    // `_IOW('R', 3, int[2])` and `_IO('R', 7)` of linux/random.h.
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    #[repr(C)]
    struct Pool {
        bits: c_int,
        bytes: c_int,
        content: [u8; 64],
    }
    let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    let pool = Pool { bits: 512, bytes: 64, content: *entropy };
    // SAFETY: the structure says how long it is.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) }.into())?;
    // SAFETY: takes nothing.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) }.into()).map(drop)
}
