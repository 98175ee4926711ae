//! What the guest's packets do to the connections, and how connections come and go.

use std::time::Instant;

use super::{Effect, Id, Muxer, Payload};
use crate::devices::virtio::vsock::connection::{Connection, Phase, Ports};
use crate::devices::virtio::vsock::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

impl Muxer {
    /// The guest asks for a connection.
    pub(super) fn requested(&mut self, header: &Header, ports: Ports) {
        let room = self.connections.len() < self.limits.connections && self.from_guest < self.limits.from_guest;
        if !room || !self.announced.contains(&ports.host) {
            return self.refuse(header);
        }
        let id = self.insert(ports, Phase::Open, Op::Response);
        if let Some(connection) = self.connections.get_mut(&id) {
            // Nothing was sent yet, so that only a count of zero is true.
            if connection.outbound.heed(header.buf_alloc, header.fwd_cnt).is_err() {
                return self.reset(id, header);
            }
        }
        self.effects.push_back(Effect::Accept(id, ports.host));
    }

    /// A packet for a connection that exists.
    pub(super) fn addressed(&mut self, id: Id, op: Op, header: &Header, available: usize, now: Instant) -> Payload {
        let Some(connection) = self.connections.get_mut(&id) else { return Payload::Ignore };
        if op == Op::Reset {
            self.reset_by_guest(id);
            return Payload::Ignore;
        }
        let before = connection.outbound.credit();
        if connection.outbound.heed(header.buf_alloc, header.fwd_cnt).is_err() {
            self.reset(id, header);
            return Payload::Ignore;
        }
        if connection.outbound.credit() > before {
            connection.asked = false;
        }
        match (connection.phase, op) {
            (Phase::Opening(at), Op::Response) if connection.greet.is_none() => {
                connection.phase = Phase::Open;
                // Look at once: what the host has written before is most often there already.
                connection.readable = true;
                self.deadlines.remove(&(at, id));
            }
            (Phase::Opening(_), _) | (_, Op::Request | Op::Response) => {
                self.reset(id, header);
                return Payload::Ignore;
            }
            (_, Op::Data) => return self.data(id, header, available),
            (_, Op::Shutdown) => self.ended_by_guest(id, header, now),
            (_, Op::CreditUpdate) => {}
            (_, Op::CreditRequest) => connection.tell_credit = true,
            (_, Op::Reset) => {}
        }
        self.line_up(id);
        Payload::Ignore
    }

    fn data(&mut self, id: Id, header: &Header, available: usize) -> Payload {
        let Some(connection) = self.connections.get_mut(&id) else { return Payload::Ignore };
        let complete = usize::try_from(header.len).is_ok_and(|len| len <= available);
        let allowed = connection.guest_ended & SHUTDOWN_SEND == 0;
        if !complete || !allowed || connection.inbound.receive(header.len).is_err() {
            self.reset(id, header);
            return Payload::Ignore;
        }
        let wanted = !connection.deaf && header.len > 0;
        if !wanted {
            connection.inbound.take(header.len);
        }
        self.line_up(id);
        if wanted { Payload::Deliver(id) } else { Payload::Ignore }
    }

    fn ended_by_guest(&mut self, id: Id, header: &Header, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let newly = header.flags & SHUTDOWN_BOTH & !connection.guest_ended;
        connection.guest_ended |= newly;
        if newly & SHUTDOWN_RECEIVE != 0 {
            connection.readable = false;
            self.effects.push_back(Effect::ShutdownRead(id));
            // A socket that has hung up is not heard of again; its bytes, if any, are not wanted now.
            if connection.hung_up {
                self.host_ended(id, now);
            }
        }
        self.all_taken(id);
    }

    /// Acts on the guest's end of sending once the host's socket has taken all bytes before it.
    pub(super) fn all_taken(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.inbound.held() > 0 {
            return;
        }
        if connection.phase == Phase::Flushing {
            return self.remove(id);
        }
        if connection.guest_ended == SHUTDOWN_BOTH {
            let header = connection.header(self.guest_cid, Op::Reset, 0, 0);
            self.push_refusal(header);
            self.remove(id);
        } else if connection.guest_ended & SHUTDOWN_SEND != 0 && connection.phase == Phase::Open && !connection.deaf {
            self.effects.push_back(Effect::ShutdownWrite(id));
        }
    }

    fn reset_by_guest(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.phase != Phase::Open || connection.inbound.held() == 0 {
            return self.remove(id);
        }
        // The guest is done with it, and what it sent before is still the host's.
        connection.phase = Phase::Flushing;
        connection.readable = false;
        let ports = connection.ports;
        self.names.remove(&ports);
        self.effects.push_back(Effect::ShutdownRead(id));
    }

    /// The guest broke the rules on a connection.
    pub(super) fn reset(&mut self, id: Id, header: &Header) {
        self.refuse(header);
        self.remove(id);
    }

    /// Answers a packet with a reset.
    pub(super) fn refuse(&mut self, header: &Header) {
        self.push_refusal(header.refusal());
    }

    /// The device stops listening at the limit; what else comes on top are connections that end, which are counted.
    pub(super) fn push_refusal(&mut self, header: Header) {
        if self.refusals.len() < self.limits.refusals + self.limits.connections {
            self.refusals.push_back(header);
        }
    }

    /// The host ended directions; with both, the socket can go.
    pub(super) fn end(&mut self, id: Id, directions: u32, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let both = connection.end(directions);
        if both && connection.phase == Phase::Open {
            let until = now + self.limits.linger;
            connection.phase = Phase::Closing(until);
            connection.deaf = true;
            connection.inbound.take(u32::MAX);
            self.deadlines.insert((until, id));
            self.effects.push_back(Effect::Close(id));
        }
        self.line_up(id);
    }

    /// A new connection, in line with its greeting.
    pub(super) fn insert(&mut self, ports: Ports, phase: Phase, greet: Op) -> Id {
        let id = Id(self.next_id);
        self.next_id += 1;
        let large = self.large < self.limits.buffers;
        let alloc = if large { self.limits.buffer } else { self.limits.small_buffer };
        let connection = Connection::new(ports, phase, greet, alloc, large);
        self.large += usize::from(large);
        self.from_guest += usize::from(connection.from_guest);
        if let Some(at) = connection.deadline() {
            self.deadlines.insert((at, id));
        }
        self.names.insert(ports, id);
        self.connections.insert(id, connection);
        self.line_up(id);
        id
    }

    /// Forgets a connection and has its socket closed.
    pub(super) fn remove(&mut self, id: Id) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(at) = connection.deadline() {
            self.deadlines.remove(&(at, id));
        }
        if self.names.get(&connection.ports) == Some(&id) {
            self.names.remove(&connection.ports);
        }
        self.large -= usize::from(connection.large);
        self.from_guest -= usize::from(connection.from_guest);
        self.effects.push_back(Effect::Close(id));
    }

    /// Puts a connection in line if it has something for the guest.
    pub(super) fn line_up(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.lined_up && connection.has_step(self.held) {
            connection.lined_up = true;
            self.line.push_back(id);
        }
    }
}
