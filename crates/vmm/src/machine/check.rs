//! Whether a machine can be as a configuration, or a state, says.

use crate::config::{MAX_DRIVES, MAX_VCPUS, MachineConfig};
use crate::devices::virtio::mmio::TransportState;
use crate::memory::{MAX_BYTES, MIN_BYTES};

/// Context ids below this have a meaning of their own.
const FIRST_CID: u32 = 3;

/// Why a machine cannot be so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Number of vCPUs.
    #[error("a machine cannot have {0} vcpus, give it 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// The shell was made for another number.
    #[error("the machine has {wanted} vcpus and the shell {made}, take another shell")]
    Shell {
        /// The machine's.
        wanted: u8,
        /// The shell's.
        made: usize,
    },
    /// Size of memory.
    #[error(
        "a machine cannot have {0} MiB of memory, give it between 32 MiB and 256 GiB, with huge pages an even number"
    )]
    Memory(u32),
    /// Number of drives.
    #[error("a machine cannot have {0} drives, give it {MAX_DRIVES} at most")]
    Drives(usize),
    /// Reserved context id.
    #[error("the context id {0} is reserved, give one from {FIRST_CID}")]
    ContextId(u32),
    /// A state that is not of such a machine.
    #[error("the state has {found} {what} where the machine has {expected}, take a new snapshot")]
    State {
        /// vCPUs or devices.
        what: &'static str,
        /// By the configuration.
        expected: usize,
        /// In the state.
        found: usize,
    },
}

/// Whether a shell of `made` vCPUs can become this machine.
pub fn config(config: &MachineConfig, made: usize) -> Result<(), ConfigError> {
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(ConfigError::Vcpus(config.vcpus));
    }
    if usize::from(config.vcpus) != made {
        return Err(ConfigError::Shell { wanted: config.vcpus, made });
    }
    let is_even = config.memory_mib.is_multiple_of(2);
    if !(MIN_BYTES..=MAX_BYTES).contains(&memory_bytes(config)) || (config.huge_pages && !is_even) {
        return Err(ConfigError::Memory(config.memory_mib));
    }
    if config.drives.len() > MAX_DRIVES {
        return Err(ConfigError::Drives(config.drives.len()));
    }
    if config.vsock_cid < FIRST_CID {
        return Err(ConfigError::ContextId(config.vsock_cid));
    }
    Ok(())
}

/// The same for a state, which must also be of such a machine.
pub fn state(
    machine: &MachineConfig,
    vcpus: usize,
    devices: &[TransportState],
    made: usize,
) -> Result<(), ConfigError> {
    config(machine, made)?;
    if vcpus != made {
        return Err(ConfigError::State { what: "vcpus", expected: made, found: vcpus });
    }
    let expected = device_count(machine);
    if devices.len() != expected {
        return Err(ConfigError::State { what: "devices", expected, found: devices.len() });
    }
    Ok(())
}

/// Memory in bytes.
pub fn memory_bytes(config: &MachineConfig) -> u64 {
    u64::from(config.memory_mib) << 20
}

/// Number of virtio devices: vsock and entropy, and what is asked for.
pub fn device_count(config: &MachineConfig) -> usize {
    2 + usize::from(config.balloon) + config.drives.len() + usize::from(config.net.is_some())
}
