//! Sandboxes that are stopped at some moment and go on from there, as often as wanted.
//!
//! What a clone must not share with the others (random numbers, clock, name, network, `/tmp` from then on) the backend makes
//! different. What a program itself drew from chance before, all clones have.

use std::io;
use std::sync::Arc;

use crate::{BoxFuture, CreateError, Process, Sandbox, SandboxSpec};

/// A sandbox as it was at one moment: memory, processes and the content of `/tmp`. Takes memory until it is dropped; clones
/// that it was restored to go on without it.
pub trait Snapshot: Send + Sync {
    /// Makes a sandbox that goes on from there. The specification must be the one that the sandbox was made with, but for
    /// what may differ: `id`, `cpu_millis`, and limits that fit a machine of the same size. May be called many times at once.
    ///
    /// # Errors
    /// As [`crate::Backend::create`], and if the specification does not fit.
    fn restore<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Restored, CreateError>>;

    /// Bytes of memory that it takes.
    fn memory_bytes(&self) -> u64;

    /// Keeps it on this host, encrypted with a key of its own, until [`crate::Backend::delete_snapshot`]: under a name
    /// (letters, digits and `-`, at most 64), where it replaces what was there, with a note of the caller's. Takes as long as
    /// the disk takes for all of its memory.
    fn save<'a>(&'a self, name: &'a str, note: Vec<u8>) -> BoxFuture<'a, Result<(), KeepError>>;
}

/// A snapshot that was kept.
pub struct Kept {
    /// The snapshot.
    pub snapshot: Arc<dyn Snapshot>,
    /// The note that it was saved with.
    pub note: Vec<u8>,
}

/// A snapshot on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its name.
    pub name: String,
    /// The note that it was saved with; `None` where that cannot be read or is of another host: the snapshot is of no use.
    pub note: Option<Vec<u8>>,
}

/// Why a snapshot could not be kept, or what was kept is of no use.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {name}: {step}")]
pub struct KeepError {
    /// Its name.
    pub name: String,
    /// What was being done.
    pub step: &'static str,
    /// Why it failed.
    pub source: io::Error,
}

/// A sandbox that goes on from a snapshot.
pub struct Restored {
    /// The sandbox. [`Sandbox::take_service`] hands out a new connection, which the one before has to be replaced with.
    pub sandbox: Box<dyn Sandbox>,
    /// The processes that ran when the snapshot was taken, under the same numbers, in their order. What they had written and
    /// nobody had read comes out of these pipes.
    pub processes: Vec<Process>,
}

/// Why no snapshot could be taken. The sandbox is gone.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The backend's sandboxes have no kernel of their own that could be stopped.
    #[error("a sandbox that shares the host's kernel cannot be kept in a snapshot; use --isolation microvm")]
    Unsupported,
    /// What runs in this one cannot be kept; it could in another.
    #[error("it cannot be kept in a snapshot: {0}")]
    Unfit(String),
    /// A step failed.
    #[error("could not take a snapshot: {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}
