//! What the status pipe of a new process says when it could not be started.

use crate::step::StepError;

/// Why there is no process. Encoded as the kind, the errno in four bytes, then the step.
#[derive(Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// The program could not be executed.
    Exec(i32),
    /// The working directory could not be entered.
    Cwd(i32),
    /// Anything else.
    Step(String, i32),
}

impl StartFailure {
    /// The word for the pipe.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, errno, step) = match self {
            StartFailure::Exec(errno) => (0, errno, ""),
            StartFailure::Cwd(errno) => (1, errno, ""),
            StartFailure::Step(step, errno) => (2, errno, step.as_str()),
        };
        [&[kind], &errno.to_le_bytes()[..], step.as_bytes()].concat()
    }

    /// `None` if nothing was written, which is to say that the program runs.
    pub fn decode(bytes: &[u8]) -> Option<StartFailure> {
        let (kind, rest) = bytes.split_first()?;
        let Some((errno, step)) = rest.split_first_chunk() else {
            return Some(StartFailure::Step("read the status".into(), libc::EIO));
        };
        let errno = i32::from_le_bytes(*errno);
        Some(match kind {
            0 => StartFailure::Exec(errno),
            1 => StartFailure::Cwd(errno),
            _ => StartFailure::Step(String::from_utf8_lossy(step).into_owned(), errno),
        })
    }
}

impl From<StepError> for StartFailure {
    fn from(error: StepError) -> Self {
        StartFailure::Step(error.step, error.errno)
    }
}
