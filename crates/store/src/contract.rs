//! One contract suite for each trait, run against every backend: `metadata::suite` and `blobs::suite` take a fresh
//! backend, the property tests compare a backend with a plain map.

use std::future::Future;

pub mod blobs;
pub mod metadata;

/// Runs a future to its end on a runtime of its own.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}
