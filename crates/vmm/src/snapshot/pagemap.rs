//! Which pages of a mapping are there, and which of them are the process's own, as `/proc/PID/pagemap` tells
//! (Documentation/admin-guide/mm/pagemap.rst of the kernel).
//!
//! This replaces KVM's dirty log: the log must be switched on before the guest runs, write-protects all memory and costs an
//! exit for each page that is written first. A clone's changed pages are known anyway: they are those that copy-on-write
//! copied.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::Memory;

/// Entries that are asked for at a time.
const BLOCK: usize = 1024;
/// Most bytes in one write; the kernel takes no more than 2 GiB.
const WRITE_BYTES: u64 = 64 << 20;

/// A part of a memory's file that is mapped somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Address in the process that maps it.
    pub address: u64,
    /// Offset in the memory's file.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// Where a memory is mapped in this process. Its regions stand in the file one after another.
pub fn windows(memory: &Memory) -> Vec<Window> {
    let mut offset = 0;
    let mut windows = Vec::new();
    for region in memory.iter() {
        // The region's first byte always has an address.
        if let Ok(address) = region.get_host_address(MemoryRegionAddress::new(0)) {
            windows.push(Window { address: address as u64, offset, bytes: region.len() });
        }
        offset += region.len();
    }
    windows
}

/// Which pages are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All that are in the page table.
    Present,
    /// Those that belong to this process alone: copied from the mapped file on a write, or anonymous. Swapped ones too.
    Private,
}

/// The pages of a mapping that are of some kind, as ranges of offsets in the memory's file: in order, merged where they touch.
/// Reads the page map in blocks. Ends after an error.
///
/// System calls: `ioctl` with `PAGEMAP_SCAN`, and `pread64` where the kernel is older than 6.7.
#[derive(Debug)]
pub struct Ranges<'a> {
    pagemap: BorrowedFd<'a>,
    window: Window,
    wanted: Wanted,
    scan: bool,
    page: u64,
    /// Where the next block begins, as an address.
    at: u64,
    block: std::vec::IntoIter<Range<u64>>,
    last: Option<Range<u64>>,
}

impl<'a> Ranges<'a> {
    /// `pagemap` is `/proc/PID/pagemap` of the process in which the window lies.
    pub fn new(pagemap: BorrowedFd<'a>, window: Window, wanted: Wanted) -> Self {
        Self {
            pagemap,
            window,
            wanted,
            scan: true,
            page: page_bytes(),
            at: window.address,
            block: Vec::new().into_iter(),
            last: None,
        }
    }

    /// The same by reading entries, as on kernels before 6.7.
    #[cfg(test)]
    pub(super) fn by_reading(pagemap: BorrowedFd<'a>, window: Window, wanted: Wanted) -> Self {
        Self { scan: false, ..Self::new(pagemap, window, wanted) }
    }

    /// The next ranges, as addresses; none at the end.
    fn next_block(&mut self) -> io::Result<Vec<Range<u64>>> {
        let end = self.window.address + self.window.bytes;
        let mut ranges = Vec::new();
        while self.at < end && ranges.is_empty() {
            if self.scan {
                match scan(self.pagemap, self.at..end, self.wanted) {
                    Ok((found, walked)) => {
                        // The kernel goes on or is done.
                        self.at = walked.max(self.at + self.page);
                        ranges = found;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self.scan = false,
                    Err(error) => return Err(error),
                }
            } else {
                let pages = (end - self.at).div_ceil(self.page).min(BLOCK as u64);
                ranges = read(self.pagemap, self.at, pages, self.page, self.wanted)?;
                self.at += pages * self.page;
            }
        }
        Ok(ranges)
    }
}

impl Iterator for Ranges<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(range) = self.block.next() else {
                match self.next_block() {
                    Ok(ranges) if ranges.is_empty() => return self.last.take().map(Ok),
                    Ok(ranges) => self.block = ranges.into_iter(),
                    Err(error) => {
                        self.at = self.window.address + self.window.bytes;
                        self.last = None;
                        return Some(Err(error));
                    }
                }
                continue;
            };
            let start = range.start.saturating_sub(self.window.address).min(self.window.bytes);
            let end = range.end.saturating_sub(self.window.address).min(self.window.bytes);
            let range = self.window.offset + start..self.window.offset + end;
            match &mut self.last {
                Some(last) if last.end == range.start => last.end = range.end,
                Some(last) => return Some(Ok(std::mem::replace(last, range))),
                None => self.last = Some(range),
            }
        }
    }
}

