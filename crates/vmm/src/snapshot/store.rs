//! Snapshots of many function versions in a directory, each with a key of its own.
//!
//! ```text
//!   lock                                    held by the one process that uses the directory
//!   snapshots/NAME.GENERATION.snapshot      encrypted
//!   keys/NAME.GENERATION.key                32 bytes, for the owner's eyes; may lie on another file system
//! ```
//!
//! A key is on the disk before its snapshot appears, and goes before its snapshot does. What a crash leaves, halves of a pair
//! and unfinished files, is removed at the next [`SnapshotStore::open`]. A snapshot that replaces another is its next
//! generation: until it is whole, the old pair stays.
//!
//! Deleting the key is what makes a snapshot's content inaccessible; the key is overwritten before it is unlinked. Where the
//! file system or the disk keep old blocks (copy on write, wear levelling), only their own encryption helps against somebody
//! who reads those.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

use super::file::{LoadError, SaveError, load, save, sync_directory};
use super::{Host, Key, KeyError, Template};

const MAX_NAME_BYTES: usize = 128;
const SNAPSHOT_SUFFIX: &str = ".snapshot";
const KEY_SUFFIX: &str = ".key";

/// A directory of snapshots. Its methods wait for the disk: call them where a thread may block.
#[derive(Debug)]
pub struct SnapshotStore {
    directory: PathBuf,
    host: Host,
    /// The names that exist, and those that are being made.
    slots: Mutex<HashMap<String, Arc<Mutex<Slot>>>>,
    _lock: File,
}

/// One name. Locked while its files are worked on.
#[derive(Debug, Default)]
struct Slot {
    /// The pair of files that counts.
    generation: Option<u64>,
    /// The template, as long as anybody uses it.
    template: Weak<Template>,
}

/// A snapshot in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Bytes of its file.
    pub bytes: u64,
}

impl SnapshotStore {
    /// Opens the directory, made if it is not there, and removes what an earlier process left unfinished. `host` is what new
    /// snapshots are marked with and loaded ones must match.
    pub fn open(directory: &Path, host: Host) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory { path: directory.into(), source };
        for path in [directory, &directory.join("snapshots"), &directory.join("keys")] {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        }
        let path = directory.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => StoreError::InUse { path: directory.into() },
            other => failed(other.into()),
        })?;
        let generations = sweep(directory).map_err(failed)?;
        let slots = generations.into_iter().map(|(name, generation)| {
            (name, Arc::new(Mutex::new(Slot { generation: Some(generation), template: Weak::new() })))
        });
        Ok(Self { directory: directory.into(), host, slots: Mutex::new(slots.collect()), _lock: lock })
    }

    /// Keeps a template under a name, with a new key; one that was kept there is replaced. Returns the file's bytes.
    ///
    /// # Errors
    /// What was there before, if anything, is still there then.
    pub fn save(&self, name: &str, template: &Arc<Template>) -> Result<u64, StoreError> {
        check_name(name)?;
        let slot = lock(&self.slots).entry(name.into()).or_default().clone();
        let result = self.save_in(name, &mut lock(&slot), template);
        self.forget_empty(name, slot);
        result
    }

    fn save_in(&self, name: &str, slot: &mut Slot, template: &Arc<Template>) -> Result<u64, StoreError> {
        let old = slot.generation;
        let generation = old.map_or(1, |old| old + 1);
        let (snapshot, key_path) = self.paths(name, generation);
        let key = Key::generate().map_err(|source| KeyError::Write { path: key_path.clone(), source })?;
        let written = key
            .write(&key_path)
            .and_then(|()| {
                sync_directory(&key_path).map_err(|source| KeyError::Write { path: key_path.clone(), source })
            })
            .map_err(StoreError::Key)
            .and_then(|()| save(&snapshot, template, &key, &self.host).map_err(StoreError::Save));
        match written {
            Ok(bytes) => {
                *slot = Slot { generation: Some(generation), template: Arc::downgrade(template) };
                if let Some(old) = old
                    && let Err(error) = self.remove(name, old)
                {
                    tracing::warn!(name, error = %error, "an old snapshot stays until the next start");
                }
                Ok(bytes)
            }
            Err(error) => {
                // Both may have been made or not; the sweep takes what cannot be removed now.
                let _ = wipe(&key_path);
                let _ = fs::remove_file(&snapshot);
                Err(error)
            }
        }
    }

    /// The template of that name. As long as anybody holds it, everybody gets the same one.
    ///
    /// # Errors
    /// A snapshot that cannot be loaded stays; [`delete`](Self::delete) it and make it again.
    pub fn load(&self, name: &str) -> Result<Arc<Template>, StoreError> {
        let missing = || StoreError::NotFound { name: name.into() };
        let slot = lock(&self.slots).get(name).cloned().ok_or_else(missing)?;
        let mut slot = lock(&slot);
        let generation = slot.generation.ok_or_else(missing)?;
        if let Some(template) = slot.template.upgrade() {
            return Ok(template);
        }
        let (snapshot, key) = self.paths(name, generation);
        let template = Arc::new(load(&snapshot, &Key::read(&key)?, &self.host)?);
        slot.template = Arc::downgrade(&template);
        Ok(template)
    }

    /// Removes a snapshot and its key for good; false when there was none. Templates that are in use stay usable.
    pub fn delete(&self, name: &str) -> Result<bool, StoreError> {
        let Some(slot) = lock(&self.slots).get(name).cloned() else {
            return Ok(false);
        };
        let result = {
            let mut slot = lock(&slot);
            match slot.generation {
                None => Ok(false),
                Some(generation) => self.remove(name, generation).map(|()| {
                    *slot = Slot::default();
                    true
                }),
            }
        };
        self.forget_empty(name, slot);
        result
    }

    /// All snapshots, by name.
    pub fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let slots: Vec<_> = lock(&self.slots).iter().map(|(name, slot)| (name.clone(), slot.clone())).collect();
        let mut found = Vec::with_capacity(slots.len());
        for (name, slot) in slots {
            if let Some(generation) = lock(&slot).generation {
                let (path, _) = self.paths(&name, generation);
                let bytes = fs::metadata(&path).map_err(|source| StoreError::Directory { path, source })?.len();
                found.push(Stored { name, bytes });
            }
        }
        found.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        Ok(found)
    }

    fn paths(&self, name: &str, generation: u64) -> (PathBuf, PathBuf) {
        let stem = format!("{name}.{generation}");
        (
            self.directory.join("snapshots").join(format!("{stem}{SNAPSHOT_SUFFIX}")),
            self.directory.join("keys").join(format!("{stem}{KEY_SUFFIX}")),
        )
    }

    /// The key first: without it the rest is noise.
    fn remove(&self, name: &str, generation: u64) -> Result<(), StoreError> {
        let (snapshot, key) = self.paths(name, generation);
        wipe(&key).map_err(|source| StoreError::Remove { path: key, source })?;
        gone(fs::remove_file(&snapshot)).map_err(|source| StoreError::Remove { path: snapshot, source })
    }

    /// Drops a slot that has no snapshot, unless somebody else is about to fill it.
    fn forget_empty(&self, name: &str, slot: Arc<Mutex<Slot>>) {
        // Slots are only handed out under this lock: with two references, they are the map's and ours.
        let mut slots = lock(&self.slots);
        if Arc::strong_count(&slot) == 2 && lock(&slot).generation.is_none() {
            slots.remove(name);
        }
    }
}

