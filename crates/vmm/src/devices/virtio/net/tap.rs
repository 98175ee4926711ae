//! A tap interface: one packet with its header per read or write (Linux `Documentation/networking/tuntap.rst`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::OFlags;

use super::HEADER_BYTES;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

pub(super) struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Sets the header's length. That the interface has headers (`IFF_VNET_HDR`) is the opener's promise: the jail forbids
    /// to ask.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Tap> {
        if !rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the tap must be opened with O_NONBLOCK"));
        }
        let bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: the kernel reads an int.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })?;
        Ok(Tap { fd })
    }

    /// Says which packets the guest takes as they are: without a checksum, and longer than the interface's MTU.
    pub(super) fn set_offloads(&self, csum: bool, tso4: bool, tso6: bool) -> io::Result<()> {
        let flag = |on: bool, flag: libc::c_ulong| if on { flag } else { 0 };
        let flags = flag(csum, TUN_F_CSUM) | flag(tso4, TUN_F_TSO4) | flag(tso6, TUN_F_TSO6);
        // SAFETY: the argument is a number.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, flags) })
    }

    /// Reads one packet; `WouldBlock` if there is none.
    pub(super) fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, packet)?)
    }

    /// Writes one packet. What the host does not take is lost: a header that makes no sense, an interface that is down.
    pub(super) fn write(&self, pieces: &[libc::iovec]) {
        // SAFETY: the pieces lie in the guest's memory, which stays mapped while its device is active; the kernel reads
        // each byte once and checks the header itself.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        if written < 0 {
            tracing::trace!(error = %io::Error::last_os_error(), "the host does not take a packet");
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
