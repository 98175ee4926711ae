//! The generation id: 16 random bytes in the guest's memory that are others in every clone, and an interrupt that says so.
//! The guest's kernel reseeds its random numbers when it hears it.
//!
//! Source: "Virtual Machine Generation ID", Microsoft.

use std::io;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::Memory;

/// Length of the id in bytes.
const BYTES: usize = 16;

/// The device.
pub struct GenerationId {
    address: GuestAddress,
    changed: EventFd,
}

/// Why a machine has no generation id.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The host gave no random bytes or no eventfd.
    #[error("cannot make a generation id")]
    Host(#[from] io::Error),
    /// There is no memory where it should be; this does not happen.
    #[error("there is no memory for the generation id")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

impl GenerationId {
    /// An id at `address` of the guest's memory, not written yet.
    pub fn new(address: u64) -> io::Result<GenerationId> {
        Ok(GenerationId { address: GuestAddress(address), changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Writes a new id. The guest must not run meanwhile.
    pub fn renew(&self, memory: &Memory) -> Result<(), GenerationError> {
        let mut id = [0; BYTES];
        let got = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(io::Error::from)?;
        if got < BYTES {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        memory.write_slice(&id, self.address)?;
        Ok(())
    }

    /// Interrupts the guest, which then looks at the id.
    pub fn announce(&self) {
        // Full means that it is announced already.
        let _ = self.changed.write(1);
    }

    /// What KVM is to turn into the interrupt.
    pub fn interrupt(&self) -> &EventFd {
        &self.changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn every_id_is_another() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(memory::MIN_BYTES).unwrap();
        let memory = memory::private(&file.into(), memory::MIN_BYTES).unwrap();
        let generation = GenerationId::new(0xf_f000).unwrap();
        let read = || memory.read_obj::<[u8; BYTES]>(GuestAddress(0xf_f000)).unwrap();
        let mut seen = vec![read()];
        for _ in 0..3 {
            generation.renew(&memory).unwrap();
            assert!(!seen.contains(&read()));
            seen.push(read());
        }
        generation.announce();
        assert_eq!(generation.interrupt().read().unwrap(), 1);
    }
}
