//! The multiplexer between two honest ends, in any order of events; and against guests that are not honest.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

const CID: u64 = 3;

fn limits() -> Limits {
    Limits {
        connections: 4,
        from_guest: 2,
        buffer: 100,
        buffers: 2,
        small_buffer: 40,
        refusals: 3,
        ..Limits::default()
    }
}

/// One end of a connection in the model: bytes that were given to it and taken from it.
#[derive(Debug, Default)]
struct End {
    /// Written by this end's user so far; the next byte's value follows from it.
    written: usize,
    /// In this end's sending buffer.
    outgoing: VecDeque<u8>,
    shut: bool,
    /// Arrived, not yet read by the user.
    incoming: VecDeque<u8>,
    read: usize,
    ended: bool,
}

impl End {
    fn write(&mut self, count: usize) {
        if !self.shut {
            self.outgoing.extend((0..count).map(|n| (self.written + n) as u8));
            self.written += count;
        }
    }

    /// The user reads: exactly the bytes that the other user wrote, in order.
    fn read(&mut self, count: usize) -> usize {
        let count = count.min(self.incoming.len());
        for byte in self.incoming.drain(..count) {
            assert_eq!(byte, self.read as u8);
            self.read += 1;
        }
        count
    }
}

/// What the guest's kernel keeps of a connection.
#[derive(Debug)]
struct Peer {
    end: End,
    open: bool,
    told_end: bool,
    alloc: u32,
    taken: u32,
    told: u32,
    received: u32,
    sent: u32,
    peer_alloc: u32,
    peer_taken: u32,
}

const ROOM: usize = 30;

/// A guest, the multiplexer, and sockets of the host with room for [`ROOM`] bytes.
struct World {
    now: Instant,
    muxer: Muxer,
    hosts: Vec<(Id, End, VecDeque<u8>)>,
    peers: HashMap<Ports, Peer>,
    order: Vec<Ports>,
    from_guest: VecDeque<(Header, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
        let mut muxer = Muxer::new(CID, limits());
        muxer.listen(9);
        let (hosts, peers) = (Vec::new(), HashMap::new());
        Self { now: Instant::now(), muxer, hosts, peers, order: Vec::new(), from_guest: VecDeque::new() }
    }

    fn host_opens(&mut self) {
        if self.muxer.next_port() < FIRST_PORT + 2 {
            let id = self.muxer.open(70, self.now).unwrap();
            self.hosts.push((id, End::default(), VecDeque::new()));
        }
    }

    fn guest_opens(&mut self, port: u32) {
        let ports = Ports { host: 9, guest: port };
        if self.peers.keys().filter(|ports| ports.host == 9).count() < 2 && !self.peers.contains_key(&ports) {
            self.add_peer(ports, false);
            self.packet(ports, Op::Request, 0, Vec::new());
        }
    }

    fn add_peer(&mut self, ports: Ports, open: bool) {
        let peer = Peer {
            end: End::default(),
            open,
            told_end: false,
            alloc: 50,
            taken: 0,
            told: 0,
            received: 0,
            sent: 0,
            peer_alloc: 0,
            peer_taken: 0,
        };
        self.peers.insert(ports, peer);
        self.order.push(ports);
    }

