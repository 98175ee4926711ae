//! Frames: how messages with an optional body are put on a byte stream.
//!
//! ```text
//!   u32 LE  length of the header, at most MAX_HEADER
//!   u32 LE  length of the body, at most the limit that the reader gives
//!   header  JSON
//!   body    bytes as they are
//! ```

/// Largest header in bytes: a command line, an environment (4 KiB of it the user's) and client contexts fit.
pub const MAX_HEADER: usize = 1 << 20;
