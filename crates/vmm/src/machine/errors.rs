//! Why a machine cannot be made, booted, restored or saved: one enum for each.

use std::io;

use super::{ConfigError, DeviceError, DoorError};
use crate::arch::{HostError, KvmError, StateError};
use crate::config::MAX_VCPUS;
use crate::devices::virtio::mmio::RestoreError as TransportError;
use crate::devices::vmgenid::GenerationError;
use crate::loader::LoadError;
use crate::memory::MemoryError;
use crate::vcpu::ThreadError;

/// Why a shell cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// No machine has so many.
    #[error("a machine cannot have {0} vcpus, give it 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// KVM is not what it should be.
    #[error("the host's kvm cannot be used")]
    Host(#[from] HostError),
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A thread could not be had.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// An eventfd could not be had.
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// There is no room for memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Queues cannot be watched.
    #[error(transparent)]
    Doors(#[from] DoorError),
}

/// Why a machine does not boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No machine can be so.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its kernel.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its generation id.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A thread is gone.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// Why a machine cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No machine can be so.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device's state.
    #[error("the state of device {index} cannot be restored")]
    Transport {
        /// Its number.
        index: usize,
        /// Why.
        source: TransportError,
    },
    /// A vCPU's state.
    #[error("the state of vcpu {index} cannot be restored")]
    Vcpu {
        /// Its number.
        index: usize,
        /// Why.
        source: StateError,
    },
    /// Its generation id.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A thread is gone.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// Why a machine cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A thread is gone.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// It has ended.
    #[error("the machine has ended")]
    Ended,
}
