//! Writes a laid-out image from its first byte to its last, hashing it on the way.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::Digest as _;

use super::format::{BLOCK, Dirent, FileType, SUPERBLOCK_AT, encode_dir_block, fill_block, superblock};
use super::layout::{BUILD_TIME, Inode, Layout, TooLarge, with_dots};
use super::tree::{Content, Kind, Tree};
use crate::digest::Digest;

/// What is collected before it is written.
const BUFFER: usize = 1 << 20;

/// Zeros of this length, at a multiple of it, become a hole of the file.
const HOLE: usize = 64 << 10;

static ZEROS: [u8; HOLE] = [0; HOLE];

/// Why an image was not written. What is in the file is of no use then.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file of the host could not be read.
    #[error("could not read {}", .path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file of the host is not any more what it was when it was taken into the tree.
    #[error("{} changed while an image was made of it; try again", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The tree holds more than 16 TiB or four billion files.
    #[error("the tree is too large for an image; leave something out")]
    TooLarge,
    /// The image could not be written.
    #[error("could not write the image")]
    Output(#[source] io::Error),
}

impl From<TooLarge> for WriteError {
    fn from(_: TooLarge) -> Self {
        Self::TooLarge
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image in bytes, a multiple of 4,096.
    pub bytes: u64,
    /// SHA-256 of the image. Equal trees have equal ones.
    pub digest: Digest,
    /// How many files, directories and symbolic links are in it.
    pub files: u64,
}

/// Writes an image of the tree into `file`, whose former content is lost. Long runs of zeros become holes. Nothing is
/// synced. Takes memory for what each file is called and where it lies, not for what is in it.
pub fn write(tree: &Tree, file: &File) -> Result<Summary, WriteError> {
    let layout = Layout::of(tree)?;
    let mut image = Image { tree, layout: &layout, sink: Sink::new(file).map_err(WriteError::Output)? };
    image.metadata()?;
    for inode in layout.inodes.iter().filter(|inode| inode.record.file_type == FileType::Dir) {
        image.own_blocks(inode)?;
    }
    for inode in layout.inodes.iter().filter(|inode| inode.record.file_type != FileType::Dir) {
        image.own_blocks(inode)?;
    }
    let (bytes, digest) = image.sink.finish().map_err(WriteError::Output)?;
    debug_assert_eq!(bytes, u64::from(layout.blocks) * BLOCK as u64);
    Ok(Summary { bytes, digest, files: layout.inodes.len() as u64 })
}

struct Image<'a> {
    tree: &'a Tree,
    layout: &'a Layout,
    sink: Sink<'a>,
}

