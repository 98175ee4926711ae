//! Snapshots without a virtual machine: templates, files and the store, as the host process uses them.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod file;
mod store;
mod support;
mod template;
