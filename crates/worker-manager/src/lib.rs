//! The decision, per invocation: reuse a warm environment, wait for one, start a new one, or throttle.
//!
//! The decision itself is a pure core, one [`pool::Pool`] for each function version; [`WorkerManager`] drives the pools
//! with real environments. On the warm path an invocation takes its own pool's lock for some lookups and sends to the
//! environment; it waits for no other function.

pub mod core;
pub mod pool;

mod concurrency;
mod manager;
mod version;

pub use concurrency::Concurrency;
pub use manager::{Options, WorkerManager};

/// Why an invocation got no answer from the function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    /// A concurrency limit was reached; the caller may try again.
    #[error("rate exceeded: {reason:?}")]
    Throttled {
        /// Which limit.
        reason: ThrottleReason,
    },
    /// The environment could not be made or broke for reasons that are the platform's.
    #[error("the execution environment failed: {0}")]
    Platform(String),
    /// No runtime on this host serves the function.
    #[error("{0}")]
    RuntimeUnavailable(String),
    /// The server is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Which limit throttled an invocation (the wire names are the frontend's business).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleReason {
    /// The account's concurrency is used up, or what of it belongs to no other function.
    AccountConcurrency,
    /// The function's reserved concurrency is used up.
    FunctionConcurrency,
    /// This host can hold no further environment.
    HostCapacity,
}

/// How far a provisioned-concurrency setting has been carried out.
pub type ProvisionedStatus = pool::Provisioned;
