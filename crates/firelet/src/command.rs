//! The commands beside `serve`. Data goes to standard output, talk to standard error.

pub mod dev;
pub mod doctor;
pub mod functions;
pub mod invoke;
pub mod keys;
pub mod logs;
pub mod runtimes;
pub mod simulate;
