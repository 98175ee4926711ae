//! Kernel and initial file system: reads an ELF kernel (a `vmlinux`) into the guest's memory and finds room for an
//! initramfs. Every header is taken for hostile: bounded and checked before the first byte is copied.
//!
//! Format: "Tool Interface Standard (TIS) Executable and Linking Format (ELF)", with the 64-bit fields of the System V ABI.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::memory::Memory;

/// Most program headers of a kernel; a vmlinux has five.
const MAX_SEGMENTS: usize = 64;
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Most bytes of a kernel's notes that are looked at; Linux has a few hundred.
const MAX_NOTES: u64 = 64 << 10;
/// The note that says where a kernel is entered by PVH: its name with the final zero, and its type
/// (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: (&[u8], u32) = (b"Xen\0", 18);
const PAGE: u64 = 4096;

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the {what}")]
    Read {
        /// Kernel or initramfs.
        what: &'static str,
        /// What the kernel of the host said.
        source: io::Error,
    },
    /// Not a 64-bit ELF file of this architecture.
    #[error("the kernel is no ELF executable of this architecture, give a vmlinux")]
    NotAKernel,
    /// The program headers cannot be.
    #[error("the kernel's program headers are damaged: {0}")]
    Damaged(&'static str),
    /// The kernel cannot be entered by the protocol that was asked for.
    #[error(
        "the kernel has no note that says where PVH enters it: build it with CONFIG_PVH, or use Linux's 64-bit protocol"
    )]
    NoPvh,
    /// A part of the kernel does not fit where it wants to be.
    #[error("the kernel wants memory from {start:#x} to {end:#x}, which the machine has not, give it more memory")]
    NoRoom {
        /// First address.
        start: u64,
        /// End of the addresses.
        end: u64,
    },
    /// The initramfs does not fit beside the kernel.
    #[error("the initramfs of {bytes} bytes does not fit beside the kernel, give the machine more memory")]
    InitramfsTooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The command line is too long or holds a zero byte.
    #[error("the kernel's command line must have less than {max} bytes and no zero byte")]
    CommandLine {
        /// Most bytes, the final zero included.
        max: usize,
    },
    /// The tables that tell the kernel of the machine do not fit.
    #[error("the machine's tables do not fit into {0} bytes")]
    Tables(u64),
}

/// A kernel in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Where it is entered: a guest-physical address.
    pub entry: u64,
    /// Where PVH enters it, if it can.
    pub pvh_entry: Option<u32>,
    /// The end of the addresses that it occupies, with what it wants zeroed.
    pub end: u64,
}

/// A part of the file and where in memory it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    offset: u64,
    in_file: u64,
    address: u64,
    /// With what follows the file's part and is zero.
    in_memory: u64,
}

/// Loads `file` into memory that is zero, at the physical addresses that its program headers ask for. They must lie in
/// `room`, which must be one region of the memory. `machine` is the ELF number of the architecture.
pub fn kernel(memory: &Memory, file: &File, room: Range<u64>, machine: u16) -> Result<Kernel, LoadError> {
    let Parsed { entry, segments, pvh_entry } = parse(file, &room, machine)?;
    for segment in &segments {
        copy(memory, file, segment.offset, segment.address, segment.in_file, "kernel")?;
    }
    let end = segments.iter().map(|segment| segment.address + segment.in_memory).max().unwrap_or(entry);
    Ok(Kernel { entry, pvh_entry, end })
}

/// Loads `file` as high as it fits into `room`, at a page's start. Returns the addresses that it occupies.
pub fn initramfs(memory: &Memory, file: &File, room: Range<u64>) -> Result<Range<u64>, LoadError> {
    let bytes = file.metadata().map_err(|source| LoadError::Read { what: "initramfs", source })?.len();
    let start = room.end.checked_sub(bytes).map(|start| start & !(PAGE - 1)).filter(|start| *start >= room.start);
    let start = start.ok_or(LoadError::InitramfsTooLarge { bytes })?;
    copy(memory, file, 0, start, bytes, "initramfs")?;
    Ok(start..start + bytes)
}

/// What an ELF file says of itself.
struct Parsed {
    entry: u64,
    /// In the order of their addresses.
    segments: Vec<Segment>,
    pvh_entry: Option<u32>,
}

