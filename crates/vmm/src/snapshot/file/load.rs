//! Reading a snapshot: nothing of it is used before all of it has been authenticated.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use thiserror::Error;

use super::save::bound;
use super::{FRAME_BYTES, HEAD_NUMBER, LABEL_BYTES, Layout, Order, PIECE_BYTES, Piece};
use crate::snapshot::cipher::{Cipher, TAG_BYTES};
use crate::snapshot::header::{Head, Header, HeaderError, MAX_HEAD_BYTES};
use crate::snapshot::pages::PageSet;
use crate::snapshot::template::Parts;
use crate::snapshot::{Host, HostMismatch, Key, Template, WorkingSet, memfd, parallel};

/// Reads a snapshot back: decrypts it into a new sealed memory.
///
/// Memory beyond a few pieces per thread is allocated only for what the file really contains.
pub fn load(path: &Path, key: &Key, host: &Host) -> Result<Template, LoadError> {
    let failed = |failure| LoadError { path: path.into(), failure };
    let file = File::open(path).map_err(|error| failed(LoadFailure::Read(error)))?;
    read(&file, key, host).map_err(failed)
}

/// What a snapshot file says of itself, without its key. Damage of the header is noticed, forgery is not.
pub fn inspect(path: &Path) -> Result<Header, LoadError> {
    let failed = |failure| LoadError { path: path.into(), failure };
    let file = File::open(path).map_err(|error| failed(LoadFailure::Read(error)))?;
    Ok(read_head(&file).map_err(failed)?.header)
}

fn read_head(file: &File) -> Result<Head, LoadFailure> {
    let mut bytes = Vec::with_capacity(MAX_HEAD_BYTES);
    file.take(MAX_HEAD_BYTES as u64).read_to_end(&mut bytes).map_err(LoadFailure::Read)?;
    Head::parse(&bytes).map_err(LoadFailure::Header)
}

fn read(file: &File, key: &Key, host: &Host) -> Result<Template, LoadFailure> {
    let Head { header, checksum, mut tag, bytes: head } = read_head(file)?;
    let cipher = key.cipher(&header.salt);
    if cipher.decrypt(HEAD_NUMBER, &checksum, &mut tag).is_none() {
        return Err(LoadFailure::Key);
    }
    header.host.accepts(host).map_err(LoadFailure::Host)?;
    let layout = Layout::new(&header, head);
    let (expected, found) = (layout.file_bytes(), file.metadata().map_err(LoadFailure::Read)?.len());
    if found < expected {
        return Err(LoadFailure::Truncated { expected, found });
    } else if found > expected {
        return Err(LoadFailure::TooLong { expected, found });
    }
    // Only a hint: the file is read from beginning to end.
    let _ = fadvise(file, 0, None, Advice::Sequential);

    let reader = Reader { file, cipher: &cipher, salt: &header.salt, checksum: &checksum };
    let mut buffer = Vec::with_capacity((PIECE_BYTES + FRAME_BYTES) as usize);
    let mut index = Vec::with_capacity(header.index_bytes() as usize);
    for nth in 0..layout.index_pieces() {
        index.extend_from_slice(reader.open(&layout.index_piece(nth), &mut buffer)?);
    }
    let (pages, working_set) = split_index(&header, &mut index).ok_or(LoadFailure::Index)?;

    let order = Order::new(&pages, &working_set, header.pages());
    let memory = File::from(memfd::memory(header.memory_bytes, false).map_err(LoadFailure::Memory)?);
    parallel::for_each(
        layout.data_pieces() as usize,
        || Vec::with_capacity((PIECE_BYTES + FRAME_BYTES) as usize),
        |buffer, nth| {
            let piece = layout.data_piece(nth as u64);
            let mut plain = reader.open(&piece, buffer)?;
            for range in order.memory_of(&piece.part) {
                let (part, rest) = plain.split_at((range.end - range.start) as usize);
                memory.write_all_at(part, range.start).map_err(LoadFailure::Memory)?;
                plain = rest;
            }
            Ok(())
        },
    )?;
    let parts = Parts {
        memory_bytes: header.memory_bytes,
        state: index,
        pages,
        working_set,
        identity: header.identity,
        base: header.base,
    };
    Template::from_file(memory, parts).map_err(LoadFailure::Memory)
}

