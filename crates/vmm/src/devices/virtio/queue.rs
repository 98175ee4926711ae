//! The device's side of a split virtqueue (2.7): takes chains of descriptors, each read once and checked as a whole, and
//! gives them back.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::{Interrupt, QueueState};
use crate::memory::Memory;

/// A queue as its device uses it.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
}

/// A buffer in guest memory, as the driver describes it: the address is not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// One request: what the device may read, then what it may write. The lengths add up to less than 4 GiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What the request is called when it is given back.
    pub head: u16,
    /// Buffers for the device to read.
    pub readable: Vec<Segment>,
    /// Buffers for the device to write.
    pub writable: Vec<Segment>,
}

/// A queue that cannot be right. The device must ask for a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings cannot be read or written, or contradict themselves.
    #[error("the rings are malformed")]
    Ring(#[source] virtio_queue::Error),
    /// A chain is longer than the queue, has a loop, leaves its table, or is longer than 4 GiB.
    #[error("the chain at descriptor {0} is malformed")]
    Chain(u16),
}

impl Virtqueue {
    /// Takes the queue over.
    pub fn new(queue: Queue) -> Virtqueue {
        Virtqueue { queue }
    }

    /// Its state for a snapshot.
    pub fn state(&self) -> QueueState {
        QueueState::of(&self.queue)
    }

    /// The number of descriptors, which bounds chains and turns.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver set it up. One that is not is always empty.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Takes the next chain, if there is one.
    pub fn pop(&mut self, memory: &Memory) -> Result<Option<Chain>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let limit = usize::from(self.queue.size());
        let Some(descriptors) = self.queue.iter(memory).map_err(QueueError::Ring)?.next() else { return Ok(None) };
        let head = descriptors.head_index();
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut last: Option<Descriptor> = None;
        // The iterator ends alike at the end of a chain and where it cannot follow it; `last` tells the two apart.
        for descriptor in descriptors {
            let segment = Segment { address: descriptor.addr(), len: descriptor.len() };
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(QueueError::Chain(head));
            }
            if chain.readable.len() + chain.writable.len() > limit {
                return Err(QueueError::Chain(head));
            }
            last = Some(descriptor);
        }
        match last {
            Some(last) if !last.has_next() => Ok(Some(chain)),
            _ => Err(QueueError::Chain(head)),
        }
    }

    /// Puts the chain that was taken last back, to take it again later.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Whether more than `count` chains are available.
    pub fn has_more_than(&self, memory: &Memory, count: usize) -> Result<bool, QueueError> {
        let available = self.queue.avail_idx(memory, Ordering::Acquire).map_err(QueueError::Ring)?;
        Ok(usize::from(available.0.wrapping_sub(self.queue.next_avail())) > count)
    }

    /// Gives a chain back, of whose writable buffers the first `written` bytes were written.
    pub fn push(&mut self, memory: &Memory, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue.add_used(memory, head, written).map_err(QueueError::Ring)
    }

    /// Tells the driver about chains given back since the last time, unless it does not want to know.
    pub fn signal(&mut self, memory: &Memory, interrupt: &Interrupt) -> Result<(), QueueError> {
        if self.queue.ready() && self.queue.needs_notification(memory).map_err(QueueError::Ring)? {
            interrupt.queue();
        }
        Ok(())
    }

    /// Asks the driver not to notify while the queue is worked on.
    pub fn mute(&mut self, memory: &Memory) -> Result<(), QueueError> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.disable_notification(memory).map_err(QueueError::Ring)
    }

    /// Asks the driver to notify when it makes the next buffer available. `true` if it has done so meanwhile.
    pub fn unmute(&mut self, memory: &Memory) -> Result<bool, QueueError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue.enable_notification(memory).map_err(QueueError::Ring)
    }
}
