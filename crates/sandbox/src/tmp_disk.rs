//! Disks for `/tmp`: their content counts against a size of their own, not against the memory of the sandbox.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum TmpDiskError {
    /// A step of making it failed.
    #[error("could not make a disk for /tmp: {step}")]
    Step {
        /// What was being done, with the path concerned.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// How [`TmpDisks`] is set up.
#[derive(Debug, Clone)]
pub struct TmpDiskOptions {
    /// Directory for images, on a disk with room for what functions write to `/tmp`.
    pub dir: PathBuf,
    /// Disks kept ready of the size last asked for.
    pub pool_size: usize,
}

/// Makes the disks of one server's sandboxes.
#[derive(Debug)]
pub struct TmpDisks {}

impl TmpDisks {
    /// Prepares the directory.
    pub fn start(options: TmpDiskOptions) -> Result<TmpDisks, TmpDiskError> {
        let _ = options;
        Ok(TmpDisks {})
    }

    /// An empty disk with room for `bytes`.
    pub async fn acquire(&self, bytes: u64) -> Result<TmpDisk, TmpDiskError> {
        let _ = bytes;
        Ok(TmpDisk { mount: None })
    }
}

/// One disk. It is gone when the last mount of it and this handle are.
#[derive(Debug)]
pub struct TmpDisk {
    /// A detached mount to attach with `move_mount`; `None` = mount a size-limited tmpfs instead.
    pub mount: Option<OwnedFd>,
}