    fn packet(&mut self, ports: Ports, op: Op, flags: u32, bytes: Vec<u8>) {
        let peer = self.peers.get_mut(&ports).unwrap();
        peer.told = peer.taken;
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            len: bytes.len() as u32,
            kind: STREAM,
            op: op.number(),
            flags,
            buf_alloc: peer.alloc,
            fwd_cnt: peer.taken,
        };
        self.from_guest.push_back((header, bytes));
    }

    /// The guest has a packet.
    fn guest_receives(&mut self, header: Header, bytes: Vec<u8>) {
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
        let ports = Ports { host: header.src_port, guest: header.dst_port };
        let op = Op::from_number(header.op).unwrap();
        if op == Op::Request {
            assert_eq!(ports.guest, 70);
            self.add_peer(ports, true);
        }
        let peer = self.peers.get_mut(&ports).unwrap();
        (peer.peer_alloc, peer.peer_taken) = (header.buf_alloc, header.fwd_cnt);
        match op {
            Op::Request => self.packet(ports, Op::Response, 0, Vec::new()),
            Op::Response => peer.open = true,
            Op::Data => {
                assert!(!peer.end.ended && !bytes.is_empty());
                peer.received += bytes.len() as u32;
                assert!(peer.received - peer.taken <= peer.alloc, "more than the guest had room for");
                peer.end.incoming.extend(bytes);
            }
            Op::Shutdown => {
                assert_eq!(header.flags, SHUTDOWN_SEND);
                peer.end.ended = true;
            }
            Op::CreditUpdate => {}
            Op::CreditRequest => self.packet(ports, Op::CreditUpdate, 0, Vec::new()),
            Op::Reset => panic!("nobody broke a rule"),
        }
    }

    /// The guest's kernel sends what it may.
    fn guest_sends(&mut self, ports: Ports, most: usize) {
        let peer = self.peers.get_mut(&ports).unwrap();
        if !peer.open {
            return;
        }
        let credit = peer.peer_alloc - (peer.sent - peer.peer_taken);
        let count = most.min(credit as usize).min(peer.end.outgoing.len());
        if count > 0 {
            peer.sent += count as u32;
            let bytes = peer.end.outgoing.drain(..count).collect();
            self.packet(ports, Op::Data, 0, bytes);
        } else if peer.end.outgoing.is_empty() && peer.end.shut && !peer.told_end {
            peer.told_end = true;
            self.packet(ports, Op::Shutdown, SHUTDOWN_SEND, Vec::new());
        }
    }

    fn guest_reads(&mut self, ports: Ports, most: usize) {
        let peer = self.peers.get_mut(&ports).unwrap();
        let count = peer.end.read(most);
        peer.taken += count as u32;
        // As Linux does: only when it has kept silent about much.
        if peer.alloc - (peer.taken - peer.told) < 40 {
            self.packet(ports, Op::CreditUpdate, 0, Vec::new());
        }
    }

    /// The device takes a packet from the guest's transmit queue.
    fn device_takes(&mut self) {
        if self.muxer.is_full() {
            return;
        }
        let Some((header, bytes)) = self.from_guest.pop_front() else { return };
        let outcome = self.muxer.receive(&header, bytes.len(), self.now);
        self.effects();
        if let Payload::Deliver(id) = outcome {
            let host = self.hosts.iter_mut().find(|host| host.0 == id).unwrap();
            host.2.extend(bytes);
            assert!(host.2.len() <= 100, "the device keeps more than the guest's credit");
            self.device_flushes(id);
        }
    }

    fn device_flushes(&mut self, id: Id) {
        let (_, host, waiting) = self.hosts.iter_mut().find(|host| host.0 == id).unwrap();
        let count = (ROOM - host.incoming.len()).min(waiting.len());
        host.incoming.extend(waiting.drain(..count));
        self.muxer.delivered(id, count as u32);
        self.effects();
    }

    /// The device fills a receive buffer of the guest.
    fn device_gives(&mut self, buffer: usize) -> bool {
        let Some(next) = self.muxer.next_packet() else { return false };
        match next {
            Next::Control(header) => self.guest_receives(header, Vec::new()),
            Next::Data(id, limit) => {
                let (_, host, _) = self.hosts.iter_mut().find(|host| host.0 == id).unwrap();
                let count = buffer.min(limit as usize).min(host.outgoing.len());
                if count > 0 {
                    let bytes: Vec<u8> = host.outgoing.drain(..count).collect();
                    let header = self.muxer.sent(id, count as u32).unwrap();
                    self.guest_receives(header, bytes);
                } else if host.shut {
                    self.muxer.host_ended(id, self.now);
                } else {
                    self.muxer.dry(id);
                }
            }
        }
        self.effects();
        true
    }

    fn effects(&mut self) {
        while let Some(effect) = self.muxer.effect() {
            match effect {
                Effect::Accept(id, port) => {
                    assert_eq!(port, 9);
                    self.hosts.push((id, End::default(), VecDeque::new()));
                }
                Effect::ShutdownWrite(id) => {
                    let host = self.hosts.iter_mut().find(|host| host.0 == id).unwrap();
                    assert!(host.2.is_empty(), "an end before all bytes");
                    host.1.ended = true;
                }
                other => panic!("nobody asked for {other:?}"),
            }
        }
    }

    fn step(&mut self, kind: u8, which: usize, count: usize) {
        let host = (!self.hosts.is_empty()).then(|| which % self.hosts.len());
        let ports = (!self.order.is_empty()).then(|| self.order[which % self.order.len()]);
        match (kind % 12, host, ports) {
            (0, _, _) => self.host_opens(),
            (1, _, _) => self.guest_opens(which as u32),
            (2, Some(at), _) => {
                self.hosts[at].1.write(count);
                self.muxer.readable(self.hosts[at].0);
            }
            (3, Some(at), _) => {
                self.hosts[at].1.read(count);
                self.device_flushes(self.hosts[at].0);
            }
            (4, _, Some(ports)) => self.peers.get_mut(&ports).unwrap().end.write(count),
            (5, _, Some(ports)) => self.guest_reads(ports, count),
            (6 | 7, _, Some(ports)) => self.guest_sends(ports, count),
            (8 | 9, _, _) => self.device_takes(),
            (10, _, _) => drop(self.device_gives(count + 1)),
            (11, Some(at), _) if count.is_multiple_of(8) => {
                self.hosts[at].1.shut = true;
                self.muxer.readable(self.hosts[at].0);
            }
            (11, _, Some(ports)) if count % 8 == 1 => self.peers.get_mut(&ports).unwrap().end.shut = true,
            _ => {}
        }
    }

    /// Lets everything that is under way arrive. It must within a bounded number of rounds.
    fn settle(&mut self) {
        for _ in 0..2000 {
            let mut idle = self.from_guest.is_empty();
            self.device_takes();
            idle &= !self.device_gives(1000);
            for ports in self.order.clone() {
                self.guest_reads(ports, 1000);
                self.guest_sends(ports, 1000);
            }
            for at in 0..self.hosts.len() {
                idle &= self.hosts[at].1.read(1000) == 0;
                self.device_flushes(self.hosts[at].0);
            }
            if idle && self.from_guest.is_empty() && !self.muxer.has_next() {
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        steps in prop::collection::vec((any::<u8>(), 0usize..6, 0usize..64), 0..400),
    ) {
        let mut world = World::new();
        for (kind, which, count) in steps {
            world.step(kind, which, count);
        }
        world.settle();
        prop_assert_eq!(world.hosts.len(), world.order.len());
        // The two ends of a connection have one name each; they are found by the muxer's books.
        for (id, host, _) in &world.hosts {
            let peer = &world.peers[&world.muxer.connections[id].ports].end;
            prop_assert_eq!((host.written, peer.written), (peer.read, host.read));
            prop_assert_eq!((host.shut, peer.shut), (peer.ended, host.ended));
        }
    }

    #[test]
    fn a_guest_that_sends_anything_finds_bounds(
        packets in prop::collection::vec((0u64..4, 1u64..4, 0u32..3, 0u32..4, 0u32..130, 0u16..3, 0u16..9, 0u32..8, any::<u32>()), 0..200),
        takes in prop::collection::vec(any::<u8>(), 200),
    ) {
        let now = Instant::now();
        let mut muxer = Muxer::new(CID, limits());
        muxer.listen(9);
        let ours = [muxer.open(1, now).unwrap(), muxer.open(2, now).unwrap()];
        for ((src, dst, from, to, len, kind, op, flags, count), take) in packets.into_iter().zip(takes) {
            let header = Header {
                src_cid: src, dst_cid: dst, src_port: from, dst_port: [9, FIRST_PORT, FIRST_PORT + 1, 5][to as usize],
                len, kind, op, flags, buf_alloc: count, fwd_cnt: if take & 64 == 0 { 0 } else { count },
            };
            if !muxer.is_full() {
                let outcome = muxer.receive(&header, 100, now);
                if let Payload::Deliver(id) = outcome {
                    prop_assert!(len <= 100);
                    if take & 32 != 0 {
                        muxer.delivered(id, len);
                    }
                }
            }
            while muxer.effect().is_some() {}
            if take & 1 == 0 && let Some(Next::Data(id, limit)) = muxer.next_packet() {
                match take & 6 {
                    0 => drop(muxer.sent(id, limit.min(10))),
                    2 => muxer.host_ended(id, now),
                    4 => muxer.hung_up(id, now),
                    _ => muxer.dry(id),
                }
            }
            if take & 24 == 8 {
                muxer.readable(ours[usize::from(take >> 7)]);
            }
            if take & 24 == 16 {
                muxer.host_deaf(ours[usize::from(take >> 7)], now);
            }
            prop_assert!(muxer.len() <= 4 && muxer.refusals.len() <= 3 + 4 && muxer.line.len() <= 16);
            prop_assert!(muxer.names.len() <= muxer.len() && muxer.deadlines.len() <= muxer.len());
            prop_assert_eq!(muxer.from_guest, muxer.connections.values().filter(|c| c.from_guest).count());
            prop_assert_eq!(muxer.large, muxer.connections.values().filter(|c| c.large).count());
        }
        // Whatever it did, nothing of it stays but what is open.
        muxer.expire(now + Duration::from_secs(60));
        prop_assert!(muxer.connections.values().all(|c| matches!(c.phase, Phase::Open | Phase::Flushing)));
        muxer.clear();
        prop_assert!(muxer.is_empty() && muxer.names.is_empty() && muxer.deadlines.is_empty() && muxer.from_guest == 0);
    }
}

/// A connection that the host opened and the guest accepted, and what the guest sends on it.
struct One {
    muxer: Muxer,
    id: Id,
    base: Header,
    now: Instant,
}

fn one() -> One {
    let now = Instant::now();
    let mut muxer = Muxer::new(CID, limits());
    let id = muxer.open(7, now).unwrap();
    let Some(Next::Control(request)) = muxer.next_packet() else { panic!("no request") };
    assert_eq!((request.op, request.dst_port, request.buf_alloc), (Op::Request.number(), 7, 100));
    let base = Header { buf_alloc: 50, ..request.refusal() };
    let mut one = One { muxer, id, base, now };
    one.send(Op::Response, 0, 0);
    assert_eq!(one.muxer.next_packet(), Some(Next::Data(id, 50)));
    one.muxer.dry(id);
    one
}

impl One {
    fn send(&mut self, op: Op, len: u32, flags: u32) -> Payload {
        let header = Header { op: op.number(), len, flags, ..self.base };
        self.muxer.receive(&header, len as usize, self.now)
    }

    fn expect(&mut self, op: Op, flags: u32) {
        let Some(Next::Control(header)) = self.muxer.next_packet() else { panic!("expected {op:?}") };
        assert_eq!((header.op, header.flags), (op.number(), flags));
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.muxer.effect()).collect()
    }
}

