//! A driver for tests: builds queues in real guest memory, honestly or not.

use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, Interrupt, QueueState, VirtioDevice};
use crate::memory::Memory;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Guest memory of `bytes` bytes from address 0 on.
pub(super) fn memory(bytes: usize) -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
}

/// A segment as a driver describes it: address, length, whether the device may write.
pub(super) type Part = (u64, u32, bool);

/// One queue, seen by its driver.
pub(super) struct Driver {
    pub(super) memory: Memory,
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

impl Driver {
    /// A queue whose parts lie from `base` on, within 16 KiB.
    pub(super) fn new(memory: &Memory, base: u64, size: u16) -> Driver {
        assert!(size <= 256);
        Driver { memory: memory.clone(), base, size, next_descriptor: 0, available: 0, seen: 0 }
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState {
            size: self.size,
            ready: true,
            descriptors: self.base,
            available: self.base + 0x2000,
            used: self.base + 0x3000,
            ..QueueState::default()
        }
    }

    pub(super) fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        self.memory.write_obj(raw, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    fn table(&self, table: u64, first: u16, modulo: u16, parts: &[Part]) {
        for (position, (address, len, writable)) in (0u16..).zip(parts) {
            let index = (first + position) % modulo;
            let last = usize::from(position) + 1 == parts.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(table, index, *address, *len, flags, (index + 1) % modulo);
        }
    }

    /// The descriptor that the next chain begins with.
    pub(super) fn next_head(&self) -> u16 {
        self.next_descriptor
    }

    /// Makes a chain available.
    pub(super) fn submit(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_descriptor;
        self.table(self.base, head, self.size, parts);
        self.next_descriptor = (head + parts.len() as u16) % self.size;
        self.offer(head);
        head
    }

    /// Makes a chain available whose descriptors lie in a table at `table`.
    pub(super) fn submit_indirect(&mut self, table: u64, parts: &[Part]) -> u16 {
        self.table(table, 0, u16::MAX, parts);
        let head = self.next_descriptor;
        self.descriptor(self.base, head, table, 16 * parts.len() as u32, INDIRECT, 0);
        self.next_descriptor = (head + 1) % self.size;
        self.offer(head);
        head
    }

    /// Makes the chain that begins with descriptor `head` available, whatever it is.
    pub(super) fn offer(&mut self, head: u16) {
        let ring = self.state().available;
        let slot = ring + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Says how many chains were made available so far.
    pub(super) fn set_available(&mut self, index: u16) {
        self.memory.write_obj(index.to_le(), GuestAddress(self.state().available + 2)).unwrap();
    }

    /// Takes a used chain back: its head and how many bytes were written.
    pub(super) fn used(&mut self) -> Option<(u16, u32)> {
        let ring = self.state().used;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let slot = ring + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        Some((head as u16, self.memory.read_obj(GuestAddress(slot + 4)).unwrap()))
    }
}

/// Activates `device` with the queues of `drivers` and all its features. Returns what it interrupts with.
pub(super) fn activate(device: &mut dyn VirtioDevice, drivers: &[&Driver]) -> (Interrupt, EventFd) {
    let features = device.features();
    activate_with(device, drivers, features)
}

pub(super) fn activate_with(device: &mut dyn VirtioDevice, drivers: &[&Driver], features: u64) -> (Interrupt, EventFd) {
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Interrupt::new(irq.try_clone().unwrap());
    let memory = drivers[0].memory.clone();
    let sizes = device.queue_sizes().to_vec();
    let queues = (0..sizes.len())
        .map(|index| {
            let state = drivers.get(index).map_or_else(QueueState::default, |driver| driver.state());
            let queue = state.build(sizes[index], features, &memory).unwrap();
            assert_eq!(queue.ready(), state.ready);
            queue
        })
        .collect();
    device.activate(Activation { memory, queues, interrupt: interrupt.clone(), features }).unwrap();
    (interrupt, irq)
}

pub(super) fn put(memory: &Memory, address: u64, data: &[u8]) {
    memory.write_slice(data, GuestAddress(address)).unwrap();
}

pub(super) fn get(memory: &Memory, address: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}
