//! The decision, per invocation: reuse a warm environment, wait for one, start a new one, or throttle.
//!
//! The decisions themselves are in [`core`], pure; [`WorkerManager`] carries them out with real environments. On the warm
//! path an invocation takes its own version's lock for some lookups and sends to the environment; it waits for no other
//! function.

pub mod core;

mod figures;
mod manager;
mod version;

use std::time::Duration;

pub use core::{Concurrency, ProvisionFailure, ThrottleReason};
pub use figures::{Figures, FunctionReport, VersionReport};
pub use manager::{Options, Policy, WorkerManager};
use worker::RestoreFailure;

/// Why an invocation got no answer from the function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    /// A limit was reached; the caller may try again.
    #[error("rate exceeded: {reason:?}")]
    Throttled {
        /// Which limit.
        reason: ThrottleReason,
        /// When it is worth another try, at the earliest.
        retry_after: Duration,
    },
    /// The environment could not be made or broke for reasons that are the platform's.
    #[error("the execution environment failed: {0}")]
    Platform(String),
    /// No runtime on this host serves the function.
    #[error("{0}")]
    RuntimeUnavailable(String),
    /// The version's snapshot is being made again; the caller may try again.
    #[error("the snapshot of this version is not ready")]
    SnapshotNotReady,
    /// The version's snapshot could not be made again.
    #[error("{0}")]
    SnapshotLost(String),
    /// The function's hooks failed, or took too long, after it was restored from its snapshot.
    #[error("{0}")]
    Restore(RestoreFailure),
    /// The server is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// How far a provisioned-concurrency setting has been carried out.
pub type ProvisionedStatus = core::Provisioned;
