//! One connection, seen from between its two ends: the guest's and the host's socket.
//!
//! ```text
//!                    the guest accepts                 the host's socket is closed
//!   Opening ------------------------------> Open ------------------------------------> Closing
//!      |                                     |                                            |
//!      |   the guest resets, or time is up   |   both directions are shut, or reset       |  the guest resets, or time is up
//!      v                                     v                                            v
//!     gone                        gone, or Flushing while bytes of the guest          gone
//!                                 wait for the host's socket
//! ```

use std::time::Instant;

use super::credit::{Inbound, Outbound};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};

/// Both ports, which together name a connection to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Ours.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The guest was asked, or will be; until the time given.
    Opening(Instant),
    /// Bytes flow.
    Open,
    /// The host's socket is gone; the guest was told and has until the time given to agree.
    Closing(Instant),
    /// The guest's end is gone; only bytes that it sent before are still to be written.
    Flushing,
}

/// A connection. Pure: what it decides, [`super::muxer::Muxer`] carries out.
#[derive(Debug)]
pub struct Connection {
    /// Its name.
    pub ports: Ports,
    /// Whether the guest opened it.
    pub from_guest: bool,
    /// Whether it has one of the large buffers.
    pub large: bool,
    /// How far it is.
    pub phase: Phase,
    /// What goes to the guest.
    pub outbound: Outbound,
    /// What comes from the guest.
    pub inbound: Inbound,
    /// The host's socket may have bytes, or an end.
    pub readable: bool,
    /// The host's socket is shut both ways, or closed.
    pub hung_up: bool,
    /// The host's socket takes no more; what the guest sends is dropped.
    pub deaf: bool,
    /// Directions that the host has ended, as flags of a shutdown.
    pub host_ended: u32,
    /// Directions that the guest has ended.
    pub guest_ended: u32,
    /// Whether it stands in the muxer's line.
    pub lined_up: bool,
    /// The handshake that is still to be sent.
    pub greet: Option<Op>,
    /// The guest is to be told of [`Connection::host_ended`].
    pub tell_end: bool,
    /// The guest is to be told its credit, due or not.
    pub tell_credit: bool,
    /// The guest was asked for credit and has not given any.
    pub asked: bool,
}

/// What a connection sends next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A packet without bytes.
    Control(Op, u32),
    /// Up to this many bytes of the host's socket.
    Data(u32),
}

impl Connection {
    /// A connection that is to be greeted with `greet`.
    pub fn new(ports: Ports, phase: Phase, greet: Op, alloc: u32, large: bool) -> Self {
        Self {
            ports,
            from_guest: greet == Op::Response,
            large,
            phase,
            outbound: Outbound::default(),
            inbound: Inbound::new(alloc),
            readable: false,
            hung_up: false,
            deaf: false,
            host_ended: 0,
            guest_ended: 0,
            lined_up: false,
            greet: Some(greet),
            tell_end: false,
            tell_credit: false,
            asked: false,
        }
    }

    /// Whether bytes of the host may go to the guest.
    pub fn may_send(&self) -> bool {
        self.phase == Phase::Open && self.host_ended & SHUTDOWN_SEND == 0 && self.guest_ended & SHUTDOWN_RECEIVE == 0
    }

    /// Until when the guest has to answer.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Opening(at) | Phase::Closing(at) => Some(at),
            Phase::Open | Phase::Flushing => None,
        }
    }

    /// What it sends next. `held` keeps requests back. Taking a step that is not data consumes it.
    pub fn step(&mut self, held: bool) -> Option<Step> {
        if self.phase == Phase::Flushing {
            return None;
        }
        if let Some(op) = self.greet {
            if held && op == Op::Request {
                return None;
            }
            self.greet = None;
            return Some(Step::Control(op, 0));
        }
        if matches!(self.phase, Phase::Opening(_)) {
            return None;
        }
        if self.tell_credit || self.inbound.is_due() {
            self.tell_credit = false;
            return Some(Step::Control(Op::CreditUpdate, 0));
        }
        if self.readable && self.may_send() {
            let credit = self.outbound.credit();
            if credit > 0 {
                return Some(Step::Data(credit));
            }
            if !self.asked {
                self.asked = true;
                return Some(Step::Control(Op::CreditRequest, 0));
            }
        }
        if self.tell_end {
            self.tell_end = false;
            return Some(Step::Control(Op::Shutdown, self.host_ended));
        }
        None
    }

    /// Whether [`Connection::step`] has something.
    pub fn has_step(&self, held: bool) -> bool {
        match (self.phase, self.greet) {
            (Phase::Flushing, _) => false,
            (_, Some(op)) => !(held && op == Op::Request),
            (Phase::Opening(_), None) => false,
            (Phase::Open | Phase::Closing(_), None) => {
                let sends = self.readable && self.may_send() && (self.outbound.credit() > 0 || !self.asked);
                self.tell_credit || self.inbound.is_due() || sends || self.tell_end
            }
        }
    }

    /// The header of a packet to the guest.
    pub fn header(&mut self, guest_cid: u64, op: Op, flags: u32, len: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.inbound.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: STREAM,
            op: op.number(),
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// The host ended these directions. `true` if both are now.
    pub fn end(&mut self, directions: u32) -> bool {
        if self.host_ended | directions != self.host_ended {
            self.host_ended |= directions;
            self.tell_end = true;
        }
        self.host_ended == SHUTDOWN_BOTH
    }
}
