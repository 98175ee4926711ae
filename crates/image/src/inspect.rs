//! Judges an uploaded archive before it is accepted.

use std::io::{self, Read, Seek};

use crate::archive::{Archive, CopyError};
use crate::plan::{Kind, Plan, ZipError, ZipLimits};

/// What an acceptable archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZipInfo {
    /// Sum of the sizes of all files, in bytes.
    pub unzipped_size: u64,
    /// Files and symbolic links.
    pub files: usize,
    /// Directories, also those that the archive only implies.
    pub directories: usize,
}

/// Checks that an archive can become a function image, within [`ZipLimits::LAMBDA`].
///
/// Everything is read once: a bomb whose real size differs from the declared one, a damaged checksum or a link that
/// leaves the tree are found here, so that [`unpack_zip`](crate::unpack_zip) of an accepted archive fails for reasons
/// of the host only. Costs as much as unzipping to nowhere, and never more than the size limit.
pub fn inspect_zip(reader: impl Read + Seek) -> Result<ZipInfo, ZipError> {
    inspect_zip_within(reader, ZipLimits::LAMBDA)
}

/// [`inspect_zip`] with other limits.
pub fn inspect_zip_within(reader: impl Read + Seek, limits: ZipLimits) -> Result<ZipInfo, ZipError> {
    let mut archive = Archive::open(reader)?;
    let plan = Plan::read(&mut archive, limits)?;
    let mut info = ZipInfo { unzipped_size: plan.bytes, files: 0, directories: 0 };
    for node in plan.nodes.values() {
        match node.kind {
            Kind::Dir { .. } => info.directories += 1,
            Kind::Link { .. } => info.files += 1,
            Kind::File { index } => {
                info.files += 1;
                match archive.copy_entry(index, &mut io::sink()) {
                    Ok(_) => {}
                    Err(CopyError::Zip(error)) => return Err(error),
                    Err(CopyError::Write(error)) => return Err(ZipError::Io(error)),
                }
            }
        }
    }
    Ok(info)
}

#[cfg(test)]
mod tests;
