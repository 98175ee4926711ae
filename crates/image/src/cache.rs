//! A directory of unpacked trees, and of disk images of them, that stays within a budget: what is in use stays, the rest
//! goes, longest unused first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use crate::disk::{ImageError, empty_image, image_of};
use crate::extend::{extend, extended_name};
use crate::layers::{MergeError, merge_layers, merged_name};
use crate::staging::{STAGING_PREFIX, StagingError};
use crate::unpack::{UnpackError, unpack_zip};

/// What the name of a tree's image has behind the tree's own.
const IMAGE_SUFFIX: &str = ".erofs";

/// Trees on their way out are renamed to this prefix first, so that nobody takes them for complete.
const EVICTED_PREFIX: &str = ".evicted-";

/// Tells the start of the host in which the trees were written.
const BOOT_FILE: &str = ".boot-id";

/// Unpacked packages, merged layers and images of both on this host. A handle: clones share the cache.
///
/// One process at a time owns the directory. Losing it costs time, never data: every tree can be made again.
#[derive(Debug, Clone)]
pub struct CodeCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct State {
    trees: HashMap<String, Tree>,
    making: HashSet<String>,
    bytes: u64,
    /// Counts uses: the smaller the last use of a tree, the longer ago it was.
    uses: u64,
    /// Counts evictions, to name them.
    evictions: u64,
}

#[derive(Debug)]
struct Tree {
    bytes: u64,
    leases: usize,
    last_use: u64,
}

/// Keeps one tree or image where it is for as long as it lives.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    name: String,
    path: PathBuf,
}

impl CodeCache {
    /// Opens or makes the cache in `dir`, which should hold nothing else. `max_bytes` is what the trees may take on the
    /// disk; what is in use may exceed it.
    ///
    /// Leftovers of a crash are removed. Trees are not synced when they are written, so all of them are removed when
    /// the machine was started anew since.
    pub fn open(dir: impl Into<PathBuf>, max_bytes: u64) -> Result<Self, StagingError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(StagingError::at("make", &dir))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot_file = dir.join(BOOT_FILE);
        let same_boot = !boot.is_empty() && fs::read_to_string(&boot_file).is_ok_and(|written| written == boot);
        let mut state = State::default();
        for entry in fs::read_dir(&dir).map_err(StagingError::at("list", &dir))? {
            let entry = entry.map_err(StagingError::at("list", &dir))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else { continue };
            let complete = name.strip_suffix(IMAGE_SUFFIX).unwrap_or(&name).parse::<Digest>().is_ok();
            if complete && same_boot {
                let bytes = disk_bytes(&path)?;
                state.bytes += bytes;
                state.trees.insert(name, Tree { bytes, leases: 0, last_use: 0 });
            } else if complete || name.starts_with(STAGING_PREFIX) || name.starts_with(EVICTED_PREFIX) {
                remove(&path).map_err(StagingError::at("remove", &path))?;
            }
        }
        fs::write(&boot_file, boot).map_err(StagingError::at("write", &boot_file))?;
        let shared = Arc::new(Shared { dir, max_bytes, state: Mutex::new(state), made: Condvar::new() });
        shared.evict();
        Ok(Self { shared })
    }

    /// The unpacked content of the archive `zip_path`, whose digest is `digest`. Unpacks it if need be; concurrent calls
    /// for one digest wait for a single unpacking.
    pub fn unpacked(&self, digest: &Digest, zip_path: &Path) -> Result<Lease, UnpackError> {
        self.lease(digest.to_string(), |dir| unpack_zip(zip_path, dir, digest), UnpackError::Staging)
    }

    /// The merger of `layers`, leases of unpacked layers in order.
    pub fn merged(&self, layers: &[Lease]) -> Result<Lease, MergeError> {
        let paths: Vec<PathBuf> = layers.iter().map(|layer| layer.path.clone()).collect();
        let name = match layers {
            [] => return Err(MergeError::NoLayers),
            [only] => only.name.clone(),
            _ => merged_name(&paths)?,
        };
        self.lease(name, |dir| merge_layers(&paths, dir), MergeError::Staging)
    }

    /// A tree of this cache with further files in it (relative paths), such as what a compiler made of it; `kind` tells
    /// one such addition to the tree from another. Files that do not fit into the tree are left out.
    pub fn extended(&self, tree: &Lease, kind: &str, files: &BTreeMap<String, Vec<u8>>) -> Result<Lease, StagingError> {
        let name = extended_name(&tree.name, kind);
        self.lease(name.clone(), |dir| extend(&tree.path, dir, &name, files), |error| error)
    }

    /// What [`CodeCache::extended`] has made of a tree, if it has and it is still there.
    pub fn find_extended(&self, tree: &Lease, kind: &str) -> Option<Lease> {
        let name = extended_name(&tree.name, kind);
        let path = self.shared.lock().take_lease(&name, &self.shared.dir)?;
        Some(Lease { shared: Arc::clone(&self.shared), name, path })
    }

    /// An image of a tree of this cache, to be a microVM's disk: an EROFS file system whose root is the tree, with the
    /// tree's permissions and times, owned by root. Concurrent calls for one tree wait for a single making. The image
    /// has a lease of its own.
    pub fn image(&self, tree: &Lease) -> Result<Lease, ImageError> {
        let name = format!("{}{IMAGE_SUFFIX}", tree.name);
        self.lease(name.clone(), |dir| image_of(&tree.path, dir, &name), ImageError::Staging)
    }

    /// An image with nothing in it, for a disk that a function does not have.
    pub fn empty_image(&self) -> Result<Lease, ImageError> {
        let name = format!("{}{IMAGE_SUFFIX}", Digest::of(b"nothing"));
        self.lease(name.clone(), |dir| empty_image(dir, &name), ImageError::Staging)
    }

    /// What the trees take on the disk, in bytes. Files shared by hard links count in every tree that has them.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().bytes
    }

    fn lease<E>(
        &self,
        name: String,
        make: impl FnOnce(&Path) -> Result<PathBuf, E>,
        measured: impl FnOnce(StagingError) -> E,
    ) -> Result<Lease, E> {
        let shared = &self.shared;
        let mut state = shared.lock();
        loop {
            if let Some(path) = state.take_lease(&name, &shared.dir) {
                return Ok(Lease { shared: Arc::clone(shared), name, path });
            }
            if state.making.insert(name.clone()) {
                break;
            }
            state = shared.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        // Whatever comes of it, a panic included, those who wait get to try themselves.
        let making = Making { shared, name: &name };
        let path = make(&shared.dir)?;
        let bytes = disk_bytes(&path).map_err(measured)?;
        let mut state = shared.lock();
        state.bytes += bytes;
        state.uses += 1;
        let last_use = state.uses;
        state.trees.insert(name.clone(), Tree { bytes, leases: 1, last_use });
        drop(state);
        drop(making);
        shared.evict();
        Ok(Lease { shared: Arc::clone(shared), name, path })
    }
}

