//! Blobs as files: `DIR/ab/cdef...`, the digest's first two hex digits and the other 62.
//!
//! A blob appears by rename, after its content was synced, and the directories are synced before `put` answers. What a
//! crash leaves behind is in `DIR/tmp` and removed by the next open; one process owns the directory (the lock on the
//! metadata file sees to that).

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{BlobError, BlobRead, Blobs, Digest, run_blocking};
use crate::BoxFuture;

const TMP: &str = "tmp";
/// Bytes read at a time: big enough that hashing dominates.
const CHUNK: usize = 128 * 1024;

/// A durable [`Blobs`] in a directory.
#[derive(Debug)]
pub struct FileBlobs {
    dir: PathBuf,
}

impl FileBlobs {
    /// Opens the directory, making it where it is missing and removing what a crash left half written. Blocks; call it
    /// at start-up.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, BlobError> {
        let dir = dir.into();
        let tmp = dir.join(TMP);
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(&tmp, error)),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&tmp).map_err(|error| io(&tmp, error))?;
        sync_dir(&dir)?;
        Ok(Self { dir })
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.dir.join(&hex[..2]).join(&hex[2..])
    }
}

impl Blobs for FileBlobs {
    fn put<'a>(&'a self, source: Box<dyn Read + Send>) -> BoxFuture<'a, Result<Digest, BlobError>> {
        let dir = self.dir.clone();
        Box::pin(run_blocking(move || store(&dir, source)))
    }

    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Box<dyn BlobRead>, BlobError>> {
        let (digest, path) = (*digest, self.file(digest));
        Box::pin(run_blocking(move || match File::open(&path) {
            Ok(file) => Ok(Box::new(file) as Box<dyn BlobRead>),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(BlobError::NotFound { digest }),
            Err(source) => Err(BlobError::Read { digest, source }),
        }))
    }

    fn path(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.file(digest))
    }

    fn exists<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, BlobError>> {
        let path = self.file(digest);
        Box::pin(run_blocking(move || path.try_exists().map_err(|error| io(&path, error))))
    }

    fn delete<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, BlobError>> {
        let path = self.file(digest);
        Box::pin(run_blocking(move || match fs::remove_file(&path) {
            Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io(&path, error)),
        }))
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Result<Vec<Digest>, BlobError>> {
        let dir = self.dir.clone();
        Box::pin(run_blocking(move || list(&dir)))
    }
}

fn store(dir: &Path, mut source: Box<dyn Read + Send>) -> Result<Digest, BlobError> {
    let tmp = dir.join(TMP);
    let mut file = NamedTempFile::new_in(&tmp).map_err(|error| io(&tmp, error))?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(BlobError::Source(error)),
        };
        hasher.update(&chunk[..read]);
        file.write_all(&chunk[..read]).map_err(|error| io(&tmp, error))?;
    }
    file.as_file().sync_all().map_err(|error| io(&tmp, error))?;

    let digest = Digest(hasher.finalize().into());
    let hex = digest.to_string();
    let shard = dir.join(&hex[..2]);
    match fs::create_dir(&shard) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io(&shard, error)),
    }
    // Also when it was there already: whoever made it may not have come to syncing it yet.
    sync_dir(dir)?;
    let path = shard.join(&hex[2..]);
    // Over an existing one too: should that be damaged, this is its repair.
    file.persist(&path).map_err(|error| io(&path, error.error))?;
    sync_dir(&shard)?;
    Ok(digest)
}

fn list(dir: &Path) -> Result<Vec<Digest>, BlobError> {
    let names = |dir: &Path| -> Result<Vec<String>, BlobError> {
        let entries = fs::read_dir(dir).map_err(|error| io(dir, error))?;
        let names = entries.map(|entry| Ok(entry.map_err(|error| io(dir, error))?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    };
    let mut digests = Vec::new();
    for shard in names(dir)? {
        if shard.len() == 2 {
            // What has no digest for a name is not ours: left alone.
            let rests = names(&dir.join(&shard))?;
            digests.extend(rests.iter().filter_map(|rest| format!("{shard}{rest}").parse::<Digest>().ok()));
        }
    }
    digests.sort_unstable();
    Ok(digests)
}

fn sync_dir(dir: &Path) -> Result<(), BlobError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io(dir, error))
}

fn io(path: &Path, source: std::io::Error) -> BlobError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BlobError::Full { path },
        _ => BlobError::Io { path, source },
    }
}
