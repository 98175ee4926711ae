//! The host's side of microVMs: processes are launched, kept ready as shells, and become machines with a handle each.
//!
//! ```text
//! Launcher --- shell() ---> Shell --- boot(), restore() ---> MicroVm --- snapshot() ---> Template
//!    `- pool, kept full        `- dropped: killed               `- dropped or killed: gone in the background
//! ```
//!
//! Everything here belongs into a tokio runtime and costs one task for each process, no thread. A process that has ended is
//! waited for by its task; whoever kills one does not wait for that, since the kernel takes milliseconds to close a VM.

mod launcher;
mod link;
mod microvm;
mod pool;
mod shell;
mod spawn;
mod users;

pub use launcher::{Extras, Jail, LaunchError, Launcher, Options, Users as UserRange};
pub use link::CallError;
pub use microvm::{Diff, Listener, MachineReport, MicroVm, SnapshotError};
pub use pool::PoolCounters;
pub use shell::{After, Attached, Kernel, MachineError, Shell, ShellReport};
pub use spawn::Program;

pub use crate::wire::{MachineTimes, ShellTimes};
