//! Memory files: made, sealed, walked by their data, and scanned for what is in them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;

use super::pages::{PAGE_BYTES, PageSet};
use super::parallel;

/// How much one thread looks at or copies at a time: fits a core's second-level cache with room.
pub(super) const SEGMENT_BYTES: u64 = 512 * 1024;
const SEGMENT_PAGES: u64 = SEGMENT_BYTES / PAGE_BYTES;
const ZERO_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// Makes a memory of that many bytes for a machine: an empty memfd that can be sealed later and never be executed. With
/// `huge`, of the host's reserved pages of 2 MiB.
pub fn memory(bytes: u64, huge: bool) -> io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    // Kernels before 6.3 do not know the flag, and have no memfds that are not executable.
    let memfd = match memfd_create(c"guest-memory", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(c"guest-memory", flags)?,
        other => other?,
    };
    ftruncate(&memfd, bytes)?;
    Ok(memfd)
}

/// Seals content and size for good; `EBUSY` while anybody has it mapped shared and writable.
pub(super) fn seal(memfd: impl AsFd) -> Result<(), Errno> {
    fcntl_add_seals(memfd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
}

/// The parts of a memory file that hold data, as ranges of bytes that begin and end at pages, in order. A part without data
/// reads as zeros.
pub(super) fn extents(memory: &File, bytes: u64) -> impl Iterator<Item = io::Result<Range<u64>>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes {
            return None;
        }
        let found = match seek(memory, SeekFrom::Data(at)) {
            Ok(start) => seek(memory, SeekFrom::Hole(start)).map(|end| start..end),
            Err(Errno::NXIO) => return None,
            Err(errno) => Err(errno),
        };
        match found {
            Ok(range) => {
                let start = range.start / PAGE_BYTES * PAGE_BYTES;
                let end = range.end.next_multiple_of(PAGE_BYTES).min(bytes);
                at = end;
                (start < end).then_some(Ok(start..end))
            }
            Err(errno) => {
                at = bytes;
                Some(Err(errno.into()))
            }
        }
    })
}

/// What is in a memory.
pub(super) struct Content {
    /// The pages that are not all zeros.
    pub(super) pages: PageSet,
    /// A hash of those pages and of where they are.
    pub(super) digest: blake3::Hash,
}

/// Looks at every page that holds data. `bytes` is the file's size, a multiple of the page size.
pub(super) fn scan(memory: &File, bytes: u64) -> io::Result<Content> {
    let mut segments: Vec<u64> = Vec::new();
    for extent in extents(memory, bytes) {
        let extent = extent?;
        let first = (extent.start / SEGMENT_BYTES).max(segments.last().map_or(0, |last| last + 1));
        segments.extend(first..extent.end.div_ceil(SEGMENT_BYTES));
    }
    let found = Mutex::new(Vec::with_capacity(segments.len()));
    parallel::for_each(
        segments.len(),
        || vec![0; SEGMENT_BYTES as usize],
        |buffer, index| {
            let segment = segments[index];
            let start = segment * SEGMENT_BYTES;
            let buffer = &mut buffer[..(bytes - start).min(SEGMENT_BYTES) as usize];
            memory.read_exact_at(buffer, start)?;
            let scanned = scan_segment(buffer);
            found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((segment, scanned));
            Ok::<(), io::Error>(())
        },
    )?;
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_unstable_by_key(|(segment, _)| *segment);
    let mut pages = PageSet::new(bytes / PAGE_BYTES);
    let mut digest = blake3::Hasher::new();
    digest.update(&bytes.to_le_bytes());
    for (segment, (words, hash)) in found {
        if words == [0; SEGMENT_PAGES as usize / 64] {
            continue;
        }
        digest.update(&segment.to_le_bytes());
        for (nth, word) in words.into_iter().enumerate() {
            digest.update(&word.to_le_bytes());
            if word != 0 {
                pages.set_word(segment as usize * words.len() + nth, word);
            }
        }
        digest.update(hash.as_bytes());
    }
    Ok(Content { pages, digest: digest.finalize() })
}

type Words = [u64; SEGMENT_PAGES as usize / 64];

fn scan_segment(segment: &[u8]) -> (Words, blake3::Hash) {
    let mut words = Words::default();
    let mut hasher = blake3::Hasher::new();
    let mut run = 0..0;
    for (index, page) in segment.chunks(PAGE_BYTES as usize).enumerate() {
        if page != &ZERO_PAGE[..page.len()] {
            words[index / 64] |= 1 << (index % 64);
            run.end += page.len();
        } else {
            hasher.update(&segment[run.clone()]);
            run = run.end + page.len()..run.end + page.len();
        }
    }
    hasher.update(&segment[run]);
    (words, hasher.finalize())
}

/// Copies pages from one memory to another at the same place. Pages of zeros are left out with `sparse`.
pub(super) fn copy(from: &File, to: &File, pages: Range<u64>, sparse: bool, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut at = pages.start * PAGE_BYTES;
    let end = pages.end * PAGE_BYTES;
    while at < end {
        buffer.resize((end - at).min(SEGMENT_BYTES) as usize, 0);
        from.read_exact_at(buffer, at)?;
        if sparse {
            for (index, page) in buffer.chunks(PAGE_BYTES as usize).enumerate() {
                if page != ZERO_PAGE {
                    to.write_all_at(page, at + index as u64 * PAGE_BYTES)?;
                }
            }
        } else {
            to.write_all_at(buffer, at)?;
        }
        at += buffer.len() as u64;
    }
    Ok(())
}