#[test]
fn a_guest_that_breaks_a_rule_is_reset() {
    type Break = fn(&mut One);
    let breaks: [Break; 8] = [
        // More than its credit, at once and bit by bit.
        |one| assert_eq!(one.send(Op::Data, 101, 0), Payload::Ignore),
        |one| {
            one.send(Op::Data, 60, 0);
            one.send(Op::Data, 41, 0);
        },
        // Bytes after it said that there are no more.
        |one| {
            one.send(Op::Shutdown, 0, SHUTDOWN_SEND);
            one.send(Op::Data, 1, 0);
        },
        // It took what was never sent.
        |one| {
            one.base.fwd_cnt = 1;
            one.send(Op::CreditUpdate, 0, 0);
        },
        |one| assert_eq!(one.send(Op::Request, 0, 0), Payload::Ignore),
        |one| assert_eq!(one.send(Op::Response, 0, 0), Payload::Ignore),
        // An operation that does not exist.
        |one| {
            let header = Header { op: 77, ..one.base };
            one.muxer.receive(&header, 0, one.now);
        },
        // A packet that is shorter than it says.
        |one| {
            let header = Header { op: Op::Data.number(), len: 10, ..one.base };
            one.muxer.receive(&header, 9, one.now);
        },
    ];
    for (number, break_rule) in breaks.into_iter().enumerate() {
        let mut one = one();
        break_rule(&mut one);
        assert!(one.muxer.is_empty(), "rule {number}");
        one.expect(Op::Reset, 0);
        assert_eq!(one.effects().last(), Some(&Effect::Close(one.id)));
    }
}