/// Writes the private pages of a clone's memory into `out` at their offsets in the memory's file, and returns how many bytes
/// that were. What `out`, an empty memory file, has not got afterwards was not changed.
///
/// Runs in the jailed VMM process with all vCPUs stopped. System calls: `ioctl` with `PAGEMAP_SCAN` and `pread64` on
/// `pagemap`, `pwrite64` on `out`, and those of the allocator (`brk`, `mmap`, `munmap`).
pub fn dump_private(memory: &Memory, pagemap: BorrowedFd<'_>, out: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0;
    for window in windows(memory) {
        for range in Ranges::new(pagemap, window, Wanted::Private) {
            let Range { mut start, end } = range?;
            bytes += end - start;
            while start < end {
                let address = window.address + (start - window.offset);
                let length = (end - start).min(WRITE_BYTES);
                // SAFETY: the range lies in the window, which the borrowed memory keeps mapped; the kernel only reads it.
                let written = unsafe {
                    libc::pwrite(out.as_raw_fd(), address as *const libc::c_void, length as usize, start as libc::off_t)
                };
                match written {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    1.. => start += written as u64,
                    _ => match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::Interrupted => {}
                        error => return Err(error),
                    },
                }
            }
        }
    }
    Ok(bytes)
}

fn page_bytes() -> u64 {
    // SAFETY: has no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // Always known on Linux, and then no smaller than this.
    u64::try_from(bytes).unwrap_or(super::PAGE_BYTES)
}

/// Bits of an entry of the page map.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// Reads a block of entries.
fn read(pagemap: BorrowedFd<'_>, address: u64, pages: u64, page: u64, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
    let mut entries = [0_u8; BLOCK * 8];
    let mut filled = 0;
    let bytes = pages as usize * 8;
    while filled < bytes {
        let offset = address / page * 8 + filled as u64;
        match rustix::io::pread(pagemap, &mut entries[filled..bytes], offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, entry) in entries[..bytes].chunks_exact(8).enumerate() {
        let mut little = [0; 8];
        little.copy_from_slice(entry);
        let entry = u64::from_ne_bytes(little);
        let matches = match wanted {
            Wanted::Present => entry & PRESENT != 0,
            Wanted::Private => entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0,
        };
        if matches {
            let start = address + index as u64 * page;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += page,
                _ => ranges.push(start..start + page),
            }
        }
    }
    Ok(ranges)
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<ScanArguments>() as u64) << 16 | (b'f' as u64) << 8 | 16;
/// `PAGE_IS_*` of linux/fs.h.
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO: u64 = 1 << 5;

/// Asks the kernel for ranges, and returns them with the address up to which it looked.
fn scan(pagemap: BorrowedFd<'_>, range: Range<u64>, wanted: Wanted) -> io::Result<(Vec<Range<u64>>, u64)> {
    let mut regions = [Region::default(); BLOCK];
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: BLOCK as u64,
        ..ScanArguments::default()
    };
    match wanted {
        Wanted::Present => arguments.category_mask = IS_PRESENT,
        // The kernel's page of zeros is private, but stands only where nothing was ever written.
        Wanted::Private => {
            arguments.category_mask = IS_FILE | IS_ZERO;
            arguments.category_inverted = IS_FILE | IS_ZERO;
            arguments.category_anyof_mask = IS_PRESENT | IS_SWAPPED;
        }
    }
    // SAFETY: the structure is the one that the call takes, and `vec` points to `vec_len` regions that it may fill.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &mut arguments) };
    let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
    let regions = regions.iter().take(found).map(|region| region.start..region.end).collect();
    Ok((regions, arguments.walk_end))
}

#[cfg(test)]
mod tests;
