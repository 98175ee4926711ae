//! The system calls of the VMM process that neither std nor rustix offers, each behind a safe function.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Takes every capability out of what could ever be had again.
pub(super) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64u64 {
        let none: libc::c_ulong = 0;
        // SAFETY: this option takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, none, none, none) } != 0 {
            let error = io::Error::last_os_error();
            // The first number that this kernel does not know.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

/// Lets all signals through again: the host blocks them around the clone.
pub(super) fn unblock_signals() -> io::Result<()> {
    // SAFETY: the set is initialized by sigemptyset before it is read.
    let result = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the allocator to one arena: a VMM has few threads that allocate, and each arena costs memory in every VMM.
pub(super) fn one_arena() {
    // `malloc.h`; not in the libc crate for every C library.
    #[cfg(target_env = "gnu")]
    const M_ARENA_MAX: libc::c_int = -8;
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number; there is one thread.
    unsafe {
        libc::mallopt(M_ARENA_MAX, 1);
    }
}

/// Closes every descriptor above standard error. Called before this process has any of its own.
pub(super) fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process owns one of them yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The socket to the host, which descriptor 0 is. Called once.
pub(super) fn host_socket() -> OwnedFd {
    // SAFETY: std leaves descriptor 0 alone unless it is asked for standard input, which this process never does.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Makes `file` standard output and standard error.
pub(super) fn silence(file: impl AsFd) -> io::Result<()> {
    for target in [1, 2] {
        // SAFETY: nobody owns these numbers.
        if unsafe { libc::dup2(file.as_fd().as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Nanoseconds of the clock that host and VMM share.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
