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

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::devices::virtio::F_EVENT_IDX;
    use crate::devices::virtio::testing::{self, Driver, INDIRECT, NEXT, WRITE};

    fn queue(features: u64) -> (Driver, Virtqueue) {
        let driver = Driver::new(&testing::memory(0x1_0000), 0, 8);
        let queue = driver.state().build(16, features, &driver.memory).unwrap();
        (driver, Virtqueue::new(queue))
    }

    #[test]
    fn a_chain_is_what_is_read_and_then_what_is_written() {
        let (mut driver, mut queue) = queue(0);
        driver.submit(&[(0x8000, 3, false), (0x9000, 0, false), (0xa000, 5, true)]);
        let segment = |address, len| Segment { address: GuestAddress(address), len };
        let chain = queue.pop(&driver.memory).unwrap().unwrap();
        assert_eq!((chain.head, chain.readable), (0, vec![segment(0x8000, 3), segment(0x9000, 0)]));
        assert_eq!(chain.writable, [segment(0xa000, 5)]);
        assert_eq!(queue.pop(&driver.memory).unwrap(), None);
        queue.undo_pop();
        assert_eq!(queue.pop(&driver.memory).unwrap().unwrap().head, 0);
        driver.submit_indirect(0xb000, &[(0x8000, 3, false), (0xa000, 5, true)]);
        assert_eq!(queue.pop(&driver.memory).unwrap().unwrap().writable, [segment(0xa000, 5)]);
        assert_eq!(queue.state().next_available, 2);
    }

    #[test]
    fn a_chain_that_cannot_be_is_refused() {
        let wrongs: [fn(&mut Driver); 7] = [
            // Something to read after something to write.
            |driver| {
                driver.submit(&[(0x8000, 1, true), (0x8000, 1, false)]);
            },
            // Longer than 4 GiB in all.
            |driver| {
                driver.submit(&[(0x8000, u32::MAX, true), (0x8000, 1, true)]);
            },
            // More descriptors than the queue has, in a table of their own.
            |driver| {
                driver.submit_indirect(0xb000, &[(0x8000, 1, true); 9]);
            },
            // A table in a table.
            |driver| {
                driver.descriptor(0xb000, 0, 0xb000, 16, INDIRECT, 0);
                driver.descriptor(0, 0, 0xb000, 16, INDIRECT, 0);
                driver.offer(0);
            },
            // An empty table, half a descriptor, and a table outside of memory.
            |driver| {
                driver.descriptor(0, 0, 0xb000, 0, INDIRECT, 0);
                driver.offer(0);
            },
            |driver| {
                driver.descriptor(0, 0, 0xb000, 24, INDIRECT, 0);
                driver.offer(0);
            },
            |driver| {
                driver.descriptor(0, 0, 0x8000, 1, WRITE | NEXT, 1);
                driver.descriptor(0, 1, u64::MAX - 15, 16, INDIRECT, 0);
                driver.offer(0);
            },
        ];
        for (number, wrong) in wrongs.iter().enumerate() {
            let (mut driver, mut queue) = queue(0);
            wrong(&mut driver);
            assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Chain(0))), "{number}");
        }
        // A head that is no descriptor.
        let (mut driver, mut queue) = queue(0);
        driver.offer(8);
        assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Chain(8))));
    }

    #[test]
    fn the_driver_is_told_when_it_wants_to_be() {
        let (mut driver, mut queue) = queue(F_EVENT_IDX);
        let memory = driver.memory.clone();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(irq.try_clone().unwrap());
        // In the available ring's last word: tell me when the third buffer was used.
        memory.write_obj(2u16, GuestAddress(driver.state().available + 4 + 2 * 8)).unwrap();
        for told in [false, false, true, false] {
            driver.submit(&[(0x8000, 1, true)]);
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.push(&memory, chain.head, 1).unwrap();
            queue.signal(&memory, &interrupt).unwrap();
            assert_eq!(irq.read().is_ok(), told);
        }
        // And in the used ring's last word the device says the same of itself.
        assert!(!queue.unmute(&memory).unwrap());
        let wanted: u16 = memory.read_obj(GuestAddress(driver.state().used + 4 + 8 * 8)).unwrap();
        assert_eq!(wanted, 4);
        driver.submit(&[(0x8000, 1, true)]);
        assert!(queue.unmute(&memory).unwrap());
        assert!(queue.has_more_than(&memory, 0).unwrap() && !queue.has_more_than(&memory, 1).unwrap());
    }

    #[test]
    fn without_event_indices_a_flag_silences_the_driver() {
        let (driver, mut queue) = queue(0);
        let flags = || driver.memory.read_obj::<u16>(GuestAddress(driver.state().used)).unwrap();
        queue.mute(&driver.memory).unwrap();
        assert_eq!(flags(), 1);
        queue.unmute(&driver.memory).unwrap();
        assert_eq!(flags(), 0);
    }
}
