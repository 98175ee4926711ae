//! Virtio devices: what a device is to its transport, and what it is given.
//!
//! ```text
//!   vCPU thread                                     device thread
//!   register access --> mmio::Transport             mmio::Worker --> VirtioDevice::{activate, notified, ready, reset}
//!                         |  status, queue addresses   ^
//!                         +--- phase + kick eventfd ---+
//!   queue notification --- ioeventfd ------------------+
//! ```
//!
//! The rules are those of "Virtual I/O Device (VIRTIO) Version 1.2", cited below by section. Everything that the driver
//! wrote is hostile: [`queue`] reads each descriptor once, and a queue that cannot be right ends in
//! [`Interrupt::needs_reset`], after which the device is not served until the driver resets it.

pub mod balloon;
pub mod block;
mod buffers;
pub mod entropy;
pub mod mmio;
pub mod net;
pub mod queue;
#[cfg(test)]
mod testing;
pub mod vsock;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub use event_manager::EventSet;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;

/// Feature: the device follows the specification from version 1.0 on. Every driver must take it.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature: a descriptor may point to a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature: both sides say at which index they want to be told (2.7.7, 2.7.10).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// A device behind a transport. Its methods are called under one lock: `read_config` and `write_config` by any vCPU's
/// thread, at any time; all others by the device thread.
pub trait VirtioDevice: Send {
    /// The device's type (5, "Device Types").
    fn kind(&self) -> u32;
    /// The features that it offers, [`F_VERSION_1`] among them. They do not change.
    fn features(&self) -> u64;
    /// The most descriptors of each of its queues, powers of two. They do not change.
    fn queue_sizes(&self) -> &[u16];
    /// Reads its configuration space. `data` arrives zeroed; what lies outside of the space is left so.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes its configuration space. What the driver may not write is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The driver is ready. Called once until the next `reset`; followed by `notified` for each queue.
    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError>;
    /// Forgets the driver: back to the state before `activate`, which need not have been called.
    fn reset(&mut self);
    /// The driver says that it made buffers of a queue available (or may have). Never called unless active.
    fn notified(&mut self, queue: usize) -> Progress;
    /// The descriptors of its own that it wants watched now. A descriptor that takes the place of a closed one must have
    /// another token; and only one that was never duplicated may be closed, as no epoll instance forgets it otherwise.
    fn watched(&self) -> Vec<Watched>;
    /// One of them is ready. May be called for a token that is no longer watched. `true` if the watched set has changed.
    fn ready(&mut self, token: u32, events: EventSet) -> bool;
    /// The state of its queues while active, in order; nothing otherwise.
    fn queues(&self) -> Vec<QueueState>;
    /// What else a snapshot must hold. No request is under way between two calls, so that there is none to save.
    fn save(&self) -> Vec<u8>;
    /// Takes what `save` gave; before `activate`. The bytes may be damaged or forged.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError>;
}

/// How far a device came with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Everything that could be done now is done; the driver will notify when there is more.
    Done,
    /// Its turn is over but the queue is not: call again after the others.
    More,
}

/// What a device is given when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Memory,
    /// All queues in order. Those that the driver did not set up are not [ready](QueueT::ready).
    pub queues: Vec<Queue>,
    /// How to tell the driver.
    pub interrupt: Interrupt,
    /// The features that the driver took; a subset of what was offered.
    pub features: u64,
}

/// A descriptor that a device wants watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// The descriptor; open as long as it is in the set.
    pub fd: RawFd,
    /// What [`VirtioDevice::ready`] is called with.
    pub token: u32,
    /// Whether to wake when it can be read.
    pub read: bool,
    /// Whether to wake when it can be written.
    pub write: bool,
}

/// Why a device could not be activated. The driver sees that the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot do without.
    #[error("the driver did not set up queue {0}")]
    QueueMissing(usize),
    /// The host refused something.
    #[error("cannot {doing}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a device's saved state cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes are not what `save` writes.
    #[error("the device's state cannot be decoded, take a new snapshot")]
    Decode(#[from] postcard::Error),
    /// The state is of something else, or was tampered with.
    #[error("the device's state does not fit: {0}")]
    Mismatch(&'static str),
}

/// Where a queue lies and how far device and driver have come with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Number of descriptors; 0 if the driver asked for a number that cannot be.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// The index of the next available buffer to take.
    pub next_available: u16,
    /// The index of the next used buffer to give back.
    pub next_used: u16,
}

