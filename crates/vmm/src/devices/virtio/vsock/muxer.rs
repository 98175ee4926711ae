//! The multiplexer: all connections of a guest as one state machine without I/O. What happens at either end goes in;
//! packets for the guest ([`Muxer::next_packet`]) and deeds at the host's sockets ([`Muxer::effect`]) come out.
//!
//! Nothing in it grows with what a guest sends: the connections are counted, each owes at most one packet of a kind, and
//! while [`Muxer::is_full`] the device takes no more packets from the guest.

mod guest;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::connection::{Connection, Phase, Ports, Step};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};

/// What a connection is called between the multiplexer and its device. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

/// How much there may be of everything.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections in all. More are refused.
    pub connections: usize,
    /// Those among them that the guest opened.
    pub from_guest: usize,
    /// Bytes from the guest that a connection may hold: the credit that the guest has.
    pub buffer: u32,
    /// How many connections get that much.
    pub buffers: usize,
    /// What the others get.
    pub small_buffer: u32,
    /// Refusals that wait for room in the guest; with more, the guest is not listened to.
    pub refusals: usize,
    /// How long the guest may take to accept a connection.
    pub accept: Duration,
    /// How long the guest may take to agree to a connection's end.
    pub linger: Duration,
}

impl Default for Limits {
    /// 1,024 connections with up to 46 MiB; a minute to accept, because a guest that shares an emulated processor with nine others takes ten seconds and more.
    fn default() -> Self {
        Self {
            connections: 1024,
            from_guest: 64,
            buffer: 256 << 10,
            buffers: 64,
            small_buffer: 32 << 10,
            refusals: 128,
            accept: Duration::from_secs(60),
            linger: Duration::from_secs(2),
        }
    }
}

/// A packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This header and nothing else.
    Control(Header),
    /// Up to this many bytes from the host's socket. The caller reads them and calls [`Muxer::sent`], [`Muxer::dry`] or
    /// [`Muxer::host_ended`].
    Data(Id, u32),
}

/// What is to be done at the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The guest opened this connection to the announced port: make a pair of sockets and give one away.
    Accept(Id, u32),
    /// The guest sends no more: shut the socket's writing side.
    ShutdownWrite(Id),
    /// The guest takes no more: shut the socket's reading side.
    ShutdownRead(Id),
    /// Close the socket.
    Close(Id),
}

/// What becomes of the bytes of a packet from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// There are none, or nobody wants them.
    Ignore,
    /// They are for this connection's socket: as many as the header says. What the socket takes, now or later, is told
    /// with [`Muxer::delivered`].
    Deliver(Id),
}

/// There are too many connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has too many connections, close some")]
pub struct Full;

/// The first port of ours that a connection to the guest comes from; below are those that could be announced.
const FIRST_PORT: u32 = 1 << 30;

/// All connections of a guest.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    limits: Limits,
    connections: HashMap<Id, Connection>,
    names: HashMap<Ports, Id>,
    announced: HashSet<u32>,
    from_guest: usize,
    large: usize,
    next_id: u64,
    next_port: u32,
    /// Connections with something for the guest, each once.
    line: VecDeque<Id>,
    refusals: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, Id)>,
    effects: VecDeque<Effect>,
    held: bool,
}

impl Muxer {
    /// No connections to the guest with this context id.
    pub fn new(guest_cid: u64, limits: Limits) -> Self {
        Self {
            guest_cid,
            limits,
            connections: HashMap::new(),
            names: HashMap::new(),
            announced: HashSet::new(),
            from_guest: 0,
            large: 0,
            next_id: 0,
            next_port: FIRST_PORT,
            line: VecDeque::new(),
            refusals: VecDeque::new(),
            deadlines: BTreeSet::new(),
            effects: VecDeque::new(),
            held: false,
        }
    }

    /// Forgets all connections; their sockets are to be closed. Announced ports stay.
    pub fn clear(&mut self) {
        let mut ids: Vec<Id> = self.connections.keys().copied().collect();
        ids.sort();
        for id in ids {
            self.remove(id);
        }
        self.refusals.clear();
        self.line.clear();
    }

