//! The state of a machine, without its memory, as bytes: a version, then postcard.

use serde::{Deserialize, Serialize};

use crate::arch;
use crate::config::MachineConfig;
use crate::devices::serial::SerialRegisters;
use crate::devices::virtio::mmio::TransportState;

/// Changes whenever the bytes mean something else.
const VERSION: u16 = 1;
/// Longest state in bytes: far more than any machine has.
const MAX_BYTES: usize = 4 << 20;

/// Everything that a machine is but its memory. What KVM and the devices make of it is checked when it is restored.
#[derive(Serialize, Deserialize)]
pub struct MachineState {
    pub(super) config: MachineConfig,
    pub(super) vm: arch::VmState,
    pub(super) vcpus: Vec<arch::VcpuState>,
    pub(super) devices: Vec<TransportState>,
    pub(super) serial: Option<SerialRegisters>,
}

/// Why bytes are no state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Of another version of this program.
    #[error("the machine's state has version {found}, this is version {VERSION}, take a new snapshot")]
    Version {
        /// Its version.
        found: u16,
    },
    /// Too long or too short.
    #[error("the machine's state cannot have {0} bytes, take a new snapshot")]
    Length(usize),
    /// Damaged.
    #[error("the machine's state is damaged, take a new snapshot")]
    Damaged(#[from] postcard::Error),
}

impl MachineState {
    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let bytes = postcard::to_extend(self, VERSION.to_le_bytes().to_vec())?;
        if bytes.len() > MAX_BYTES { Err(DecodeError::Length(bytes.len())) } else { Ok(bytes) }
    }

    /// From bytes, which may be damaged or forged.
    pub fn decode(bytes: &[u8]) -> Result<MachineState, DecodeError> {
        let wrong_length = DecodeError::Length(bytes.len());
        let Some((version, rest)) = bytes.split_at_checked(2).filter(|_| bytes.len() <= MAX_BYTES) else {
            return Err(wrong_length);
        };
        let found = u16::from_le_bytes([version[0], version[1]]);
        if found != VERSION {
            return Err(DecodeError::Version { found });
        }
        match postcard::take_from_bytes(rest)? {
            (state, []) => Ok(state),
            _ => Err(wrong_length),
        }
    }

    /// What the machine is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }
}
