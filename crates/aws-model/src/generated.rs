//! The files that `cargo xtask model` writes.

pub(crate) mod errors;
pub(crate) mod operations;
pub(crate) mod shapes;
pub mod types;
