//! The owner's side of the Runtime API, across a byte stream.
//!
//! The API itself (the HTTP server on 127.0.0.1) runs in the microVM, beside the runtime that talks to it. Its owner, the
//! worker, is on the host: [`Remote`] has the calls of [`runtime_api::RuntimeApi`], and [`serve_owner`] carries them out.
//!
//! ```text
//!   host                                             microVM
//!   Remote --(commands, counted)-------------------> serve_owner --> RuntimeApi <--HTTP-- runtime, extensions
//!          <--(commands taken so far, message)------
//! ```
//!
//! Commands are numbered from 1 by their order. Every message of the guest says how many of them it had taken when it
//! wrote, and by that the host knows what is old news: what was written before the last reset was taken is of the old
//! runtime, and a list of extensions that was written before the last announcement was taken lacks those.
//!
//! The other direction of this holds for what goes on *beside* the stream: a process that is started over another
//! connection could be there before a reset is. Await [`Remote::settled`] before processes are started.

mod agent;
mod host;
mod wire;

pub use agent::{OwnerError, Slot, serve_owner};
pub use host::{Remote, Unsettled};

#[cfg(test)]
mod tests;
