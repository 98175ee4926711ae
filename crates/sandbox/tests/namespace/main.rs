//! The namespace backend with real processes: what they can do, cannot do, and leave behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ends;
mod images;
mod isolation;
mod limits;
mod prepared;
mod process;
mod rootless;
mod support;

/// How the first process of each sandbox is started.
pub const MODE: sandbox::namespace::PrestartMode = sandbox::namespace::PrestartMode::Off;
