//! The blob trait: bytes named by their SHA-256, such as a function's code package.

pub mod file;
pub mod memory;

use std::fmt;
use std::io::{Cursor, Read, Seek};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::BoxFuture;

/// Content-addressed bytes. All methods may be called at any time, from any task, for the same digest too.
pub trait Blobs: Send + Sync {
    /// Stores what the reader yields and resolves once it is durable. Storing the same bytes again is no error, and
    /// repairs a blob that was damaged. A reader that fails leaves nothing behind.
    fn put<'a>(&'a self, source: Box<dyn Read + Send>) -> BoxFuture<'a, Result<Digest, BlobError>>;

    /// Stores bytes that are in memory already; else as [`Blobs::put`].
    fn put_bytes<'a>(&'a self, bytes: Vec<u8>) -> BoxFuture<'a, Result<Digest, BlobError>> {
        self.put(Box::new(Cursor::new(bytes)))
    }

    /// Opens a blob for reading. [`BlobError::NotFound`] when it is not there. The content is not checked, see
    /// [`Blobs::verify`].
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Box<dyn BlobRead>, BlobError>>;

    /// The file that holds the blob, for backends that keep files; says nothing of whether it is there. Readers must
    /// not change it.
    fn path(&self, digest: &Digest) -> Option<PathBuf>;

    /// Whether the blob is there.
    fn exists<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, BlobError>>;

    /// Removes a blob; false when it was not there. Readers that have it open may read on.
    fn delete<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, BlobError>>;

    /// All digests, sorted.
    fn list<'a>(&'a self) -> BoxFuture<'a, Result<Vec<Digest>, BlobError>>;

    /// Reads the blob through and compares its digest: [`BlobError::Corrupt`] when it differs.
    fn verify<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<(), BlobError>> {
        Box::pin(async move {
            let mut blob = self.open(digest).await?;
            let wanted = *digest;
            run_blocking(move || {
                let mut hasher = Hasher::default();
                std::io::copy(&mut blob, &mut hasher).map_err(|source| BlobError::Read { digest: wanted, source })?;
                let found = hasher.finish();
                if found == wanted { Ok(()) } else { Err(BlobError::Corrupt { digest: wanted, found }) }
            })
            .await
        })
    }
}

/// An open blob: zip readers need to seek.
pub trait BlobRead: Read + Seek + Send {}

impl<T: Read + Seek + Send> BlobRead for T {}

/// A blob could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("there is no blob {digest}")]
    NotFound {
        /// The digest that was asked for.
        digest: Digest,
    },
    /// The bytes are not the ones that were stored.
    #[error("blob {digest} is damaged, its content has digest {found}: store it again")]
    Corrupt {
        /// The digest that was asked for.
        digest: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// The reader that was to be stored failed.
    #[error("cannot read the content of a new blob")]
    Source(#[source] std::io::Error),
    /// A stored blob could not be read.
    #[error("cannot read blob {digest}")]
    Read {
        /// The digest that was asked for.
        digest: Digest,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no room; nothing that was acknowledged is lost.
    #[error("no space left in {path}: free some space and try again")]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system failed.
    #[error("cannot access {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The runtime is shutting down.
    #[error("the blob task was stopped: the server is shutting down")]
    Stopped,
}

/// The SHA-256 of a blob. Text form: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 raw bytes, as Lambda's `CodeSha256` encodes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest from its raw bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 lower-case hex digits")]
pub struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(ParseDigestError),
        };
        let text = text.as_bytes();
        if text.len() != 64 {
            return Err(ParseDigestError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A sink that keeps only the digest.
#[derive(Default)]
struct Hasher(Sha256);

impl Hasher {
    fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs file work on the blocking pool.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BlobError::Stopped),
        },
    }
}

#[cfg(test)]
mod tests;
