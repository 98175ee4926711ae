//! The guest's memory.

/// The memory of a guest: regions of guest-physical addresses, mapped in this process.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
