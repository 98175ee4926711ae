//! What runs between the server and the functions of namespace sandboxes: the supervisor that makes them, the init of each, and
//! the way of a process into one. Small, single-threaded, without tokio.
//!
//! ```text
//!                supervisor             the server's program, started again        `-- exec --> any tenant process
//! server <---->      or       --> inits
//!                a zygote               an interpreter that has loaded this        `-- fork --> a waiting interpreter,
//!                                       library                                        exec --> any other tenant process
//! ```
//!
//! Both run the same loop ([`serve`]), the same init and the same steps by which a tenant process loses what it may not
//! have. They differ in what the last step is: an exec of the program, or a return into the interpreter ([`zygote`]).
//!
//! Knows nothing of the server's side but the messages that they exchange ([`wire`]).

pub mod channel;
mod failure;
pub mod image;
mod init;
mod landlock;
mod loopback;
mod root;
mod seccomp;
pub mod serve;
mod step;
pub mod sys;
mod tenant;
#[cfg(test)]
mod testing;
mod title;
pub mod wire;
pub mod zygote;

pub use failure::StartFailure;

/// The user inside a user namespace, where only one can be mapped: Lambda's.
pub const MAPPED_UID: u32 = 993;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// `exit(code)`.
    Code(i32),
    /// Killed by a signal.
    Signal(i32),
}
