//! Why a sandbox could not be made, from whatever error a step of the making ended with.

use std::error::Error;
use std::io;

use crate::CreateError;

/// Sorts out whether the host is full or something is wrong.
pub(crate) fn failed(step: &str, error: impl Into<Box<dyn Error + Send + Sync>>) -> CreateError {
    let error = error.into();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(current) = cause {
        let errno = current.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(libc::ENOSPC | libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EUSERS) = errno {
            return CreateError::NoRoom(format!("could not {step}: {current}"));
        }
        cause = current.source();
    }
    let source = match error.downcast::<io::Error>() {
        Ok(error) => *error,
        Err(error) => io::Error::other(error),
    };
    CreateError::Step { step: step.to_owned(), source }
}
