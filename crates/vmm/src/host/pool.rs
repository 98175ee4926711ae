//! Shells that are ready before anybody wants them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::launcher::{Extras, Maker};
use super::shell::Shell;

/// How long the pool waits after a launch that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How a pool does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Shells that are ready.
    pub ready: usize,
    /// Shells that were asked for and taken out of it.
    pub hits: u64,
    /// Shells that were asked for and not in it.
    pub misses: u64,
}

/// Kept full by a task of its own, which ends with the pool.
#[derive(Debug)]
pub(super) struct Pool {
    sizes: BTreeMap<u8, usize>,
    ready: Mutex<BTreeMap<u8, VecDeque<Shell>>>,
    wanted: Arc<Notify>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Pool {
    pub fn start(sizes: BTreeMap<u8, usize>, maker: &Arc<Maker>) -> Arc<Pool> {
        let pool = Arc::new(Pool {
            sizes,
            ready: Mutex::default(),
            wanted: Arc::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        });
        if pool.sizes.values().any(|size| *size > 0) {
            tokio::spawn(fill(Arc::downgrade(&pool), Arc::clone(&pool.wanted), Arc::clone(maker)));
        }
        pool
    }

    /// A shell that lives, the oldest first.
    pub fn take(&self, vcpus: u8) -> Option<Shell> {
        let shell = {
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            let shells = ready.get_mut(&vcpus);
            shells.and_then(|shells| std::iter::from_fn(|| shells.pop_front()).find(|shell| !shell.has_ended()))
        };
        let counter = if shell.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        self.wanted.notify_one();
        shell
    }

    pub fn counters(&self) -> PoolCounters {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        PoolCounters {
            ready: ready.values().map(VecDeque::len).sum(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    /// The kind of shell that most are missing of. `None` if the pool is full.
    fn missing(&self) -> Option<u8> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking = self.sizes.iter().map(|(vcpus, size)| {
            let shells = ready.entry(*vcpus).or_default();
            shells.retain(|shell| !shell.has_ended());
            (size.saturating_sub(shells.len()), *vcpus)
        });
        lacking.max().filter(|(missing, _)| *missing > 0).map(|(_, vcpus)| vcpus)
    }

    fn put(&self, vcpus: u8, shell: Shell) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).entry(vcpus).or_default().push_back(shell);
        self.wanted.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Wakes the task, which finds that there is no pool any more.
        self.wanted.notify_one();
    }
}

/// Makes shells one after the other: whoever starts a machine meanwhile needs the processor more.
async fn fill(pool: Weak<Pool>, wanted: Arc<Notify>, maker: Arc<Maker>) {
    loop {
        let Some(missing) = pool.upgrade().map(|pool| pool.missing()) else { return };
        let Some(vcpus) = missing else {
            wanted.notified().await;
            continue;
        };
        match maker.make(vcpus, Extras::default()).await {
            Ok(shell) => match pool.upgrade() {
                Some(pool) => pool.put(vcpus, shell),
                None => return,
            },
            Err(error) => {
                tracing::warn!(%error, "no VMM process for the pool");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
