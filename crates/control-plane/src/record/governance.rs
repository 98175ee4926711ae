//! Smaller settings of a function: what happens in loops, when its runtime is updated, how its asynchronous
//! invocations are treated.

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// What happens when a function is found to invoke itself through other services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecursiveLoop {
    Allow,
    #[default]
    Terminate,
}

impl RecursiveLoop {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Terminate => "Terminate",
        }
    }
}

/// When a version gets a new release of its runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeUpdate {
    #[default]
    Auto,
    FunctionUpdate,
    /// Never: it stays on this one.
    Manual {
        /// ARN of the runtime's release.
        version: String,
    },
}

/// How asynchronous invocations are retried and where their outcome goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventInvoke {
    /// Seconds an event may wait; `None` is Lambda's default of six hours.
    pub maximum_age: Option<i32>,
    /// Tries after the first; `None` is Lambda's default of two.
    pub retries: Option<i32>,
    /// ARN that successes are sent to.
    pub on_success: Option<String>,
    /// ARN that failures are sent to.
    pub on_failure: Option<String>,
    pub modified: Timestamp,
}
