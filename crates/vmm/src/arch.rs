//! What differs between processor architectures: the layout of the guest's addresses, what a kernel finds when it is
//! entered, and the state of virtual processors. One module for each; all offer the same names.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the monitor runs on x86-64 only, build without it on other architectures");

use kvm_ioctls::Error as Errno;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
#[error("kvm cannot {doing}")]
pub struct KvmError {
    doing: &'static str,
    source: Errno,
}

impl KvmError {
    /// For `map_err`: `doing` completes "kvm cannot …".
    pub fn to(doing: &'static str) -> impl Fn(Errno) -> KvmError {
        move |source| KvmError { doing, source }
    }
}

/// A virtio device's place in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First address of its window of registers.
    pub base: u64,
    /// Its interrupt.
    pub gsi: u32,
}
