//! Metadata and blobs: the traits, their SQLite, file and in-memory backends, one contract suite for each.
//!
//! Owns durability: what a call acknowledges survives kill -9 and power loss in the durable backends. It does not know
//! what the tables or blobs mean, and routing never waits for it: callers [`Metadata::load`] their tables at start and
//! keep them in memory.

pub mod blobs;
pub mod metadata;

use std::future::Future;
use std::pin::Pin;

pub use blobs::file::FileBlobs;
pub use blobs::memory::MemoryBlobs;
pub use blobs::{BlobError, BlobRead, Blobs, Digest, ParseDigestError};
pub use metadata::memory::MemoryMetadata;
pub use metadata::sqlite::{OpenError, SqliteMetadata};
pub use metadata::{CommitError, Entry, Expect, Metadata, StoreError, Write};

/// A future that a trait object returns: owned by the caller, movable between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

#[cfg(test)]
mod contract;
