//! Keys, and how pieces of a snapshot file are encrypted with them: AES-256-GCM with a key of its own for each file.
//!
//! A file's key is derived from the function version's key and 32 random bytes that stand in the file's header. Within a file
//! the nonce is the piece's number. No nonce is thereby ever used twice under one key, however many files a version's key
//! makes, and a piece of another file never passes for one of this.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of an authentication tag.
pub(super) const TAG_BYTES: usize = 16;

/// What opens a function version's snapshots. Wiped when dropped and never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// A new random key.
    pub fn generate() -> io::Result<Self> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// A key that is kept elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads a key file: 32 bytes, nothing else.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.into(), source };
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() != 32 {
            return Err(KeyError::Length { path: path.into() });
        }
        let mut bytes = Zeroizing::new([0; 32]);
        file.read_exact(&mut *bytes).map_err(failed)?;
        Ok(Self(bytes))
    }

    /// Writes a new key file that only its owner can read, down to the disk.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source| KeyError::Write { path: path.into(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(&*self.0).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// The cipher of the one file whose header carries `salt`.
    pub(super) fn cipher(&self, salt: &[u8; 32]) -> Cipher {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"firelet snapshot file 1").update(salt);
        let derived = Zeroizing::new(*hasher.finalize().as_bytes());
        // Cannot fail: the key has the algorithm's length.
        let key = UnboundKey::new(&AES_256_GCM, &*derived).expect("an AES-256 key has 32 bytes");
        Cipher(LessSafeKey::new(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(..)")
    }
}

/// Why a key file could not be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the snapshot key {}", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no key.
    #[error("the snapshot key {} does not have 32 bytes; delete it with its snapshot", path.display())]
    Length {
        /// The key file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write the snapshot key {}", path.display())]
    Write {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The cipher of one file.
pub(super) struct Cipher(LessSafeKey);

impl Cipher {
    /// Encrypts a piece in place. `number` must be used once in a file; `bound` is authenticated with the piece.
    pub(super) fn encrypt(&self, number: u64, bound: &[u8], piece: &mut [u8]) -> io::Result<[u8; TAG_BYTES]> {
        // Fails beyond 64 GiB in one piece.
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::from(bound), piece)
            .map_err(|_| io::ErrorKind::FileTooLarge)?;
        tag.as_ref().try_into().map_err(io::Error::other)
    }

    /// Decrypts a piece and its tag in place and returns the plaintext; `None`, and the piece worthless, when it is not the
    /// one that was encrypted.
    pub(super) fn decrypt<'a>(&self, number: u64, bound: &[u8], piece: &'a mut [u8]) -> Option<&'a [u8]> {
        self.0.open_in_place(nonce(number), Aad::from(bound), piece).ok().map(|plain| &*plain)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Random bytes for keys, salts and names.
pub(super) fn random<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    // The kernel fills requests of up to 256 bytes whole.
    if getrandom(&mut bytes, GetRandomFlags::empty())? == BYTES {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_opens_only_at_its_number_with_its_binding_and_key() {
        let (key, salt) = (Key::from_bytes([1; 32]), [2; 32]);
        let mut piece = *b"memory of a tenant";
        let tag = key.cipher(&salt).encrypt(3, b"header", &mut piece).unwrap();
        assert_ne!(&piece, b"memory of a tenant");
        let opens = |key: &Key, salt: &[u8; 32], number, bound: &[u8]| {
            let mut copy = [&piece[..], &tag].concat();
            key.cipher(salt).decrypt(number, bound, &mut copy) == Some(b"memory of a tenant")
        };
        assert!(opens(&key, &salt, 3, b"header"));
        assert!(!opens(&key, &salt, 4, b"header"));
        assert!(!opens(&key, &salt, 3, b"Header"));
        assert!(!opens(&key, &[3; 32], 3, b"header"));
        assert!(!opens(&Key::from_bytes([9; 32]), &salt, 3, b"header"));
    }

    #[test]
    fn keys_are_private_files_of_32_bytes_and_never_shown() {
        use std::os::unix::fs::MetadataExt;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = Key::generate().unwrap();
        key.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(*Key::read(&path).unwrap().0, *key.0);
        assert!(matches!(key.write(&path), Err(KeyError::Write { .. })), "no key is ever overwritten");
        std::fs::write(&path, [0; 33]).unwrap();
        assert!(matches!(Key::read(&path), Err(KeyError::Length { .. })));
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
