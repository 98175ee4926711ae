//! The decision, per invocation: reuse a warm environment, wait for one, start a new one, or throttle.
//!
//! The decision itself is a pure core; this module's [`WorkerManager`] drives it with real environments.

pub mod pool;

use std::sync::Arc;

use worker::{EnvironmentSpec, InvokeReply, InvokeRequest, VersionKey};

/// Handle to the manager; cheap to clone.
#[derive(Clone)]
pub struct WorkerManager {}

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
    /// The account's concurrency is used up.
    AccountConcurrency,
    /// This host can hold no further environment.
    HostCapacity,
}

/// How far a provisioned-concurrency setting has been carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProvisionedStatus {
    /// Environments asked for.
    pub requested: u32,
    /// Initialized and counted to the setting, busy ones included.
    pub allocated: u32,
    /// Initialized and free.
    pub available: u32,
    /// Set once an initialization failed and none is left to try.
    pub init_failed: bool,
}

impl WorkerManager {
    /// Runs one invocation to its answer. Dropping the future gives up the answer, not the invocation.
    pub async fn invoke(
        &self,
        spec: &Arc<EnvironmentSpec>,
        request: InvokeRequest,
    ) -> Result<InvokeReply, InvokeError> {
        let _ = (spec, request);
        Err(InvokeError::ShuttingDown)
    }

    /// Unpacks the code of a version, so that the first cold start does not wait for it. The error says what is wrong
    /// with the package.
    pub async fn prepare(&self, spec: &Arc<EnvironmentSpec>) -> Result<(), String> {
        let _ = spec;
        Ok(())
    }

    /// Keeps `count` environments of this version initialized; 0 ends it.
    pub fn set_provisioned(&self, spec: &Arc<EnvironmentSpec>, count: u32) {
        let _ = (spec, count);
    }

    /// The state of a version's provisioned environments.
    pub fn provisioned(&self, key: &VersionKey) -> ProvisionedStatus {
        let _ = key;
        ProvisionedStatus::default()
    }

    /// The version is no longer current (updated or deleted): environments finish what they do and are retired.
    pub fn retire(&self, key: &VersionKey) {
        let _ = key;
    }

    /// Invocations in flight now, over all functions.
    pub fn concurrency(&self) -> u32 {
        0
    }
}
