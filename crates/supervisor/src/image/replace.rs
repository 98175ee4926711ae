//! How a process becomes another one of which there is an image: it replaces its own memory, and goes on where that one left.
//!
//! ```text
//! what is there -- unmapped --.      .-- mapped from the image -- what was there
//!                              calls
//! the kernel's own code -------'      '-- moved to where it was
//! ```
//!
//! A table of system calls and the few instructions that make them are put where both have nothing. Confinement, user, limits,
//! descriptors, directories and name of the sandbox are this process' own, and stay: only memory changes. Nothing here takes a
//! privilege.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use super::format::{Damage, Extent, Kernels, Layout, PAGE, Region, TOP, Table};
use super::machine::{self, Point};
use super::maps::Mappings;
use super::thread::{Sequences, block_signals};

/// Most that the stack of a program grows to, in bytes: what the limit of every tenant is.
const STACK: u64 = 8 << 20;
/// Kept free around what is put between: the kernel wants room below a stack, and a heap may grow.
const MARGIN: u64 = 64 << 20;
/// Longest table of an image.
const MAX_TABLE: u64 = 64 << 20;
/// What is written when all went well.
const WORD: &[u8] = b"k";

// linux/prctl.h
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const ARCH_SET_FS: u64 = 0x1002;

/// Why a process did not become another one.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplaceError {
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error("this kernel does not have the same code for programs as the one that the image was made on")]
    Kernel,
    #[error("there is no room between its memory and the image's")]
    Room,
    #[error("its list of mappings cannot be read")]
    Mappings,
    #[error("its C library's area for restartable sequences cannot be taken back")]
    Sequences,
}

type Result<T> = std::result::Result<T, ReplaceError>;

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ReplaceError {
    move |error| ReplaceError::Io(what, error)
}

/// A system call: its number, six arguments, and room for its error.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Call([u64; 8]);

fn call(number: i64, arguments: [u64; 6]) -> Call {
    let [a, b, c, d, e, f] = arguments;
    Call([number as u64, a, b, c, d, e, f, 0])
}

/// `struct prctl_mm_map` (linux/prctl.h): without auxiliary vector and program.
#[repr(C)]
struct MemoryMap {
    layout: Layout,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Becomes the process of the image at the position of `image`, which is mapped from there; says so on `socket`, and closes all three.
/// Returns only if something fails before the first change; later, the call that failed is written to `socket`, and the process ends.
pub(super) fn replace(library: RawFd, image: RawFd, socket: RawFd) -> Result<std::convert::Infallible> {
    let (table, begin) = read_table(image)?;
    let text = std::fs::read("/proc/self/maps").map_err(failed("read /proc/self/maps"))?;
    let mine = Mine::parse(&text)?;
    let stage = Stage::find(&table, &mine)?;
    let calls = calls(&table, begin, &mine, &stage, [library, image, socket])?;
    let first = stage.build(&table, &calls)?;
    block_signals().map_err(failed("block signals"))?;
    if Sequences::of_the_library().is_none() && Sequences::are_registered() {
        return Err(ReplaceError::Sequences);
    }
    let end = first.wrapping_add(calls.len());
    // SAFETY: the code of a `Replace`, in a mapping that may be executed.
    let replace: machine::Replace = unsafe { std::mem::transmute(stage.start as *const u8) };
    let point = (stage.start + stage.point) as *const Point;
    // SAFETY: everything that it needs is on the stage, which no call of the table touches.
    unsafe { replace(first, end, point, stage.start, stage.bytes, socket as u64) }
}

/// The table of the image, and where it begins in its file.
fn read_table(image: RawFd) -> Result<(Table, u64)> {
    // SAFETY: the caller's descriptor, open for as long as this runs.
    let file = unsafe { BorrowedFd::borrow_raw(image) };
    let begin = rustix::fs::tell(file).map_err(|error| failed("find the image")(error.into()))?;
    if !begin.is_multiple_of(PAGE) {
        return Err(Damage::Address.into());
    }
    let read = |length: usize| -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match rustix::io::pread(file, &mut bytes[filled..], begin + filled as u64) {
                Ok(0) => return Err(Damage::Short.into()),
                Ok(count) => filled += count,
                Err(error) => return Err(failed("read the image")(error.into())),
            }
        }
        Ok(bytes)
    };
    let length = Table::length(&read(PAGE as usize)?)?;
    if length > MAX_TABLE {
        return Err(Damage::Short.into());
    }
    Ok((Table::parse(&read(length as usize)?)?, begin))
}

