//! A table of documents that stand on their own: all in memory, read without waiting, changed one at a time and durable
//! before they are visible. Layers, event source mappings and code signing configs are kept so.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use aws_model::ApiError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{Expect, Metadata, Write};

use crate::plane::{commit_failed, store_failed};
use crate::tables::{self, OpenError};

/// A table. Cheap to clone; every clone is the same one.
pub(crate) struct Shelf<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Shelf<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<T> {
    table: &'static str,
    metadata: Arc<dyn Metadata>,
    items: RwLock<BTreeMap<String, Kept<T>>>,
    /// Held from judging to visibility.
    writer: Arc<tokio::sync::Mutex<()>>,
}

struct Kept<T> {
    item: Arc<T>,
    /// The store's revision, which the next write expects.
    revision: u64,
}

impl<T: Serialize + DeserializeOwned + PartialEq + Send + Sync + 'static> Shelf<T> {
    pub async fn open(metadata: Arc<dyn Metadata>, table: &'static str) -> Result<Self, OpenError> {
        let mut items = BTreeMap::new();
        for (key, entry) in tables::load_table(metadata.as_ref(), table).await? {
            let item = Arc::new(tables::decode(table, &key, &entry)?);
            items.insert(key, Kept { item, revision: entry.revision });
        }
        let inner = Inner { table, metadata, items: RwLock::new(items), writer: Arc::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.inner.read().get(key).map(|kept| Arc::clone(&kept.item))
    }

    /// Everything, in the order of the keys.
    pub fn all(&self) -> Vec<(String, Arc<T>)> {
        self.inner.read().iter().map(|(key, kept)| (key.clone(), Arc::clone(&kept.item))).collect()
    }

    /// At most `count` items after a key, in the order of the keys.
    #[allow(dead_code, reason = "its first users are event source mappings")]
    pub fn after(&self, key: Option<&str>, count: usize) -> Vec<(String, Arc<T>)> {
        let from = key.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_owned()));
        let items = self.inner.read();
        let range = items.range((from, Bound::Unbounded)).take(count);
        range.map(|(key, kept)| (key.clone(), Arc::clone(&kept.item))).collect()
    }

    /// Changes one item: `judge` sees what is there and says what shall be (`None`: nothing), or refuses. Nothing is
    /// written where nothing changes. Answers what was and what is. `keep` is held until the change is visible,
    /// whatever becomes of the caller.
    pub async fn mutate<K: Send + 'static>(
        &self,
        key: &str,
        keep: K,
        judge: impl FnOnce(Option<&T>) -> Result<Option<T>, ApiError>,
    ) -> Result<Change<T>, ApiError> {
        self.mutate_or(key, keep, judge).await
    }

    /// Like [`Self::mutate`], with refusals of another service than Lambda.
    pub async fn mutate_or<K: Send + 'static, E: From<ApiError>>(
        &self,
        key: &str,
        keep: K,
        judge: impl FnOnce(Option<&T>) -> Result<Option<T>, E>,
    ) -> Result<Change<T>, E> {
        let lock = Arc::clone(&self.inner.writer).lock_owned().await;
        let found = self.inner.read().get(key).map(|kept| (Arc::clone(&kept.item), kept.revision));
        let (before, revision) = found.unzip();
        let after = judge(before.as_deref())?.map(Arc::new);
        if before == after {
            return Ok(Change { before, after });
        }
        let (inner, key, new) = (Arc::clone(&self.inner), key.to_owned(), after.clone());
        // In a task of its own: a caller that goes away leaves neither the lock held nor memory behind the store.
        let commit = tokio::spawn(async move {
            let outcome = inner.commit(&key, revision, new).await;
            if outcome.is_err() {
                inner.reload(&key).await;
            }
            drop((lock, keep));
            outcome
        });
        match commit.await {
            Ok(outcome) => outcome?,
            Err(error) => {
                tracing::error!(%error, "a commit task died");
                return Err(ApiError::service("The change could not be stored.").into());
            }
        }
        Ok(Change { before, after })
    }
}