#[test]
fn what_nobody_knows_is_refused_and_a_reset_is_never_answered() {
    let mut one = one();
    let stranger = Header { src_port: 99, ..one.base };
    for op in [1, 2, 4, 5, 6, 7, 0, 300] {
        one.muxer.receive(&Header { op, ..stranger }, 0, one.now);
        one.expect(Op::Reset, 0);
    }
    for header in [Header { dst_cid: 9, ..one.base }, Header { kind: 2, ..one.base }] {
        one.muxer.receive(&Header { op: Op::Data.number(), ..header }, 0, one.now);
        let Some(Next::Control(answer)) = one.muxer.next_packet() else { panic!("no refusal") };
        assert_eq!((answer.src_cid, answer.dst_cid, answer.kind), (header.dst_cid, CID, header.kind));
    }
    one.muxer.receive(&Header { op: Op::Reset.number(), ..stranger }, 0, one.now);
    one.muxer.receive(&Header { src_cid: 4, op: Op::Data.number(), ..one.base }, 0, one.now);
    assert_eq!(one.muxer.next_packet(), None);
    assert_eq!(one.muxer.len(), 1);
    // Without room for refusals the guest is not listened to.
    for _ in 0..3 {
        assert!(!one.muxer.is_full());
        one.muxer.receive(&Header { op: Op::Data.number(), ..stranger }, 0, one.now);
    }
    assert!(one.muxer.is_full());
}

