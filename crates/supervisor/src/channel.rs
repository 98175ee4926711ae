//! Message sockets between the server, the supervisor and the inits: SOCK_SEQPACKET pairs that carry descriptors.
//!
//! One message is one packet. A payload too long for a packet travels in a sealed-off memory file, as the last of the
//! descriptors. Sending and receiving are the plain system calls: they block or not as the socket does.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Longest payload of a packet, in bytes; well below the default socket buffer of 208 KiB.
const MAX_INLINE: usize = 64 * 1024;
/// Longest payload, in bytes.
const MAX_MESSAGE: u64 = 64 * 1024 * 1024;
/// Most descriptors beside a message, the memory file included.
const MAX_FDS: usize = 32;

const INLINE: u8 = 0;
const IN_FILE: u8 = 1;

/// A connected pair; both ends blocking, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message whole or not at all.
pub fn send(socket: impl AsFd, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if payload.len() as u64 > MAX_MESSAGE || fds.len() >= MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long for the sandbox's socket"));
    }
    if payload.len() <= MAX_INLINE {
        return send_packet(socket, INLINE, payload, fds);
    }
    let mut file = File::from(memfd_create("firelet-message", MemfdFlags::CLOEXEC)?);
    file.write_all(payload)?;
    file.rewind()?;
    let mut all = fds.to_vec();
    all.push(file.as_fd());
    send_packet(socket, IN_FILE, &[], &all)
}

fn send_packet(socket: impl AsFd, kind: u8, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors beside a message"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&[kind]), IoSlice::new(payload)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message; `None` when the other end is closed.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_INLINE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        // Happens when this process has no descriptors left: better an error than a message without its files.
        return Err(io::Error::other("a message was cut short: raise the limit of open files (ulimit -n)"));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    buffer.truncate(received.bytes);
    if buffer.remove(0) == INLINE {
        return Ok(Some((buffer, fds)));
    }
    let file = fds.pop().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message without its file"))?;
    let mut payload = Vec::new();
    File::from(file).take(MAX_MESSAGE).read_to_end(&mut payload)?;
    Ok(Some((payload, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn messages_of_all_lengths_arrive_whole_and_in_order() {
        let (one, two) = pair().unwrap();
        for length in [0, 1, MAX_INLINE, MAX_INLINE + 1, 3 << 20] {
            let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
            send(&one, &payload, &[]).unwrap();
            let (received, fds) = receive(&two).unwrap().unwrap();
            assert!(received == payload && fds.is_empty(), "{length}");
        }
        drop(one);
        assert!(receive(&two).unwrap().is_none());
    }

    #[test]
    fn descriptors_arrive_beside_short_and_long_messages() {
        let (one, two) = pair().unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        for length in [10, MAX_INLINE * 2] {
            send(&one, &vec![7; length], &[write.as_fd(), read.as_fd()]).unwrap();
            let (payload, fds) = receive(&two).unwrap().unwrap();
            assert_eq!((payload.len(), fds.len()), (length, 2));
            rustix::io::write(&fds[0], b"x").unwrap();
            let mut byte = [0];
            assert_eq!(rustix::io::read(&fds[1], &mut byte).unwrap(), 1);
            let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "{}", fds[0].as_raw_fd());
        }
    }

    #[test]
    fn what_is_too_much_is_refused_before_it_is_sent() {
        let (one, two) = pair().unwrap();
        let fds = vec![two.as_fd(); MAX_FDS];
        assert_eq!(send(&one, b"", &fds).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        send(&one, b"next", &[]).unwrap();
        assert_eq!(receive(&two).unwrap().unwrap().0, b"next");
    }
}
