//! The error of the processes inside: a step that failed, and why, in a form that crosses a process boundary.

use std::io;

/// A step of a set-up failed.
#[derive(Debug)]
pub(crate) struct StepError {
    /// What was being done, with the path or name concerned.
    pub step: String,
    /// The kernel's reason; EIO when there was none.
    pub errno: i32,
}

/// Names the step that an I/O result belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| {
            let error = error.into();
            match error.raw_os_error() {
                Some(errno) => StepError { step: step(), errno },
                // Not a system call's: what it says would be lost with the type.
                None => StepError { step: format!("{}: {error}", step()), errno: libc::EIO },
            }
        })
    }
}
