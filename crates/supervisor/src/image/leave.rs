//! How a process leaves an image of itself behind: it writes its own memory to a socket, and ends.
//!
//! It has no other thread, and no help: nobody looks into it from outside, and what it reads here it could read anyway. From
//! the moment at which it will go on elsewhere, until its end, it neither allocates nor frees: its tables are in a mapping of
//! their own, which is not in the image.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;

use super::TRAILER_BYTES;
use super::format::{Extent, Head, Kernels, Layout, PAGE, Region, bytes_of};
use super::machine::{self, Point};
use super::maps::{Mapping, Mappings};
use super::thread::{Thread, thread_base};

/// Most that the list of mappings may be long, in bytes.
const MAX_TEXT: usize = 16 << 20;
const MAX_REGIONS: usize = 32 << 10;
const MAX_EXTENTS: usize = 64 << 10;
const MAX_KERNELS: usize = 16;
/// Pages that are looked at with one call.
const BATCH: usize = 16 << 10;
/// So many pages of zeros between others are written as well: a mapping of their own would cost more.
const GAP: u64 = 16;

// Documentation/admin-guide/mm/pagemap.rst of the kernel.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;
const GUARD: u64 = 1 << 58;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaveError {
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    #[error("{0}")]
    Unfit(&'static str),
}

type Result<T> = std::result::Result<T, LeaveError>;

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> LeaveError {
    move |error| LeaveError::Io(what, error)
}

fn last(what: &'static str) -> LeaveError {
    LeaveError::Io(what, io::Error::last_os_error())
}

/// Writes an image to `socket`, behind what is there already, and ends the process. Returns in a process that has become it, or if
/// something fails before anything is written.
pub(super) fn leave(socket: RawFd) -> Result<()> {
    let thread = Thread::take_down().map_err(failed("take down what the kernel knows of it"))?;
    let layout = layout().map_err(failed("read /proc/self/stat"))?;
    let base = thread_base().map_err(failed("find its thread"))?;
    let (smaps, pagemap) = (open(c"/proc/self/smaps")?, open(c"/proc/self/pagemap")?);
    let scratch = Scratch::map()?;
    scratch.from = From { socket, smaps, pagemap, base, layout };
    let mut point = Point::default();
    // SAFETY: `write_and_end` gets the mapping that it expects, which is never unmapped; what is returned to is this very place, in
    // a process with the same memory.
    let remains = unsafe { machine::leave(&raw mut point, write_and_end, std::ptr::from_mut(scratch).cast()) };
    // From here on in another process, which has no such mapping, and none of the descriptors.
    thread.tell(remains).map_err(failed("tell the kernel what it knew of it"))
}

/// A descriptor that nothing closes: where the process goes on, its number means something else.
fn open(path: &CStr) -> Result<RawFd> {
    // SAFETY: a C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 { Err(last("look at its own memory")) } else { Ok(fd) }
}

/// Fields of `/proc/self/stat` (proc_pid_stat(5)).
fn layout() -> io::Result<Layout> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    // The name, the second field, stands in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ").ok_or_else(malformed)?;
    let field = |number: usize| -> io::Result<u64> {
        let field = rest.split_ascii_whitespace().nth(number - 3).ok_or_else(malformed)?;
        field.parse().map_err(|_| malformed())
    };
    Ok(Layout {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        // As late as possible: it grows.
        brk: 0,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
    })
}

/// What the image is made from.
#[derive(Default)]
struct From {
    socket: RawFd,
    smaps: RawFd,
    pagemap: RawFd,
    base: u64,
    layout: Layout,
}

/// What is needed to write the image, in a mapping of its own.
struct Scratch {
    from: From,
    regions: List<Region, MAX_REGIONS>,
    extents: List<Extent, MAX_EXTENTS>,
    kernels: List<Kernels, MAX_KERNELS>,
    pages: [u64; BATCH],
    text: [u8; MAX_TEXT],
}

struct List<T, const N: usize> {
    count: usize,
    items: [T; N],
}

impl<T: Copy, const N: usize> List<T, N> {
    fn push(&mut self, item: T) -> Result<()> {
        let place = self.items.get_mut(self.count).ok_or(LeaveError::Unfit("it has too many mappings"))?;
        *place = item;
        self.count += 1;
        Ok(())
    }

    fn all(&self) -> &[T] {
        &self.items[..self.count]
    }
}

