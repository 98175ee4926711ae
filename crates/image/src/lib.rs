//! Function images from zip archives: hostile-input checks, deterministic unpacking, content addresses.
//!
//! Owns what happens between the bytes a caller uploaded and the directory that a sandbox mounts at `/var/task` or
//! `/opt`: [`inspect_zip`] judges an archive, [`unpack_zip`] turns it into a directory named by its digest,
//! [`merge_layers`] lays layers over each other, [`CodeCache::extended`] adds to a tree what was made from it, and [`CodeCache`] keeps such directories, and disk images of them,
//! within a budget. [`erofs`] writes such images.
//! All calls block on the disk; async callers put them on a blocking thread.
//!
//! The unpacked trees stay hostile: their symbolic links are checked to stay inside, yet whoever reads a tree on the
//! host must not follow links in it, because only the sandbox's own root makes an absolute path mean the right thing.

mod archive;
mod cache;
mod digest;
mod disk;
pub mod erofs;
mod extend;
mod inspect;
mod layers;
mod links;
mod plan;
mod staging;
mod unpack;

pub use cache::{CodeCache, Lease};
pub use digest::{Digest, ParseDigestError};
pub use disk::ImageError;
pub use inspect::{ZipInfo, inspect_zip, inspect_zip_within};
pub use layers::{MergeError, merge_layers};
pub use plan::{NameProblem, ZipError, ZipLimits};
pub use staging::StagingError;
pub use unpack::{UnpackError, unpack_zip};

#[cfg(test)]
mod testing;
