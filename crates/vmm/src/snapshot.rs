//! Snapshots, seen from the host: the memory and state of a stopped machine as a template that clones map, and as a file
//! that outlives the process. Knows nothing of KVM; the machine's state is opaque bytes here.
//!
//! ```text
//!   booted machine, stopped --- Template::from_paused ---> Template <--- load --- file (encrypted) <--- save --- Template
//!   clone, stopped: dump_private -> diff --- Template::flatten(base, diff) ---> Template          SnapshotStore keeps files
//!   clone, at its first response: WorkingSet::from_pagemap -> Template::with_working_set; the next clone populates it
//! ```
//!
//! A template's memory is a sealed memfd: nobody can write to it any more, so that any number of clones map it privately and
//! share every page that they only read. Nothing here trusts a file, a diff or a recorded range: sizes are checked before
//! anything is allocated, and a file is used only when all of it has been authenticated.

mod cipher;
mod file;
mod header;
mod host;
mod memfd;
mod pagemap;
mod pages;
mod parallel;
mod store;
mod template;
mod working_set;

pub use cipher::{Key, KeyError};
pub use file::{LoadError, LoadFailure, SaveError, SaveFailure, inspect, load, save};
pub use header::{FORMAT_VERSION, Header, HeaderError, MAX_MEMORY_BYTES, MAX_STATE_BYTES};
pub use host::{FactsError, Host, HostMismatch};
pub use memfd::memory;
pub use pagemap::{Ranges, Wanted, Window, dump_private, windows};
pub use pages::PAGE_BYTES;
pub use store::{SnapshotStore, StoreError, Stored};
pub use template::{Identity, Template, TemplateError};
pub use working_set::{Access, GRANULE_BYTES, WorkingSet};
