//! The device with queues in memory on one side and real sockets on the other.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_SIZE, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};
use super::*;
use crate::devices::virtio::testing::{self, Driver};

const CID: u32 = 5;
const RX_BUFFERS: u64 = 0x10_0000;
const RX_BUFFER: u64 = 0x2000;
const TX_BUFFERS: u64 = 0x30_0000;
const EVENT_BUFFERS: u64 = 0x8_0000;
const TX_BUFFER: u64 = 0x1_1000;

/// A driver of the device, as simple as can be, and the device.
struct Guest {
    device: Vsock,
    handle: Handle,
    memory: Memory,
    rx: Driver,
    tx: Driver,
    events: Driver,
    interrupt: Interrupt,
    irq: EventFd,
    sent: u64,
}

impl Guest {
    fn new(rx_buffers: usize) -> Self {
        Self::with(Vsock::new(CID).unwrap(), rx_buffers, 4)
    }

    fn with(mut device: Vsock, rx_buffers: usize, event_buffers: usize) -> Self {
        let memory = testing::memory(0x100_0000);
        let mut rx = Driver::new(&memory, 0x1_0000, 256);
        let tx = Driver::new(&memory, 0x2_0000, 256);
        let mut events = Driver::new(&memory, 0x3_0000, 16);
        for _ in 0..rx_buffers {
            submit_rx(&mut rx);
        }
        for number in 0..event_buffers {
            events.submit(&[(EVENT_BUFFERS + 8 * number as u64, 8, true)]);
        }
        let features = device.features() & !F_EVENT_IDX;
        let (interrupt, irq) = testing::activate_with(&mut device, &[&rx, &tx, &events], features);
        let handle = device.handle();
        let mut guest = Self { device, handle, memory, rx, tx, events, interrupt, irq, sent: 0 };
        for queue in 0..3 {
            guest.device.notified(queue);
        }
        guest
    }

    /// Lets the device do what it is woken for.
    fn turn(&mut self) {
        for _ in 0..1000 {
            let watched = self.device.watched();
            // SAFETY: the device that owns the descriptor lives longer.
            let fd = unsafe { BorrowedFd::borrow_raw(watched[0].fd) };
            if !waits(fd, PollFlags::IN, 0) {
                return;
            }
            self.device.ready(watched[0].token, EventSet::IN);
        }
        panic!("the device is never at rest");
    }

    /// Makes a packet available without telling the device.
    fn queue(&mut self, header: Header, bytes: &[u8]) {
        let at = TX_BUFFERS + (self.sent % 64) * TX_BUFFER;
        self.sent += 1;
        testing::put(&self.memory, at, &header.to_bytes());
        testing::put(&self.memory, at + HEADER_SIZE as u64, bytes);
        let payload = (at + HEADER_SIZE as u64, bytes.len() as u32, false);
        let header = (at, HEADER_SIZE as u32, false);
        let parts = [header, payload];
        self.tx.submit(if bytes.is_empty() { &parts[..1] } else { &parts });
    }

    fn kick(&mut self) {
        while self.device.notified(TX) == Progress::More {}
        while self.tx.used().is_some() {}
    }

    fn send(&mut self, header: Header, bytes: &[u8]) {
        self.queue(Header { len: bytes.len() as u32, ..header }, bytes);
        self.kick();
    }

    /// The next packet that the device has given, if there is one. Its buffer is made available again.
    fn packet(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.rx.used()?;
        let at = RX_BUFFERS + u64::from(head) / 2 * RX_BUFFER;
        let bytes = testing::get(&self.memory, at, len as usize);
        let header = Header::from_bytes(bytes[..HEADER_SIZE].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER_SIZE);
        submit_rx(&mut self.rx);
        Some((header, bytes[HEADER_SIZE..].to_vec()))
    }

    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, bytes) = self.packet().unwrap_or_else(|| panic!("expected {op:?}"));
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        (header, bytes)
    }

    /// A connection to port 80 that the guest has accepted: the host's end, and what the guest answers with.
    fn connected(&mut self) -> (UnixStream, Header) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        self.handle.connect(80, theirs);
        self.turn();
        let (request, _) = self.expect(Op::Request);
        assert_eq!((request.src_cid, request.dst_cid, request.dst_port), (HOST_CID, u64::from(CID), 80));
        let base = Header { buf_alloc: 1 << 18, ..request.refusal() };
        self.send(Header { op: Op::Response.number(), ..base }, &[]);
        (ours, base)
    }
}

