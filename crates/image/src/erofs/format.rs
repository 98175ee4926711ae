//! The records of the format, little endian, as in the kernel's `fs/erofs/erofs_fs.h`.

use super::tree::Attributes;

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;

/// Inodes are numbered by their position in units of this many bytes.
pub(super) const SLOT: usize = 32;

/// Where the superblock lies, and where the first inode may begin.
pub(super) const SUPERBLOCK_AT: usize = 1024;
pub(super) const SUPERBLOCK_END: usize = SUPERBLOCK_AT + 128;

/// Bytes of a record in a directory, without the name.
pub(super) const DIRENT: usize = 12;

const MAGIC: u32 = 0xE0F5_E1E2;
/// The times in inodes are those of the last change.
const FEATURE_COMPAT_MTIME: u32 = 2;

const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;

/// Type of a file: the upper bits of the mode, and how a directory tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    Dir,
    File,
    Link,
}

impl FileType {
    const fn mode(self) -> u16 {
        match self {
            Self::Dir => 0o040_000,
            Self::File => 0o100_000,
            Self::Link => 0o120_000,
        }
    }

    const fn in_directory(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Dir => 2,
            Self::Link => 7,
        }
    }
}

/// The superblock, without what comes before it.
pub(super) fn superblock(root_nid: u16, inodes: u64, blocks: u32, build_time: u64) -> [u8; 128] {
    let mut record = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &MAGIC.to_le_bytes());
    put(0x08, &FEATURE_COMPAT_MTIME.to_le_bytes());
    put(0x0C, &[BLOCK.trailing_zeros() as u8]);
    put(0x0E, &root_nid.to_le_bytes());
    put(0x10, &inodes.to_le_bytes());
    put(0x18, &build_time.to_le_bytes());
    put(0x24, &blocks.to_le_bytes());
    record
}

/// What an inode's record says.
#[derive(Debug, Clone, Copy)]
pub(super) struct InodeRecord {
    pub(super) file_type: FileType,
    pub(super) attributes: Attributes,
    pub(super) links: u32,
    pub(super) bytes: u64,
    /// The content follows the record at once; otherwise it begins at `block`.
    pub(super) inline: bool,
    pub(super) block: u32,
    /// Number for `stat(2)` where the position is too large.
    pub(super) number: u32,
}

impl InodeRecord {
    /// Bytes of the record: 32 if it says nothing that takes 64. `build_time` is the superblock's.
    pub(super) fn size(&self, build_time: u64) -> usize {
        let Attributes { uid, gid, mtime, .. } = self.attributes;
        let small = mtime == build_time
            && u16::try_from(uid).is_ok()
            && u16::try_from(gid).is_ok()
            && u16::try_from(self.links).is_ok()
            && u32::try_from(self.bytes).is_ok();
        if small { 32 } else { 64 }
    }

    /// Appends the record to `out`.
    pub(super) fn encode(&self, build_time: u64, out: &mut Vec<u8>) {
        let size = self.size(build_time);
        let layout = if self.inline { LAYOUT_INLINE } else { LAYOUT_PLAIN };
        let Attributes { mode, uid, gid, mtime } = self.attributes;
        // Whoever made the attributes dropped all but the permission bits.
        let mode = self.file_type.mode() | (mode & 0o7777) as u16;
        let mut record = [0u8; 64];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &(layout << 1 | u16::from(size == 64)).to_le_bytes());
        put(0x04, &mode.to_le_bytes());
        put(0x10, &self.block.to_le_bytes());
        put(0x14, &self.number.to_le_bytes());
        if size == 64 {
            put(0x08, &self.bytes.to_le_bytes());
            put(0x18, &uid.to_le_bytes());
            put(0x1C, &gid.to_le_bytes());
            put(0x20, &mtime.to_le_bytes());
            put(0x2C, &self.links.to_le_bytes());
        } else {
            // All of them fit, or the record would be a large one.
            put(0x06, &(self.links as u16).to_le_bytes());
            put(0x08, &(self.bytes as u32).to_le_bytes());
            put(0x18, &(uid as u16).to_le_bytes());
            put(0x1A, &(gid as u16).to_le_bytes());
        }
        out.extend(&record[..size]);
    }
}

/// A name in a directory and what it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// How many of the names, which are in order, fit the next block of a directory, and the bytes that they take in it.
pub(super) fn fill_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for name in names {
        let with_it = bytes + DIRENT + name.len();
        if with_it > BLOCK {
            break;
        }
        (count, bytes) = (count + 1, with_it);
    }
    (count, bytes)
}

/// Appends the used part of a block of a directory to `out`: all records, then all names.
pub(super) fn encode_dir_block(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut name_at = entries.len() * DIRENT;
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        // A block has 4,096 bytes, so every place in it fits.
        out.extend((name_at as u16).to_le_bytes());
        out.extend([entry.file_type.in_directory(), 0]);
        name_at += entry.name.len();
    }
    for entry in entries {
        out.extend(entry.name);
    }
}
