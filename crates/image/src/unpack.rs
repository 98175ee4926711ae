//! Turns an archive into a directory named by its digest.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::archive::{Archive, CopyError};
use crate::digest::Digest;
use crate::plan::{Kind, Plan, ZipError, ZipLimits};
use crate::staging::{Staging, StagingError, seal};

/// Why an archive was not unpacked. Nothing half-made is left in any case.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is not acceptable, or could not be read.
    #[error("could not unpack {}", .path.display())]
    Zip {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: ZipError,
    },
    /// The tree could not be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// Unpacks `zip_path` into `dest_parent/<digest>` and returns that directory.
///
/// The directory appears at once, complete; if it is there already, its content is taken to be right and nothing is
/// read. `digest` is trusted to be the archive's. Permission bits are those of the archive (`0644`, and `0755` for
/// directories, where it has none). Like Lambda, this never widens them: a file that others may not read stays
/// unreadable for the function. Set-user-id bits are dropped, and the owner always keeps access to directories. Times
/// are those of the archive, so that compiled files in it stay valid; two unpackings of one archive are equal.
///
/// The tree is not synced to the disk: after a power failure it is to be discarded (see
/// [`CodeCache::open`](crate::CodeCache::open)).
pub fn unpack_zip(zip_path: &Path, dest_parent: &Path, digest: &Digest) -> Result<PathBuf, UnpackError> {
    let destination = dest_parent.join(digest.to_string());
    if destination.is_dir() {
        return Ok(destination);
    }
    let in_zip = |source| UnpackError::Zip { path: zip_path.to_owned(), source };
    let mut archive = File::open(zip_path).map_err(ZipError::Io).and_then(Archive::open).map_err(in_zip)?;
    let plan = Plan::read(&mut archive, ZipLimits::LAMBDA).map_err(in_zip)?;
    let staging = Staging::begin(dest_parent)?;
    for (path, node) in &plan.nodes {
        match &node.kind {
            Kind::Dir { .. } => staging.make_dir(path)?,
            Kind::File { index } => {
                write_file(&mut archive, *index, &staging, path, node.mode, node.mtime).map_err(
                    |error| match error {
                        CopyOut::Zip(source) => in_zip(source),
                        CopyOut::Staging(source) => source.into(),
                    },
                )?;
            }
            Kind::Link { target } => staging.make_link(path, Path::new(target))?,
        }
    }
    for (path, node) in plan.nodes.iter().rev() {
        if matches!(node.kind, Kind::Dir { .. }) {
            staging.finish_dir(path, node.mode, node.mtime)?;
        }
    }
    staging.publish(&destination)?;
    Ok(destination)
}

enum CopyOut {
    Zip(ZipError),
    Staging(StagingError),
}

fn write_file<R: Read + Seek>(
    archive: &mut Archive<R>,
    index: usize,
    staging: &Staging,
    path: &str,
    mode: u32,
    mtime: u64,
) -> Result<(), CopyOut> {
    let mut file = staging.make_file(path).map_err(CopyOut::Staging)?;
    let written = staging.path(path);
    let exact = archive.copy_entry(index, &mut file).map_err(|error| match error {
        CopyError::Zip(error) => CopyOut::Zip(error),
        CopyError::Write(error) => CopyOut::Staging(StagingError::at("write", &written)(error)),
    })?;
    seal(&file, mode, exact.unwrap_or(mtime))
        .map_err(|error| CopyOut::Staging(StagingError::at("set permissions of", &written)(error)))
}

#[cfg(test)]
mod tests;
