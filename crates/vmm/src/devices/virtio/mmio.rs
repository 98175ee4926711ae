//! The MMIO transport (4.2): a window of registers through which a driver finds, configures and resets one device.
//!
//! [`Transport`] is the vCPUs' side: it holds the registers and decides what a write means. [`Worker`] is the device
//! thread's side and the only one that calls the device's working methods. Between them stands a [`Phase`]:
//!
//! ```text
//!        DRIVER_OK                     worker: activate
//!   Idle ---------> Activating ------------------------> Active
//!    ^  <---------      |                                  |
//!    |     reset        +--- activate failed: Idle         | reset
//!    |                       and needs reset               v
//!    +--------------- worker: reset ------------------- Stopping --- DRIVER_OK ---> (then Activating)
//! ```
//!
//! When the register write that resets has returned, the device does not touch the guest's memory any more.

mod registers;
mod worker;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::registers::Registers;
pub use self::worker::Worker;
use super::{Activation, Interrupt, StateError, VirtioDevice};
use crate::bus::BusDevice;
use crate::memory::Memory;

/// Size of the window in bytes.
pub const WINDOW: u64 = 0x1000;
/// Offset of the register that a driver writes a queue's number to: an ioeventfd for each queue belongs there.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// A device's window of registers.
pub struct Transport {
    shared: Arc<Shared>,
    memory: Memory,
    registers: Registers,
}

/// What the two sides share. Where both are locked, the device is locked first.
struct Shared {
    device: Arc<Mutex<dyn VirtioDevice>>,
    phase: Mutex<Phase>,
    interrupt: Interrupt,
    /// Wakes the worker to look at the phase.
    kick: EventFd,
    notifiers: Vec<EventFd>,
}

/// Where the device stands between driver and device thread.
enum Phase {
    Idle,
    Activating(Activation),
    Active,
    /// The device must be reset before anything else; what comes after that, if the driver was quick.
    Stopping(Option<Activation>),
}

/// A transport and its device in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    kind: u32,
    registers: Registers,
    interrupt_status: u32,
    generation: u32,
    needs_reset: bool,
    device: Vec<u8>,
}

/// Why a transport cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// An eventfd could not be made.
    #[error("cannot make an eventfd")]
    Io(#[from] io::Error),
    /// The snapshot has another device here.
    #[error("the snapshot has a device of type {found} where the machine has one of type {expected}")]
    Kind {
        /// The machine's.
        expected: u32,
        /// The snapshot's.
        found: u32,
    },
    /// The registers are such as no driver can have brought about.
    #[error("the snapshot's registers of the device of type {0} are impossible")]
    Registers(u32),
    /// The device refuses its part.
    #[error("the device of type {kind} refuses its state")]
    Device {
        /// Which device.
        kind: u32,
        /// Why.
        source: StateError,
    },
}

impl Transport {
    /// A window for `device`, whose driver is told things by writing `irq`. The first [`Transport::notifiers`] are the
    /// `doors`, which may be connected already.
    pub fn new(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: Memory,
        irq: EventFd,
        doors: Vec<EventFd>,
    ) -> io::Result<Transport> {
        let registers = Registers::new(&*lock(&device));
        Transport::with(device, memory, irq, doors, registers)
    }

    fn with(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: Memory,
        irq: EventFd,
        doors: Vec<EventFd>,
        registers: Registers,
    ) -> io::Result<Transport> {
        let flags = EFD_NONBLOCK | EFD_CLOEXEC;
        let queues = lock(&device).queue_sizes().len();
        let more = std::iter::repeat_with(|| EventFd::new(flags));
        let notifiers = doors.into_iter().map(Ok).chain(more).take(queues).collect::<io::Result<Vec<_>>>()?;
        let shared = Shared {
            device,
            phase: Mutex::new(Phase::Idle),
            interrupt: Interrupt::new(irq),
            kick: EventFd::new(flags)?,
            notifiers,
        };
        Ok(Transport { shared: Arc::new(shared), memory, registers })
    }