/// Each buffer is two descriptors, as with Linux before 6.2; they come back in order.
fn submit_rx(rx: &mut Driver) {
    let head = u64::from(rx.next_head());
    let at = RX_BUFFERS + head / 2 * RX_BUFFER;
    rx.submit(&[(at, HEADER_SIZE as u32, true), (at + HEADER_SIZE as u64, 4096, true)]);
}

fn waits(fd: BorrowedFd<'_>, flags: PollFlags, seconds: i64) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() > 0
}

fn data(base: Header) -> Header {
    Header { op: Op::Data.number(), ..base }
}

fn read(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let count = socket.read(&mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

fn is_closed(socket: &mut UnixStream) -> bool {
    match socket.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

#[test]
fn a_question_and_its_answer_pass() {
    let mut guest = Guest::new(8);
    let (mut host, base) = guest.connected();
    let _ = guest.irq.read();
    host.write_all(b"what?").unwrap();
    guest.turn();
    let (header, bytes) = guest.expect(Op::Data);
    assert_eq!((header.kind, header.buf_alloc, &bytes[..]), (STREAM, 256 << 10, &b"what?"[..]));
    assert_eq!(guest.irq.read().unwrap(), 1);
    guest.send(data(base), b"that");
    assert_eq!(read(&mut host), b"that");
    assert!(guest.packet().is_none());
    // What the host wrote before the guest accepted arrives without another wake.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"early").unwrap();
    guest.handle.connect(80, theirs);
    guest.turn();
    let (request, _) = guest.expect(Op::Request);
    guest.send(Header { op: Op::Response.number(), buf_alloc: 100, ..request.refusal() }, &[]);
    assert_eq!(guest.expect(Op::Data).1, b"early");
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new(8);
    let (mut host, base) = guest.connected();
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.turn();
    assert_eq!(guest.expect(Op::Data).1, b"last");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_SEND);
    guest.send(data(base), b"still here");
    assert_eq!(read(&mut host), b"still here");
    assert!(!is_closed(&mut host));
    guest.send(Header { op: Op::Shutdown.number(), flags: SHUTDOWN_SEND, ..base }, &[]);
    assert!(is_closed(&mut host));
    // Nothing can pass any more, so that the guest may forget it.
    guest.turn();
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);

    let (mut host, base) = guest.connected();
    guest.send(Header { op: Op::Shutdown.number(), flags: SHUTDOWN_RECEIVE, ..base }, &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(data(base), b"yes");
    assert_eq!(read(&mut host), b"yes");
    drop(host);
    guest.turn();
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
    guest.send(Header { op: Op::Reset.number(), ..base }, &[]);
    guest.send(data(base), b"?");
    guest.expect(Op::Reset);
}

#[test]
fn a_refusal_or_a_close_closes_the_socket() {
    let mut guest = Guest::new(8);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    guest.handle.connect(81, theirs);
    guest.turn();
    let (request, _) = guest.expect(Op::Request);
    assert!(!is_closed(&mut ours));
    guest.send(request.refusal(), &[]);
    assert!(is_closed(&mut ours));

    let (mut host, base) = guest.connected();
    guest.send(data(base), b"bye");
    guest.send(Header { op: Op::Shutdown.number(), flags: SHUTDOWN_BOTH, ..base }, &[]);
    guest.expect(Op::Reset);
    assert_eq!(read(&mut host), b"bye");
    assert!(is_closed(&mut host));
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let limits = Limits { accept: Duration::from_millis(5), ..Limits::default() };
    let mut guest = Guest::with(Vsock::with_limits(CID, limits).unwrap(), 8, 0);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(80, theirs);
    guest.turn();
    guest.expect(Op::Request);
    // SAFETY: the device that owns the descriptor lives longer.
    let fd = unsafe { BorrowedFd::borrow_raw(guest.device.watched()[0].fd) };
    assert!(waits(fd, PollFlags::IN, 20));
    guest.turn();
    guest.expect(Op::Reset);
    assert!(is_closed(&mut ours));
}

#[test]
fn the_guest_reaches_announced_ports_only() {
    let mut guest = Guest::new(8);
    let (give, take) = mpsc::channel();
    guest.handle.listen(1000, move |socket| give.send(socket).unwrap());
    guest.turn();
    let ask = |port| Header {
        src_cid: u64::from(CID),
        dst_cid: HOST_CID,
        src_port: 4000,
        dst_port: port,
        kind: STREAM,
        op: Op::Request.number(),
        buf_alloc: 1000,
        ..Header::default()
    };
    guest.send(ask(1001), &[]);
    guest.expect(Op::Reset);
    guest.send(ask(1000), &[]);
    guest.expect(Op::Response);
    let mut host = take.try_recv().unwrap();
    guest.send(data(ask(1000)), b"hello");
    assert_eq!(read(&mut host), b"hello");
    host.write_all(b"you too").unwrap();
    guest.turn();
    assert_eq!(guest.expect(Op::Data).1, b"you too");
}

#[test]
fn megabytes_arrive_whole_within_credit_in_both_directions() {
    const SIZE: usize = 6 << 20;
    let pattern: Vec<u8> = (0..SIZE).map(|n| (n * 7 + n / 4096) as u8).collect();
    let mut guest = Guest::new(100);
    let (mut host, base) = guest.connected();
    let (mut written, mut received, mut packets, mut turns) = (0, Vec::new(), 0, 0);
    while received.len() < SIZE {
        if let Ok(count) = host.write(&pattern[written..]) {
            written += count;
        }
        guest.turn();
        while let Some((header, bytes)) = guest.packet() {
            assert_eq!(header.op, Op::Data.number());
            received.extend(bytes);
            packets += 1;
        }
        // The guest's reader has taken all of it.
        guest.queue(Header { op: Op::CreditUpdate.number(), fwd_cnt: received.len() as u32, ..base }, &[]);
        guest.kick();
        guest.device.notified(RX);
        turns += 1;
        assert!(turns < 10_000);
    }
    assert_eq!(received, pattern);
    assert!(packets <= SIZE / 4096 + turns, "{packets} packets in {turns} turns");

    let base = Header { fwd_cnt: SIZE as u32, ..base };
    let (mut sent, mut credit, mut got, mut turns) = (0, 256 << 10, Vec::new(), 0);
    while got.len() < SIZE {
        while sent < SIZE && sent < credit {
            let count = (SIZE - sent).min(credit - sent).min(64 << 10);
            guest.send(data(base), &pattern[sent..sent + count]);
            sent += count;
        }
        // All of the credit is taken although the socket holds less.
        let mut bytes = vec![0; 1 << 20];
        if let Ok(count) = host.read(&mut bytes) {
            got.extend_from_slice(&bytes[..count]);
        }
        guest.turn();
        while let Some((header, _)) = guest.packet() {
            assert_eq!(header.op, Op::CreditUpdate.number());
            credit = (header.fwd_cnt + header.buf_alloc) as usize;
        }
        turns += 1;
        assert!(turns < 10_000);
    }
    assert_eq!(got, pattern);
}

#[test]
fn many_small_messages_cost_one_interrupt() {
    let mut guest = Guest::new(100);
    let (mut host, base) = guest.connected();
    let _ = guest.irq.read();
    for _ in 0..100 {
        guest.queue(Header { len: 3, ..data(base) }, b"abc");
    }
    guest.kick();
    assert_eq!(guest.irq.read().unwrap(), 1);
    assert_eq!(read(&mut host), b"abc".repeat(100));
    // From several connections to the guest, as well.
    let mut others: Vec<_> = (0..10).map(|_| guest.connected().0).collect();
    let _ = guest.irq.read();
    for other in &mut others {
        other.write_all(b"x").unwrap();
    }
    guest.turn();
    assert_eq!(guest.irq.read().unwrap(), 1);
    assert_eq!(std::iter::from_fn(|| guest.packet()).count(), 10);
}

#[test]
fn a_guest_without_buffers_gets_everything_later() {
    let mut guest = Guest::new(0);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[7; 10_000]).unwrap();
    guest.handle.connect(80, theirs);
    guest.turn();
    submit_rx(&mut guest.rx);
    guest.device.notified(RX);
    let (request, _) = guest.expect(Op::Request);
    let base = Header { buf_alloc: 1 << 16, ..request.refusal() };
    guest.send(Header { op: Op::Response.number(), ..base }, &[]);
    let mut got = 0;
    for _ in 0..4 {
        guest.device.notified(RX);
        guest.turn();
        got += guest.packet().map_or(0, |(_, bytes)| bytes.len());
    }
    assert_eq!(got, 10_000);
}

#[test]
fn a_packet_may_lie_in_many_pieces_and_a_short_one_is_dropped() {
    let mut guest = Guest::new(8);
    let (mut host, base) = guest.connected();
    let header = Header { len: 5, ..data(base) };
    let at = TX_BUFFERS;
    testing::put(&guest.memory, at, &header.to_bytes());
    testing::put(&guest.memory, at + 44, b"piece");
    guest.tx.submit(&[(at, 10, false), (at + 10, 36, false), (at + 46, 1, false), (at + 47, 2, false)]);
    guest.kick();
    assert_eq!(read(&mut host), b"piece");
    // No whole header: nobody to answer.
    guest.tx.submit(&[(at, 43, false)]);
    // Not in memory.
    guest.tx.submit(&[(0x2_0000_0000, 100, false)]);
    guest.tx.submit(&[(at, 44, true)]);
    guest.kick();
    assert!(guest.packet().is_none() && !is_closed(&mut host));
    // Less than it says.
    guest.tx.submit(&[(at, 48, false)]);
    guest.kick();
    guest.expect(Op::Reset);
    assert!(is_closed(&mut host));
}

#[test]
fn buffers_that_can_carry_nothing_are_given_back_empty() {
    let mut guest = Guest::new(0);
    let heads = [
        guest.rx.submit(&[(RX_BUFFERS, 44, true)]),
        guest.rx.submit(&[(RX_BUFFERS, 4000, false)]),
        guest.rx.submit(&[(0x2_0000_0000, 4000, true)]),
    ];
    let _host = UnixStream::pair().map(|(ours, theirs)| {
        guest.handle.connect(80, theirs);
        ours
    });
    guest.turn();
    for head in heads {
        assert_eq!(guest.rx.used(), Some((head, 0)));
    }
    assert_eq!(guest.rx.used(), None);
}

#[test]
fn a_broken_queue_closes_everything_and_asks_for_a_reset() {
    let mut guest = Guest::new(8);
    let (mut host, _) = guest.connected();
    guest.tx.set_available(5000);
    guest.device.notified(TX);
    assert!(guest.interrupt.is_broken());
    assert!(is_closed(&mut host));
    // Nothing wakes it again and again, and whoever comes now is turned away.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(80, theirs);
    guest.turn();
    assert!(is_closed(&mut ours));
}

#[test]
fn after_a_restore_the_guest_hears_of_it_before_it_is_asked_for_anything() {
    for event_buffers in [0, 1, 4] {
        let mut before = Guest::new(8);
        let (_host, old) = before.connected();
        let saved = before.device.save();

        let mut device = Vsock::new(CID).unwrap();
        device.restore(&saved).unwrap();
        let mut guest = Guest::with(device, 8, event_buffers);
        let (_ours, theirs) = UnixStream::pair().unwrap();
        guest.handle.connect(80, theirs);
        guest.turn();
        assert!(guest.packet().is_none());
        if event_buffers == 0 {
            assert_eq!(guest.events.used(), None);
            guest.events.submit(&[(EVENT_BUFFERS, 8, true)]);
            guest.device.notified(EVENT);
        }
        assert_eq!(guest.events.used(), Some((0, 4)));
        assert_eq!(guest.memory.read_obj::<u32>(GuestAddress(EVENT_BUFFERS)).unwrap(), 0);
        // That it is looked at again is no sign of the guest.
        guest.device.notified(EVENT);
        assert!(guest.packet().is_none());
        guest.events.submit(&[(EVENT_BUFFERS, 8, true)]);
        guest.device.notified(EVENT);
        let (request, _) = guest.expect(Op::Request);
        assert_ne!(request.src_port, old.dst_port);
        // The event is told once.
        assert_eq!(guest.events.used(), None);
        // An old connection is none.
        guest.send(data(old), b"?");
        guest.expect(Op::Reset);
    }
    let mut other = Vsock::new(CID + 1).unwrap();
    assert!(matches!(other.restore(&Guest::new(0).device.save()), Err(StateError::Mismatch(_))));
    assert!(matches!(other.restore(&[]), Err(StateError::Decode(_))));
}

#[test]
fn a_reset_of_the_device_closes_the_sockets_and_keeps_the_listeners() {
    let mut guest = Guest::new(8);
    let (mut host, _) = guest.connected();
    guest.device.reset();
    assert!(is_closed(&mut host));
    assert!(guest.device.queues().is_empty());
    assert_eq!(guest.device.notified(TX), Progress::Done);
    // Asked for while there is no driver, opened when there is one.
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(80, theirs);
    let mut guest = Guest::with(guest.device, 8, 0);
    guest.turn();
    guest.expect(Op::Request);
    let mut config = [0xff; 10];
    guest.device.read_config(0, &mut config[..8]);
    guest.device.read_config(8, &mut config[8..]);
    assert_eq!(config, [5, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
}

#[test]
fn more_connections_than_there_may_be_are_closed() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let mut guest = Guest::with(Vsock::with_limits(CID, limits).unwrap(), 8, 0);
    let mut ends: Vec<UnixStream> = (0..3)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            guest.handle.connect(80, theirs);
            ours
        })
        .collect();
    guest.turn();
    assert_eq!(ends.iter_mut().map(is_closed).collect::<Vec<_>>(), [false, false, true]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Chains of any shape with any bytes: neither a panic nor work without end.
    #[test]
    fn any_chain_with_any_bytes_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 600),
        chains in prop::collection::vec((0usize..3, prop::collection::vec((0u64..0x1200, 0u32..600, any::<bool>()), 1..6)), 1..60),
        ports in prop::collection::vec((1u16..8, 0u32..4), 12),
    ) {
        let mut guest = Guest::new(0);
        guest.handle.listen(1, |_| {});
        // Some of the bytes are headers that name connections.
        testing::put(&guest.memory, 0x10_0000, &bytes);
        for (number, (op, port)) in ports.iter().enumerate() {
            let header = Header {
                src_cid: u64::from(CID), dst_cid: HOST_CID, src_port: 7, dst_port: *port, kind: STREAM, op: *op,
                len: *port, flags: 3, buf_alloc: 1 << 16, fwd_cnt: 0,
            };
            testing::put(&guest.memory, 0x10_0000 + 100 * number as u64, &header.to_bytes());
        }
        for (queue, mut parts) in chains {
            for part in &mut parts {
                part.0 = 0x10_0000 + if part.0 < 0x1000 { part.0 / 100 * 100 } else { 0x1_0000_0000 };
            }
            parts.sort_by_key(|part| part.2);
            [&mut guest.rx, &mut guest.tx, &mut guest.events][queue].submit(&parts);
            for queue in 0..3 {
                for _ in 0..20 {
                    if guest.device.notified(queue) == Progress::Done {
                        break;
                    }
                }
            }
            guest.turn();
            prop_assert!(guest.device.streams.len() <= 64);
        }
        prop_assert!(!guest.interrupt.is_broken());
    }
}
