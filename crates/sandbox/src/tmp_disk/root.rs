//! Makes the root of a new ext4 file system what `/tmp` is to be: mode 1777, and nothing in it.
//!
//! mkfs.ext4 has no options for that, and mounting the file system to change it takes a privilege and longer. So three
//! fields are changed in the file, at the places that `ext4(5)` and the kernel's documentation of the format tell. That
//! takes a file system without checksums of its metadata. The directory `lost+found` loses its name but keeps its inode;
//! only a check of the file system, which nobody runs, would mind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;
/// Bytes of an inode's record.
const INODE: u64 = 256;
/// A directory that anybody may write to, with the sticky bit.
const MODE: u16 = 0o041_777;
/// The beginning of a list of extents.
const EXTENT_MAGIC: u64 = 0xF30A;
/// Bytes of a record with a name of up to four bytes in a directory.
const SHORT_NAME: u64 = 12;

/// Changes the root of the file system in `file`, which mkfs.ext4 has just made with blocks of 4 KiB and inodes of 256
/// bytes. Refuses if anything is not where it is expected.
pub(super) fn prepare_root(file: &File) -> io::Result<()> {
    // The first group's descriptor begins the second block and tells where its inodes begin; the root is the second.
    let table = number::<4>(file, BLOCK + 8)?;
    let root = table * BLOCK + INODE;
    let is_dir = number::<2>(file, root)? & 0o170_000 == 0o040_000;
    let extents = root + 0x28;
    let one_extent = number::<2>(file, extents)? == EXTENT_MAGIC
        && number::<2>(file, extents + 2)? == 1
        && number::<2>(file, extents + 6)? == 0;
    if !is_dir || !one_extent {
        return Err(unexpected("the root directory"));
    }
    let content = (number::<4>(file, extents + 20)? | number::<2>(file, extents + 18)? << 32) * BLOCK;
    let (parent, third) = (content + SHORT_NAME, content + 2 * SHORT_NAME);
    let mut name = [0; 10];
    file.read_exact_at(&mut name, third + 8)?;
    let in_order = number::<2>(file, content + 4)? == SHORT_NAME
        && number::<2>(file, parent + 4)? == SHORT_NAME
        && number::<2>(file, third + 4)? == BLOCK - 2 * SHORT_NAME
        && &name == b"lost+found";
    if !in_order {
        return Err(unexpected("lost+found"));
    }
    // The record of `..` now reaches to the end of the block.
    let rest = BLOCK - SHORT_NAME;
    file.write_all_at(&(rest as u16).to_le_bytes(), parent + 4)?;
    file.write_all_at(&[0; 20], third)?;
    file.write_all_at(&MODE.to_le_bytes(), root)?;
    // Two links: its own and that of `..`.
    file.write_all_at(&2u16.to_le_bytes(), root + 0x1A)
}

fn number<const N: usize>(file: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes[..N], at)?;
    Ok(u64::from_le_bytes(bytes))
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("mkfs.ext4 put {what} where it is not expected"))
}
