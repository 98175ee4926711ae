//! The Lambda Runtime API (2018-06-01) and Extensions API (2020-01-01): a state machine without I/O, and its HTTP server.
//!
//! One [`RuntimeApi`] belongs to one execution environment. Its owner (the worker for a namespace sandbox, the guest
//! agent inside a microVM) hands invocations in with [`RuntimeApi::invoke`] and listens to [`Event`]s; the runtime process
//! and the extensions inside the sandbox talk HTTP to the listener. This crate knows nothing of processes, namespaces,
//! timeouts or logs: it never ends a call by the clock, because the caller may be frozen for hours between two bytes.
//!
//! ```text
//!   owner --invoke, abandon, reset--> api --step--> machine <--step-- server <--HTTP-- runtime, extensions
//!   owner <------outcome, events----- api <-------- actions --------> server --answer-->
//! ```
//!
//! The protocol is AWS's: paths, headers, states and error texts follow the public Runtime API and Extensions API
//! documentation and the behaviour of AWS's Runtime Interface Emulator.

mod invocation;
pub mod machine;

mod extensions;
mod refusal;

mod api;
mod report;
mod server;

pub use api::{InvokeRefused, RestoreRefused, RuntimeApi, TooManyExtensions};
pub use extensions::{ExtensionEvent, ExtensionInfo, ExtensionKind, Extensions, ShutdownReason};
pub use invocation::{Credentials, Event, ExtensionPhase, Invocation, Options, Outcome};
pub use refusal::Refusal;
