//! Blobs in memory: for tests and for servers that are to forget everything.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BlobError, BlobRead, Blobs, Digest, run_blocking};
use crate::BoxFuture;

/// A [`Blobs`] whose "durable" is the life of the value.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    blobs: Mutex<BTreeMap<Digest, Arc<[u8]>>>,
}

impl MemoryBlobs {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<[u8]>>> {
        // Map operations leave nothing half done: a poisoned map is whole.
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs for MemoryBlobs {
    fn put<'a>(&'a self, mut source: Box<dyn Read + Send>) -> BoxFuture<'a, Result<Digest, BlobError>> {
        Box::pin(async move {
            let (digest, bytes) = run_blocking(move || {
                let mut bytes = Vec::new();
                source.read_to_end(&mut bytes).map_err(BlobError::Source)?;
                Ok((Digest::of(&bytes), bytes))
            })
            .await?;
            self.blobs().insert(digest, bytes.into());
            Ok(digest)
        })
    }

    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Box<dyn BlobRead>, BlobError>> {
        Box::pin(async move {
            let bytes = self.blobs().get(digest).cloned().ok_or(BlobError::NotFound { digest: *digest })?;
            Ok(Box::new(Cursor::new(bytes)) as Box<dyn BlobRead>)
        })
    }

    fn path(&self, _digest: &Digest) -> Option<PathBuf> {
        None
    }

    fn exists<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, BlobError>> {
        Box::pin(async move { Ok(self.blobs().contains_key(digest)) })
    }

    fn delete<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, BlobError>> {
        Box::pin(async move { Ok(self.blobs().remove(digest).is_some()) })
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Result<Vec<Digest>, BlobError>> {
        Box::pin(async move { Ok(self.blobs().keys().copied().collect()) })
    }
}
