//! The block device (5.2): a file as a disk.
//!
//! Requests are served one after the other with `preadv` and `pwritev` straight into and out of the guest's memory; the
//! driver is told once for all that were waiting (docs/adr/009-block-io.md). Whatever the host refuses, a full disk as
//! much as a bad sector, is an error of that one request.

mod backing;
mod request;

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use self::backing::Backing;
use self::request::Request;
use super::queue::{QueueError, Virtqueue};
use super::{
    ActivateError, Activation, EventSet, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt, Progress, QueueState,
    StateError, VirtioDevice, Watched,
};
use crate::memory::Memory;

/// Bytes in a sector, whatever the driver thinks of blocks.
pub const SECTOR: u64 = 512;

/// Device type of a block device.
const KIND: u32 = 2;
const QUEUE_SIZES: [u16; 1] = [256];
/// Most segments of a request: the queue's size without header and status.
const SEGMENTS: u32 = 254;
/// Most bytes of a segment.
const SEGMENT_BYTES: u32 = 256 << 10;
/// Most bytes of a request. More than [`SEGMENTS`] times [`SEGMENT_BYTES`], so that no honest driver reaches it.
const REQUEST_BYTES: u64 = 64 << 20;
/// Bytes after which a turn is over.
const TURN_BYTES: u64 = 16 << 20;
/// Most ranges of one request to discard or to zero.
const RANGES: u32 = 64;
/// What a range to discard is best aligned to, in sectors: a page.
const DISCARD_ALIGNMENT: u32 = 8;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// A disk.
pub struct Block {
    backing: Backing,
    /// The capacity that the driver of a snapshot knows, until it is told another.
    known_capacity: Option<u64>,
    active: Option<Active>,
}

struct Active {
    memory: Memory,
    queue: Virtqueue,
    interrupt: Interrupt,
}

/// What a snapshot holds of a disk. Its contents are the file's own affair.
#[derive(Serialize, Deserialize)]
struct State {
    read_only: bool,
    sectors: u64,
}

impl Block {
    /// A disk of the length of `file`, which must be a multiple of [`SECTOR`]: a regular file or a block device, opened
    /// for what the guest may do.
    pub fn new(file: File, read_only: bool) -> io::Result<Block> {
        Ok(Block { backing: Backing::new(file, read_only)?, known_capacity: None, active: None })
    }

    /// Puts another file in the place of the one there is and tells the driver about the new capacity. The old file is
    /// kept if there is an error.
    pub fn exchange(&mut self, file: File) -> io::Result<()> {
        self.backing = Backing::new(file, self.backing.read_only())?;
        if let Some(active) = &self.active {
            active.interrupt.config();
        }
        Ok(())
    }

    /// Capacity in sectors.
    pub fn sectors(&self) -> u64 {
        self.backing.bytes() / SECTOR
    }

    fn config(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, value: u32| space[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let sectors = self.sectors();
        put(0, sectors as u32);
        put(4, (sectors >> 32) as u32);
        put(8, SEGMENT_BYTES);
        put(12, SEGMENTS);
        if !self.backing.read_only() {
            put(36, u32::MAX);
            put(40, RANGES);
            put(44, DISCARD_ALIGNMENT);
            put(48, u32::MAX);
            put(52, RANGES);
            // A range that is zeroed may be given back to the host.
            put(56, 1);
        }
        space
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        let common = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_SIZE_MAX | F_SEG_MAX;
        common | if self.backing.read_only() { F_RO } else { F_FLUSH | F_DISCARD | F_WRITE_ZEROES }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_space(&self.config(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError> {
        let [queue] = super::queues(parts.queues)?;
        if self.known_capacity.take().is_some_and(|known| known != self.sectors()) {
            parts.interrupt.config();
        }
        self.active = Some(Active { memory: parts.memory, queue: Virtqueue::new(queue), interrupt: parts.interrupt });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn notified(&mut self, _queue: usize) -> Progress {
        let Some(active) = &mut self.active else { return Progress::Done };
        active.serve(&self.backing).unwrap_or_else(|error| active.interrupt.give_up(KIND, &error))
    }

    fn watched(&self) -> Vec<Watched> {
        Vec::new()
    }

    fn ready(&mut self, _token: u32, _events: EventSet) -> bool {
        false
    }

    fn queues(&self) -> Vec<QueueState> {
        self.active.iter().map(|active| active.queue.state()).collect()
    }

    fn save(&self) -> Vec<u8> {
        // What the driver was not told yet it must still be told after a restore.
        let sectors = self.known_capacity.unwrap_or(self.sectors());
        super::encode(&State { read_only: self.backing.read_only(), sectors })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let state: State = postcard::from_bytes(state)?;
        if state.read_only != self.backing.read_only() {
            return Err(StateError::Mismatch("a disk was read-only and is not now, or the other way round"));
        }
        self.known_capacity = Some(state.sectors);
        Ok(())
    }
}

impl Active {
    fn serve(&mut self, backing: &Backing) -> Result<Progress, QueueError> {
        let mut bytes = 0;
        let mut requests = 0;
        self.queue.mute(&self.memory)?;
        let progress = loop {
            while let Some(chain) = self.queue.pop(&self.memory)? {
                let head = chain.head;
                let request = Request::parse(chain, &self.memory).ok_or(QueueError::Chain(head))?;
                bytes += request.bytes();
                requests += 1;
                let written = request.serve(backing, &self.memory).ok_or(QueueError::Chain(head))?;
                self.queue.push(&self.memory, head, written)?;
                if bytes >= TURN_BYTES || requests >= self.queue.size() {
                    break;
                }
            }
            if bytes >= TURN_BYTES || requests >= self.queue.size() {
                break Progress::More;
            }
            if !self.queue.unmute(&self.memory)? {
                break Progress::Done;
            }
            self.queue.mute(&self.memory)?;
        };
        self.queue.signal(&self.memory, &self.interrupt)?;
        Ok(progress)
    }
}

#[cfg(test)]
mod tests;
