//! A host: the lifecycle of execution environments, the code cache, log capture.
//!
//! Says nothing about which environment serves which invocation (that is `worker-manager`) and knows no HTTP API but
//! the Runtime API that it hosts for each environment.

pub mod spec;

pub mod lifecycle;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

mod capture;
mod disks;
mod environment;
mod failure;
mod host;
mod snapshots;
mod variables;

pub use disks::{DiskError, RootDisk, RootDisks};
pub use environment::{Environment, Notice, Reply};
pub use host::{ColdStart, EnvironmentInfo, Options, Parts, StartError, Worker};
pub use lifecycle::RestoreFailure;
pub use snapshots::{Admitted, SnapshotFailure};
pub use spec::{CodeRef, EnvironmentSpec, InvokeReply, InvokeRequest, LogSettings, SnapshotName, VersionKey};
pub use telemetry::lines::{InitType, LogFormat};
pub use variables::{Credentials, IssueCredentials};
