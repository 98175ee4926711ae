//! Memory files: made, sealed, walked by their data, and scanned for what is in them.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fstatfs, ftruncate, memfd_create, seek,
};
use rustix::io::Errno;

use super::pages::{PAGE_BYTES, PageSet};
use super::parallel;

/// How much one thread takes upon itself at a time.
pub(super) const SEGMENT_BYTES: u64 = 512 * 1024;
/// How much is read before it is written: stays in a core's own caches.
const COPY_BYTES: u64 = 64 * 1024;
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

/// Whether it consists of huge pages.
pub(super) fn is_huge(memory: &File) -> io::Result<bool> {
    // `HUGETLBFS_MAGIC` of linux/magic.h; the field has another type on other architectures.
    Ok(fstatfs(memory)?.f_type as u64 & 0xffff_ffff == 0x9584_58f6)
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
    /// A hash of those pages and of where they are, the same for pages of zeros and for holes.
    pub(super) digest: blake3::Hash,
}

/// Looks at every page of a sealed memory that holds data.
pub(super) fn scan(memory: &File, sealed: &Sealed) -> io::Result<Content> {
    let bytes = sealed.len() as u64;
    // Each segment with the data in it. Nothing else is looked at: to read a hole is to fill it with a page of zeros.
    let mut segments: Vec<(u64, Vec<Range<u64>>)> = Vec::new();
    for extent in extents(memory, bytes) {
        let extent = extent?;
        let mut start = extent.start;
        while start < extent.end {
            let segment = start / SEGMENT_BYTES;
            let end = extent.end.min((segment + 1) * SEGMENT_BYTES);
            match segments.last_mut() {
                Some((last, parts)) if *last == segment => parts.push(start..end),
                _ => segments.push((segment, std::iter::once(start..end).collect())),
            }
            start = end;
        }
    }
    let found = Mutex::new(Vec::with_capacity(segments.len()));
    parallel::for_each(
        segments.len(),
        || (),
        |(), index| {
            let (segment, parts) = &segments[index];
            let scanned = scan_segment(sealed, *segment, parts);
            found.lock().unwrap_or_else(PoisonError::into_inner).push((*segment, scanned));
            Ok::<(), io::Error>(())
        },
    )?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable_by_key(|(segment, _)| *segment);
    let mut pages = PageSet::new(bytes / PAGE_BYTES);
    let mut digest = blake3::Hasher::new();
    digest.update(&bytes.to_le_bytes());
    for (segment, (words, hash)) in found {
        if words == Words::default() {
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

/// One bit for each page of a segment.
type Words = [u64; SEGMENT_PAGES as usize / 64];

fn scan_segment(sealed: &Sealed, segment: u64, parts: &[Range<u64>]) -> (Words, blake3::Hash) {
    let mut words = Words::default();
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        sealed.populate(part);
        let mut run = part.start..part.start;
        while run.end < part.end {
            let page = run.end / PAGE_BYTES - segment * SEGMENT_PAGES;
            run.end += PAGE_BYTES;
            if sealed.range(&(run.end - PAGE_BYTES..run.end)) == ZERO_PAGE {
                hasher.update(sealed.range(&(run.start..run.end - PAGE_BYTES)));
                run.start = run.end;
            } else {
                words[page as usize / 64] |= 1 << (page % 64);
            }
        }
        hasher.update(sealed.range(&run));
    }
    (words, hasher.finalize())
}

/// A sealed memory, mapped to be read: several times as fast as reading it with calls.
pub(super) struct Sealed {
    start: NonNull<u8>,
    bytes: usize,
}

impl Sealed {
    /// Maps the whole memory, `bytes` long. Fails when it is not sealed or shorter.
    pub(super) fn map(memory: &File, bytes: u64) -> io::Result<Self> {
        let seals = fcntl_get_seals(memory)?;
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) || memory.metadata()?.len() < bytes as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: a new mapping, wherever the kernel puts it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, memory.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { start, bytes })
    }

    /// The bytes of a range that lies in the memory.
    pub(super) fn range(&self, range: &Range<u64>) -> &[u8] {
        &self[range.start as usize..range.end as usize]
    }

    /// Brings pages in at once; without this they come one by one.
    fn populate(&self, range: &Range<u64>) {
        let part = self.range(range);
        // SAFETY: the range lies in this mapping, and no content changes. Kernels without the call refuse it.
        unsafe { libc::madvise(part.as_ptr().cast_mut().cast(), part.len(), libc::MADV_POPULATE_READ) };
    }
}

impl Deref for Sealed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as self lives; the seals keep everybody from changing or shortening it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, to which nothing points any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: the memory is only read, and nobody can change it.
unsafe impl Send for Sealed {}
// SAFETY: the same.
unsafe impl Sync for Sealed {}

/// Copies pages from a memory that others may be writing, to the same place in another. Pages of zeros are left out.
pub(super) fn copy(from: &File, to: &File, pages: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut at = pages.start * PAGE_BYTES;
    let end = pages.end * PAGE_BYTES;
    while at < end {
        buffer.resize((end - at).min(COPY_BYTES) as usize, 0);
        from.read_exact_at(buffer, at)?;
        let mut run = 0..0;
        for page in buffer.chunks(PAGE_BYTES as usize) {
            if page == ZERO_PAGE {
                to.write_all_at(&buffer[run.clone()], at + run.start as u64)?;
                run.start = run.end + page.len();
            }
            run.end += page.len();
        }
        to.write_all_at(&buffer[run.clone()], at + run.start as u64)?;
        at += buffer.len() as u64;
    }
    Ok(())
}
