//! The eventfds by which drivers notify queues, connected with KVM before it is known which devices there will be.
//!
//! KVM makes each connection wait until no processor looks at the list of them any more, which takes longer than all else
//! that restoring a device does. Whoever makes a shell has the time, whoever restores a machine has not. A door that no
//! device uses is harmless: a guest that writes there wakes nobody.

use std::io;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::{self, KvmError, Slot};
use crate::devices::virtio::mmio::QUEUE_NOTIFY;

/// How many there are for the devices of the first slots: those of a machine with all that a tenant's has, in the order of
/// the slots (vsock, entropy, balloon, four drives, net). What another machine needs beyond that is connected when its
/// devices are.
const QUEUES: [usize; 8] = [3, 1, 3, 1, 1, 1, 1, 2];

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// An eventfd could not be had.
    #[error("cannot make an eventfd")]
    EventFd(#[from] io::Error),
    /// KVM refused one.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Eventfds, for each slot those of its queues in order.
#[derive(Default)]
pub struct Doors(Vec<Vec<EventFd>>);

impl Doors {
    /// As many as most machines need.
    pub fn new(vm: &VmFd) -> Result<Doors, DoorError> {
        let slots = QUEUES.iter().enumerate().map_while(|(index, queues)| Some((arch::slot(index)?, *queues)));
        let slot = |(slot, queues): (Slot, usize)| {
            let door = |queue| {
                let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                connect(vm, slot, queue, &fd)?;
                Ok(fd)
            };
            (0..queues).map(door).collect()
        };
        Ok(Doors(slots.map(slot).collect::<Result<_, DoorError>>()?))
    }

    /// Those of a slot, once.
    pub fn take(&mut self, slot: usize) -> Vec<EventFd> {
        self.0.get_mut(slot).map(std::mem::take).unwrap_or_default()
    }
}

/// Has KVM signal `fd` when the driver notifies this queue of the device in this slot.
pub fn connect(vm: &VmFd, slot: Slot, queue: usize, fd: &EventFd) -> Result<(), KvmError> {
    let register = IoEventAddress::Mmio(slot.base + QUEUE_NOTIFY);
    vm.register_ioevent(fd, &register, queue as u32).map_err(KvmError::to("watch a queue's register"))
}
