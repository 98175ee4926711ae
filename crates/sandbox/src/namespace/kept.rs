//! Images of processes on the disk: what outlives the server.
//!
//! Each is a file of its own in the same kind of store that machines have, with a key of its own, authenticated as a whole before any byte
//! of it is used. Beside the image stands what it depends on.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm::snapshot::{SnapshotStore, StoreError, Template};

use super::images::{self, Image};
use super::{Host, zygotes};
use crate::tmp_disk::copy_data;
use crate::{KeepError, Kept, Saved};

/// Images on the disk, and what those that are made here depend on.
#[derive(Debug)]
pub(super) struct Keepsakes {
    store: SnapshotStore,
    facts: Facts,
}

/// What has to be the same where an image is used; the processor the store looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// Release and build: its code for programs is in the image.
    kernel: String,
    /// Digest of the library, which knows the form of images.
    library: String,
}

/// What stands beside an image.
#[derive(Serialize, Deserialize)]
struct Record {
    facts: Facts,
    note: Vec<u8>,
}

/// An image that is not what it should be.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("it was made on another kernel: {0}")]
    Kernel(String),
    #[error("it was made by another version of Firelet")]
    Library,
}

impl Keepsakes {
    /// Opens the directory, made if it is not there.
    pub fn open(dir: &Path) -> io::Result<Keepsakes> {
        let uname = rustix::system::uname();
        let kernel = format!("{} {}", uname.release().to_string_lossy(), uname.version().to_string_lossy());
        let facts = Facts { kernel, library: blake3::hash(zygotes::LIBRARY).to_hex().to_string() };
        // Libraries have chosen their code by what the processor can.
        let told = std::fs::read_to_string("/proc/cpuinfo")?;
        let features = told.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
        let features = *blake3::hash(features.unwrap_or_default().as_bytes()).as_bytes();
        let host = vmm::snapshot::Host::this(features, BTreeMap::new());
        let store = SnapshotStore::open(dir, host).map_err(io::Error::other)?;
        Ok(Keepsakes { store, facts })
    }

    fn check(&self, record: &Record) -> Result<(), Unfit> {
        if record.facts.kernel != self.facts.kernel {
            return Err(Unfit::Kernel(record.facts.kernel.clone()));
        }
        if record.facts.library != self.facts.library {
            return Err(Unfit::Library);
        }
        Ok(())
    }

    fn found(&self, name: &str) -> Result<Option<Arc<Template>>, StoreError> {
        match self.store.load(name) {
            Ok(template) => Ok(Some(template)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an image, its key first. Blocks.
    pub fn delete(&self, name: &str) -> Result<(), KeepError> {
        self.store.delete(name).map(drop).map_err(Failing(name).at("delete it"))
    }

    /// What is there, with the notes of all that is of use. Reads every image. Blocks.
    pub fn list(&self) -> Result<Vec<Saved>, KeepError> {
        let stored = self.store.list().map_err(Failing("of all names").at("list them"))?;
        let note = |name: &str| {
            let template = self.found(name).ok().flatten()?;
            let record: Record = serde_json::from_slice(template.state()).ok()?;
            self.check(&record).is_ok().then_some(record.note)
        };
        Ok(stored.into_iter().map(|stored| Saved { note: note(&stored.name), name: stored.name }).collect())
    }
}

impl Image {
    /// Writes it to the disk. Blocks.
    pub(super) fn save_now(&self, name: &str, note: Vec<u8>) -> Result<(), KeepError> {
        let failing = Failing(name);
        let Some(images) = &self.host.images else {
            return Err(failing.at("find its place")(io::Error::from(io::ErrorKind::Unsupported)));
        };
        let record = Record { facts: images.keepsakes.facts.clone(), note };
        let record = serde_json::to_vec(&record).map_err(failing.at("describe it"))?;
        let copy = File::from(vmm::snapshot::memory(self.bytes, false).map_err(failing.at("copy it"))?);
        copy_data(&self.memory, &copy).map_err(failing.at("copy it"))?;
        let template = Template::from_paused(copy.into(), self.bytes, record).map_err(failing.at("copy it"))?;
        images.keepsakes.store.save(name, &Arc::new(template)).map_err(failing.at("write it"))?;
        Ok(())
    }
}

/// Reads one from the disk. Blocks.
pub(super) fn load(host: &Arc<Host>, name: &str) -> Result<Option<Kept>, KeepError> {
    let failing = Failing(name);
    let Some(images) = &host.images else { return Ok(None) };
    let Some(template) = images.keepsakes.found(name).map_err(failing.at("read it"))? else { return Ok(None) };
    let record: Record = serde_json::from_slice(template.state()).map_err(failing.at("read what belongs to it"))?;
    images.keepsakes.check(&record).map_err(failing.at("use it"))?;
    let memory = images::again(template.memory()).map_err(failing.at("open it"))?;
    let image = Image { host: Arc::clone(host), memory: Arc::new(memory), bytes: template.memory_bytes() };
    Ok(Some(Kept { snapshot: Arc::new(image), note: record.note }))
}

/// Makes the errors of one snapshot.
struct Failing<'a>(&'a str);

impl Failing<'_> {
    fn at<E: Into<Box<dyn Error + Send + Sync>>>(&self, step: &'static str) -> impl FnOnce(E) -> KeepError {
        let name = self.0.to_owned();
        move |error| KeepError { name, step, source: io::Error::other(error) }
    }
}
