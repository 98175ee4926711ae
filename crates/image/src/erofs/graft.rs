//! Takes files and directories of the host into a tree. Links are never followed below the path that was given.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::tree::{Attributes, Content, Kind, PathError, Tree};

/// Permission bits that are taken over: what runs in a sandbox gains no rights from the owner of a program.
const KEPT_MODE: u32 = 0o1777;

/// Why something of the host was not taken into a tree.
#[derive(Debug, thiserror::Error)]
pub enum GraftError {
    /// A name or a link of the host cannot be in an image.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It is a device, a socket or a named pipe.
    #[error("{} is neither a file nor a directory nor a symbolic link; remove it or leave it out", .path.display())]
    Special {
        /// The path on the host.
        path: PathBuf,
    },
    /// The host refused.
    #[error("could not {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory of the host.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Something of the host that may be taken into a tree.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Where it is on the host.
    pub host: &'a Path,
    /// Where it would be in the image.
    pub inside: &'a Path,
    /// Whether it is a directory; refusing it refuses everything in it.
    pub is_dir: bool,
}

impl Tree {
    /// Takes over a directory of the host with everything in it that `wanted` allows, or a single file. What is at
    /// `inside` already stays unless something of the same path takes its place.
    ///
    /// Permission bits and times are the host's, set-id bits are dropped, everything belongs to root. The content of
    /// files is read when the image is written: until then they must not change. `host` itself may be a link.
    pub fn graft(
        &mut self,
        host: &Path,
        inside: &Path,
        mut wanted: impl FnMut(Found<'_>) -> bool,
    ) -> Result<(), GraftError> {
        let host = fs::canonicalize(host).map_err(at("find", host))?;
        let metadata = fs::symlink_metadata(&host).map_err(at("examine", &host))?;
        self.take(&host, inside, &metadata)?;
        let mut pending = if metadata.is_dir() { vec![(host, inside.to_owned())] } else { vec![] };
        while let Some((directory, target)) = pending.pop() {
            for entry in fs::read_dir(&directory).map_err(at("list", &directory))? {
                let entry = entry.map_err(at("list", &directory))?;
                let (path, inside) = (entry.path(), target.join(entry.file_name()));
                let is_dir = entry.file_type().map_err(at("examine", &path))?.is_dir();
                if !wanted(Found { host: &path, inside: &inside, is_dir }) {
                    continue;
                }
                let metadata = entry.metadata().map_err(at("examine", &path))?;
                self.take(&path, &inside, &metadata)?;
                if metadata.is_dir() {
                    pending.push((path, inside));
                }
            }
        }
        Ok(())
    }

    /// Takes over a single file, symbolic link, or directory without its content, as [`Tree::graft`] would.
    pub fn graft_one(&mut self, host: &Path, inside: &Path) -> Result<(), GraftError> {
        let metadata = fs::symlink_metadata(host).map_err(at("examine", host))?;
        self.take(host, inside, &metadata)
    }

    fn take(&mut self, host: &Path, inside: &Path, metadata: &Metadata) -> Result<(), GraftError> {
        let attributes = Attributes {
            mode: metadata.mode() & KEPT_MODE,
            uid: 0,
            gid: 0,
            mtime: u64::try_from(metadata.mtime()).unwrap_or(0),
        };
        if metadata.is_dir() {
            self.dir(inside, attributes)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(host).map_err(at("read link", host))?;
            self.symlink(inside, target, attributes)?;
        } else if metadata.is_file() {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(node) = self.shared.get(&identity) {
                return Ok(self.name(inside, *node)?);
            }
            let content = Content::Host { path: host.into(), bytes: metadata.len(), nanos: metadata.mtime_nsec() };
            let node = self.put(inside, attributes, Kind::File(content))?;
            if metadata.nlink() > 1 {
                self.shared.insert(identity, node);
            }
        } else {
            return Err(GraftError::Special { path: host.to_owned() });
        }
        Ok(())
    }
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> GraftError + use<'a> {
    move |source| GraftError::Io { action, path: path.to_owned(), source }
}
