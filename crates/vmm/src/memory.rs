//! The guest's memory: one file, mapped in one piece or two.
//!
//! ```text
//!   guest-physical   0 ............ 3 GiB      4 GiB ............
//!   file             0 ............ 3 GiB      3 GiB ............ bytes
//! ```
//!
//! The gap below 4 GiB belongs to devices and interrupt controllers. A machine that boots maps its file shared, so that
//! the file is the memory; one that is restored maps its template's file privately and copies what it writes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// The memory of a guest: regions of guest-physical addresses, mapped in this process.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// Where low memory ends at the latest.
pub const LOW_END: u64 = 3 << 30;
/// Where the memory begins that does not fit below [`LOW_END`].
pub const HIGH_START: u64 = 4 << 30;
/// Least memory of a machine, in bytes.
pub const MIN_BYTES: u64 = 32 << 20;
/// Most memory of a machine, in bytes.
pub const MAX_BYTES: u64 = 256 << 30;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// A piece of memory that is contiguous for the guest and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its first guest-physical address.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where it lies in the file.
    pub file_offset: u64,
}

/// Why memory cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is none that a machine can have.
    #[error("a machine cannot have {0} bytes of memory, give it whole pages between 32 MiB and 256 GiB")]
    Size(u64),
    /// The file is too short.
    #[error("the memory file has {found} bytes where the machine needs {needed}")]
    Short {
        /// Length of the file in bytes.
        found: u64,
        /// Memory of the machine in bytes.
        needed: u64,
    },
    /// The descriptor could not be duplicated or asked for its length.
    #[error("cannot use the memory file")]
    File(#[source] io::Error),
    /// The kernel refused the mapping.
    #[error("cannot map the guest's memory")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    /// The regions do not go together; this does not happen.
    #[error("the regions of the guest's memory overlap")]
    Overlap,
}

/// The pieces of a memory of `bytes`, in the order of addresses and of the file.
pub fn regions(bytes: u64) -> Vec<Region> {
    let low = bytes.min(LOW_END);
    let mut regions = vec![Region { start: 0, bytes: low, file_offset: 0 }];
    if bytes > low {
        regions.push(Region { start: HIGH_START, bytes: bytes - low, file_offset: low });
    }
    regions
}

/// Where in the file of a memory of `bytes` a guest-physical address lies. `None` if there is no memory there.
pub fn file_offset(bytes: u64, address: u64) -> Option<u64> {
    regions(bytes).iter().find_map(|region| {
        let offset = address.checked_sub(region.start)?;
        (offset < region.bytes).then_some(region.file_offset + offset)
    })
}

/// Maps `fd` so that what the guest writes is in the file: for a machine that boots. `huge` says that the file consists of
/// huge pages.
pub fn shared(fd: &OwnedFd, bytes: u64, huge: bool) -> Result<Memory, MemoryError> {
    map(fd, bytes, libc::MAP_SHARED, huge)
}

/// Maps `fd` so that what the guest writes is its own copy: for a machine that is restored.
pub fn private(fd: &OwnedFd, bytes: u64) -> Result<Memory, MemoryError> {
    map(fd, bytes, libc::MAP_PRIVATE, false)
}

fn map(fd: &OwnedFd, bytes: u64, flags: libc::c_int, huge: bool) -> Result<Memory, MemoryError> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(if huge { HUGE_PAGE } else { PAGE }) {
        return Err(MemoryError::Size(bytes));
    }
    let file = File::from(fd.try_clone().map_err(MemoryError::File)?);
    let found = file.metadata().map_err(MemoryError::File)?.len();
    if found < bytes {
        return Err(MemoryError::Short { found, needed: bytes });
    }
    let file = std::sync::Arc::new(file);
    let map_region = |region: &Region| {
        let mapping = MmapRegionBuilder::new(region.bytes as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), region.file_offset))
            .with_hugetlbfs(huge)
            .build()
            .map_err(MemoryError::Map)?;
        GuestRegionMmap::new(mapping, GuestAddress(region.start)).ok_or(MemoryError::Overlap)
    };
    let mapped = regions(bytes).iter().map(map_region).collect::<Result<Vec<_>, _>>()?;
    Memory::from_regions(mapped).map_err(|_| MemoryError::Overlap)
}

/// The size of a memory in bytes.
pub fn bytes(memory: &Memory) -> u64 {
    memory.iter().map(|region| region.len()).sum()
}

/// Maps the pages of these ranges of the file in advance, so that the guest's first access finds them. They are still
/// shared with the file. What lies outside of the memory is left out; that the kernel refuses changes only the speed.
pub fn populate(memory: &Memory, ranges: &[Range<u64>]) {
    for region in memory.iter() {
        let Some(base) = region.file_offset().map(FileOffset::start) else { continue };
        for range in ranges {
            let start = range.start.max(base) - base;
            let end = range.end.min(base.saturating_add(region.len())).saturating_sub(base);
            let start = start & !(PAGE - 1);
            if start >= end {
                continue;
            }
            let Ok(address) = region.get_host_address(vm_memory::MemoryRegionAddress(start)) else { continue };
            // SAFETY: the range lies in a mapping that `memory` keeps alive, and reading its pages changes nothing.
            unsafe {
                libc::madvise(address.cast(), (end - start) as usize, libc::MADV_POPULATE_READ);
            }
        }
    }
}

#[cfg(test)]
mod tests;
