//! What is kept ready is made again, in the background: prepared sandboxes first, then namespaces for others.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Host, live, prepared};
use crate::cgroup::Limits;

/// What a sandbox is limited to while nobody has asked for it: it gets limits of its own before anything runs in it.
const READY: Limits = Limits { memory_bytes: 128 << 20, cpu_millis: 100, cpu_share: 100, max_tasks: 0 };
/// How long a start goes on by itself before what it took is made again.
const HEAD_START: Duration = Duration::from_millis(10);

/// Counts a creation for as long as it goes on, and has the pool refilled when it was the last.
pub(super) struct Creating<'a> {
    host: &'a Arc<Host>,
}

impl<'a> Creating<'a> {
    pub fn new(host: &'a Arc<Host>) -> Self {
        host.creating.fetch_add(1, Relaxed);
        Creating { host }
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        if self.host.creating.fetch_sub(1, Relaxed) == 1 {
            self.host.refill();
        }
    }
}

/// Makes what is kept ready until there is enough, or until somebody wants a sandbox, who comes first and will call again. Not at
/// once: the function whose sandbox was taken is being initialized, and needs the processors.
async fn refill(host: Weak<Host>) {
    tokio::time::sleep(HEAD_START).await;
    while let Some(host) = host.upgrade() {
        let idle = host.creating.load(Relaxed) == 0;
        if idle && prepared::restock(&host).await {
            continue;
        }
        let Some(max_tasks) = host.pool.wanted().filter(|_| idle) else {
            host.refilling.store(false, Relaxed);
            host.grow_old();
            return;
        };
        match live::shell(&host, &Limits { max_tasks, ..READY }, None).await {
            Ok(shell) => host.pool.put(&max_tasks, shell),
            Err(error) => {
                // Whoever needs a sandbox will meet the same error, and report it.
                tracing::debug!(%error, "cannot keep sandboxes ready");
                host.refilling.store(false, Relaxed);
                host.grow_old();
                return;
            }
        }
    }
}

impl Host {
    /// Has what is kept ready made in the background, unless that goes on already.
    pub(super) fn refill(self: &Arc<Self>) {
        if !self.refilling.swap(true, Relaxed) {
            tokio::spawn(refill(Arc::downgrade(self)));
        }
    }

    /// Looks again when what is kept has become old, and some of it is given up, or when what could not be made has rested.
    fn grow_old(self: &Arc<Self>) {
        let Some(at) = self.stock().next_change(Instant::now()) else { return };
        let mut ageing = self.ageing();
        if ageing.is_some_and(|sooner| sooner <= at) {
            return;
        }
        *ageing = Some(at);
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            let Some(host) = host.upgrade() else { return };
            // Else there was something sooner, which has been waited for, and another task waits for what comes next.
            if host.ageing().take_if(|next| *next == at).is_some() {
                host.refill();
            }
        });
    }

    fn ageing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.ageing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
