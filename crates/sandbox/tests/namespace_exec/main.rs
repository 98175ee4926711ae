//! The tests of `namespace` once more, in sandboxes that were prepared with their first process started and waiting.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "some helpers serve tests that are not run again")]

#[path = "../namespace/ends.rs"]
mod ends;
#[path = "../namespace/isolation.rs"]
mod isolation;
#[path = "../namespace/limits.rs"]
mod limits;
#[path = "../namespace/process.rs"]
mod process;
#[path = "../namespace/support.rs"]
mod support;

/// How the first process of each sandbox is started.
pub const MODE: sandbox::namespace::PrestartMode = sandbox::namespace::PrestartMode::Exec;