/// An item before and after a change.
pub(crate) struct Change<T> {
    pub before: Option<Arc<T>>,
    pub after: Option<Arc<T>>,
}

impl<T: Serialize + DeserializeOwned> Inner<T> {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Kept<T>>> {
        // Only insertions and removals of whole entries happen under the lock: a poisoned map is whole.
        self.items.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: String, kept: Option<Kept<T>>) {
        let mut items = self.items.write().unwrap_or_else(PoisonError::into_inner);
        match kept {
            Some(kept) => drop(items.insert(key, kept)),
            None => drop(items.remove(&key)),
        }
    }

    async fn commit(&self, key: &str, revision: Option<u64>, new: Option<Arc<T>>) -> Result<(), ApiError> {
        let expect = revision.map_or(Expect::Absent, Expect::Revision);
        let write = match &new {
            Some(item) => {
                Write::put(self.table, key, item.as_ref(), expect).map_err(|error| store_failed(key, &error))?
            }
            None => Write::delete(self.table, key, expect),
        };
        let revisions = self.metadata.commit(vec![write]).await.map_err(|error| commit_failed(key, &error))?;
        let revision = revisions.last().copied().unwrap_or_default();
        self.put(key.to_owned(), new.map(|item| Kept { item, revision }));
        Ok(())
    }

    /// After a commit whose outcome is open: memory follows the store again.
    async fn reload(&self, key: &str) {
        let entry = match self.metadata.get(self.table, key).await {
            Ok(entry) => entry,
            Err(error) => {
                return tracing::error!(table = self.table, key, %error, "cannot read an item back from the store");
            }
        };
        let kept = entry.map(|entry| tables::decode(self.table, key, &entry).map(|item| (item, entry.revision)));
        match kept.transpose() {
            Ok(kept) => {
                self.put(key.to_owned(), kept.map(|(item, revision)| Kept { item: Arc::new(item), revision }));
            }
            Err(error) => tracing::error!(table = self.table, key, %error, "cannot read an item back from the store"),
        }
    }
}

#[cfg(test)]
mod tests {
    use store::MemoryMetadata;

    use super::*;

    async fn shelf(metadata: &Arc<MemoryMetadata>) -> Shelf<u32> {
        Shelf::open(Arc::clone(metadata) as Arc<dyn Metadata>, "numbers").await.unwrap()
    }

    #[tokio::test]
    async fn what_was_changed_is_there_after_a_restart() {
        let metadata = Arc::new(MemoryMetadata::default());
        let numbers = shelf(&metadata).await;
        for key in ["a", "b", "c"] {
            numbers.mutate(key, (), |found| Ok(Some(found.map_or(1, |n| n + 1)))).await.unwrap();
        }
        numbers.mutate("b", (), |found| Ok(found.map(|n| n + 1))).await.unwrap();
        let gone = numbers.mutate("a", (), |_| Ok(None)).await.unwrap();
        assert_eq!((gone.before.as_deref(), gone.after), (Some(&1), None));
        for numbers in [numbers.clone(), shelf(&metadata).await] {
            let all: Vec<(String, u32)> = numbers.all().into_iter().map(|(key, n)| (key, *n)).collect();
            assert_eq!(all, [("b".to_owned(), 2), ("c".to_owned(), 1)]);
            assert_eq!(numbers.after(Some("b"), 5).len(), 1);
        }
    }

    #[tokio::test]
    async fn a_refusal_changes_nothing() {
        let numbers = shelf(&Arc::default()).await;
        numbers.mutate("a", (), |_| Ok(Some(1))).await.unwrap();
        let refused = numbers.mutate("a", (), |_| Err(ApiError::resource_conflict("no"))).await;
        assert!(refused.is_err());
        assert_eq!(numbers.get("a").as_deref(), Some(&1));
    }

    #[tokio::test]
    async fn writers_wait_for_each_other() {
        let numbers = shelf(&Arc::default()).await;
        let add = || numbers.mutate("a", (), |found| Ok(Some(found.map_or(1, |n| n + 1))));
        let tasks: Vec<_> = (0..20).map(|_| add()).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(numbers.get("a").as_deref(), Some(&20));
    }
}