    /// The window as `state` has it, with a `device` that is like the one then. If the driver was ready the device is
    /// activated as soon as the worker is woken, which looks at all queues then.
    pub fn restore(
        state: &TransportState,
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: Memory,
        irq: EventFd,
        doors: Vec<EventFd>,
    ) -> Result<Transport, RestoreError> {
        let kind = {
            let mut device = lock(&device);
            let kind = device.kind();
            if state.kind != kind {
                return Err(RestoreError::Kind { expected: kind, found: state.kind });
            }
            if !state.registers.fit(&*device) {
                return Err(RestoreError::Registers(kind));
            }
            device.restore(&state.device).map_err(|source| RestoreError::Device { kind, source })?;
            kind
        };
        let transport = Transport::with(device, memory, irq, doors, state.registers.clone())?;
        transport.shared.interrupt.restore(state.interrupt_status, state.generation, state.needs_reset);
        if transport.registers.driver_is_ready() && !state.needs_reset {
            let activation = transport.activation().ok_or(RestoreError::Registers(kind))?;
            *lock(&transport.shared.phase) = Phase::Activating(activation);
            transport.poke();
        }
        Ok(transport)
    }

    /// Everything that [`Transport::restore`] needs. To be called by the device thread while the vCPUs stand still.
    pub fn save(&self) -> TransportState {
        worker::settle(&self.shared);
        let device = lock(&self.shared.device);
        let mut registers = self.registers.clone();
        for (saved, now) in registers.queues.iter_mut().zip(device.queues()) {
            *saved = now;
        }
        TransportState {
            kind: device.kind(),
            registers,
            interrupt_status: self.shared.interrupt.status(),
            generation: self.shared.interrupt.generation(),
            needs_reset: self.shared.interrupt.is_broken(),
            device: device.save(),
        }
    }

    /// The device thread's side, to be added to its event loop. There must be one.
    pub fn worker(&self) -> io::Result<Worker> {
        Worker::new(Arc::clone(&self.shared))
    }

    /// One eventfd for each queue, signalled when the driver writes the queue's number to [`QUEUE_NOTIFY`].
    pub fn notifiers(&self) -> &[EventFd] {
        &self.shared.notifiers
    }

    /// How the device tells its driver something.
    pub fn interrupt(&self) -> &Interrupt {
        &self.shared.interrupt
    }

    /// Wakes the worker to ask the device anew what it wants watched and to look at all queues: for whoever has changed
    /// the device from outside.
    pub fn poke(&self) {
        // Full means that it is about to be woken.
        let _ = self.shared.kick.write(1);
    }

    fn activation(&self) -> Option<Activation> {
        let features = self.registers.accepted;
        let queues = self.registers.build(&self.memory)?;
        Some(Activation { memory: self.memory.clone(), queues, interrupt: self.shared.interrupt.clone(), features })
    }

    fn start(&self) {
        let Some(activation) = self.activation() else {
            tracing::warn!(kind = self.registers.kind, "the driver set up a queue that cannot be");
            self.shared.interrupt.needs_reset();
            return;
        };
        let mut phase = lock(&self.shared.phase);
        *phase = match std::mem::replace(&mut *phase, Phase::Idle) {
            Phase::Idle | Phase::Activating(_) => Phase::Activating(activation),
            Phase::Active | Phase::Stopping(_) => Phase::Stopping(Some(activation)),
        };
        drop(phase);
        self.poke();
    }

    fn reset(&self) {
        let mut phase = lock(&self.shared.phase);
        *phase = match std::mem::replace(&mut *phase, Phase::Idle) {
            Phase::Idle | Phase::Activating(_) => Phase::Idle,
            Phase::Active | Phase::Stopping(_) => Phase::Stopping(None),
        };
        drop(phase);
        // The worker holds this lock as long as it works for the driver, and looks at the phase after it got it.
        let _device = lock(&self.shared.device);
        self.shared.interrupt.clear();
        self.poke();
    }
}

impl BusDevice for Transport {
    // Reads a register or the configuration space. What cannot be read is zero.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            lock(&self.shared.device).read_config(offset, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.registers.read(offset, &self.shared.interrupt).to_le_bytes());
        }
    }

    // Writes a register or the configuration space. What cannot be written is ignored.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            lock(&self.shared.device).write_config(offset, data);
            return;
        }
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match self.registers.write(offset, value) {
            registers::Effect::None => {}
            registers::Effect::Notify(queue) => {
                // An ioeventfd takes these before they get here; without one this does the same.
                if let Some(notifier) = self.shared.notifiers.get(queue) {
                    let _ = notifier.write(1);
                }
            }
            registers::Effect::Acknowledge(bits) => self.shared.interrupt.acknowledge(bits),
            registers::Effect::Reset => self.reset(),
            registers::Effect::DriverReady => self.start(),
        }
    }
}

/// Locks; a thread that panicked with the lock held changes nothing, the process ends anyway.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