/// The entries and what to load, all of it checked against `room`.
fn parse(file: &File, room: &Range<u64>, machine: u16) -> Result<Parsed, LoadError> {
    let read = |source| LoadError::Read { what: "kernel", source };
    let file_bytes = file.metadata().map_err(read)?.len();
    let mut header = [0; HEADER_BYTES];
    if file_bytes < HEADER_BYTES as u64 {
        return Err(LoadError::NotAKernel);
    }
    file.read_exact_at(&mut header, 0).map_err(read)?;
    // Magic, 64-bit, little-endian, version 1; then an executable or, for a relocatable kernel, a shared object.
    let is_executable = matches!(u16_at(&header, 16), 2 | 3);
    if header[..7] != *b"\x7fELF\x02\x01\x01" || !is_executable || u16_at(&header, 18) != machine {
        return Err(LoadError::NotAKernel);
    }
    let (entry, table) = (u64_at(&header, 24), u64_at(&header, 32));
    let (entry_bytes, count) = (u16_at(&header, 54) as usize, u16_at(&header, 56) as usize);
    if entry_bytes != SEGMENT_BYTES || count == 0 || count > MAX_SEGMENTS {
        return Err(LoadError::Damaged("their number or size is wrong"));
    }
    let mut headers = vec![0; count * SEGMENT_BYTES];
    let fits = table.checked_add(headers.len() as u64).is_some_and(|end| end <= file_bytes);
    if !fits {
        return Err(LoadError::Damaged("they lie outside of the file"));
    }
    file.read_exact_at(&mut headers, table).map_err(read)?;
    let mut segments = Vec::new();
    let mut pvh_entry = None;
    for header in headers.chunks_exact(SEGMENT_BYTES) {
        match u32_at(header, 0) {
            PT_LOAD if u64_at(header, 40) > 0 => segments.push(segment(header, file_bytes, room)?),
            PT_NOTE if pvh_entry.is_none() => pvh_entry = pvh_note(&notes(file, header, file_bytes)?),
            _ => {}
        }
    }
    segments.sort_by_key(|segment| segment.address);
    if segments.windows(2).any(|pair| pair[0].address + pair[0].in_memory > pair[1].address) {
        return Err(LoadError::Damaged("two segments overlap"));
    }
    let is_code = |entry| segments.iter().any(|segment| holds(segment, entry));
    if !is_code(entry) {
        return Err(LoadError::Damaged("the entry lies outside of the segments"));
    }
    if pvh_entry.is_some_and(|entry| !is_code(entry.into())) {
        return Err(LoadError::Damaged("the entry of PVH lies outside of the segments"));
    }
    Ok(Parsed { entry, segments, pvh_entry })
}

/// Whether an address is that of something in the file.
fn holds(segment: &Segment, address: u64) -> bool {
    (segment.address..segment.address + segment.in_file).contains(&address)
}

/// The notes of one program header, as they are.
fn notes(file: &File, header: &[u8], file_bytes: u64) -> Result<Vec<u8>, LoadError> {
    let (offset, bytes) = (u64_at(header, 8), u64_at(header, 32));
    if bytes > MAX_NOTES || offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
        return Err(LoadError::Damaged("the notes lie outside of the file, or are too many"));
    }
    let mut notes = vec![0; bytes as usize];
    file.read_exact_at(&mut notes, offset).map_err(|source| LoadError::Read { what: "kernel", source })?;
    Ok(notes)
}

/// The address in the note of PVH. Notes behind a damaged one are not seen.
fn pvh_note(mut notes: &[u8]) -> Option<u32> {
    const HEAD: usize = 12;
    const ALIGN: usize = 4;
    while notes.len() >= HEAD {
        let (name_bytes, bytes, kind) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize, u32_at(notes, 8));
        let at = HEAD.checked_add(name_bytes.checked_next_multiple_of(ALIGN)?)?;
        let end = at.checked_add(bytes)?;
        let (name, content) = (notes.get(HEAD..HEAD + name_bytes)?, notes.get(at..end)?);
        if (name, kind) == PVH_NOTE {
            // As wide as the kernel's addresses, and below 4 GiB all the same.
            return match bytes {
                4 => Some(u32_at(content, 0)),
                8 => u32::try_from(u64_at(content, 0)).ok(),
                _ => None,
            };
        }
        notes = notes.get(end.checked_next_multiple_of(ALIGN)?..)?;
    }
    None
}

fn segment(header: &[u8], file_bytes: u64, room: &Range<u64>) -> Result<Segment, LoadError> {
    let segment = Segment {
        offset: u64_at(header, 8),
        address: u64_at(header, 24),
        in_file: u64_at(header, 32),
        in_memory: u64_at(header, 40),
    };
    if segment.in_file > segment.in_memory {
        return Err(LoadError::Damaged("a segment has more bytes in the file than in memory"));
    }
    if segment.offset.checked_add(segment.in_file).is_none_or(|end| end > file_bytes) {
        return Err(LoadError::Damaged("a segment lies outside of the file"));
    }
    let end = segment.address.saturating_add(segment.in_memory);
    if segment.address < room.start || end > room.end {
        return Err(LoadError::NoRoom { start: segment.address, end });
    }
    Ok(segment)
}

/// Copies `bytes` of the file at `offset` to guest-physical `address`.
fn copy(
    memory: &Memory,
    file: &File,
    offset: u64,
    address: u64,
    bytes: u64,
    what: &'static str,
) -> Result<(), LoadError> {
    let no_room = LoadError::NoRoom { start: address, end: address.saturating_add(bytes) };
    let Ok(length) = usize::try_from(bytes) else { return Err(no_room) };
    let Ok(target) = memory.get_slice(GuestAddress(address), length) else { return Err(no_room) };
    populate(&target);
    read_exact_at(file, offset, &target).map_err(|source| LoadError::Read { what, source })
}

/// Makes the pages of `target` present in one call; one fault for each page would take longer than the copying. That the
/// host refuses changes only the speed.
fn populate(target: &VolatileSlice) {
    let guard = target.ptr_guard_mut();
    let start = guard.as_ptr() as usize & !(PAGE as usize - 1);
    let end = guard.as_ptr() as usize + guard.len();
    // SAFETY: the pages hold the guest's memory, which `target` keeps mapped, and populating does not change their contents.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_POPULATE_WRITE);
    }
}

fn read_exact_at(file: &File, offset: u64, target: &VolatileSlice) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let guard = target.ptr_guard_mut();
    let mut done = 0;
    while done < guard.len() {
        // SAFETY: the kernel writes at most the rest of `target`, which stays mapped as long as `guard` lives; no reference
        // to the guest's memory is made.
        let read = unsafe {
            let at = guard.as_ptr().add(done).cast();
            libc::pread(file.as_raw_fd(), at, guard.len() - done, (offset + done as u64) as libc::off_t)
        };
        match read {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1.. => done += read as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
