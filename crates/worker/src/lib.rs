//! A host: the lifecycle of execution environments, the code cache, log capture.
//!
//! Says nothing about which environment serves which invocation (that is `worker-manager`) and knows no HTTP API but
//! the Runtime API that it hosts for each environment.

pub mod lifecycle;
pub mod spec;

pub use spec::{
    CodeRef, EnvironmentSpec, InitializationType, InvokeReply, InvokeRequest, LogFormat, LogSettings, VersionKey,
};