    /// Keeps back (or no longer) what would open connections: a guest that is about to hear of a transport reset would
    /// drop them.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            let ids: Vec<Id> = self.connections.keys().copied().collect();
            ids.into_iter().for_each(|id| self.line_up(id));
        }
    }

    /// Whether openings are kept back.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// The port that the next connection comes from. A snapshot keeps it: the guest may remember old ones.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on from a snapshot's [`Muxer::next_port`].
    pub fn set_next_port(&mut self, port: u32) {
        self.next_port = port.max(FIRST_PORT);
    }

    /// Lets the guest open connections to a port of the host.
    pub fn listen(&mut self, port: u32) {
        self.announced.insert(port);
    }

    /// Opens a connection to a port of the guest.
    pub fn open(&mut self, guest_port: u32, now: Instant) -> Result<Id, Full> {
        if self.connections.len() >= self.limits.connections {
            return Err(Full);
        }
        // There are many more ports than connections, so that this ends.
        let ports = loop {
            let ports = Ports { host: self.next_port, guest: guest_port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.names.contains_key(&ports) && !self.announced.contains(&ports.host) {
                break ports;
            }
        };
        Ok(self.insert(ports, Phase::Opening(now + self.limits.accept), Op::Request))
    }

    /// The host's socket has bytes or has ended.
    pub fn readable(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readable = true;
            self.line_up(id);
        }
    }

    /// The host's socket is shut both ways or closed; there may still be bytes to read.
    pub fn hung_up(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.hung_up = true;
        match connection.phase {
            // It is seen when the bytes have been read.
            Phase::Opening(_) => {}
            Phase::Open if connection.may_send() => self.readable(id),
            Phase::Open => self.host_ended(id, now),
            Phase::Closing(_) | Phase::Flushing => {}
        }
    }

    /// The host's socket has no more bytes for now.
    pub fn dry(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readable = false;
            self.line_up(id);
        }
    }

    /// Bytes of the host's socket are on their way to the guest: their header. At most as many as [`Next::Data`] allowed;
    /// it may be called several times for one.
    pub fn sent(&mut self, id: Id, bytes: u32) -> Option<Header> {
        let connection = self.connections.get_mut(&id)?;
        connection.outbound.send(bytes);
        let header = connection.header(self.guest_cid, Op::Data, 0, bytes);
        self.line_up(id);
        Some(header)
    }

    /// The host's socket sends no more: its end was read. If it has hung up as well, it takes no more either.
    pub fn host_ended(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.readable = false;
        let directions = if connection.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
        self.end(id, directions, now);
    }

    /// The host's socket takes no more: what it holds and what comes is dropped.
    pub fn host_deaf(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.deaf = true;
        connection.inbound.take(u32::MAX);
        if connection.phase == Phase::Flushing {
            return self.remove(id);
        }
        self.end(id, SHUTDOWN_RECEIVE, now);
        self.all_taken(id);
    }

    /// The host's socket took bytes of the guest.
    pub fn delivered(&mut self, id: Id, bytes: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.inbound.take(bytes);
        self.all_taken(id);
        self.line_up(id);
    }

    /// There is no socket for this connection: it ends at once.
    pub fn abort(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let header = connection.header(self.guest_cid, Op::Reset, 0, 0);
        self.push_refusal(header);
        self.remove(id);
    }

    /// Whether the guest owes us room for refusals: its packets must wait.
    pub fn is_full(&self) -> bool {
        self.refusals.len() >= self.limits.refusals
    }

    /// A packet from the guest, with as many bytes behind its header as `available`.
    pub fn receive(&mut self, header: &Header, available: usize, now: Instant) -> Payload {
        if header.src_cid != self.guest_cid {
            // Nobody to answer.
            return Payload::Ignore;
        }
        let op = Op::from_number(header.op);
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = (header.dst_cid == HOST_CID && header.kind == STREAM).then(|| self.names.get(&ports)).flatten();
        let Some(&id) = known else {
            match op {
                Some(Op::Reset) => {}
                Some(Op::Request) if header.dst_cid == HOST_CID && header.kind == STREAM => {
                    self.requested(header, ports);
                }
                _ => self.refuse(header),
            }
            return Payload::Ignore;
        };
        let Some(op) = op else {
            self.reset(id, header);
            return Payload::Ignore;
        };
        self.addressed(id, op, header, available, now)
    }

    /// The next packet for the guest.
    pub fn next_packet(&mut self) -> Option<Next> {
        if let Some(header) = self.refusals.pop_front() {
            return Some(Next::Control(header));
        }
        while let Some(id) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.lined_up = false;
            match connection.step(self.held) {
                Some(Step::Data(limit)) => return Some(Next::Data(id, limit)),
                Some(Step::Control(op, flags)) => {
                    let header = connection.header(self.guest_cid, op, flags, 0);
                    self.line_up(id);
                    return Some(Next::Control(header));
                }
                None => {}
            }
        }
        None
    }

    /// Whether [`Muxer::next_packet`] has something.
    pub fn has_next(&self) -> bool {
        !self.refusals.is_empty()
            || self.line.iter().any(|id| self.connections.get(id).is_some_and(|c| c.has_step(self.held)))
    }

    /// The next deed at the host's side. To be asked for after each call that changes something.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Muxer::expire`] should be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Ends what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, id));
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let unasked = connection.greet == Some(Op::Request);
            let header = connection.header(self.guest_cid, Op::Reset, 0, 0);
            if !unasked {
                self.push_refusal(header);
            }
            self.remove(id);
        }
    }

    /// Number of connections, those that are ending among them.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

#[cfg(test)]
mod tests;
