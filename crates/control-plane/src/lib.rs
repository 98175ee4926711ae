//! Functions, versions, roles and concurrency settings: their rules and states.
//!
//! [`ControlPlane`] keeps every table in memory and answers reads from there; a mutation is judged, committed to the
//! store as one batch, and visible only then. Wire types of [`aws_model`] come in and go out, [`record`] holds what is
//! kept. I/O happens through the traits of [`store`] alone, and time is an argument.
//!
//! What takes time on a host (unpacking code) is not done here: a create or an update answers with [`Work`], whoever
//! carries it out reports with [`ControlPlane::complete`]. After a restart [`ControlPlane::pending_work`] lists what
//! was left.

mod account;
mod aliases;
pub mod authorization;
pub mod autoscaling;
mod capacity;
mod code;
mod code_signing;
mod concurrency;
mod durable;
mod event_invoke;
mod functions;
pub mod keys;
mod layers;
pub mod mappings;
pub mod objects;
mod page;
mod permissions;
mod plane;
pub mod policy;
mod provisioned;
pub mod record;
mod recursion;
pub mod roles;
mod runtime;
mod runtime_management;
mod scaling;
mod scoped;
pub mod sessions;
mod settings;
mod shelf;
mod snap_start;
mod tables;
mod tags;
mod update;
mod urls;
mod usage;
mod versions;
mod wire;

pub use functions::Deleted;
pub use plane::{ControlPlane, Limits, Resolved, Settings};
pub use provisioned::{LiveConcurrency, Provision, ProvisionFailure};
pub use tables::OpenError;
pub use update::{Accepted, Failure, FailureCode, InitFailure, Work, WorkKind};

#[cfg(test)]
mod tests;