impl QueueState {
    /// The state of `queue`.
    pub fn of(queue: &Queue) -> QueueState {
        QueueState {
            size: queue.size(),
            ready: queue.ready(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }

    /// A queue in this state, if its size is a power of two up to `max` and all of it lies in `memory`. One that the
    /// driver did not set up is always valid.
    pub fn build(&self, max: u16, features: u64, memory: &Memory) -> Option<Queue> {
        let mut queue = Queue::new(max).ok()?;
        if !self.ready {
            return Some(queue);
        }
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(vm_memory::GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(self.available)).ok()?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(self.used)).ok()?;
        queue.set_event_idx(features & F_EVENT_IDX != 0);
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
        queue.set_ready(true);
        queue.is_valid(memory).then_some(queue)
    }
}

/// How a device tells its driver something; clones tell the same driver. Never blocks.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<Lines>);

#[derive(Debug)]
struct Lines {
    fd: EventFd,
    /// The interrupt status register (4.2.2): bit 0 used buffers, bit 1 configuration.
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
}

/// Interrupt status: buffers were used.
const USED_BUFFER: u32 = 1;
/// Interrupt status: the configuration changed.
const CONFIG_CHANGE: u32 = 2;

impl Interrupt {
    /// An interrupt that is delivered by writing `fd`, which KVM (or a test) listens to.
    pub fn new(fd: EventFd) -> Interrupt {
        Interrupt(Arc::new(Lines {
            fd,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }))
    }

    /// Buffers of a queue were used.
    pub fn queue(&self) {
        self.raise(USED_BUFFER);
    }

    /// The configuration space has changed.
    pub fn config(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    /// The device cannot go on: the driver broke the rules. It is not served any more until the driver resets it.
    pub fn needs_reset(&self) {
        self.0.needs_reset.store(true, Ordering::SeqCst);
        self.config();
    }

    /// Whether [`Interrupt::needs_reset`] was called since the last reset.
    pub fn is_broken(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    /// [`Interrupt::needs_reset`] because of `error` in a device of type `kind`; nothing more is to be done.
    pub(crate) fn give_up(&self, kind: u32, error: &queue::QueueError) -> Progress {
        tracing::warn!(
            kind,
            error = error as &dyn std::error::Error,
            "the driver broke the rules, its device is not served any more"
        );
        self.needs_reset();
        Progress::Done
    }

    /// The interrupt status register.
    fn status(&self) -> u32 {
        self.0.status.load(Ordering::SeqCst)
    }

    /// The driver has seen `bits` of the status.
    fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// A number that is another one whenever the configuration has changed.
    fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// The device was reset: nothing is pending and nothing is wrong.
    fn clear(&self) {
        self.0.status.store(0, Ordering::SeqCst);
        self.0.needs_reset.store(false, Ordering::SeqCst);
    }

    /// As a snapshot has it; what was pending is raised once more.
    fn restore(&self, status: u32, generation: u32, needs_reset: bool) {
        self.0.generation.store(generation, Ordering::SeqCst);
        self.0.needs_reset.store(needs_reset, Ordering::SeqCst);
        let pending = status & (USED_BUFFER | CONFIG_CHANGE);
        if pending != 0 {
            self.raise(pending);
        }
    }

    fn raise(&self, bit: u32) {
        self.0.status.fetch_or(bit, Ordering::SeqCst);
        // The write can only fail when the counter is full, and then an interrupt is on its way already.
        let _ = self.0.fd.write(1);
    }
}

/// All queues of a device that needs all its queues.
pub(crate) fn queues<const N: usize>(queues: Vec<Queue>) -> Result<[Queue; N], ActivateError> {
    if let Some(missing) = queues.iter().position(|queue| !queue.ready()) {
        return Err(ActivateError::QueueMissing(missing));
    }
    <[Queue; N]>::try_from(queues).map_err(|queues| ActivateError::QueueMissing(queues.len()))
}

/// Reads `data` out of a configuration space; what lies outside of it stays as it is.
pub(crate) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else { return };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}

/// A device's private state as bytes.
pub(crate) fn encode(state: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(state).expect("plain data can always be encoded into memory")
}
