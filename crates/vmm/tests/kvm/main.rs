//! What needs a KVM that can run guests: in the lab, or on a machine that has one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod init;
mod probe;
mod process;
