//! Which environments are alive, and where the time of the latest cold starts went.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use telemetry::lines::InitType;
use telemetry::metrics::FunctionMetrics;

use super::Inner;
use crate::spec::EnvironmentSpec;

#[derive(Default)]
pub(super) struct Environments {
    next: u64,
    pub(super) live: HashMap<u64, Arc<Entry>>,
    pub(super) cold_starts: Vec<ColdStart>,
}

/// How many cold starts are remembered for [`Worker::cold_starts`].
const COLD_STARTS_KEPT: usize = 4_096;

/// What is known of a live environment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EnvironmentInfo {
    /// The function.
    pub function: String,
    /// Its version.
    pub version: String,
    /// The environment's log stream.
    pub log_stream: String,
    /// Memory in use when last looked at, in bytes.
    pub memory_bytes: u64,
    /// Invocations served.
    pub invocations: u64,
}

/// A live environment's entry in the list; its numbers are written on the warm path, so without a lock.
pub(crate) struct Entry {
    pub(crate) number: u64,
    function: String,
    version: String,
    log_stream: String,
    metrics: FunctionMetrics,
    memory_bytes: AtomicU64,
    invocations: AtomicU64,
}

impl Entry {
    /// So much memory is in use.
    pub(crate) fn measured(&self, memory_bytes: u64) {
        self.memory_bytes.store(memory_bytes, Ordering::Relaxed);
    }

    /// Another invocation was served.
    pub(crate) fn served(&self, memory_bytes: u64, took: Duration, failed: bool) {
        self.measured(memory_bytes);
        self.invocations.fetch_add(1, Ordering::Relaxed);
        self.metrics.invoked(took, failed);
    }

    pub(super) fn info(&self) -> EnvironmentInfo {
        EnvironmentInfo {
            function: self.function.clone(),
            version: self.version.clone(),
            log_stream: self.log_stream.clone(),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            invocations: self.invocations.load(Ordering::Relaxed),
        }
    }
}

/// Where the time of one cold start went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ColdStart {
    /// Code and layers in place, in microseconds.
    pub code_us: u64,
    /// Sandbox made, in microseconds.
    pub sandbox_us: u64,
    /// Runtime started until it asked for the first invocation, in microseconds.
    pub init_us: u64,
}

impl Inner {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Environments> {
        self.environments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new environment into the list.
    pub(crate) fn enter(&self, spec: &EnvironmentSpec, log_stream: &str) -> Arc<Entry> {
        let mut environments = self.lock();
        environments.next += 1;
        let entry = Arc::new(Entry {
            number: environments.next,
            function: spec.function_name.clone(),
            version: spec.version.clone(),
            log_stream: log_stream.to_owned(),
            metrics: self.metrics.function(&spec.function_name),
            memory_bytes: AtomicU64::new(0),
            invocations: AtomicU64::new(0),
        });
        environments.live.insert(entry.number, Arc::clone(&entry));
        entry
    }

    pub(crate) fn cold_started(&self, entry: &Entry, kind: InitType, memory_bytes: u64, cold_start: ColdStart) {
        entry.measured(memory_bytes);
        let phases = [
            ("code", Duration::from_micros(cold_start.code_us)),
            ("sandbox", Duration::from_micros(cold_start.sandbox_us)),
            ("init", Duration::from_micros(cold_start.init_us)),
        ];
        self.metrics.cold_start(&entry.function, kind, &phases);
        let mut environments = self.lock();
        if environments.cold_starts.len() == COLD_STARTS_KEPT {
            environments.cold_starts.drain(..COLD_STARTS_KEPT / 2);
        }
        environments.cold_starts.push(cold_start);
    }

    pub(crate) fn leave(&self, entry: &Entry) {
        self.lock().live.remove(&entry.number);
        self.changed.notify_waiters();
    }
}
