//! What a VMM process was doing when it could not go on.

use std::io;

/// A step of becoming a shell that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub(super) struct StepError {
    step: &'static str,
    source: io::Error,
}

/// Names the step that a result belongs to.
pub(super) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, StepError> {
        self.map_err(|error| StepError { step, source: error.into() })
    }
}

/// An error and what it came from, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
