//! Giving pages of the guest's memory back to the host.

use rustix::fs::FallocateFlags;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::PAGE;
use crate::memory::Memory;

/// Releases the whole pages within `bytes` bytes from `address` on. `None`, and nothing is released, if not all of it is
/// memory.
///
/// That the host does not take a page back, a huge one for example of which only a part is free, is no error: it stays.
pub(super) fn release(memory: &Memory, address: u64, bytes: u64) -> Option<()> {
    let end = address.checked_add(bytes)?;
    let mut parts = Vec::new();
    let mut covered = 0;
    for region in memory.iter() {
        let base = region.start_addr().0;
        let (from, to) = (address.max(base), end.min(base.checked_add(region.len())?));
        if from < to {
            covered += to - from;
            parts.push((region, from - base, to - base));
        }
    }
    if covered != bytes {
        return None;
    }
    for (region, from, to) in parts {
        let (from, to) = (from.next_multiple_of(PAGE), to - to % PAGE);
        if from < to {
            release_in(region, from, to - from);
        }
    }
    Some(())
}

/// Releases pages of one region, in which they lie.
fn release_in(region: &GuestRegionMmap<()>, offset: u64, bytes: u64) {
    let shared = region.flags() & libc::MAP_SHARED != 0;
    match region.file_offset() {
        // The pages belong to the file. The mapping's own part of them goes with the hole.
        Some(file) if shared => {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = rustix::fs::fallocate(file.file(), mode, file.start() + offset, bytes) {
                tracing::debug!(%error, "the host keeps pages of the balloon");
            }
        }
        _ => {
            // What was copied on write is dropped; the next access sees the file's page, or zeros where there is no file.
            let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
            let start = region.as_ptr().wrapping_add(offset as usize);
            // SAFETY: the caller has checked that the range lies in this mapping. Nothing in this process borrows memory
            // of the guest, all accesses are volatile, so that its contents may change at any time.
            if unsafe { libc::madvise(start.cast(), bytes as usize, advice) } != 0 {
                tracing::debug!(error = %std::io::Error::last_os_error(), "the host keeps pages of the balloon");
            }
        }
    }
}