/// Removes unfinished files, halves of pairs and all generations of a name but the last whole one, and returns those.
fn sweep(directory: &Path) -> io::Result<BTreeMap<String, u64>> {
    let snapshots = entries(&directory.join("snapshots"), SNAPSHOT_SUFFIX)?;
    let keys = entries(&directory.join("keys"), KEY_SUFFIX)?;
    let mut whole = BTreeMap::new();
    // In order of generation, so that the last one stays.
    for pair in snapshots.keys().filter(|pair| keys.contains_key(pair)) {
        whole.insert(pair.0.clone(), pair.1);
    }
    for (pair, path) in keys.iter().chain(&snapshots) {
        if whole.get(&pair.0) != Some(&pair.1) {
            tracing::info!(path = %path.display(), "removing what an unfinished snapshot left");
            wipe_or_remove(path)?;
        }
    }
    Ok(whole)
}

/// The files of a directory that are named as ours, by name and generation; unfinished ones are removed.
fn entries(directory: &Path, suffix: &str) -> io::Result<BTreeMap<(String, u64), PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(file_name) = entry.file_name().into_string() else { continue };
        if file_name.starts_with('.') && file_name.ends_with(".tmp") {
            fs::remove_file(entry.path())?;
        } else if let Some((name, generation)) = file_name.strip_suffix(suffix).and_then(|stem| stem.split_once('.'))
            && let Ok(generation) = generation.parse()
        {
            found.insert((name.to_owned(), generation), entry.path());
        }
    }
    Ok(found)
}

fn wipe_or_remove(path: &Path) -> io::Result<()> {
    if path.extension().is_some_and(|extension| KEY_SUFFIX.ends_with(&*extension.to_string_lossy())) {
        wipe(path)
    } else {
        gone(fs::remove_file(path))
    }
}

/// Overwrites a key and removes it; one that is not there is fine.
fn wipe(key: &Path) -> io::Result<()> {
    let overwrite = || {
        let mut file = OpenOptions::new().write(true).open(key)?;
        file.write_all(&[0; 32])?;
        file.sync_all()?;
        fs::remove_file(key)?;
        sync_directory(key)
    };
    gone(overwrite())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(StoreError::Name { name: name.into() });
    }
    Ok(())
}

/// What is under these locks is whole after a panic too: it is replaced in one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the store did not do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No file could be named so.
    #[error("{name:?} cannot name a snapshot: use 1 to {MAX_NAME_BYTES} letters, digits, `-` and `_`")]
    Name {
        /// The name.
        name: String,
    },
    /// Another process has the directory.
    #[error("the snapshots in {} are in use by another process; stop it or use another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be used.
    #[error("cannot use the snapshot directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Its key cannot be read or written.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// It cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It cannot be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
