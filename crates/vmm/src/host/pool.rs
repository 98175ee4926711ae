//! Shells that are ready before anybody wants them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::launcher::{Extras, Maker};
use super::shell::Shell;

/// How long the pool waits after a launch that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Shells that are made at the same time.
const AT_ONCE: usize = 4;

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

    /// The kind of shell that most are missing of, those in the `making` counted as there. `None` if the pool is full.
    fn missing(&self, making: &BTreeMap<u8, usize>) -> Option<u8> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking = self.sizes.iter().map(|(vcpus, size)| {
            let shells = ready.entry(*vcpus).or_default();
            shells.retain(|shell| !shell.has_ended());
            let coming = making.get(vcpus).copied().unwrap_or(0);
            (size.saturating_sub(shells.len() + coming), *vcpus)
        });
        lacking.max().filter(|(missing, _)| *missing > 0).map(|(_, vcpus)| vcpus)
    }

    fn put(&self, vcpus: u8, shell: Shell) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).entry(vcpus).or_default().push_back(shell);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Wakes the task, which finds that there is no pool any more.
        self.wanted.notify_one();
    }
}

/// Makes shells, a few at a time: most of their making is waiting for the kernel, and whoever starts a machine meanwhile
/// needs the processors more.
async fn fill(pool: Weak<Pool>, wanted: Arc<Notify>, maker: Arc<Maker>) {
    let mut making: BTreeMap<u8, usize> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let Some(missing) = pool.upgrade().map(|pool| pool.missing(&making)) else { return };
        if let Some(vcpus) = missing.filter(|_| tasks.len() < AT_ONCE) {
            *making.entry(vcpus).or_default() += 1;
            let maker = Arc::clone(&maker);
            tasks.spawn(async move {
                let shell = maker.make(vcpus, Extras::default()).await;
                if let Err(error) = &shell {
                    tracing::warn!(%error, "no VMM process for the pool");
                    tokio::time::sleep(PAUSE).await;
                }
                (vcpus, shell.ok())
            });
            continue;
        }
        tokio::select! {
            () = wanted.notified() => {}
            Some(made) = tasks.join_next() => {
                // Nothing in there panics; if it did, its place would stay empty.
                let Ok((vcpus, shell)) = made else { continue };
                if let Some(count) = making.get_mut(&vcpus) {
                    *count -= 1;
                }
                let Some(pool) = pool.upgrade() else { return };
                if let Some(shell) = shell {
                    pool.put(vcpus, shell);
                }
            }
        }
    }
}
