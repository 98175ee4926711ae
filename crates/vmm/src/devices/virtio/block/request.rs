//! A request to a disk (5.2.6): header, data, status byte.

use super::backing::{Backing, Failure};
use super::{RANGES, REQUEST_BYTES, SECTOR};
use crate::devices::virtio::buffers;
use crate::devices::virtio::queue::{Chain, Segment};
use crate::memory::Memory;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
/// Flag of a range to zero: the space may be given back.
const UNMAP: u32 = 1;
/// What the driver gets for the disk's serial number; padded to the 20 bytes that it asks for.
const ID: &[u8; 20] = b"firelet\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A request whose shape is sound. What it asks for may still be nonsense.
pub(super) struct Request {
    kind: u32,
    sector: u64,
    /// For the device to read.
    output: Vec<Segment>,
    /// For the device to write.
    input: Vec<Segment>,
    status: Vec<Segment>,
}

impl Request {
    /// `None` if header or status byte are missing or lie nowhere: such a request cannot even be answered.
    pub(super) fn parse(chain: Chain, memory: &Memory) -> Option<Request> {
        let Chain { readable: mut output, writable: mut input, .. } = chain;
        let mut header = [0; HEADER_BYTES];
        let front = buffers::take_front(&mut output, HEADER_BYTES as u64)?;
        buffers::read(memory, &front, &mut header)?;
        let status = buffers::take_back(&mut input, 1)?;
        let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
        Some(Request { kind, sector, output, input, status })
    }

    /// Bytes of data, for fairness.
    pub(super) fn bytes(&self) -> u64 {
        buffers::total(&self.output) + buffers::total(&self.input)
    }

    /// Does what is asked and answers. The number of bytes written to the guest, the status among them; `None` if the
    /// status byte cannot be written.
    pub(super) fn serve(&self, backing: &Backing, memory: &Memory) -> Option<u32> {
        let (status, written) = match self.carry_out(backing, memory) {
            Ok(written) => (S_OK, written),
            Err(Failure::Io) => (S_IOERR, 0),
            Err(Failure::Unsupported) => (S_UNSUPP, 0),
        };
        buffers::write(memory, &self.status, &[status])?;
        // A length promises all bytes before it: with an error in between, nothing is promised.
        Some(if status == S_OK { written.saturating_add(1) } else { 0 })
    }

    fn carry_out(&self, backing: &Backing, memory: &Memory) -> Result<u32, Failure> {
        match self.kind {
            T_IN => {
                let (at, bytes) = self.extent(&self.input, backing)?;
                backing.read(at, self.pieces(&self.input, memory)?)?;
                Ok(bytes as u32)
            }
            T_OUT => {
                let (at, _) = self.extent(&self.output, backing)?;
                backing.write(at, self.pieces(&self.output, memory)?)?;
                Ok(0)
            }
            T_FLUSH => backing.flush().map(|()| 0),
            T_GET_ID => {
                let len = buffers::total(&self.input).min(ID.len() as u64);
                buffers::write(memory, &self.input, &ID[..len as usize]).ok_or(Failure::Io)?;
                Ok(len as u32)
            }
            T_DISCARD | T_WRITE_ZEROES => self.clear(backing, memory).map(|()| 0),
            _ => Err(Failure::Unsupported),
        }
    }

    /// Where on the disk the data belongs, if it is made of whole sectors and lies there entirely.
    fn extent(&self, data: &[Segment], backing: &Backing) -> Result<(u64, u64), Failure> {
        let bytes = buffers::total(data);
        if bytes > REQUEST_BYTES || !bytes.is_multiple_of(SECTOR) {
            return Err(Failure::Io);
        }
        let at = within(self.sector, bytes / SECTOR, backing)?;
        Ok((at, bytes))
    }

    fn pieces(&self, data: &[Segment], memory: &Memory) -> Result<Vec<libc::iovec>, Failure> {
        let mut pieces = Vec::with_capacity(data.len());
        buffers::host(memory, data, &mut pieces).ok_or(Failure::Io)?;
        Ok(pieces)
    }

    /// Discards or zeroes ranges. All are checked before the first is touched.
    fn clear(&self, backing: &Backing, memory: &Memory) -> Result<(), Failure> {
        let bytes = buffers::total(&self.output) as usize;
        if !bytes.is_multiple_of(RANGE_BYTES) || bytes > RANGES as usize * RANGE_BYTES {
            return Err(Failure::Io);
        }
        let mut ranges = vec![0; bytes];
        buffers::read(memory, &self.output, &mut ranges).ok_or(Failure::Io)?;
        let mut checked = Vec::with_capacity(bytes / RANGE_BYTES);
        for range in ranges.chunks_exact(RANGE_BYTES) {
            let (sector, sectors, flags) = (u64_at(range, 0), u64::from(u32_at(range, 8)), u32_at(range, 12));
            let unmap = match (self.kind, flags) {
                (T_DISCARD, 0) | (T_WRITE_ZEROES, UNMAP) => true,
                (T_WRITE_ZEROES, 0) => false,
                _ => return Err(Failure::Unsupported),
            };
            checked.push((within(sector, sectors, backing)?, sectors * SECTOR, unmap));
        }
        for (at, bytes, unmap) in checked {
            backing.zero(at, bytes, unmap)?;
        }
        Ok(())
    }
}

/// The offset in bytes of `sectors` sectors from `sector` on, if they all exist.
fn within(sector: u64, sectors: u64, backing: &Backing) -> Result<u64, Failure> {
    let at = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
    let end = sectors.checked_mul(SECTOR).and_then(|bytes| at.checked_add(bytes)).ok_or(Failure::Io)?;
    if end > backing.bytes() { Err(Failure::Io) } else { Ok(at) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
