//! Replays traces of invocations through the worker manager's decisions in virtual time.
//!
//! A [`Trace`] is read ([`trace::azure2019`], [`trace::azure2021`]) or made by seed ([`trace::generated`]). [`compare`]
//! replays it on a [`Cluster`] of imagined workers under several policies; each [`Outcome`] says what came of one, and
//! [`outcome::table`] and [`plot::svg`] put them side by side. The decisions are those of the server, from
//! [`worker_manager::core`]; no rule of theirs is written down a second time in here.

pub mod outcome;
pub mod plot;
pub mod policy;
pub mod trace;

mod random;
mod simulation;
mod statistics;
mod table;
mod tally;

pub use outcome::Outcome;
pub use policy::Policy;
pub use simulation::{Cluster, compare, run};
pub use trace::{Trace, TraceError};