struct Making<'a> {
    shared: &'a Shared,
    name: &'a str,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.shared.lock().making.remove(self.name);
        self.shared.made.notify_all();
    }
}

impl State {
    fn take_lease(&mut self, name: &str, dir: &Path) -> Option<PathBuf> {
        let tree = self.trees.get_mut(name)?;
        self.uses += 1;
        tree.leases += 1;
        tree.last_use = self.uses;
        Some(dir.join(name))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes unused trees until the budget is kept. Only the renaming happens under the lock.
    fn evict(&self) {
        loop {
            let mut state = self.lock();
            if state.bytes <= self.max_bytes {
                return;
            }
            let unused = state.trees.iter().filter(|(_, tree)| tree.leases == 0);
            let Some(name) = unused.min_by_key(|(_, tree)| tree.last_use).map(|(name, _)| name.clone()) else { return };
            state.evictions += 1;
            let doomed = self.dir.join(format!("{EVICTED_PREFIX}{}", state.evictions));
            if let Err(error) = fs::rename(self.dir.join(&name), &doomed) {
                tracing::warn!(tree = name, %error, "could not evict from the code cache");
                return;
            }
            if let Some(tree) = state.trees.remove(&name) {
                state.bytes = state.bytes.saturating_sub(tree.bytes);
            }
            drop(state);
            if let Err(error) = remove(&doomed) {
                tracing::warn!(path = %doomed.display(), %error, "could not remove an evicted tree");
            }
        }
    }
}

impl Lease {
    /// The tree's directory, or the image.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        if let Some(tree) = self.shared.lock().trees.get_mut(&self.name) {
            tree.leases += 1;
        }
        Self { shared: Arc::clone(&self.shared), name: self.name.clone(), path: self.path.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Evicting waits for the next unpacking: leases end on threads that must not wait for a disk.
        if let Some(tree) = self.shared.lock().trees.get_mut(&self.name) {
            tree.leases -= 1;
        }
    }
}

/// Removes a tree or an image.
fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// What a tree or an image takes on the disk, in bytes.
fn disk_bytes(root: &Path) -> Result<u64, StagingError> {
    let metadata = fs::symlink_metadata(root).map_err(StagingError::at("examine", root))?;
    if !metadata.is_dir() {
        return Ok(metadata.blocks() * 512);
    }
    let mut bytes = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).map_err(StagingError::at("list", &directory))? {
            let entry = entry.map_err(StagingError::at("list", &directory))?;
            let metadata = entry.metadata().map_err(StagingError::at("examine", &entry.path()))?;
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
