//! The memory that a clone touches between its restore and its first response: recorded once, brought in ahead of the next.
//!
//! A clone whose working set was populated has that in its page table from the beginning. What it records is therefore no
//! smaller than what it was given. Record with clones that were given nothing, and [`intersect`](WorkingSet::intersect) two
//! recordings to leave out what only one of them happened to touch.

use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;

use super::pagemap::{self, Wanted, Window};
use super::pages::{PAGE_BYTES, PageSet};
use crate::memory::Memory;

/// The unit of a working set: 64 KiB, which is also how much the kernel maps around one read fault.
pub const GRANULE_BYTES: u64 = 64 * 1024;

/// Parts of a memory: sorted, separate ranges of bytes that begin and end at granules, or end with the memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkingSet {
    ranges: Vec<Range<u64>>,
}

/// How memory is brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Shared with all clones, until one writes.
    Read,
    /// A copy for this clone at once: costs memory now, saves a fault at the first write.
    Write,
}

impl WorkingSet {
    /// The working set that covers some ranges of bytes of a memory, which may overlap, be empty, or lie beyond its end.
    pub fn from_ranges(ranges: impl IntoIterator<Item = Range<u64>>, memory_bytes: u64) -> Self {
        let inside = ranges.into_iter().filter(|range| range.start < range.end && range.start < memory_bytes);
        let mut wide: Vec<Range<u64>> = inside
            .map(|range| {
                let start = range.start / GRANULE_BYTES * GRANULE_BYTES;
                start..range.end.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX).min(memory_bytes)
            })
            .collect();
        wide.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in wide {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Self { ranges }
    }

    /// The working set of a running or stopped clone: what is in its page table. `pagemap` is `/proc/PID/pagemap` of its
    /// process, `windows` say where its memory is mapped there.
    pub fn from_pagemap(pagemap: BorrowedFd<'_>, windows: &[Window]) -> io::Result<Self> {
        let mut found: Vec<Range<u64>> = Vec::new();
        for window in windows {
            for range in pagemap::Ranges::new(pagemap, *window, Wanted::Present) {
                let range = range?;
                match found.last_mut() {
                    // One granule or less apart: the same after rounding, and the list stays as short as the memory.
                    Some(last) if range.start / GRANULE_BYTES <= last.end / GRANULE_BYTES => last.end = range.end,
                    _ => found.push(range),
                }
            }
        }
        let end = windows.iter().map(|window| window.offset + window.bytes).max().unwrap_or(0);
        Ok(Self::from_ranges(found, end))
    }

    /// Its ranges as offsets in the memory's file, in order.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// What is in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut ranges = Vec::new();
        while let (Some(mine), Some(theirs)) = (left.peek(), right.peek()) {
            let both = mine.start.max(theirs.start)..mine.end.min(theirs.end);
            if mine.end <= theirs.end {
                left.next()
            } else {
                right.next()
            };
            if both.start < both.end {
                ranges.push(both);
            }
        }
        Self { ranges }
    }

    /// Without what lies beyond the memory's end.
    pub(super) fn within(self, memory_bytes: u64) -> Self {
        if self.ranges.last().is_none_or(|last| last.end <= memory_bytes) {
            return self;
        }
        Self::from_ranges(self.ranges, memory_bytes)
    }

    /// Brings the working set into the page table of this process, and returns how many bytes that were. `memory` is the
    /// clone's; guests may run meanwhile.
    ///
    /// System calls: `madvise` with `MADV_POPULATE_READ` or `MADV_POPULATE_WRITE`, nothing else. Kernels before 5.14 do not
    /// have them; there each page is touched.
    pub fn populate(&self, memory: &Memory, access: Access) -> io::Result<u64> {
        let mut bytes = 0;
        let windows = pagemap::windows(memory);
        for window in &windows {
            for range in &self.ranges {
                let start = range.start.max(window.offset);
                let end = range.end.min(window.offset + window.bytes);
                if start < end {
                    // SAFETY: start..end lies in the window, which the borrowed memory keeps mapped.
                    unsafe { populate(window.address + (start - window.offset), end - start, access)? };
                    bytes += end - start;
                }
            }
        }
        Ok(bytes)
    }

    pub(super) fn to_granules(&self, memory_bytes: u64) -> PageSet {
        let mut granules = PageSet::new(memory_bytes.div_ceil(GRANULE_BYTES));
        for range in &self.ranges {
            granules.insert(range.start / GRANULE_BYTES..range.end.div_ceil(GRANULE_BYTES));
        }
        granules
    }

    pub(super) fn from_granules(granules: &PageSet, memory_bytes: u64) -> Self {
        let bytes = |run: Range<u64>| run.start * GRANULE_BYTES..(run.end * GRANULE_BYTES).min(memory_bytes);
        Self { ranges: granules.runs().map(bytes).collect() }
    }
}

/// # Safety
/// The range is mapped in this process, readable and writable, for as long as the call lasts.
unsafe fn populate(address: u64, bytes: u64, access: Access) -> io::Result<()> {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    loop {
        // SAFETY: the range is mapped; populating changes no content.
        if unsafe { libc::madvise(address as *mut libc::c_void, bytes as usize, advice) } == 0 {
            return Ok(());
        }
        match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(Errno::INTR) => {}
            Some(Errno::INVAL) => {
                // SAFETY: the same range.
                unsafe { touch(address, bytes, access) };
                return Ok(());
            }
            other => return Err(other.unwrap_or(Errno::IO).into()),
        }
    }
}

/// # Safety
/// As for [`populate`].
unsafe fn touch(address: u64, bytes: u64, access: Access) {
    for page in (address..address + bytes).step_by(PAGE_BYTES as usize) {
        // SAFETY: the byte is mapped readable and writable; guests change it at the same time, so it is accessed atomically.
        let byte = unsafe { AtomicU8::from_ptr(page as *mut u8) };
        let found = black_box(byte.load(Ordering::Relaxed));
        if access == Access::Write {
            // Writes back what is there; where that fails, somebody else has just written. (Adding nothing with `fetch_or`
            // would be compiled into a mere read.)
            let _ = byte.compare_exchange(found, black_box(found), Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
