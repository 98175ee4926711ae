//! The devices of a machine, in the order of their slots: vsock, entropy, balloon, drives, net.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::RestoreError;
use super::doors::{self, Doors};
use crate::arch::{self, KvmError, Slot};
use crate::bus::{Bus, OverlapError};
use crate::config::MachineConfig;
use crate::devices::reset::Reset;
use crate::devices::serial::{self, Serial, SerialRegisters};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::mmio::{Transport, TransportState, WINDOW};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::{Handle, Vsock};
use crate::devices::vmgenid::GenerationId;
use crate::event_loop::EventLoop;
use crate::memory::Memory;
use crate::vcpu::{Buses, Outcome};

/// What the devices of a machine need of the host.
#[derive(Default)]
pub struct DeviceFiles {
    /// One for each drive of the configuration, opened for what the guest may do.
    pub drives: Vec<File>,
    /// The tap device, if there is a network device.
    pub tap: Option<OwnedFd>,
    /// Where the serial console writes, if there is one.
    pub serial: Option<OwnedFd>,
}

/// Why a machine has not its devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host refused something.
    #[error("cannot make the {what}")]
    Host {
        /// Which device.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptors are not those of the configuration.
    #[error("the machine needs {expected} {what} and got {found}")]
    Files {
        /// Drives, tap devices or serial outputs.
        what: &'static str,
        /// By the configuration.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// There is no such drive.
    #[error("the machine has no drive {0}")]
    NoDrive(usize),
    /// More devices than slots.
    #[error("the machine has more than {0} devices")]
    Slots(usize),
    /// Two devices at one address; this does not happen.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

type Device = Arc<Mutex<dyn VirtioDevice>>;

/// All of them.
pub struct Devices {
    virtio: Vec<Virtio>,
    vsock: Handle,
    drives: Vec<Arc<Mutex<Block>>>,
    console: Option<Console>,
    generation: GenerationId,
    outcome: Arc<Outcome>,
}

struct Virtio {
    slot: Slot,
    transport: Arc<Mutex<Transport>>,
    irq: EventFd,
    /// How many of its queues KVM knows already.
    connected: usize,
}

struct Console {
    serial: Arc<Mutex<Serial>>,
    irq: EventFd,
}

/// The devices without their places.
struct Parts {
    devices: Vec<Device>,
    vsock: Handle,
    drives: Vec<Arc<Mutex<Block>>>,
}

impl Devices {
    /// Those of a machine that boots.
    pub fn new(
        config: &MachineConfig,
        files: DeviceFiles,
        memory: &Memory,
        outcome: &Arc<Outcome>,
        doors: Doors,
    ) -> Result<Devices, DeviceError> {
        let (parts, serial) = parts(config, files)?;
        let transport = |_, device, irq, doors| {
            Transport::new(device, memory.clone(), irq, doors)
                .map_err(|source| DeviceError::Host { what: "window", source })
        };
        Devices::with(parts, serial, None, outcome, doors, transport)
    }

    /// Those of a machine that is restored, one state for each.
    pub fn restore(
        config: &MachineConfig,
        files: DeviceFiles,
        memory: &Memory,
        outcome: &Arc<Outcome>,
        doors: Doors,
        states: &[TransportState],
        registers: Option<SerialRegisters>,
    ) -> Result<Devices, RestoreError> {
        let (parts, serial) = parts(config, files)?;
        let transport = |index: usize, device, irq, doors| {
            Transport::restore(&states[index], device, memory.clone(), irq, doors)
                .map_err(|source| RestoreError::Transport { index, source })
        };
        Devices::with(parts, serial, registers, outcome, doors, transport)
    }

    fn with<E: From<DeviceError>>(
        parts: Parts,
        serial: Option<OwnedFd>,
        registers: Option<SerialRegisters>,
        outcome: &Arc<Outcome>,
        mut doors: Doors,
        transport: impl Fn(usize, Device, EventFd, Vec<EventFd>) -> Result<Transport, E>,
    ) -> Result<Devices, E> {
        let host = |what| move |source| DeviceError::Host { what, source };
        let mut virtio = Vec::new();
        for (index, device) in parts.devices.into_iter().enumerate() {
            let slot = arch::slot(index).ok_or(DeviceError::Slots(index))?;
            let irq = eventfd().map_err(host("interrupt"))?;
            let raised = irq.try_clone().map_err(host("interrupt"))?;
            let doors = doors.take(index);
            let connected = doors.len();
            let transport = Arc::new(Mutex::new(transport(index, device, raised, doors)?));
            virtio.push(Virtio { slot, transport, irq, connected });
        }
        let console = match serial {
            Some(output) => {
                let irq = eventfd().map_err(host("interrupt"))?;
                let raised = irq.try_clone().map_err(host("interrupt"))?;
                let registers = registers.unwrap_or_default();
                let serial = Serial::new(output, raised, registers).map_err(host("serial console"))?;
                Some(Console { serial: Arc::new(Mutex::new(serial)), irq })
            }
            None => None,
        };
        let generation = GenerationId::new(arch::GENERATION_ID).map_err(host("generation id"))?;
        Ok(Devices {
            virtio,
            vsock: parts.vsock,
            drives: parts.drives,
            console,
            generation,
            outcome: Arc::clone(outcome),
        })
    }

    /// Where the virtio devices are.
    pub fn slots(&self) -> Vec<Slot> {
        self.virtio.iter().map(|device| device.slot).collect()
    }

    /// Everything at its address.
    pub fn buses(&self) -> Result<Arc<Buses>, DeviceError> {
        let (mut mmio, mut ports) = (Bus::new(), Bus::new());
        for device in &self.virtio {
            mmio.insert(device.slot.base, WINDOW, device.transport.clone())?;
        }
        let reset = |mask, value| Arc::new(Mutex::new(Reset::new(Arc::clone(&self.outcome), mask, value)));
        ports.insert(arch::RESET_PORT, 1, reset(0xff, arch::RESET_VALUE))?;
        ports.insert(arch::SLEEP_PORT, 2, reset(arch::SLEEP_ENABLE, arch::SLEEP_ENABLE))?;
        if let Some(console) = &self.console {
            ports.insert(arch::SERIAL_PORT, serial::PORTS, console.serial.clone())?;
        }
        Ok(Arc::new(Buses { mmio, ports }))
    }

    /// Connects them with KVM and the event loop.
    pub fn attach(&self, vm: &VmFd, events: &mut EventLoop) -> Result<(), DeviceError> {
        for device in &self.virtio {
            let transport = device.transport.lock().unwrap_or_else(PoisonError::into_inner);
            for (queue, notifier) in transport.notifiers().iter().enumerate().skip(device.connected) {
                doors::connect(vm, device.slot, queue, notifier)?;
            }
            interrupt(vm, &device.irq, device.slot.gsi)?;
            let worker = transport.worker().map_err(|source| DeviceError::Host { what: "worker", source })?;
            events.add(Box::new(worker));
        }
        interrupt(vm, self.generation.interrupt(), arch::GENERATION_GSI)?;
        if let Some(console) = &self.console {
            interrupt(vm, &console.irq, arch::SERIAL_GSI)?;
        }
        Ok(())
    }

    /// The states of the virtio devices. On the device thread, while the vCPUs stand still.
    pub fn save(&self) -> Vec<TransportState> {
        let save = |device: &Virtio| device.transport.lock().unwrap_or_else(PoisonError::into_inner).save();
        self.virtio.iter().map(save).collect()
    }

    /// The registers of the serial console, if there is one.
    pub fn save_serial(&self) -> Option<SerialRegisters> {
        let save = |console: &Console| console.serial.lock().unwrap_or_else(PoisonError::into_inner).registers();
        self.console.as_ref().map(save)
    }

    /// How to have connections with the guest.
    pub fn vsock(&self) -> &Handle {
        &self.vsock
    }

    /// The drives in order.
    pub fn drives(&self) -> &[Arc<Mutex<Block>>] {
        &self.drives
    }

    /// The generation id.
    pub fn generation(&self) -> &GenerationId {
        &self.generation
    }
}

fn eventfd() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

fn interrupt(vm: &VmFd, fd: &EventFd, gsi: u32) -> Result<(), KvmError> {
    vm.register_irqfd(fd, gsi).map_err(KvmError::to("connect an interrupt"))
}

/// The virtio devices of a configuration, and the serial console's output.
fn parts(config: &MachineConfig, files: DeviceFiles) -> Result<(Parts, Option<OwnedFd>), DeviceError> {
    let host = |what| move |source| DeviceError::Host { what, source };
    let counted = |what, expected: usize, found: usize| {
        if expected == found { Ok(()) } else { Err(DeviceError::Files { what, expected, found }) }
    };
    counted("drives", config.drives.len(), files.drives.len())?;
    counted("tap devices", usize::from(config.net.is_some()), usize::from(files.tap.is_some()))?;
    counted("serial outputs", usize::from(config.serial), usize::from(files.serial.is_some()))?;
    let vsock = Vsock::new(config.vsock_cid).map_err(host("vsock device"))?;
    let handle = vsock.handle();
    let mut devices: Vec<Device> = vec![Arc::new(Mutex::new(vsock)), Arc::new(Mutex::new(Entropy::new()))];
    if config.balloon {
        devices.push(Arc::new(Mutex::new(Balloon::new())));
    }
    let mut drives = Vec::new();
    for (drive, file) in config.drives.iter().zip(files.drives) {
        let block = Block::new(file, drive.read_only).map_err(host("drive"))?;
        let block = Arc::new(Mutex::new(block));
        drives.push(Arc::clone(&block));
        devices.push(block);
    }
    if let (Some(net), Some(tap)) = (&config.net, files.tap) {
        let net = Net::new(tap, net.mac).map_err(host("network device"))?;
        devices.push(Arc::new(Mutex::new(net)));
    }
    Ok((Parts { devices, vsock: handle, drives }, files.serial))
}