/// What is mapped in this process.
#[derive(Debug, Default)]
struct Mine {
    all: Vec<(u64, u64)>,
    kernels: Vec<Kernels>,
}

impl Mine {
    fn parse(text: &[u8]) -> Result<Mine> {
        let mut mine = Mine::default();
        for mapping in Mappings(text) {
            let mapping = mapping.ok_or(ReplaceError::Mappings)?;
            if mapping.is_everywhere() {
                continue;
            }
            if mapping.is_kernels() {
                mine.kernels.push(Kernels::new(mapping.start, mapping.end, mapping.name));
            }
            mine.all.push((mapping.start, mapping.end));
        }
        Ok(mine)
    }
}

/// A region with the room that it may take.
fn room(regions: &[Region], index: usize) -> (u64, u64) {
    let Region { start, end, grows, .. } = regions[index];
    if grows == 0 {
        return (start, end);
    }
    let below = index.checked_sub(1).map_or(0, |index| regions[index].end) + MARGIN / 64;
    (start.min(end.saturating_sub(STACK).max(below)), end)
}

/// Where the calls are made from: free in both memories.
///
/// ```text
///   code | point, map of the memory, word | calls | the kernel's mappings, on their way
/// ```
struct Stage {
    start: u64,
    bytes: u64,
    point: u64,
    map: u64,
    word: u64,
    calls: u64,
    /// How many fit.
    room: usize,
    kernels: u64,
}

impl Stage {
    fn find(table: &Table, mine: &Mine) -> Result<Stage> {
        let room_for = 64 + mine.kernels.len() * 2 + table.regions.len() + table.extents.len();
        let (data, calls) = (PAGE, 2 * PAGE);
        let kernels = (calls + (room_for * size_of::<Call>()) as u64).next_multiple_of(PAGE);
        let bytes = kernels + mine.kernels.iter().map(|kernels| kernels.end - kernels.start).sum::<u64>();
        let mut taken: Vec<(u64, u64)> = (0..table.regions.len()).map(|index| room(&table.regions, index)).collect();
        taken.extend(table.kernels.iter().map(|kernels| (kernels.start, kernels.end)));
        taken.extend(&mine.all);
        taken.push((0, MARGIN));
        taken.sort_unstable();
        let mut end = 0;
        let mut start = None;
        for (from, to) in taken.into_iter().chain([(TOP, TOP)]) {
            if from.saturating_sub(end) >= bytes + 2 * MARGIN {
                start = Some(end + MARGIN);
                break;
            }
            end = end.max(to);
        }
        let start = start.ok_or(ReplaceError::Room)?;
        Ok(Stage { start, bytes, point: data, map: data + 64, word: data + 512, calls, room: room_for, kernels })
    }