impl Image<'_> {
    /// The superblock and all inodes with what lies beside them.
    fn metadata(&mut self) -> Result<(), WriteError> {
        let inodes = &self.layout.inodes;
        // The root is placed first, so it lies in one of the first two blocks.
        let root = u16::try_from(inodes[0].nid()).map_err(|_| WriteError::TooLarge)?;
        let record = superblock(root, inodes.len() as u64, self.layout.blocks, BUILD_TIME);
        self.sink.pad_to(SUPERBLOCK_AT as u64).map_err(WriteError::Output)?;
        self.sink.put(&record).map_err(WriteError::Output)?;
        let mut in_order: Vec<&Inode> = inodes.iter().collect();
        in_order.sort_unstable_by_key(|inode| inode.at);
        let mut bytes = Vec::with_capacity(BLOCK);
        for inode in in_order {
            bytes.clear();
            inode.record.encode(BUILD_TIME, &mut bytes);
            self.sink.pad_to(inode.at).map_err(WriteError::Output)?;
            self.sink.put(&bytes).map_err(WriteError::Output)?;
            if inode.record.inline {
                self.content(inode)?;
            }
        }
        self.sink.pad_to(u64::from(self.layout.meta_blocks) * BLOCK as u64).map_err(WriteError::Output)
    }

    /// The content of an inode that does not lie beside it.
    fn own_blocks(&mut self, inode: &Inode) -> Result<(), WriteError> {
        if inode.record.inline || inode.record.bytes == 0 {
            return Ok(());
        }
        debug_assert_eq!(self.sink.position(), u64::from(inode.record.block) * BLOCK as u64);
        self.content(inode)?;
        self.sink.pad_to(self.sink.position().next_multiple_of(BLOCK as u64)).map_err(WriteError::Output)
    }

    fn content(&mut self, inode: &Inode) -> Result<(), WriteError> {
        match &self.tree.node(inode.node).kind {
            Kind::Dir(_) => self.directory(inode).map_err(WriteError::Output),
            Kind::Link(target) => self.sink.put(target).map_err(WriteError::Output),
            Kind::File(Content::Bytes(bytes)) => self.sink.put(bytes).map_err(WriteError::Output),
            Kind::File(Content::Host { path, bytes, .. }) => self.host_file(path, *bytes),
        }
    }

    fn directory(&mut self, inode: &Inode) -> io::Result<()> {
        let Kind::Dir(names) = &self.tree.node(inode.node).kind else { return Ok(()) };
        let entries: Vec<Dirent<'_>> = with_dots(names)
            .filter_map(|(name, child)| {
                let own = if name == b"." { inode.node } else { inode.parent };
                let to = self.layout.inode_of(child.unwrap_or(own))?;
                Some(Dirent { name, nid: to.nid(), file_type: to.record.file_type })
            })
            .collect();
        let mut rest = &entries[..];
        let mut block = Vec::with_capacity(BLOCK);
        while !rest.is_empty() {
            let (count, _) = fill_block(rest.iter().map(|entry| entry.name));
            let (now, later) = rest.split_at(count);
            block.clear();
            encode_dir_block(now, &mut block);
            if !later.is_empty() {
                block.resize(BLOCK, 0);
            }
            self.sink.put(&block)?;
            rest = later;
        }
        Ok(())
    }

    /// A file of the host, which must have exactly the size that it had when it was taken into the tree.
    fn host_file(&mut self, path: &Path, bytes: u64) -> Result<(), WriteError> {
        let failed = |source| WriteError::Host { path: path.to_owned(), source };
        let changed = || WriteError::Changed { path: path.to_owned() };
        let mut file = open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.size() != bytes {
            return Err(changed());
        }
        let sparse = metadata.blocks() * 512 < bytes;
        let mut left = bytes;
        while left > 0 {
            if sparse {
                let hole = hole_at(&file, bytes - left, bytes).map_err(failed)?;
                self.sink.pad_to(self.sink.position() + hole).map_err(WriteError::Output)?;
                left -= hole;
            }
            let room = self.sink.room().map_err(WriteError::Output)?;
            let wanted = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut room[..wanted]) {
                Ok(0) if left > 0 => return Err(changed()),
                Ok(read) => {
                    self.sink.advance(read);
                    left -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        match file.read(&mut [0]).map_err(failed)? {
            0 => Ok(()),
            _ => Err(changed()),
        }
    }
}

/// Opens a file for reading; if it has become a link, a pipe or a device it is neither followed nor waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Length of the hole at a position of a file, which is then set behind it.
fn hole_at(mut file: &File, position: u64, end: u64) -> io::Result<u64> {
    let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
        Ok(data) => data.clamp(position, end),
        Err(rustix::io::Errno::NXIO) => end,
        // This file system does not tell.
        Err(_) => position,
    };
    file.seek(SeekFrom::Start(data))?;
    Ok(data - position)
}

/// The image file: everything goes through here in order and is hashed.
struct Sink<'a> {
    file: &'a File,
    hasher: sha2::Sha256,
    buffer: Box<[u8]>,
    used: usize,
    /// Position in the file of what is at the beginning of the buffer.
    flushed: u64,
}

impl<'a> Sink<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        file.set_len(0)?;
        Ok(Self { file, hasher: sha2::Sha256::new(), buffer: vec![0; BUFFER].into_boxed_slice(), used: 0, flushed: 0 })
    }

    const fn position(&self) -> u64 {
        self.flushed + self.used as u64
    }

    /// The free part of the buffer, not empty.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.used == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.used..])
    }

    /// So many bytes of [`Sink::room`] were filled.
    const fn advance(&mut self, bytes: usize) {
        self.used += bytes;
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let now = room.len().min(bytes.len());
            room[..now].copy_from_slice(&bytes[..now]);
            self.advance(now);
            bytes = &bytes[now..];
        }
        Ok(())
    }

    /// Zeros up to a position that is not behind.
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        while self.position() < position {
            let missing = usize::try_from(position - self.position()).unwrap_or(usize::MAX);
            let room = self.room()?;
            let now = room.len().min(missing);
            room[..now].fill(0);
            self.advance(now);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.used];
        self.hasher.update(bytes);
        let mut at = self.flushed;
        for piece in bytes.chunks(HOLE) {
            if *piece != ZEROS[..piece.len()] {
                self.file.write_all_at(piece, at)?;
            }
            at += piece.len() as u64;
        }
        self.flushed = at;
        self.used = 0;
        Ok(())
    }

    /// Size and digest of the whole.
    fn finish(mut self) -> io::Result<(u64, Digest)> {
        self.flush()?;
        self.file.set_len(self.flushed)?;
        Ok((self.flushed, Digest::from_bytes(self.hasher.finalize().into())))
    }
}
