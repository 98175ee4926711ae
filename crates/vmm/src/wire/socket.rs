//! Packets with descriptors beside them: SOCK_SEQPACKET pairs, one packet for one message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::{MAX_FDS, MAX_PACKET};

/// What one look at a socket brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// A packet.
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// The other end is closed.
    Closed,
}

/// A connected pair, closed on exec; both ends block unless asked otherwise each time.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a packet whole or not at all. `wait` is whether to wait for room.
pub(crate) fn send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
    if packet.is_empty() || packet.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long for the socket"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors beside a message"));
    }
    let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
    loop {
        match sendmsg(&socket, &[IoSlice::new(packet)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a packet. `wait` is whether to wait for one, `most` how many descriptors are welcome; a packet with more is an
/// error.
pub(crate) fn receive(socket: impl AsFd, wait: bool, most: usize) -> io::Result<Received> {
    let mut buffer = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = if wait { RecvFlags::CMSG_CLOEXEC } else { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT };
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is too long"));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // Happens when this process has no descriptors left as well.
        let reason = "descriptors beside a message were lost: raise the limit of open files (ulimit -n)";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if fds.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet carries descriptors that nobody asked for"));
    }
    if received.bytes == 0 {
        // No message is empty, so this is the end.
        return Ok(Received::Closed);
    }
    Ok(Received::Packet(buffer[..received.bytes].to_vec(), fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(socket: &OwnedFd) -> (Vec<u8>, Vec<OwnedFd>) {
        match receive(socket, false, MAX_FDS).unwrap() {
            Received::Packet(packet, fds) => (packet, fds),
            Received::Closed => panic!("closed"),
        }
    }

    #[test]
    fn packets_arrive_whole_with_their_descriptors_until_the_end() {
        let (one, two) = pair().unwrap();
        for (length, count) in [(1, 0), (MAX_PACKET, MAX_FDS)] {
            let fds = vec![one.as_fd(); count];
            send(&one, &vec![7; length], &fds, false).unwrap();
            let (packet, fds) = packet(&two);
            assert_eq!((packet, fds.len()), (vec![7; length], count));
            let closes = |fd| rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC);
            assert!(fds.iter().all(closes));
        }
        assert_eq!(receive(&two, false, MAX_FDS).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert!(matches!(receive(&two, false, MAX_FDS).unwrap(), Received::Closed));
    }

    #[test]
    fn what_is_too_long_is_refused_by_both_ends() {
        let (one, two) = pair().unwrap();
        assert!(send(&one, &[0; MAX_PACKET + 1], &[], false).is_err());
        assert!(send(&one, &[0], &[two.as_fd(); MAX_FDS + 1], false).is_err());
        rustix::io::write(&one, &[0; MAX_PACKET + 1]).unwrap();
        assert_eq!(receive(&two, false, MAX_FDS).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn descriptors_that_are_not_welcome_do_not_arrive() {
        let (one, two) = pair().unwrap();
        send(&one, b"gift", &[one.as_fd(), one.as_fd()], false).unwrap();
        assert_eq!(receive(&two, false, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
