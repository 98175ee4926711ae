//! A network of loopback alone, made by an init for itself: for hosts where the server may not make one for it.

use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::UnshareFlags;

use crate::step::{Step, StepError};

/// Enters a new network namespace, brings its loopback up and listens.
pub(crate) fn only_loopback(listen: &[SocketAddrV4]) -> Result<Vec<TcpListener>, StepError> {
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.step(|| "make a network namespace".into())?;
    bring_up().step(|| "bring loopback up".into())?;
    listen.iter().map(|address| TcpListener::bind(address).step(|| format!("listen on {address}"))).collect()
}

fn bring_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid request; the name is shorter than its field and stays terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads a request of this type.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
