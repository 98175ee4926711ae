//! The readable head of a snapshot file. The rest of the format is in [`file`](super::file).
//!
//! ```text
//!   0   magic "FIRESNAP"          8 bytes
//!   8   format version            u32, little-endian as all numbers
//!   12  length of the body        u32
//!   16  body                      postcard: Header
//!       checksum                  BLAKE3 of all that stands before it, 32 bytes
//!       tag                       AES-256-GCM of nothing, bound to the checksum, 16 bytes: whether the key is the right one
//! ```
//!
//! The checksum tells damage from a wrong key; only the tag says that the head was written by somebody who had the key.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::cipher::TAG_BYTES;
use super::pages::{PAGE_BYTES, PageSet};
use super::{GRANULE_BYTES, Host, Identity};

/// The version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;
/// Most memory that a snapshot holds.
pub const MAX_MEMORY_BYTES: u64 = crate::memory::MAX_BYTES;
/// Longest state that a snapshot holds.
pub const MAX_STATE_BYTES: u64 = 16 << 20;

const MAGIC: &[u8; 8] = b"FIRESNAP";
const PREFIX_BYTES: usize = 16;
const MAX_BODY_BYTES: usize = 16 * 1024;
const CHECKSUM_BYTES: usize = 32;
/// Longest head of a file.
pub(super) const MAX_HEAD_BYTES: usize = PREFIX_BYTES + MAX_BODY_BYTES + CHECKSUM_BYTES + TAG_BYTES;

/// What a snapshot file says of itself to everybody; nothing of the tenant's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Where it can be restored.
    pub host: Host,
    /// Size of the machine's memory in bytes.
    pub memory_bytes: u64,
    /// Pages of memory in the file; all others are zeros.
    pub data_pages: u64,
    /// Length of the machine's state.
    pub state_bytes: u64,
    /// Of the template.
    pub identity: Identity,
    /// Of the template that it was flattened from.
    pub base: Option<Identity>,
    /// Random bytes from which, with the key, the file's own key is derived.
    pub salt: [u8; 32],
}

/// A head as it stands in a file.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) header: Header,
    pub(super) checksum: [u8; CHECKSUM_BYTES],
    pub(super) tag: [u8; TAG_BYTES],
    /// Where the rest of the file begins.
    pub(super) bytes: u64,
}

impl Header {
    /// Reads a header from the beginning of a file, without a key: damage is noticed, forgery is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        Head::parse(bytes).map(|head| head.header)
    }

    /// Bytes of the index: state, set of pages, set of granules of the working set.
    pub(super) fn index_bytes(&self) -> u64 {
        self.state_bytes + PageSet::encoded_bytes(self.pages()) + PageSet::encoded_bytes(self.granules())
    }

    /// Bytes of the memory pages in the file.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data_pages * PAGE_BYTES
    }

    pub(super) fn pages(&self) -> u64 {
        self.memory_bytes / PAGE_BYTES
    }

    pub(super) fn granules(&self) -> u64 {
        self.memory_bytes.div_ceil(GRANULE_BYTES)
    }

    /// The header as the beginning of a file up to the checksum, and the checksum; the tag follows it.
    pub(super) fn encode(&self) -> Result<(Vec<u8>, [u8; CHECKSUM_BYTES]), HeaderError> {
        let body = postcard::to_stdvec(self).map_err(|_| HeaderError::Impossible("facts of the host"))?;
        if body.len() > MAX_BODY_BYTES {
            return Err(HeaderError::Impossible("facts of the host"));
        }
        let mut bytes = Vec::with_capacity(MAX_HEAD_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        let checksum = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&checksum);
        Ok((bytes, checksum))
    }
}

impl Head {
    /// Reads a head from the beginning of a file; `bytes` are its first [`MAX_HEAD_BYTES`], or all of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let (prefix, rest) = bytes.split_first_chunk::<PREFIX_BYTES>().ok_or(HeaderError::NoSnapshot)?;
        let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
        if &prefix[..8] != MAGIC {
            return Err(HeaderError::NoSnapshot);
        }
        match number(8) {
            FORMAT_VERSION => {}
            found if found > FORMAT_VERSION => return Err(HeaderError::Newer { found }),
            found => return Err(HeaderError::Older { found }),
        }
        let length = number(12) as usize;
        if length > MAX_BODY_BYTES {
            return Err(HeaderError::Damaged);
        }
        let (body, rest) = rest.split_at_checked(length).ok_or(HeaderError::Truncated)?;
        let (checksum, rest) = rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(HeaderError::Truncated)?;
        let tag = rest.first_chunk::<TAG_BYTES>().ok_or(HeaderError::Truncated)?;
        if blake3::hash(&bytes[..PREFIX_BYTES + length]) != *checksum {
            return Err(HeaderError::Damaged);
        }
        let (header, left) =
            postcard::take_from_bytes::<Header>(body).map_err(|_| HeaderError::Impossible("encoding"))?;
        if !left.is_empty() {
            return Err(HeaderError::Impossible("encoding"));
        }
        header.check()?;
        let bytes = (PREFIX_BYTES + length + CHECKSUM_BYTES + TAG_BYTES) as u64;
        Ok(Self { header, checksum: *checksum, tag: *tag, bytes })
    }
}

impl Header {
    /// Whether the sizes are some that a machine can have; nothing computed from them overflows after this.
    fn check(&self) -> Result<(), HeaderError> {
        if self.memory_bytes == 0
            || !self.memory_bytes.is_multiple_of(PAGE_BYTES)
            || self.memory_bytes > MAX_MEMORY_BYTES
        {
            return Err(HeaderError::Impossible("memory size"));
        }
        if self.data_pages > self.pages() {
            return Err(HeaderError::Impossible("number of pages"));
        }
        if self.state_bytes > MAX_STATE_BYTES {
            return Err(HeaderError::Impossible("state size"));
        }
        Ok(())
    }
}

/// Why a head could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// It does not begin as snapshots do.
    #[error("the file is no snapshot")]
    NoSnapshot,
    /// A later version of the program wrote it.
    #[error("the file has format {found}, this program reads {FORMAT_VERSION}; update it, or take the snapshot again")]
    Newer {
        /// Its format version.
        found: u32,
    },
    /// An earlier version of the program wrote it.
    #[error("the file has format {found}, which is no longer read; take the snapshot again")]
    Older {
        /// Its format version.
        found: u32,
    },
    /// It ends within the head.
    #[error("the file ends within its header; delete it and take the snapshot again")]
    Truncated,
    /// The checksum is wrong.
    #[error("the header is damaged; delete the file and take the snapshot again")]
    Damaged,
    /// The checksum is right, but what it says cannot be.
    #[error("the header has an impossible {0}; delete the file and take the snapshot again")]
    Impossible(&'static str),
}

#[cfg(test)]
mod tests;
