//! The metadata trait: ordered keys in named tables, JSON values, a revision for every key, atomic batches.
//!
//! The contract is what both SQLite and a NATS JetStream key-value bucket can give: revisions come from one counter of
//! the whole store, grow with every write and are never used twice, so a key that was deleted and made again never
//! matches an old expectation.

pub mod memory;
pub mod sqlite;

use std::collections::HashSet;
use std::error::Error;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::BoxFuture;

/// Where functions, versions, roles and the like are kept.
///
/// All methods may be called at any time and from any task. A future that is dropped before it resolves leaves it
/// open whether its commit happened.
pub trait Metadata: Send + Sync {
    /// Reads a whole table in the byte order of its keys. Meant for start-up. A table that was never written is empty.
    fn load<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Vec<(String, Entry)>, StoreError>>;

    /// Reads one key. Sees every commit that was acknowledged before the call, and none that was not yet durable.
    fn get<'a>(&'a self, table: &'a str, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// Applies all writes or none, and resolves once they are durable.
    ///
    /// Answers one new revision for each write, in their order; the last one is the revision of the batch. Every
    /// expectation is checked against the state before the batch, so a batch names each key at most once.
    fn commit<'a>(&'a self, batch: Vec<Write>) -> BoxFuture<'a, Result<Vec<u64>, CommitError>>;
}

/// The value of a key, and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// A JSON document, byte for byte as it was put.
    pub value: Vec<u8>,
    /// The store-wide number of the write that made this value; 1 is the first.
    pub revision: u64,
}

impl Entry {
    /// Decodes the value. Fails when the document does not have the shape of `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.value)
    }
}

/// What must hold for a key before a batch, or the whole batch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the key may be there or not.
    Any,
    /// The key is not there.
    Absent,
    /// The key is there and was last written by this revision.
    Revision(u64),
}

impl Expect {
    /// Whether a key with this revision (`None`: not there) is as expected.
    #[must_use]
    pub fn allows(self, found: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Revision(revision) => found == Some(revision),
        }
    }
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The table; it comes into being with its first key.
        table: String,
        /// The key within the table.
        key: String,
        /// The JSON document.
        value: Vec<u8>,
        /// What must hold for the key before.
        expect: Expect,
    },
    /// Removes a key. Removing one that is not there is no error unless the expectation says so.
    Delete {
        /// The table.
        table: String,
        /// The key within the table.
        key: String,
        /// What must hold for the key before.
        expect: Expect,
    },
}

impl Write {
    /// A put of anything that serializes to JSON.
    pub fn put<T: Serialize + ?Sized>(
        table: impl Into<String>,
        key: impl Into<String>,
        value: &T,
        expect: Expect,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self::Put { table: table.into(), key: key.into(), value: serde_json::to_vec(value)?, expect })
    }

    /// A removal.
    pub fn delete(table: impl Into<String>, key: impl Into<String>, expect: Expect) -> Self {
        Self::Delete { table: table.into(), key: key.into(), expect }
    }

    /// The table that this write is for.
    #[must_use]
    pub fn table(&self) -> &str {
        match self {
            Self::Put { table, .. } | Self::Delete { table, .. } => table,
        }
    }

    /// The key that this write is for.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// What must hold for the key before.
    #[must_use]
    pub fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } => *expect,
        }
    }
}

/// The store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room. Nothing that was acknowledged is lost; commits work again once there is room.
    #[error("no space left for {place}: free some space and try again")]
    Full {
        /// The file or bucket.
        place: String,
    },
    /// The backend failed.
    #[error("cannot read or write {place}")]
    Backend {
        /// The file or bucket.
        place: String,
        /// What the backend said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store was closed, or its thread died.
    #[error("{place} is closed: restart the server")]
    Closed {
        /// The file or bucket.
        place: String,
    },
}

/// A batch was not applied. After [`CommitError::Store`] with a failed backend it is unknown whether a power loss at
/// that very moment would bring the batch back.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A key was not as expected; nothing of the batch was applied.
    #[error("key {key} of table {table} was changed by someone else: read it again and retry")]
    Conflict {
        /// The table of the first write that failed.
        table: String,
        /// Its key.
        key: String,
    },
    /// The batch writes a key twice.
    #[error("key {key} of table {table} is written twice in one batch: merge the two writes")]
    DuplicateKey {
        /// The table.
        table: String,
        /// The key.
        key: String,
    },
    /// A value is no JSON document.
    #[error("the value for key {key} of table {table} is not JSON")]
    NotJson {
        /// The table.
        table: String,
        /// The key.
        key: String,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The checks on a batch that need no state; every backend runs them first.
fn check_batch(batch: &[Write]) -> Result<(), CommitError> {
    let mut seen = HashSet::with_capacity(batch.len());
    for write in batch {
        let (table, key) = (write.table(), write.key());
        if !seen.insert((table, key)) {
            return Err(CommitError::DuplicateKey { table: table.to_owned(), key: key.to_owned() });
        }
        if let Write::Put { value, .. } = write {
            serde_json::from_slice::<IgnoredAny>(value).map_err(|source| CommitError::NotJson {
                table: table.to_owned(),
                key: key.to_owned(),
                source,
            })?;
        }
    }
    Ok(())
}
