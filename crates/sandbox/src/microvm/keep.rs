//! Snapshots of sandboxes on the disk: what outlives the server, in the store of base snapshots.
//!
//! ```text
//!   function-NAME        the machine: memory and state, as a template
//!   function-NAME-tmp    `/tmp` as the memory of another template; its state is the record: what belongs to the machine
//! ```
//!
//! Each has a key of its own and is used only when all of it has been authenticated. The record names the machine that it
//! belongs to and is written last: halves of two snapshots are told apart.

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm::snapshot::{SnapshotStore, StoreError, Template};

use super::Host;
use super::agent::Past;
use super::base::Base;
use super::make::Images;
use super::size::Size;
use super::snapshot::Stopped;
use crate::tmp_disk::copy_data;
use crate::{KeepError, Kept, ProcessId, Saved};

const PREFIX: &str = "function-";
const TMP: &str = "-tmp";

/// Everything of a stopped sandbox that is neither memory nor `/tmp`.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Identity of the machine's template.
    machine: String,
    /// Of kernel and agent.
    kit: String,
    vcpus: u8,
    memory_mib: u32,
    has_network: bool,
    /// Names of images and where they are mounted.
    images: Vec<(String, PathBuf)>,
    last_process: u32,
    last_stream: u64,
    running: Vec<(u32, [u64; 3])>,
    prestarted: Option<Vec<String>>,
    note: Vec<u8>,
}

/// A snapshot that is not what it should be.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("its /tmp belongs to another snapshot")]
    Halves,
    #[error("it was made with another kernel or agent")]
    Kit,
    #[error("it was made {}", if *.0 { "with a network" } else { "without a network" })]
    Network(bool),
}

impl Record {
    /// Whether it was made of what there is here.
    fn check(&self, host: &Host) -> Result<(), Unfit> {
        if self.kit != *host.kit_digest.to_hex() {
            return Err(Unfit::Kit);
        }
        if self.has_network != host.has_network() {
            return Err(Unfit::Network(self.has_network));
        }
        Ok(())
    }
}

impl Stopped {
    /// Writes it to the disk. Blocks.
    pub(super) fn save_now(&self, name: &str, note: Vec<u8>) -> Result<(), KeepError> {
        let failing = Failing(name);
        let store = self.host.bases.store();
        let machine = self.base.template();
        let size = self.base.size();
        let record = Record {
            machine: machine.identity().to_string(),
            kit: self.host.kit_digest.to_hex().to_string(),
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            has_network: self.host.has_network(),
            images: self
                .images
                .to_strings()
                .ok_or(io::Error::from(io::ErrorKind::InvalidData))
                .map_err(failing.at("name its images"))?,
            last_process: self.past.last_process,
            last_stream: self.past.last_stream,
            running: self.past.running.iter().map(|(process, streams)| (process.0, *streams)).collect(),
            prestarted: self.prestarted.clone(),
            note,
        };
        let record = serde_json::to_vec(&record).map_err(failing.at("describe it"))?;
        let bytes = self.tmp.metadata().map_err(failing.at("look at its /tmp"))?.len();
        let tmp = File::from(vmm::snapshot::memory(bytes, false).map_err(failing.at("copy its /tmp"))?);
        copy_data(&self.tmp, &tmp).map_err(failing.at("copy its /tmp"))?;
        let tmp = Template::from_paused(tmp.into(), bytes, record).map_err(failing.at("copy its /tmp"))?;
        store.save(&machine_name(name), &machine).map_err(failing.at("write its memory"))?;
        store.save(&tmp_name(name), &Arc::new(tmp)).map_err(failing.at("write its /tmp"))?;
        Ok(())
    }
}

/// Reads one from the disk. Blocks.
pub(super) fn load(host: &Arc<Host>, name: &str) -> Result<Option<Kept>, KeepError> {
    let failing = Failing(name);
    let store = host.bases.store();
    let Some(rest) = found(store, &tmp_name(name)).map_err(failing.at("read its /tmp"))? else { return Ok(None) };
    let Some(machine) = found(store, &machine_name(name)).map_err(failing.at("read its memory"))? else {
        return Ok(None);
    };
    let record: Record = serde_json::from_slice(rest.state()).map_err(failing.at("read what belongs to it"))?;
    if record.machine != machine.identity().to_string() {
        return Err(failing.at("use it")(Unfit::Halves));
    }
    record.check(host).map_err(failing.at("use it"))?;
    let image = File::from(rest.memory().try_clone_to_owned().map_err(failing.at("read its /tmp"))?);
    let tmp = host.tmp.of_data(&image).map_err(failing.at("make its /tmp"))?;
    let size = Size { vcpus: record.vcpus, memory_mib: record.memory_mib };
    let running = record.running.into_iter().map(|(process, streams)| (ProcessId(process), streams)).collect();
    let stopped = Stopped {
        host: Arc::clone(host),
        base: Arc::new(Base::of_sandbox(name, size, machine.as_ref().clone())),
        images: Images::from_strings(record.images),
        tmp: Arc::new(tmp),
        past: Past { last_process: record.last_process, last_stream: record.last_stream, running },
        prestarted: record.prestarted,
    };
    Ok(Some(Kept { snapshot: Arc::new(stopped), note: record.note }))
}

/// Deletes both halves. Blocks.
pub(super) fn delete(host: &Host, name: &str) -> Result<(), KeepError> {
    let store = host.bases.store();
    // Both are tried: one that is damaged does not keep the other.
    let (memory, tmp) = (store.delete(&machine_name(name)), store.delete(&tmp_name(name)));
    memory.and(tmp).map(drop).map_err(Failing(name).at("delete it"))
}

/// What is there. Reads what belongs to the machines, not these. Blocks.
pub(super) fn list(host: &Host) -> Result<Vec<Saved>, KeepError> {
    let store = host.bases.store();
    let stored = store.list().map_err(Failing("of all names").at("list them"))?;
    let names = stored.iter().filter_map(|stored| stored.name.strip_prefix(PREFIX));
    let mut names: Vec<String> = names.map(|name| name.strip_suffix(TMP).unwrap_or(name).to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    let whole = |name: &str| stored.iter().any(|stored| stored.name == machine_name(name));
    let note = |name: &str| {
        let rest = found(store, &tmp_name(name)).ok().flatten().filter(|_| whole(name))?;
        let record: Record = serde_json::from_slice(rest.state()).ok()?;
        record.check(host).is_ok().then_some(record.note)
    };
    Ok(names.into_iter().map(|name| Saved { note: note(&name), name }).collect())
}

fn machine_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn tmp_name(name: &str) -> String {
    format!("{PREFIX}{name}{TMP}")
}

fn found(store: &SnapshotStore, name: &str) -> Result<Option<Arc<Template>>, StoreError> {
    match store.load(name) {
        Ok(template) => Ok(Some(template)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the errors of one snapshot.
struct Failing<'a>(&'a str);

impl Failing<'_> {
    fn at<E: Into<Box<dyn Error + Send + Sync>>>(&self, step: &'static str) -> impl FnOnce(E) -> KeepError {
        let name = self.0.to_owned();
        move |error| KeepError { name, step, source: io::Error::other(error) }
    }
}