/// Takes the sets off the end of the index and leaves the state. `None` when they are no sets over this memory.
fn split_index(header: &Header, index: &mut Vec<u8>) -> Option<(PageSet, WorkingSet)> {
    let (pages_at, granules_at) = {
        let state = usize::try_from(header.state_bytes).ok()?;
        (state, state + PageSet::encoded_bytes(header.pages()) as usize)
    };
    let pages = PageSet::decode(index.get(pages_at..granules_at)?, header.pages())?;
    let granules = PageSet::decode(index.get(granules_at..)?, header.granules())?;
    if pages.len() != header.data_pages {
        return None;
    }
    index.truncate(pages_at);
    index.shrink_to_fit();
    Some((pages, WorkingSet::from_granules(&granules, header.memory_bytes)))
}

struct Reader<'a> {
    file: &'a File,
    cipher: &'a Cipher,
    salt: &'a [u8; 32],
    checksum: &'a [u8; 32],
}

impl Reader<'_> {
    /// Reads a piece into the buffer and returns its plaintext there.
    fn open<'b>(&self, piece: &Piece, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], LoadFailure> {
        buffer.resize(LABEL_BYTES + piece.plain_bytes() + TAG_BYTES, 0);
        self.file.read_exact_at(buffer, piece.offset).map_err(LoadFailure::Read)?;
        let (label, rest) = buffer.split_at_mut(LABEL_BYTES);
        let expected = piece.label(self.salt);
        if label[..16] != expected[..16] {
            return Err(LoadFailure::Foreign { piece: piece.number });
        } else if label != expected {
            return Err(LoadFailure::Moved { piece: piece.number });
        }
        self.cipher
            .decrypt(piece.number, &bound(self.checksum, label), rest)
            .ok_or(LoadFailure::Damaged { piece: piece.number })
    }
}

/// A snapshot could not be read.
#[derive(Debug, Error)]
#[error("cannot load the snapshot {}", path.display())]
pub struct LoadError {
    /// Where it is.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub failure: LoadFailure,
}

/// Why a snapshot could not be read.
#[derive(Debug, Error)]
pub enum LoadFailure {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// It is no snapshot, one of another format, or its head is damaged.
    #[error("cannot use its header")]
    Header(#[source] HeaderError),
    /// The key is another's, or somebody without the key wrote the header.
    #[error("the key does not open it; it belongs to another function version, or its header was forged")]
    Key,
    /// It was taken on a host that differs from this one.
    #[error("it does not fit this host")]
    Host(#[source] HostMismatch),
    /// The end is missing.
    #[error("it was cut off: {found} of {expected} bytes are there; delete it and take the snapshot again")]
    Truncated {
        /// Length by its header.
        expected: u64,
        /// Real length.
        found: u64,
    },
    /// Something stands behind its end.
    #[error("it has {found} bytes where it should have {expected}; delete it and take the snapshot again")]
    TooLong {
        /// Length by its header.
        expected: u64,
        /// Real length.
        found: u64,
    },
    /// A piece was altered.
    #[error("piece {piece} is damaged; delete it and take the snapshot again")]
    Damaged {
        /// Counted from 0.
        piece: u64,
    },
    /// A piece stands in another one's place.
    #[error(
        "another piece of the same file stands in the place of piece {piece}; delete it and take the snapshot again"
    )]
    Moved {
        /// Counted from 0.
        piece: u64,
    },
    /// A piece was taken from another file.
    #[error("piece {piece} is of another file; delete it and take the snapshot again")]
    Foreign {
        /// Counted from 0.
        piece: u64,
    },
    /// The index is authentic and yet impossible.
    #[error("its index contradicts its header; delete it and take the snapshot again")]
    Index,
    /// No memory for the machine's.
    #[error("cannot make the machine's memory; is the host short of it?")]
    Memory(#[source] io::Error),
}
