//! Writing a snapshot: beside its place first, into it only when it is whole and on the disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use thiserror::Error;

use super::{FRAME_BYTES, HEAD_NUMBER, LABEL_BYTES, Layout, Order, PIECE_BYTES, Piece};
use crate::snapshot::cipher::{Cipher, TAG_BYTES, random};
use crate::snapshot::header::{Header, HeaderError};
use crate::snapshot::{Host, Key, Template, parallel};

/// Writes a template to a file, encrypted, and returns the file's length in bytes. A file of that name is replaced, and is
/// whole at any moment: the old one or the new one.
///
/// Half-written files have names that begin with `.` and end in `.tmp`; only a crash leaves one.
///
/// # Errors
/// Nothing is left behind then.
pub fn save(path: &Path, template: &Template, key: &Key, host: &Host) -> Result<u64, SaveError> {
    let failed = |failure| SaveError { path: path.into(), failure };
    let unfinished = Unfinished::create(path).map_err(failed)?;
    let bytes = write(&unfinished.file, template, key, host).map_err(failed)?;
    unfinished.publish(path).map_err(|error| failed(SaveFailure::Publish(error)))?;
    Ok(bytes)
}

fn write(file: &File, template: &Template, key: &Key, host: &Host) -> Result<u64, SaveFailure> {
    let header = Header {
        host: host.clone(),
        memory_bytes: template.memory_bytes(),
        data_pages: template.pages().len(),
        state_bytes: template.state().len() as u64,
        identity: template.identity(),
        base: template.base(),
        salt: random().map_err(SaveFailure::Random)?,
    };
    let (mut head, checksum) = header.encode().map_err(SaveFailure::Header)?;
    let cipher = key.cipher(&header.salt);
    head.extend_from_slice(&cipher.encrypt(HEAD_NUMBER, &checksum, &mut []).map_err(SaveFailure::Write)?);
    let layout = Layout::new(&header, head.len() as u64);
    reserve(file, layout.file_bytes()).map_err(SaveFailure::Write)?;
    file.write_all_at(&head, 0).map_err(SaveFailure::Write)?;

    let mut index = Vec::with_capacity(header.index_bytes() as usize);
    index.extend_from_slice(template.state());
    template.pages().encode(&mut index);
    template.working_set().to_granules(header.memory_bytes).encode(&mut index);
    let writer = Writer { file, cipher: &cipher, salt: &header.salt, checksum: &checksum };
    let mut buffer = Vec::with_capacity((PIECE_BYTES + FRAME_BYTES) as usize);
    for nth in 0..layout.index_pieces() {
        let piece = layout.index_piece(nth);
        writer.begin(&piece, &mut buffer);
        buffer[LABEL_BYTES..].copy_from_slice(&index[piece.part.start as usize..piece.part.end as usize]);
        writer.finish(&piece, &mut buffer).map_err(SaveFailure::Write)?;
    }

    let memory = template.map().map_err(SaveFailure::Memory)?;
    let order = Order::new(template.pages(), template.working_set(), header.pages());
    parallel::for_each(
        layout.data_pieces() as usize,
        || Vec::with_capacity((PIECE_BYTES + FRAME_BYTES) as usize),
        |buffer, nth| {
            let piece = layout.data_piece(nth as u64);
            writer.begin(&piece, buffer);
            let mut filled = LABEL_BYTES;
            for range in order.memory_of(&piece.part) {
                let part = memory.range(&range);
                buffer[filled..filled + part.len()].copy_from_slice(part);
                filled += part.len();
            }
            writer.finish(&piece, buffer).map_err(SaveFailure::Write)
        },
    )?;
    file.sync_all().map_err(SaveFailure::Write)?;
    Ok(layout.file_bytes())
}

/// Claims the file's space at once: a full disk is noticed before the work, and the file is in one part.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // File systems without it find out while writing.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
        other => Ok(other?),
    }
}

struct Writer<'a> {
    file: &'a File,
    cipher: &'a Cipher,
    salt: &'a [u8; 32],
    checksum: &'a [u8; 32],
}

impl Writer<'_> {
    /// Makes the buffer a label and room for the plaintext.
    fn begin(&self, piece: &Piece, buffer: &mut Vec<u8>) {
        buffer.resize(LABEL_BYTES + piece.plain_bytes(), 0);
        buffer[..LABEL_BYTES].copy_from_slice(&piece.label(self.salt));
    }

    /// Encrypts what is in the buffer and writes it to its place.
    fn finish(&self, piece: &Piece, buffer: &mut Vec<u8>) -> io::Result<()> {
        let (label, plain) = buffer.split_at_mut(LABEL_BYTES);
        let tag: [u8; TAG_BYTES] = self.cipher.encrypt(piece.number, &bound(self.checksum, label), plain)?;
        buffer.extend_from_slice(&tag);
        self.file.write_all_at(buffer, piece.offset)
    }
}

/// What is authenticated with a piece.
pub(super) fn bound(checksum: &[u8; 32], label: &[u8]) -> [u8; 32 + LABEL_BYTES] {
    let mut bound = [0; 32 + LABEL_BYTES];
    bound[..32].copy_from_slice(checksum);
    bound[32..].copy_from_slice(label);
    bound
}

/// A file that goes away again unless it is published.
struct Unfinished {
    file: File,
    path: Option<PathBuf>,
}

impl Unfinished {
    fn create(target: &Path) -> Result<Self, SaveFailure> {
        let name = target.file_name().ok_or_else(|| SaveFailure::Create(io::ErrorKind::InvalidFilename.into()))?;
        let random: [u8; 8] = random().map_err(SaveFailure::Random)?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{:016x}.tmp", u64::from_le_bytes(random)));
        let path = target.with_file_name(unfinished);
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(SaveFailure::Create)?;
        Ok(Self { file, path: Some(path) })
    }

    fn publish(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, target)?;
            self.path = None;
        }
        sync_directory(target)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Should this fail, the sweep at the next start does it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes names that were made or removed beside `entry` last.
pub(in crate::snapshot) fn sync_directory(entry: &Path) -> io::Result<()> {
    let directory = match entry.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// A snapshot could not be written.
#[derive(Debug, Error)]
#[error("cannot save the snapshot {}", path.display())]
pub struct SaveError {
    /// Where it should have been.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub failure: SaveFailure,
}

/// Why a snapshot could not be written.
#[derive(Debug, Error)]
pub enum SaveFailure {
    /// The file cannot be made.
    #[error("cannot create a file in its directory")]
    Create(#[source] io::Error),
    /// The facts of the host do not fit in the header.
    #[error("its header cannot be written")]
    Header(#[source] HeaderError),
    /// The kernel gave no random bytes.
    #[error("the kernel has no random bytes")]
    Random(#[source] io::Error),
    /// The template's memory cannot be read.
    #[error("cannot read the template's memory")]
    Memory(#[source] io::Error),
    /// The file cannot be written, perhaps because the disk is full.
    #[error("cannot write the file")]
    Write(#[source] io::Error),
    /// The whole file cannot be put in its place.
    #[error("cannot move the file to its place")]
    Publish(#[source] io::Error),
}
