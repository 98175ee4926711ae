//! Provisioned environments: how many a version has is what the settings say at the moment of telling, so that no change is
//! overtaken by an older one. Where environments move from one version to another, those of the new one are ready before
//! those of the old one go. What could not be initialized is tried again.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use control_plane::Provision;
use control_plane::record::FunctionVersion;
use worker::{EnvironmentSpec, VersionKey};

use crate::app::App;

/// How often it is looked whether new environments are ready.
const LOOK: Duration = Duration::from_millis(50);

/// How long old environments wait for new ones at most. An initialization has 10 s for each of two tries; there may be
/// many of them.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until new environments that found no room beside the old ones are tried again: those take a moment to go.
const LEAVE: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(4)];

/// How long after a failure environments are tried again for the first time; each time the wait doubles.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(15 * 60);

impl App {
    /// Has provisioned concurrency carried out that has changed.
    pub(crate) fn provision_all(self: &Arc<Self>, provisions: &[Provision]) {
        let (less, more): (Vec<_>, Vec<_>) = provisions.iter().map(|p| Arc::clone(&p.version)).partition(|version| {
            let known = self.known(version).map_or(0, |spec| self.workers.provisioned(&spec.key).requested);
            self.control_plane.provisioned_count(version) < known
        });
        for version in &more {
            self.provision(version);
        }
        if more.is_empty() || less.is_empty() {
            less.iter().for_each(|version| self.provision(version));
        } else {
            tokio::spawn(Arc::clone(self).hand_over(more, less));
        }
    }

    /// Lets the environments of old versions go when those of the new ones are there.
    async fn hand_over(self: Arc<Self>, new: Vec<Arc<FunctionVersion>>, old: Vec<Arc<FunctionVersion>>) {
        self.until(PATIENCE, || new.iter().all(|version| self.is_settled(version))).await;
        old.iter().for_each(|version| self.provision(version));
        for wait in LEAVE {
            if !new.iter().any(|version| self.live(version).failed.is_some()) {
                return;
            }
            tokio::time::sleep(wait).await;
            new.iter()
                .filter(|version| self.live(version).failed.is_some())
                .for_each(|version| self.provision(version));
            self.until(PATIENCE, || new.iter().all(|version| self.is_settled(version))).await;
        }
    }

    async fn until(&self, patience: Duration, done: impl Fn() -> bool) {
        let stopping = self.stopping();
        let look = async {
            while !done() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(patience, look) => {}
            () = stopping => {}
        }
    }

    /// Whether a version has as many environments as it shall have, or cannot have them.
    fn is_settled(&self, version: &FunctionVersion) -> bool {
        let (live, wanted) = (self.live(version), self.control_plane.provisioned_count(version));
        live.failed.is_some() || if wanted == 0 { live.allocated == 0 } else { live.allocated >= wanted }
    }

    /// Has a version's provisioned environments be as many as the settings say now, and all of them together no more.
    pub(crate) fn provision(&self, version: &Arc<FunctionVersion>) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.control_plane.provisioned_count(version);
        let most = self.control_plane.most_environments(version);
        // A version that nobody runs has nothing to give up; it may be gone.
        let spec = if count > 0 || most.is_some() { self.spec(version).map(Some) } else { Ok(self.known(version)) };
        match spec {
            Ok(Some(spec)) => {
                self.workers.set_most(&spec, most);
                self.workers.set_provisioned(&spec, count);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(function = version.qualified_arn(), %error, "cannot provision concurrency"),
        }
    }

    fn known(&self, version: &FunctionVersion) -> Option<Arc<EnvironmentSpec>> {
        self.specs.peek(&version.function, version.id)
    }

    /// Tries those again that have failed for long enough.
    pub(crate) fn retry_failed(&self, retries: &mut Retries, now: Instant) {
        let failed = self.control_plane.provisions().into_iter().filter_map(|provision| {
            let spec = self.known(&provision.version)?;
            let live = self.live(&provision.version);
            (live.failed.is_some() && live.allocated < provision.count).then(|| (spec.key.clone(), provision.version))
        });
        let failed: HashMap<VersionKey, Arc<FunctionVersion>> = failed.collect();
        for key in retries.due(failed.keys(), now) {
            if let Some(version) = failed.get(&key) {
                tracing::info!(function = version.qualified_arn(), "provisioned environments are tried again");
                self.provision(version);
            }
        }
    }
}

/// When failed versions are to be tried again.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    waiting: HashMap<VersionKey, Retry>,
}

#[derive(Debug)]
struct Retry {
    due: Instant,
    /// The wait that led to `due`.
    wait: Duration,
}

impl Retries {
    /// Those of the failed versions whose time has come. What has not failed when its time comes is forgotten: it has
    /// recovered. To be asked whenever something fails, and when it is time.
    fn due<'a>(&mut self, failed: impl Iterator<Item = &'a VersionKey>, now: Instant) -> Vec<VersionKey> {
        let mut due = Vec::new();
        for key in failed {
            let first = || Retry { due: now + FIRST_RETRY, wait: FIRST_RETRY };
            let retry = self.waiting.entry(key.clone()).or_insert_with(first);
            if now >= retry.due {
                retry.wait = (retry.wait * 2).min(LONGEST_RETRY);
                retry.due = now + retry.wait;
                due.push(key.clone());
            }
        }
        // Those that have failed are due later.
        self.waiting.retain(|_, retry| now < retry.due);
        due
    }

    /// When it is time, if anything has failed.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|retry| retry.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_at_growing_intervals_and_forgotten_when_they_are_over() {
        let mut retries = Retries::default();
        let key = VersionKey("f:1#1".to_owned());
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(retries.next(), None);
        assert!(retries.due([&key].into_iter(), start).is_empty());
        let mut tried = Vec::new();
        while let Some(next) = retries.next().filter(|next| *next < at(4_000)) {
            // It fails again a little later, which is told.
            assert_eq!(retries.due([&key].into_iter(), next), std::slice::from_ref(&key));
            assert!(retries.due([&key].into_iter(), next + Duration::from_secs(3)).is_empty());
            tried.push((next - start).as_secs());
        }
        assert_eq!(tried, [60, 180, 420, 900, 1_800, 2_700, 3_600]);
        assert!(retries.due([].into_iter(), at(4_499)).is_empty());
        assert_eq!(retries.next(), Some(at(4_500)));
        assert!(retries.due([].into_iter(), at(4_500)).is_empty());
        assert_eq!(retries.next(), None);
        assert!(retries.due([&key].into_iter(), at(5_000)).is_empty());
        assert_eq!(retries.next(), Some(at(5_060)), "all begins anew");
    }
}
