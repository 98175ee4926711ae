//! The tables in memory and in the store, and the way from one to the other.
//!
//! `functions` holds one document per function (everything but its published versions), `versions` one per published
//! version, keyed `NAME:NUMBER`. A mutation writes the documents that differ between the old and the new [`Function`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use store::{Entry, Expect, Metadata, StoreError, Write};

use crate::record::{Attached, Function, FunctionVersion, VersionId};

pub(crate) const FUNCTIONS: &str = "functions";
pub(crate) const VERSIONS: &str = "versions";
pub(crate) const CODE_SIGNING: &str = "code_signing_configs";
pub(crate) const ROLES: &str = "roles";
pub(crate) const LAYERS: &str = "layers";

/// The tables could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store failed.
    #[error("cannot load table {table}")]
    Store { table: &'static str, source: StoreError },
    /// A document is not what this version of the program writes.
    #[error("cannot read key {key} of table {table}: was it written by a newer version?")]
    Document { table: &'static str, key: String, source: serde_json::Error },
    /// A version without its function.
    #[error("version {key} belongs to no function: restore the store from a copy")]
    Orphan { key: String },
}

/// The document of a function.
#[derive(Serialize, Deserialize)]
struct FunctionDocument {
    latest: Arc<FunctionVersion>,
    previous: Option<Arc<FunctionVersion>>,
    next_version: u64,
    #[serde(flatten)]
    attached: Attached,
}

/// A function, and the store's revision of its document, which the next write expects.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub function: Arc<Function>,
    pub revision: u64,
}

fn version_key(name: &str, number: u64) -> String {
    // Zero-padded, so that the byte order of the keys is the order of the numbers.
    format!("{name}:{number:020}")
}

pub(crate) async fn load(metadata: &dyn Metadata) -> Result<BTreeMap<String, Stored>, OpenError> {
    let mut functions = BTreeMap::new();
    for (name, entry) in load_table(metadata, FUNCTIONS).await? {
        functions.insert(name.clone(), (read_function(&name, &entry)?, entry.revision));
    }
    for (key, entry) in load_table(metadata, VERSIONS).await? {
        let version: FunctionVersion = decode(VERSIONS, &key, &entry)?;
        match functions.get_mut(&version.function) {
            Some((function, _)) => attach(function, version),
            None => return Err(OpenError::Orphan { key }),
        }
    }
    let stored = |(function, revision)| Stored { function: Arc::new(function), revision };
    Ok(functions.into_iter().map(|(name, pair)| (name, stored(pair))).collect())
}

/// One function, read anew.
pub(crate) async fn load_one(metadata: &dyn Metadata, name: &str) -> Result<Option<Stored>, OpenError> {
    let entry = metadata.get(FUNCTIONS, name).await;
    let Some(entry) = entry.map_err(|source| OpenError::Store { table: FUNCTIONS, source })? else {
        return Ok(None);
    };
    let mut function = read_function(name, &entry)?;
    let prefix = format!("{name}:");
    for (key, entry) in load_table(metadata, VERSIONS).await? {
        if key.starts_with(&prefix) {
            attach(&mut function, decode(VERSIONS, &key, &entry)?);
        }
    }
    Ok(Some(Stored { function: Arc::new(function), revision: entry.revision }))
}

fn read_function(name: &str, entry: &Entry) -> Result<Function, OpenError> {
    let document: FunctionDocument = decode(FUNCTIONS, name, entry)?;
    Ok(Function {
        name: name.to_owned(),
        latest: document.latest,
        previous: document.previous,
        versions: BTreeMap::new(),
        next_version: document.next_version,
        attached: document.attached,
    })
}

fn attach(function: &mut Function, version: FunctionVersion) {
    if let VersionId::Number(number) = version.id {
        function.versions.insert(number, Arc::new(version));
    }
}

pub(crate) async fn load_table(
    metadata: &dyn Metadata,
    table: &'static str,
) -> Result<Vec<(String, Entry)>, OpenError> {
    metadata.load(table).await.map_err(|source| OpenError::Store { table, source })
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    table: &'static str,
    key: &str,
    entry: &Entry,
) -> Result<T, OpenError> {
    entry.decode().map_err(|source| OpenError::Document { table, key: key.to_owned(), source })
}

/// The batch that turns `old` into `new`. The function's own document comes last: its revision is the batch's.
pub(crate) fn batch(old: Option<&Stored>, new: Option<&Function>) -> Result<Vec<Write>, serde_json::Error> {
    let mut writes = Vec::new();
    let empty = BTreeMap::new();
    let before = old.map_or(&empty, |stored| &stored.function.versions);
    let after = new.map_or(&empty, |function| &function.versions);
    let name = new.map(|function| &function.name).or(old.map(|stored| &stored.function.name));
    let Some(name) = name else { return Ok(writes) };
    for (number, version) in after {
        if before.get(number).is_none_or(|known| !Arc::ptr_eq(known, version)) {
            writes.push(Write::put(VERSIONS, version_key(name, *number), version.as_ref(), Expect::Any)?);
        }
    }
    for number in before.keys().filter(|number| !after.contains_key(number)) {
        writes.push(Write::delete(VERSIONS, version_key(name, *number), Expect::Any));
    }
    // The expectation on this one document guards the versions too: they change only together with it.
    let expect = old.map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
    writes.push(match new {
        Some(function) => {
            let document = FunctionDocument {
                latest: Arc::clone(&function.latest),
                previous: function.previous.clone(),
                next_version: function.next_version,
                attached: function.attached.clone(),
            };
            Write::put(FUNCTIONS, name, &document, expect)?
        }
        None => Write::delete(FUNCTIONS, name, expect),
    });
    Ok(writes)
}
