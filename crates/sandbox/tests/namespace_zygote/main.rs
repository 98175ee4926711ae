//! The tests of `namespace` once more, in sandboxes whose first process is a fork of an interpreter that was started once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "some helpers serve tests that are not run again")]

#[path = "../namespace/ends.rs"]
mod ends;
mod forks;
#[path = "../namespace/images.rs"]
mod images;
#[path = "../namespace/isolation.rs"]
mod isolation;
#[path = "../namespace/limits.rs"]
mod limits;
#[path = "../namespace/prepared.rs"]
mod prepared;
#[path = "../namespace/process.rs"]
mod process;
#[path = "../namespace/support.rs"]
mod support;

/// How the first process of each sandbox is started.
pub const MODE: sandbox::namespace::PrestartMode = sandbox::namespace::PrestartMode::Zygote;
