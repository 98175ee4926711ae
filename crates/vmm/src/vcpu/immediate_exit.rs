//! The flag that makes `KVM_RUN` return at once, in the page that a vCPU shares with KVM.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

const PAGE: usize = 4096;

/// A mapping of its own of the first shared page, so that it can be used from any thread while the vCPU's own thread has
/// the [`VcpuFd`].
pub struct ImmediateExit(NonNull<u8>);

// SAFETY: only one byte of the mapping is ever touched, by atomic operations.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The flag of this vCPU.
    pub fn of(vcpu: &VcpuFd) -> io::Result<ImmediateExit> {
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let page = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), 0)
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(ImmediateExit).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether the next `KVM_RUN` is to return at once.
    pub fn set(&self, flag: bool) {
        const { assert!(offset_of!(kvm_run, immediate_exit) < PAGE) };
        // SAFETY: the byte lies in the mapping, which lives as long as `self`; in this process nobody accesses it otherwise
        // by this mapping.
        let byte = unsafe { AtomicU8::from_ptr(self.0.as_ptr().add(offset_of!(kvm_run, immediate_exit))) };
        byte.store(u8::from(flag), Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `of`, and nobody uses it after this.
        unsafe {
            libc::munmap(self.0.as_ptr().cast(), PAGE);
        }
    }
}
