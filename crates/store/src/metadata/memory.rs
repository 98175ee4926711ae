//! Metadata in memory: for tests and for servers that are to forget everything.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{CommitError, Entry, Metadata, StoreError, Write, check_batch};
use crate::BoxFuture;

/// A [`Metadata`] whose "durable" is the life of the value.
#[derive(Debug, Default)]
pub struct MemoryMetadata {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<String, BTreeMap<String, Entry>>,
    last_revision: u64,
}

impl MemoryMetadata {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A batch is checked before it is applied, and applying cannot panic: a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn get(&self, table: &str, key: &str) -> Option<&Entry> {
        self.tables.get(table)?.get(key)
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<Vec<u64>, CommitError> {
        for write in &batch {
            let (table, key) = (write.table(), write.key());
            if !write.expect().allows(self.get(table, key).map(|entry| entry.revision)) {
                return Err(CommitError::Conflict { table: table.to_owned(), key: key.to_owned() });
            }
        }
        let mut revisions = Vec::with_capacity(batch.len());
        for write in batch {
            self.last_revision += 1;
            let revision = self.last_revision;
            match write {
                Write::Put { table, key, value, .. } => {
                    self.tables.entry(table).or_default().insert(key, Entry { value, revision });
                }
                Write::Delete { table, key, .. } => {
                    if let Some(keys) = self.tables.get_mut(&table) {
                        keys.remove(&key);
                    }
                }
            }
            revisions.push(revision);
        }
        Ok(revisions)
    }
}

impl Metadata for MemoryMetadata {
    fn load<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Vec<(String, Entry)>, StoreError>> {
        Box::pin(async move {
            let state = self.state();
            let keys = state.tables.get(table).into_iter().flatten();
            Ok(keys.map(|(key, entry)| (key.clone(), entry.clone())).collect())
        })
    }

    fn get<'a>(&'a self, table: &'a str, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.state().get(table, key).cloned()) })
    }

    fn commit<'a>(&'a self, batch: Vec<Write>) -> BoxFuture<'a, Result<Vec<u64>, CommitError>> {
        Box::pin(async move {
            check_batch(&batch)?;
            self.state().commit(batch)
        })
    }
}
