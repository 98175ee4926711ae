//! VMM processes from outside: their jail, their pool and their ends. No guest runs here: a shell needs only that
//! `/dev/kvm` makes virtual machines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ends;
mod figures;
mod hostile;
mod jail;
mod pool;
mod rootless;
mod support;
