//! A few things kept ready of the kind that was asked for last.
//!
//! Knows nothing of how they are made: the owner asks [`Pool::wanted`], makes one and hands it in with [`Pool::put`].

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ready things of type `T`, all made for the same `K`.
#[derive(Debug)]
pub(crate) struct Pool<K, T> {
    size: usize,
    state: Mutex<State<K, T>>,
}

#[derive(Debug)]
struct State<K, T> {
    key: Option<K>,
    ready: VecDeque<T>,
}

impl<K: Clone + PartialEq, T> Pool<K, T> {
    /// An empty pool that wants `size` things once it knows which.
    pub fn new(size: usize) -> Self {
        Pool { size, state: Mutex::new(State { key: None, ready: VecDeque::new() }) }
    }

    /// Takes a ready one made for `key`, and remembers that `key` is what is asked for now. Things made for another
    /// key are dropped.
    pub fn take(&self, key: &K) -> Option<T> {
        let mut state = self.lock();
        let stale = if state.key.as_ref() == Some(key) {
            VecDeque::new()
        } else {
            state.key = Some(key.clone());
            std::mem::take(&mut state.ready)
        };
        let taken = state.ready.pop_front();
        drop(state);
        drop(stale);
        taken
    }

    /// The key of which there should be one more.
    pub fn wanted(&self) -> Option<K> {
        let state = self.lock();
        if state.ready.len() < self.size { state.key.clone() } else { None }
    }

    /// Adds one, or drops it when it is not wanted any more.
    pub fn put(&self, key: &K, thing: T) {
        let mut state = self.lock();
        if state.key.as_ref() == Some(key) && state.ready.len() < self.size {
            state.ready.push_back(thing);
        } else {
            drop(state);
            drop(thing);
        }
    }

    /// Drops everything and wants nothing until the next [`Pool::take`].
    pub fn clear(&self) {
        let mut state = self.lock();
        state.key = None;
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        drop(ready);
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        // Every method leaves the state whole, so a panic elsewhere changes nothing here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_last_key() {
        let pool = Pool::new(2);
        assert_eq!(pool.wanted(), None);
        assert_eq!(pool.take(&"a"), None);
        assert_eq!(pool.wanted(), Some("a"));
        pool.put(&"a", 1);
        pool.put(&"a", 2);
        assert_eq!(pool.wanted(), None);
        pool.put(&"a", 3);
        assert_eq!(pool.ready(), 2);
        assert_eq!(pool.take(&"a"), Some(1));
        assert_eq!(pool.take(&"b"), None);
        assert_eq!((pool.ready(), pool.wanted()), (0, Some("b")));
        pool.put(&"a", 4);
        assert_eq!(pool.ready(), 0);
        pool.put(&"b", 5);
        pool.clear();
        assert_eq!((pool.ready(), pool.wanted()), (0, None));
    }

    #[test]
    fn of_size_zero_wants_nothing() {
        let pool: Pool<&str, i32> = Pool::new(0);
        assert_eq!(pool.take(&"a"), None);
        assert_eq!(pool.wanted(), None);
    }
}
