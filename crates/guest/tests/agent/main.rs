//! The agent as a program, in namespaces of its own instead of a machine, over Unix sockets instead of vsock.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod processes;
mod runtime;
mod support;
