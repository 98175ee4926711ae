//! Replays traces through the worker manager's decisions in virtual time.

pub mod outcome;
pub mod plot;
pub mod policy;
pub mod trace;

mod random;
pub mod statistics;
mod table;

pub use outcome::Outcome;
pub use policy::Policy;
pub use trace::{Trace, TraceError};
