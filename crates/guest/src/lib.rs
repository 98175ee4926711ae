//! PID 1 of a microVM, and the messages between it and the host.
//!
//! ```text
//!   host (sandbox, worker)                     microVM
//!   control::…  ---- vsock port CONTROL ---->  agent: mounts, processes, limits, "you were cloned"
//!   raw bytes   <--- vsock port STREAMS -----  what processes write (one connection for each pipe)
//!   runtime::…  ---- vsock port RUNTIME ---->  agent: hosts the Runtime API on 127.0.0.1:9001
//! ```
//!
//! All connections are made by the host. The messages are in the default part of the crate; the agent itself is behind the
//! feature `agent`, because the host does not need it.

#[cfg(feature = "agent")]
pub mod agent;
pub mod control;
pub mod frame;
pub mod runtime;
