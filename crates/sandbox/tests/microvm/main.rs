//! The microVM backend with real machines: what it runs, limits and leaves behind, and how a snapshot of a sandbox goes on.
//!
//! Needs root, KVM that can run a kernel, `FIRELET_GUEST_KERNEL`, `FIRELET_GUEST_AGENT` and a static busybox; prints what is
//! absent. `scripts/lab kvm` has it all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod life;
mod snapshot;
mod support;