/// Writes the image and says whether that went well.
unsafe extern "C" fn write_and_end(point: *mut Point, with: *mut u8) -> ! {
    // SAFETY: `leave` has just written it.
    let point = unsafe { point.read() };
    // SAFETY: the mapping of `leave`, which does not use it any more.
    let scratch = unsafe { &mut *with.cast::<Scratch>() };
    let socket = scratch.from.socket;
    let written = write_image(scratch, point);
    let mut trailer = [0; TRAILER_BYTES];
    super::write_trailer(&mut trailer, written.err().map(|error| error.to_string()).as_deref());
    let _ = write(socket, &trailer);
    crate::sys::exit_now(0)
}

fn write_image(scratch: &mut Scratch, point: Point) -> Result<()> {
    let mut layout = scratch.from.layout;
    // SAFETY: asks for the end of the heap.
    layout.brk = unsafe { libc::syscall(libc::SYS_brk, 0) } as u64;
    let length = read_all(scratch.from.smaps, &mut scratch.text)?;
    scan(scratch, length)?;
    let mut head = Head::new(point.stack, point.instruction, scratch.from.base, layout);
    head.regions = scratch.regions.count as u64;
    head.extents = scratch.extents.count as u64;
    head.kernels = scratch.kernels.count as u64;
    let table = head.table_bytes().ok_or(LeaveError::Unfit("it has too many mappings"))?;
    let mut offset = table;
    for extent in &mut scratch.extents.items[..scratch.extents.count] {
        extent.offset = offset;
        offset += extent.end - extent.start;
    }
    let heads = [head];
    let parts = [
        bytes_of(&heads),
        bytes_of(scratch.regions.all()),
        bytes_of(scratch.extents.all()),
        bytes_of(scratch.kernels.all()),
    ];
    let mut written = 0;
    for part in parts {
        write(scratch.from.socket, part)?;
        written += part.len() as u64;
    }
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    write(scratch.from.socket, &ZEROS[..(table - written) as usize])?;
    for extent in scratch.extents.all() {
        write_memory(scratch.from.socket, extent.start, extent.end - extent.start)?;
    }
    Ok(())
}

fn read_all(fd: RawFd, text: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    loop {
        let rest = &mut text[length..];
        // SAFETY: reads into memory of the length that is told.
        match unsafe { libc::read(fd, rest.as_mut_ptr().cast(), rest.len()) } {
            0 if rest.is_empty() => return Err(LeaveError::Unfit("it has too many mappings")),
            0 => return Ok(length),
            count @ 1.. => length += count as usize,
            _ => return Err(last("read /proc/self/smaps")),
        }
    }
}

fn write(fd: RawFd, bytes: &[u8]) -> Result<()> {
    write_memory(fd, bytes.as_ptr() as u64, bytes.len() as u64)
}

/// Writes memory out by its address: what cannot be read is an error, and no crash.
fn write_memory(fd: RawFd, mut start: u64, mut length: u64) -> Result<()> {
    while length > 0 {
        // SAFETY: the kernel reads the memory, and finds out by itself what it may.
        let count = unsafe { libc::write(fd, start as *const libc::c_void, length as usize) };
        if count < 0 {
            if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(last("write its memory out"));
        }
        start += count as u64;
        length -= count as u64;
    }
    Ok(())
}

/// Finds what is mapped, and what of it has a content.
fn scan(scratch: &mut Scratch, length: usize) -> Result<()> {
    let own = std::ptr::from_mut(scratch) as u64;
    let Scratch { from, regions, extents, kernels, pages, text } = scratch;
    for mapping in Mappings(&text[..length]) {
        let mapping = mapping.ok_or(LeaveError::Unfit("its list of mappings cannot be read"))?;
        if mapping.start == own || mapping.is_everywhere() {
            continue;
        }
        if mapping.is_kernels() {
            kernels.push(Kernels::new(mapping.start, mapping.end, mapping.name))?;
            continue;
        }
        check(&mapping)?;
        let grows = u64::from(mapping.has(b"gd"));
        let protection = mapping.protection as u64;
        regions.push(Region { start: mapping.start, end: mapping.end, protection, grows })?;
        // Programs ask for such memory to be forgotten in copies: state of generators of random numbers.
        if !mapping.has(b"wf") && !mapping.has(b"dp") {
            Contents { mapping, pagemap: from.pagemap, pages, extents, run: None, readable: false }.find()?;
        }
    }
    Ok(())
}

fn check(mapping: &Mapping<'_>) -> Result<()> {
    if mapping.shared && mapping.protection & libc::PROT_WRITE != 0 {
        return Err(LeaveError::Unfit("it has memory that is shared with others (mmap with MAP_SHARED)"));
    }
    if mapping.has(b"pf") || mapping.has(b"io") || mapping.has(b"ht") {
        return Err(LeaveError::Unfit("it has a device or huge pages mapped"));
    }
    let known: [&[u8]; 4] = [b"[heap]", b"[stack]", b"[anon:", b"[anon_shmem:"];
    if mapping.name.first() == Some(&b'[') && !known.iter().any(|known| mapping.name.starts_with(known)) {
        return Err(LeaveError::Unfit("it has a mapping of the kernel's that is not known"));
    }
    Ok(())
}

