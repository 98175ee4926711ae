//! What needs a KVM: bare programs and Linux guests, run by [`vmm::machine`] in this process, and by the host's side in
//! jailed processes.
//!
//! Each test is skipped, with a word on stderr, where `/dev/kvm` cannot run it; Linux guests also need
//! `FIRELET_GUEST_KERNEL`, a vmlinux. `scripts/lab` runs them all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bare;
mod boot;
mod init;
mod probe;
mod process;
mod restore;
mod speed;
mod support;
mod ticker;
