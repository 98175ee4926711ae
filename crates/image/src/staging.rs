//! Trees that appear at once or not at all: built beside their destination, then renamed into place.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// Names of unfinished trees start so; one that outlived its process is rubbish.
pub(crate) const STAGING_PREFIX: &str = ".staging-";

/// Why a tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The disk, or the quota on it, is used up. Nothing half-made is left.
    #[error("no space left for {}; free some or move the data directory", .path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file system refused for another reason. Nothing half-made is left.
    #[error("could not {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl StagingError {
    /// For `map_err`: what was done to which path.
    pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), source }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

/// A tree under construction; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: TempDir,
}

impl Staging {
    /// Starts an empty tree in `parent`, which is made if need be.
    pub(crate) fn begin(parent: &Path) -> Result<Self, StagingError> {
        fs::create_dir_all(parent).map_err(StagingError::at("make", parent))?;
        let dir = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .tempdir_in(parent)
            .map_err(StagingError::at("write in", parent))?;
        Ok(Self { dir })
    }

    /// Host path of something in the tree.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Makes a directory whose parent is there, writable by us until [`Staging::finish_dir`].
    pub(crate) fn make_dir(&self, relative: &str) -> Result<(), StagingError> {
        let path = self.path(relative);
        DirBuilder::new().mode(0o700).create(&path).map_err(StagingError::at("make", &path))
    }

    /// Makes an empty file, which must not be there yet.
    pub(crate) fn make_file(&self, relative: &str) -> Result<File, StagingError> {
        let path = self.path(relative);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.map_err(StagingError::at("make", &path))
    }

    /// Makes a symbolic link.
    pub(crate) fn make_link(&self, relative: &str, target: &Path) -> Result<(), StagingError> {
        let path = self.path(relative);
        std::os::unix::fs::symlink(target, &path).map_err(StagingError::at("make", &path))
    }

    /// Sets permissions and time of a directory, after everything below it is there. The owner keeps full access,
    /// without which the tree could not be removed again.
    pub(crate) fn finish_dir(&self, relative: &str, mode: u32, mtime: u64) -> Result<(), StagingError> {
        let path = self.path(relative);
        let dir = File::open(&path).map_err(StagingError::at("open", &path))?;
        seal(&dir, mode | 0o700, mtime).map_err(StagingError::at("set permissions of", &path))
    }

    /// Puts the tree at `destination`. Another process may have been faster: its tree is as good as ours.
    pub(crate) fn publish(self, destination: &Path) -> Result<(), StagingError> {
        let root = File::open(self.dir.path()).map_err(StagingError::at("open", self.dir.path()))?;
        seal(&root, 0o755, crate::plan::EPOCH).map_err(StagingError::at("set permissions of", self.dir.path()))?;
        match fs::rename(self.dir.path(), destination) {
            Ok(()) => {
                let _moved = self.dir.keep();
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(())
            }
            Err(error) => Err(StagingError::at("put in place", destination)(error)),
        }
    }
}

/// Sets permission bits and modification time of an open file or directory.
pub(crate) fn seal(file: &File, mode: u32, mtime: u64) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(mtime))
}