    /// Makes it; returns the first of the calls.
    fn build(&self, table: &Table, calls: &[Call]) -> Result<*const Call> {
        let code = machine::replace_code();
        if code.len() as u64 > PAGE || calls.len() > self.room {
            return Err(ReplaceError::Room);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let (address, bytes) = (self.start as *mut libc::c_void, self.kernels as usize);
        // SAFETY: nothing is there, and nothing is replaced.
        let start = unsafe { libc::mmap(address, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start != address {
            return Err(failed("make a stage")(io::Error::last_os_error()));
        }
        let start = start.cast::<u8>();
        let first = start.wrapping_add(self.calls as usize).cast::<Call>();
        let map = MemoryMap { layout: table.head.layout, auxv: 0, auxv_size: 0, exe_fd: u32::MAX };
        let point = Point { stack: table.head.stack, instruction: table.head.instruction };
        // SAFETY: all of it lies in the mapping just made, at places that are aligned and apart from each other.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), start, code.len());
            start.add(self.point as usize).cast::<Point>().write(point);
            start.add(self.map as usize).cast::<MemoryMap>().write(map);
            std::ptr::copy_nonoverlapping(WORD.as_ptr(), start.add(self.word as usize), WORD.len());
            std::ptr::copy_nonoverlapping(calls.as_ptr(), first, calls.len());
        }
        // SAFETY: a page of that mapping, in which the code is.
        if unsafe { libc::mprotect(address, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
            return Err(failed("make the stage's code run")(io::Error::last_os_error()));
        }
        Ok(first)
    }
}

/// All that makes one memory out of the other.
fn calls(table: &Table, begin: u64, mine: &Mine, stage: &Stage, fds: [RawFd; 3]) -> Result<Vec<Call>> {
    let [library, image, socket] = fds;
    let alike =
        |one: &Kernels, other: &Kernels| one.name == other.name && one.end - one.start == other.end - other.start;
    if mine.kernels.len() != table.kernels.len() || !mine.kernels.iter().zip(&table.kernels).all(|(a, b)| alike(a, b)) {
        return Err(ReplaceError::Kernel);
    }
    let mut calls = Vec::new();
    // Everything else, from one thing that stays to the next.
    let mut stays: Vec<(u64, u64)> = mine.kernels.iter().map(|kernels| (kernels.start, kernels.end)).collect();
    stays.push((stage.start, stage.start + stage.kernels));
    stays.sort_unstable();
    let mut at = PAGE;
    for (start, end) in stays.into_iter().chain([(TOP, TOP)]) {
        if start > at {
            calls.push(call(libc::SYS_munmap, [at, start - at, 0, 0, 0, 0]));
        }
        at = end;
    }
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let mut way = stage.start + stage.kernels;
    let mut moves = Vec::new();
    for (from, to) in mine.kernels.iter().zip(&table.kernels) {
        let bytes = from.end - from.start;
        // Where it is going, another one may still be: they wait aside.
        calls.push(call(libc::SYS_mremap, [from.start, bytes, bytes, flags, way, 0]));
        moves.push(call(libc::SYS_mremap, [way, bytes, bytes, flags, to.start, 0]));
        way += bytes;
    }
    calls.append(&mut moves);
    let mut extents = table.extents.as_slice();
    for index in 0..table.regions.len() {
        let region = &table.regions[index];
        let count = extents.partition_point(|extent| extent.start < region.end);
        let (own, others) = extents.split_at(count);
        map(&mut calls, room(&table.regions, index), region, own, begin, image);
        extents = others;
    }
    let map_of_memory = stage.start + stage.map;
    calls.push(call(libc::SYS_prctl, [PR_SET_MM, PR_SET_MM_MAP, map_of_memory, size_of::<MemoryMap>() as u64, 0, 0]));
    calls.push(call(libc::SYS_arch_prctl, [ARCH_SET_FS, table.head.thread, 0, 0, 0, 0]));
    for fd in [library, image] {
        calls.push(call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]));
    }
    calls.push(call(libc::SYS_write, [socket as u64, stage.start + stage.word, WORD.len() as u64, 0, 0, 0]));
    calls.push(call(libc::SYS_close, [socket as u64, 0, 0, 0, 0, 0]));
    Ok(calls)
}

/// Maps a region: zeros, and over them what is in the image. A stack is copied instead: the kernel shows a command line only from memory
/// that is no file's, and the C library takes one mapping for all of the stack.
fn map(calls: &mut Vec<Call>, room: (u64, u64), region: &Region, extents: &[Extent], begin: u64, image: RawFd) {
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE) as u64;
    let (start, end) = room;
    let is_all = extents.first().is_some_and(|extent| extent.start == start && extent.end == end);
    if !is_all || region.grows != 0 {
        let anonymous = flags | libc::MAP_ANONYMOUS as u64;
        calls.push(call(libc::SYS_mmap, [start, end - start, region.protection, anonymous, u64::MAX, 0]));
    }
    for Extent { start, end, offset } in extents {
        let (bytes, offset) = (end - start, begin + offset);
        calls.push(if region.grows != 0 {
            call(libc::SYS_pread64, [image as u64, *start, bytes, offset, 0, 0])
        } else {
            call(libc::SYS_mmap, [*start, bytes, region.protection, flags, image as u64, offset])
        });
    }
}