/// Looks for the pages of a mapping that are not zeros.
struct Contents<'a> {
    mapping: Mapping<'a>,
    pagemap: RawFd,
    pages: &'a mut [u64; BATCH],
    extents: &'a mut List<Extent, MAX_EXTENTS>,
    run: Option<(u64, u64)>,
    /// Whether it has been made so, where it is not by itself.
    readable: bool,
}

impl Contents<'_> {
    fn find(mut self) -> Result<()> {
        let Mapping { start, end, has_file, protection, .. } = self.mapping;
        // All of a file that can be read is written out, looked at or not: an image needs no files.
        let whole = has_file && protection != 0;
        let end = if whole { self.end_of_file() } else { end };
        let mut at = start;
        while at < end {
            let batch = (((end - at) / PAGE) as usize).min(BATCH);
            self.look(at, batch)?;
            for index in 0..batch {
                let (entry, page) = (self.pages[index], at + index as u64 * PAGE);
                if entry & GUARD != 0 {
                    self.finish()?;
                    continue;
                }
                let is_there = entry & (PRESENT | SWAPPED) != 0 && !(has_file && entry & OF_A_FILE != 0);
                if (whole || is_there) && !self.is_zero(page)? {
                    self.add(page)?;
                }
            }
            at += batch as u64 * PAGE;
        }
        self.finish()
    }

    fn look(&mut self, at: u64, count: usize) -> Result<()> {
        let bytes = count * size_of::<u64>();
        let offset = (at / PAGE * size_of::<u64>() as u64) as i64;
        // SAFETY: reads into memory that is at least as long.
        let read = unsafe { libc::pread(self.pagemap, self.pages.as_mut_ptr().cast(), bytes, offset) };
        if read == bytes as isize { Ok(()) } else { Err(last("read /proc/self/pagemap")) }
    }

    /// Where a mapping reaches beyond the end of its file, nothing can be read.
    fn end_of_file(&mut self) -> u64 {
        let Mapping { start, end, .. } = self.mapping;
        let fits = |from: u64, to: u64| {
            // SAFETY: brings pages in, and changes nothing. Kernels before 5.14 do not know it, and there nothing is known.
            let result =
                unsafe { libc::madvise(from as *mut libc::c_void, (to - from) as usize, libc::MADV_POPULATE_READ) };
            result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
        };
        let readable = self.mapping.protection & libc::PROT_READ != 0;
        if !readable || fits(start, end) {
            return end;
        }
        (start..end).step_by(PAGE as usize).find(|page| !fits(*page, page + PAGE)).unwrap_or(end)
    }

    fn is_zero(&mut self, page: u64) -> Result<bool> {
        let Mapping { start, end, protection, .. } = self.mapping;
        if protection & libc::PROT_READ == 0 && !self.readable {
            // SAFETY: the process goes on elsewhere, with what its list of mappings said before.
            let changed = unsafe {
                libc::mprotect(start as *mut libc::c_void, (end - start) as usize, protection | libc::PROT_READ)
            };
            if changed != 0 {
                return Err(last("read memory that it may not read itself"));
            }
            self.readable = true;
        }
        // SAFETY: a page of this mapping, which can be read, and which nobody changes meanwhile: there is no other thread.
        let words = unsafe { std::slice::from_raw_parts(page as *const u64, PAGE as usize / size_of::<u64>()) };
        Ok(words.iter().all(|word| *word == 0))
    }

    fn add(&mut self, page: u64) -> Result<()> {
        match &mut self.run {
            Some((_, end)) if page - *end <= GAP * PAGE => *end = page + PAGE,
            _ => {
                self.finish()?;
                self.run = Some((page, page + PAGE));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self.run.take() {
            Some((start, end)) => self.extents.push(Extent { start, end, offset: 0 }),
            None => Ok(()),
        }
    }
}

impl Scratch {
    /// Maps one, all zeros, for as long as the process lives. Shared, since the kernel joins no such mapping with its neighbours.
    fn map() -> Result<&'static mut Scratch> {
        let bytes = size_of::<Scratch>().next_multiple_of(PAGE as usize);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the kernel puts it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags | libc::MAP_NORESERVE, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(last("make room for its tables"));
        }
        // SAFETY: aligned to a page, long enough, zeros are valid for all of its numbers, and nobody else knows of it.
        Ok(unsafe { &mut *start.cast::<Scratch>() })
    }
}
