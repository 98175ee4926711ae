//! Packets: the header that every one begins with (virtio 1.2, section 5.10.6), as plain bytes in little endian.
//!
//! The crate `virtio-vsock` is not used: it takes a packet in one piece of memory only (Linux from 6.7 on sends several),
//! and reads a header back from guest memory after it has written it there.

/// Bytes of a header.
pub const HEADER_SIZE: usize = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// The one type of socket that there is: a stream of bytes.
pub const STREAM: u16 = 1;
/// [`Op::Shutdown`]: the sender takes no more bytes.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// [`Op::Shutdown`]: the sender sends no more bytes.
pub const SHUTDOWN_SEND: u32 = 2;
/// [`Op::Shutdown`]: neither.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Opens a connection.
    Request,
    /// Accepts it.
    Response,
    /// There is no such connection, or no longer.
    Reset,
    /// An end sends or takes no more; the flags tell which.
    Shutdown,
    /// Bytes.
    Data,
    /// Tells the sender's credit.
    CreditUpdate,
    /// Asks for the receiver's credit.
    CreditRequest,
}

impl Op {
    /// The operation with this number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// A packet's header. Any bytes make one: its fields are believed only where they are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes that follow the header.
    pub len: u32,
    /// Type of socket, [`STREAM`].
    pub kind: u16,
    /// Number of the operation, see [`Op`].
    pub op: u16,
    /// Flags of a shutdown.
    pub flags: u32,
    /// Bytes that the sender keeps for what it receives on this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender's user has taken so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut at = 0;
        Self {
            src_cid: u64::from_le_bytes(take(bytes, &mut at)),
            dst_cid: u64::from_le_bytes(take(bytes, &mut at)),
            src_port: u32::from_le_bytes(take(bytes, &mut at)),
            dst_port: u32::from_le_bytes(take(bytes, &mut at)),
            len: u32::from_le_bytes(take(bytes, &mut at)),
            kind: u16::from_le_bytes(take(bytes, &mut at)),
            op: u16::from_le_bytes(take(bytes, &mut at)),
            flags: u32::from_le_bytes(take(bytes, &mut at)),
            buf_alloc: u32::from_le_bytes(take(bytes, &mut at)),
            fwd_cnt: u32::from_le_bytes(take(bytes, &mut at)),
        }
    }

    /// Writes it.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut at = 0;
        put(&mut bytes, &mut at, &self.src_cid.to_le_bytes());
        put(&mut bytes, &mut at, &self.dst_cid.to_le_bytes());
        put(&mut bytes, &mut at, &self.src_port.to_le_bytes());
        put(&mut bytes, &mut at, &self.dst_port.to_le_bytes());
        put(&mut bytes, &mut at, &self.len.to_le_bytes());
        put(&mut bytes, &mut at, &self.kind.to_le_bytes());
        put(&mut bytes, &mut at, &self.op.to_le_bytes());
        put(&mut bytes, &mut at, &self.flags.to_le_bytes());
        put(&mut bytes, &mut at, &self.buf_alloc.to_le_bytes());
        put(&mut bytes, &mut at, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet: from where it was sent to, of the type that it had.
    pub fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Self::default()
        }
    }
}

fn take<const N: usize>(bytes: &[u8; HEADER_SIZE], at: &mut usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[*at..*at + N]);
    *at += N;
    field
}

fn put(bytes: &mut [u8; HEADER_SIZE], at: &mut usize, field: &[u8]) {
    bytes[*at..*at + field.len()].copy_from_slice(field);
    *at += field.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_as_the_specification_says() {
        let header = Header {
            src_cid: 2,
            dst_cid: 3,
            src_port: 0x0102_0304,
            dst_port: 5,
            len: 6,
            kind: STREAM,
            op: Op::Data.number(),
            flags: 7,
            buf_alloc: 8,
            fwd_cnt: 9,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[40], 9);
        assert_eq!(Header::from_bytes(&bytes), header);
        // The numbers are those of virtio_vsock.h.
        for (number, op) in [
            (1, Op::Request),
            (2, Op::Response),
            (3, Op::Reset),
            (4, Op::Shutdown),
            (5, Op::Data),
            (6, Op::CreditUpdate),
        ] {
            assert_eq!((Op::from_number(number), op.number()), (Some(op), number));
        }
        assert_eq!((Op::from_number(0), Op::from_number(8)), (None, None));
    }
}
