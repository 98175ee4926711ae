//! A virtual machine monitor on KVM: boots a Linux kernel directly, gives it virtio devices, takes snapshots and restores
//! them. Knows nothing of what runs inside.
//!
//! ```text
//!   host process                                    VMM process, one for each microVM (the same program, re-executed)
//!   host::Launcher, host::Shell, host::MicroVm  --- one Unix socket, descriptors with it --->  process: jail, control
//!   snapshot::{Template, File}                                                                 machine: KVM, vCPUs, memory
//!   probe                                                                                      devices: virtio over MMIO
//! ```
//!
//! The guest is hostile, and so is everything that it can write: queues, packets, registers. The VMM process is therefore
//! jailed, and the host process believes it no more than it would believe the guest.

pub mod arch;
pub mod bus;
pub mod config;
pub mod devices;
pub mod event_loop;
pub mod host;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod probe;
mod process;
pub mod snapshot;
pub mod vcpu;
mod wire;

pub use process::run_if_vmm;
