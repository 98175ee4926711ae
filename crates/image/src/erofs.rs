//! Writes EROFS images: read-only file systems in one file that a microVM mounts as a disk.
//!
//! Owns the tree that goes into an image ([`Tree`]) and the writer ([`write`]); does not read images and does not
//! compress. The format is that of the kernel's `fs/erofs/erofs_fs.h` in its simplest form, which every kernel since
//! 5.4 mounts: blocks of 4 KiB, no features that a kernel could lack, first all metadata, then the directories that
//! take more than a block, then the content of files, in the order of the tree.
//!
//! Equal trees give equal images: names are sorted, times are those of the tree, nothing comes from the clock.
//!
//! Files of up to [`INLINE_MAX`] bytes lie beside their inode, so that looking one up has read it; all others begin at
//! a block of their own and can be mapped as they are.

mod fingerprint;
mod format;
mod graft;
mod layout;
mod tree;
mod write;

pub use graft::{Found, GraftError};
pub use layout::INLINE_MAX;
pub use tree::{Attributes, PathError, PathProblem, Tree};
pub use write::{Summary, WriteError, write};

#[cfg(test)]
mod tests;
