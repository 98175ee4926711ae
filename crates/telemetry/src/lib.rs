//! Function logs: the exact lines of the platform, the bytes that functions write, storage and queries.
//!
//! - [`lines`]: what the platform says about an invocation, in text and in JSON (pure functions)
//! - [`frames`]: what the function says, cut into log events (parsers without I/O, for hostile input)
//! - [`tail`]: the last 4 KiB of an invocation's log
//! - [`logs`]: log groups, streams and events in one SQLite file
//! - [`metrics`]: what is counted and timed, for Prometheus
//! - [`filter`]: the filter patterns of the CloudWatch Logs API
//!
//! Knows neither HTTP nor environments: `worker` feeds it, `frontend` asks it.

pub mod filter;
pub mod frames;
pub mod lines;
pub mod logs;
pub mod metrics;
pub mod tail;

pub use filter::{Pattern, PatternError};
pub use logs::{LogError, LogEvent, LogOptions, LogStore};
