//! The registers of the MMIO transport (4.2.2) and the rules of the device status (2.1, 3.1): what each write means. Pure,
//! apart from the interrupt's own bits.

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;

use crate::devices::virtio::{F_VERSION_1, Interrupt, QueueState, VirtioDevice};
use crate::memory::Memory;

/// Start of the configuration space.
pub(super) const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = super::QUEUE_NOTIFY;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DESC_HIGH: u64 = 0x84;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DRIVER_HIGH: u64 = 0x94;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const QUEUE_DEVICE_HIGH: u64 = 0xa4;
const SHM_LEN_LOW: u64 = 0xb0;
const SHM_LEN_HIGH: u64 = 0xb4;
const SHM_BASE_LOW: u64 = 0xb8;
const SHM_BASE_HIGH: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// "Firelet" has no vendor number; any will do, as drivers do not look at it.
const VENDOR: u32 = u32::from_le_bytes(*b"FLET");

/// The registers' contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) kind: u32,
    offered: u64,
    /// The features that the driver took.
    pub(super) accepted: u64,
    maxima: Vec<u16>,
    /// As the driver set them up; how far each has come is the device's affair until a snapshot.
    pub(super) queues: Vec<QueueState>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

/// What a write has caused outside of the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver made buffers of this queue available.
    Notify(usize),
    /// The driver has seen these bits of the interrupt status.
    Acknowledge(u32),
    /// The device is to forget the driver.
    Reset,
    /// The driver set DRIVER_OK.
    DriverReady,
}

impl Registers {
    pub(super) fn new(device: &dyn VirtioDevice) -> Registers {
        let maxima = device.queue_sizes().to_vec();
        Registers {
            kind: device.kind(),
            offered: device.features() | F_VERSION_1,
            accepted: 0,
            queues: unused(&maxima),
            maxima,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        }
    }

    /// Whether a driver of `device` can have brought these contents about.
    pub(super) fn fit(&self, device: &dyn VirtioDevice) -> bool {
        let fresh = Registers::new(device);
        let orderly = |later: u32, earlier: u32| self.status & later == 0 || self.status & earlier != 0;
        self.kind == fresh.kind
            && self.offered == fresh.offered
            && self.maxima == fresh.maxima
            && self.queues.len() == fresh.queues.len()
            && self.status & !(ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED) == 0
            && orderly(DRIVER, ACKNOWLEDGE)
            && orderly(FEATURES_OK, DRIVER)
            && orderly(DRIVER_OK, FEATURES_OK)
            && (self.status & FEATURES_OK == 0 || self.features_are_acceptable())
    }

    /// Whether DRIVER_OK is set.
    pub(super) fn driver_is_ready(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The queues as set up. `None` if one cannot be.
    pub(super) fn build(&self, memory: &Memory) -> Option<Vec<Queue>> {
        self.queues.iter().zip(&self.maxima).map(|(queue, max)| queue.build(*max, self.accepted, memory)).collect()
    }

    pub(super) fn read(&self, offset: u64, interrupt: &Interrupt) -> u32 {
        match offset {
            MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            VERSION => 2,
            DEVICE_ID => self.kind,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            QUEUE_NUM_MAX => self.maxima.get(self.queue_sel as usize).map_or(0, |max| u32::from(*max)),
            QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready)),
            INTERRUPT_STATUS => interrupt.status(),
            STATUS => self.status | if interrupt.is_broken() { NEEDS_RESET } else { 0 },
            // No shared memory region: its length reads as -1 (4.2.2.1).
            SHM_LEN_LOW | SHM_LEN_HIGH | SHM_BASE_LOW | SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => interrupt.generation(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES if self.status & DRIVER != 0 && self.status & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.driver_features_sel, value);
            }
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_READY => {
                if let Some(queue) = self.configurable() {
                    queue.ready = value & 1 != 0;
                }
            }
            QUEUE_NUM | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => {
                if let Some(queue) = self.configurable().filter(|queue| !queue.ready) {
                    set_up(queue, offset, value);
                }
            }
            QUEUE_NOTIFY => return Effect::Notify(value as usize),
            INTERRUPT_ACK => return Effect::Acknowledge(value),
            STATUS => return self.set_status(value),
            _ => {}
        }
        Effect::None
    }

    /// The driver may add bits in order, and clear them only all at once (2.1.1).
    fn set_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.status = 0;
            self.accepted = 0;
            self.queues = unused(&self.maxima);
            return Effect::Reset;
        }
        let added = value & !self.status;
        let mut effect = Effect::None;
        for (bit, needed) in [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)]
        {
            if added & bit == 0 || self.status & needed != needed || self.status & FAILED != 0 {
                continue;
            }
            if bit == FEATURES_OK && !self.features_are_acceptable() {
                continue;
            }
            self.status |= bit;
            if bit == DRIVER_OK {
                effect = Effect::DriverReady;
            }
        }
        self.status |= added & FAILED;
        effect
    }

    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn selected(&self) -> Option<&QueueState> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, if this is the time to set queues up.
    fn configurable(&mut self) -> Option<&mut QueueState> {
        let time = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        self.queues.get_mut(self.queue_sel as usize).filter(|_| time)
    }
}

fn unused(maxima: &[u16]) -> Vec<QueueState> {
    maxima.iter().map(|max| QueueState { size: *max, ..QueueState::default() }).collect()
}

fn set_up(queue: &mut QueueState, offset: u64, value: u32) {
    match offset {
        // What does not fit is no valid size and is found when the queue is built.
        QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
        QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
        QUEUE_DRIVER_LOW => set_half(&mut queue.available, 0, value),
        QUEUE_DRIVER_HIGH => set_half(&mut queue.available, 1, value),
        QUEUE_DEVICE_LOW => set_half(&mut queue.used, 0, value),
        QUEUE_DEVICE_HIGH => set_half(&mut queue.used, 1, value),
        _ => {}
    }
}

/// The low (0) or high (1) half of `value`; there are no others.
fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(target: &mut u64, which: u32, value: u32) {
    match which {
        0 => *target = *target & !0xffff_ffff | u64::from(value),
        1 => *target = *target & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
