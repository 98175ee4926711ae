//! Root file systems of runtimes as disks for microVMs.
//!
//! Owns a directory of EROFS images, one for each root that functions run on, made when it is first asked for. The image
//! of a root shows what its bind mounts would show, less what no function needs: the rules stand in `disks/system.rs` for
//! the system's own directories and in `disks/unneeded.rs` for the rest.
//!
//! An image is named by a digest of everything that goes into it (paths, permissions, sizes and times), so a changed
//! interpreter or an upgraded system gives another one. Each process looks once per root; what changes while it runs it
//! finds after its next start. Several processes may share the directory.

mod assemble;
mod libraries;
mod packages;
mod system;
mod unneeded;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use image::Digest;
use image::erofs::{self, GraftError, WriteError};
use rustix::fs::{FlockOperation, flock};
use sandbox::RootFs;

/// Images of one root that are kept: the one in use, and the one before it for a process that still has it.
const KEPT_OF_ONE_ROOT: usize = 2;

/// Images of all roots together that are kept.
const KEPT: usize = 16;

/// Names of unfinished images start so.
const STAGING_PREFIX: &str = ".making-";

const SUFFIX: &str = ".erofs";

/// Why there is no image of a root.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Something of the root cannot be read, or cannot be in an image.
    #[error("the root file system cannot be made a disk")]
    Root(#[from] GraftError),
    /// The image could not be written.
    #[error("could not write the disk {}", .path.display())]
    Write {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: WriteError,
    },
    /// The directory of images does not do what it should.
    #[error("could not {action} {}: check that the data directory is writable", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl DiskError {
    fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// An image of a root, kept open: it stays readable even if another process removes it.
#[derive(Debug)]
pub struct RootDisk {
    /// The image, read-only.
    pub file: File,
    /// Where it is, or was.
    pub path: PathBuf,
    /// Tells it from every other image, also after a restart of the machine.
    pub identity: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The images of this host. A handle: clones share what is open.
#[derive(Debug, Clone)]
pub struct RootDisks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// Each root has its own lock, so that one who looks for an image does not wait while another is made.
    open: Mutex<HashMap<RootFs, Slot>>,
}

type Slot = Arc<Mutex<Option<Arc<RootDisk>>>>;

impl RootDisks {
    /// Keeps images in `dir`, which is made if absent and should hold nothing else.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(DiskError::at("make", &dir))?;
        Ok(Self { shared: Arc::new(Shared { dir, open: Mutex::default() }) })
    }

    /// The image of a root. The first call for a root takes some ten milliseconds to look at everything in it, and some
    /// seconds if the image has to be made; calls for the same root meanwhile wait for it. Blocks: async callers put it
    /// on a blocking thread.
    ///
    /// # Errors
    /// [`DiskError`]; the next call tries again.
    pub fn of(&self, root: &RootFs) -> Result<Arc<RootDisk>, DiskError> {
        let slot = Arc::clone(lock(&self.shared.open).entry(root.clone()).or_default());
        let mut disk = lock(&slot);
        if let Some(disk) = &*disk {
            return Ok(Arc::clone(disk));
        }
        let found = Arc::new(self.find_or_make(root)?);
        *disk = Some(Arc::clone(&found));
        Ok(found)
    }

    fn find_or_make(&self, root: &RootFs) -> Result<RootDisk, DiskError> {
        let dir = &self.shared.dir;
        let tree = assemble::tree(root)?;
        let identity = tree.fingerprint();
        let group = group(root);
        let path = dir.join(format!("{group}-{identity}{SUFFIX}"));
        if let Some(disk) = existing(&path, identity)? {
            return Ok(disk);
        }
        let _lock = self.lock_directory()?;
        if let Some(disk) = existing(&path, identity)? {
            return Ok(disk);
        }
        // Whoever made these is gone, or would hold the lock.
        self.remove_where(|name| name.starts_with(STAGING_PREFIX));
        let began = SystemTime::now();
        let staging = dir.join(format!("{STAGING_PREFIX}{identity}"));
        let summary = write(&tree, &staging).inspect_err(|_| {
            let _ = fs::remove_file(&staging);
        })?;
        fs::rename(&staging, &path).map_err(DiskError::at("put in place", &path))?;
        tracing::info!(
            disk = %path.display(),
            mib = summary.bytes >> 20,
            files = summary.files,
            ms = began.elapsed().unwrap_or_default().as_millis(),
            "made a root disk"
        );
        self.evict(&group, &path);
        let file = File::open(&path).map_err(DiskError::at("open", &path))?;
        Ok(RootDisk { file, path, identity, bytes: summary.bytes })
    }

    /// Held while images are made and removed, by one process at a time.
    fn lock_directory(&self) -> Result<File, DiskError> {
        let path = self.shared.dir.join(".lock");
        let file = File::options().create(true).append(true).open(&path).map_err(DiskError::at("open", &path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(DiskError::at("lock", &path)(error.into())),
            }
        }
    }

    /// Removes the images that were not used for longest, never the one at `kept`.
    fn evict(&self, group: &str, kept: &Path) {
        let mut images: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.shared.dir).into_iter().flatten().flatten() {
            let used = entry.metadata().and_then(|metadata| metadata.modified());
            if let Ok(used) = used
                && entry.file_name().to_string_lossy().ends_with(SUFFIX)
                && entry.path() != kept
            {
                images.push((used, entry.path()));
            }
        }
        images.sort_unstable_by(|one, two| two.cmp(one));
        let in_group = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(group));
        let mut of_this_root = 1;
        for (index, (_, path)) in images.iter().enumerate() {
            of_this_root += usize::from(in_group(path));
            let too_many = index + 1 >= KEPT || (in_group(path) && of_this_root > KEPT_OF_ONE_ROOT);
            if too_many && let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "could not remove an old root disk");
            }
        }
    }

    fn remove_where(&self, unwanted: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.shared.dir).into_iter().flatten().flatten() {
            if unwanted(&entry.file_name().to_string_lossy())
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "could not remove an unfinished root disk");
            }
        }
    }
}

/// Writes an image that survives a power failure: it is used again after a restart of the machine, unread.
fn write(tree: &erofs::Tree, path: &Path) -> Result<erofs::Summary, DiskError> {
    let file = File::create(path).map_err(DiskError::at("make", path))?;
    let summary = erofs::write(tree, &file).map_err(|source| DiskError::Write { path: path.to_owned(), source })?;
    file.sync_all().map_err(DiskError::at("sync", path))?;
    Ok(summary)
}

/// Opens an image that is there, and notes that it is in use.
fn existing(path: &Path, identity: Digest) -> Result<Option<RootDisk>, DiskError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::at("open", path)(error)),
    };
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(path = %path.display(), %error, "the use of a root disk is not noted");
    }
    let bytes = file.metadata().map_err(DiskError::at("examine", path))?.len();
    Ok(Some(RootDisk { file, path: path.to_owned(), identity, bytes }))
}

/// What the images of one root have in common in their names. Two roots that share it by chance would only lose an image
/// sooner.
fn group(root: &RootFs) -> String {
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
