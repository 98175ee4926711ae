//! A connection's end at the host: a Unix socket, and the bytes of the guest that it has not taken yet.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::pieces::Pieces;

/// Most pieces of one system call; the kernel takes 1,024.
pub const MAX_VECTORS: usize = 1000;

/// The host's end of a connection.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// Bytes of the guest from `start` on; as many as its credit allows.
    waiting: Vec<u8>,
    start: usize,
    /// Whether the socket is watched for room.
    pub watched_for_room: bool,
    /// Whether the end of the other side was announced: there is something to read until it is read.
    pub ended: bool,
}

/// What came of reading a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// This many bytes.
    Bytes {
        /// At least one.
        count: usize,
        /// Whether there may be more at once.
        more: bool,
    },
    /// None for now.
    Dry,
    /// The other end has shut its writing side.
    End,
    /// The other end is gone.
    Lost,
}

/// The other end takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deaf;

impl Stream {
    /// Takes the socket over.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, waiting: Vec::new(), start: 0, watched_for_room: false, ended: false }
    }

    /// Whether bytes wait for room in the socket.
    pub fn is_waiting(&self) -> bool {
        self.start < self.waiting.len()
    }

    /// Reads into guest memory; `room` is what `vectors` add up to.
    pub fn read(&self, vectors: &mut [libc::iovec], room: usize) -> Read {
        let mut message = message(vectors);
        let got = loop {
            // SAFETY: the vectors are pieces of guest memory that is mapped as long as the caller holds `Memory`; nothing in
            // this process takes references to it. `message` points to them and nothing else.
            let got = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
            match usize::try_from(got) {
                Ok(count) => break count,
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Read::Dry,
                    _ => return Read::Lost,
                },
            }
        };
        if got == 0 {
            return Read::End;
        }
        // The kernel stops early where descriptors were passed along, which are dropped here.
        let more = self.ended || got == room || message.msg_flags & libc::MSG_CTRUNC != 0;
        Read::Bytes { count: got, more }
    }

    /// Writes the first `len` bytes of `payload`, and keeps what the socket does not take. Returns how many it took.
    pub fn write(&mut self, payload: &Pieces<'_>, len: usize) -> Result<usize, Deaf> {
        let mut taken = 0;
        if !self.is_waiting() {
            let mut vectors = Vec::with_capacity(payload.count().min(MAX_VECTORS));
            payload.vectors(len, &mut vectors);
            vectors.truncate(MAX_VECTORS);
            taken = self.send(&mut vectors)?;
        }
        if taken < len {
            self.waiting.drain(..self.start);
            self.start = 0;
            let end = self.waiting.len();
            self.waiting.resize(end + len - taken, 0);
            payload.read(taken, &mut self.waiting[end..]);
        }
        Ok(taken)
    }

    /// Writes what waits. Returns how many bytes the socket took.
    pub fn flush(&mut self) -> Result<usize, Deaf> {
        let bytes = &mut self.waiting[self.start..];
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut vectors = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        let taken = self.send(&mut vectors)?;
        self.start += taken;
        if !self.is_waiting() {
            // Most connections never need it again.
            (self.waiting, self.start) = (Vec::new(), 0);
        }
        Ok(taken)
    }

    /// Shuts a direction. The other end may be gone already, which is no matter.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = self.socket.shutdown(how);
    }

    fn send(&self, vectors: &mut [libc::iovec]) -> Result<usize, Deaf> {
        let message = message(vectors);
        loop {
            // SAFETY: the vectors are pieces of guest memory, mapped as long as the caller holds `Memory`, or our own buffer,
            // borrowed by the caller. Only reads follow.
            let sent =
                unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            match usize::try_from(sent) {
                Ok(count) => return Ok(count),
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Ok(0),
                    _ => return Err(Deaf),
                },
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a message without address, data and control bytes.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}
