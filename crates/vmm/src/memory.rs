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
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

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

const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
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
    /// The kernel refused addresses, or a mapping at these.
    #[error("cannot place the guest's memory")]
    Place(#[source] io::Error),
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
    map(None, fd, bytes, libc::MAP_SHARED, huge)
}

/// Maps `fd` so that what the guest writes is its own copy: for a machine that is restored.
pub fn private(fd: &OwnedFd, bytes: u64) -> Result<Memory, MemoryError> {
    map(None, fd, bytes, libc::MAP_PRIVATE, false)
}

fn map(room: Option<&Room>, fd: &OwnedFd, bytes: u64, flags: libc::c_int, huge: bool) -> Result<Memory, MemoryError> {
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
        let mut builder = MmapRegionBuilder::new(region.bytes as usize)
            .with_mmap_prot(PROTECTION)
            .with_mmap_flags(flags | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), region.file_offset))
            .with_hugetlbfs(huge);
        if let Some(room) = room.filter(|_| region.start == 0) {
            let place =
                room.fill(fd, region.bytes as usize, flags | libc::MAP_NORESERVE).map_err(MemoryError::Place)?;
            // SAFETY: the pointer is that of a mapping of this length, and a room's addresses are never given back.
            builder = unsafe { builder.with_raw_mmap_pointer(place) };
        }
        let mapping = builder.build().map_err(MemoryError::Map)?;
        GuestRegionMmap::new(mapping, GuestAddress(region.start)).ok_or(MemoryError::Overlap)
    };
    let mapped = regions(bytes).iter().map(map_region).collect::<Result<Vec<_>, _>>()?;
    Memory::from_regions(mapped).map_err(|_| MemoryError::Overlap)
}

/// Addresses of this process set aside for the low memory of a machine, so that KVM can be told of them before it is known
/// what memory there will be: telling it waits for all processors of the host, which takes milliseconds. What a guest touches
/// beyond its memory is then an error of KVM's, not an access to a device.
///
/// Dropping it forgets the memory; the addresses are never used again, so that whoever still has the [`Memory`] faults.
pub struct Room(NonNull<u8>);

// SAFETY: it is only a number of addresses; what lies there is accessed through `Memory`.
unsafe impl Send for Room {}

impl Room {
    /// Sets addresses aside, [`LOW_END`] bytes of them.
    pub fn new() -> Result<Room, MemoryError> {
        // Huge pages need addresses that are multiples of their size.
        let bytes = (LOW_END + HUGE_PAGE) as usize;
        let start = Room::nothing_at(None, bytes).map_err(MemoryError::Place)?;
        let aligned = start.map_addr(|address| address.next_multiple_of(HUGE_PAGE as usize));
        NonNull::new(aligned).map(Room).ok_or(MemoryError::Overlap)
    }

    /// The first address.
    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// As [`shared`], with the low memory here.
    pub fn shared(&self, fd: &OwnedFd, bytes: u64, huge: bool) -> Result<Memory, MemoryError> {
        map(Some(self), fd, bytes, libc::MAP_SHARED, huge)
    }

    /// As [`private`], with the low memory here.
    pub fn private(&self, fd: &OwnedFd, bytes: u64) -> Result<Memory, MemoryError> {
        map(Some(self), fd, bytes, libc::MAP_PRIVATE, false)
    }

    /// Maps the start of a file here.
    fn fill(&self, fd: &OwnedFd, bytes: usize, flags: libc::c_int) -> io::Result<*mut u8> {
        debug_assert!(bytes as u64 <= LOW_END);
        // SAFETY: the addresses are this room's, which nobody else uses.
        let start = unsafe {
            libc::mmap(self.0.as_ptr().cast(), bytes, PROTECTION, flags | libc::MAP_FIXED, fd.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start.cast()) }
    }

    /// Makes addresses inaccessible: `at` those of a room, or anywhere.
    fn nothing_at(at: Option<*mut u8>, bytes: usize) -> io::Result<*mut u8> {
        let fixed = if at.is_some() { libc::MAP_FIXED } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
        let at = at.unwrap_or(std::ptr::null_mut()).cast();
        // SAFETY: either the kernel chooses free addresses, or they are those of a room that nobody uses any more.
        let start = unsafe { libc::mmap(at, bytes, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start.cast()) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = Room::nothing_at(Some(self.0.as_ptr()), LOW_END as usize) {
            tracing::error!(%error, "cannot give the guest's memory back");
        }
    }
}

/// The size of a memory in bytes.
pub fn bytes(memory: &Memory) -> u64 {
    memory.iter().map(|region| region.len()).sum()
}

#[cfg(test)]
mod tests;