#[test]
fn the_guests_close_waits_until_the_host_has_everything() {
    let mut one = one();
    assert_eq!(one.send(Op::Data, 60, 0), Payload::Deliver(one.id));
    one.send(Op::Shutdown, 0, SHUTDOWN_BOTH);
    assert_eq!(one.effects(), [Effect::ShutdownRead(one.id)]);
    one.muxer.delivered(one.id, 59);
    assert_eq!((one.muxer.len(), one.effects()), (1, vec![]));
    one.muxer.delivered(one.id, 1);
    assert_eq!(one.effects(), [Effect::Close(one.id)]);
    one.expect(Op::Reset, 0);
    assert!(one.muxer.is_empty());
}

#[test]
fn what_the_guest_sent_before_a_reset_still_arrives() {
    let mut one = one();
    one.send(Op::Data, 60, 0);
    one.send(Op::Reset, 0, 0);
    // For the guest it is gone, for the host it is not.
    one.send(Op::Data, 1, 0);
    one.expect(Op::Reset, 0);
    assert_eq!(one.effects(), [Effect::ShutdownRead(one.id)]);
    one.muxer.delivered(one.id, 60);
    assert_eq!(one.effects(), [Effect::Close(one.id)]);
    assert!(one.muxer.is_empty());
}

#[test]
fn a_closed_socket_is_told_with_both_flags_and_forgotten_after_a_while() {
    let mut one = one();
    one.muxer.hung_up(one.id, one.now);
    // What it wrote before it was closed comes first.
    assert_eq!(one.muxer.next_packet(), Some(Next::Data(one.id, 50)));
    assert_eq!(one.muxer.sent(one.id, 20).unwrap().len, 20);
    assert_eq!(one.muxer.next_packet(), Some(Next::Data(one.id, 30)));
    one.muxer.host_ended(one.id, one.now);
    one.expect(Op::Shutdown, SHUTDOWN_BOTH);
    assert_eq!(one.effects(), [Effect::Close(one.id)]);
    // The guest may go on for a while; nobody listens, and its credit does not run out.
    for _ in 0..10 {
        assert_eq!(one.send(Op::Data, 60, 0), Payload::Ignore);
    }
    assert_eq!(one.muxer.deadline(), Some(one.now + limits().linger));
    one.muxer.expire(one.now + limits().linger);
    one.expect(Op::Reset, 0);
    assert!(one.muxer.is_empty());
}

#[test]
fn a_guest_without_credit_is_asked_once() {
    let mut one = one();
    one.muxer.readable(one.id);
    assert_eq!(one.muxer.next_packet(), Some(Next::Data(one.id, 50)));
    one.muxer.sent(one.id, 50);
    one.expect(Op::CreditRequest, 0);
    assert_eq!(one.muxer.next_packet(), None);
    one.send(Op::CreditUpdate, 0, 0);
    assert_eq!(one.muxer.next_packet(), None);
    one.base.fwd_cnt = 10;
    one.send(Op::CreditUpdate, 0, 0);
    assert_eq!(one.muxer.next_packet(), Some(Next::Data(one.id, 10)));
}

#[test]
fn nobody_answers_and_too_many_ask() {
    let now = Instant::now();
    let mut muxer = Muxer::new(CID, limits());
    muxer.hold(true);
    for _ in 0..4 {
        muxer.open(1, now).unwrap();
    }
    assert_eq!(muxer.open(1, now), Err(Full));
    assert_eq!(muxer.next_packet(), None);
    muxer.hold(false);
    let ports: Vec<u32> = std::iter::from_fn(|| muxer.next_packet())
        .map(|next| match next {
            Next::Control(header) if header.op == Op::Request.number() => header.src_port,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ports.len(), 4);
    muxer.expire(now + limits().accept - Duration::from_nanos(1));
    assert_eq!(muxer.len(), 4);
    muxer.expire(now + limits().accept);
    assert!(muxer.is_empty());
    // The guest may have taken them for open.
    assert_eq!(std::iter::from_fn(|| muxer.next_packet()).count(), 4);
}
