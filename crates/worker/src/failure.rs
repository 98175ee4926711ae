//! The platform's own error payloads: their types and texts, as Lambda words them.

use std::time::Duration;

use sandbox::{Exit, SpawnError};

use crate::host::chain;
use crate::lifecycle::Failure;

/// A runtime that ended while it was needed.
pub fn exited(exit: Exit) -> Failure {
    let message = match exit {
        Exit::Code(0) => "Runtime exited without providing a reason".to_owned(),
        Exit::Code(code) => format!("Runtime exited with error: exit status {code}"),
        Exit::Signal(signal) => format!("Runtime exited with error: signal: {}", signal_name(signal)),
    };
    Failure { error_type: "Runtime.ExitError".to_owned(), posted: None, message }
}

/// An extension that ended, though it should live as long as the environment.
pub fn extension_exited(exit: Exit) -> Failure {
    let message = match exit {
        Exit::Code(code) => format!("exit {} {code}", if code == 0 { "code" } else { "status" }),
        Exit::Signal(signal) => format!("signal: {}", signal_name(signal)),
    };
    Failure { error_type: "Extension.Crash".to_owned(), posted: None, message }
}

/// A process that could not be started.
pub fn spawn(error: &SpawnError) -> Failure {
    let failure =
        |error_type: &str, message: String| Failure { error_type: error_type.to_owned(), posted: None, message };
    match error {
        SpawnError::Exec { program, source } => {
            failure("Runtime.InvalidEntrypoint", format!("fork/exec {program}: {}", kernel_text(source)))
        }
        SpawnError::Cwd { path, source } => {
            failure("Runtime.InvalidWorkingDir", format!("chdir {path}: {}", kernel_text(source)))
        }
        SpawnError::SandboxGone | SpawnError::Step { .. } => failure("Sandbox.Failure", chain(error)),
    }
}

/// The payload for a failure, as the caller reads it.
pub fn payload(failure: &Failure, request_id: &str) -> Vec<u8> {
    if let Some(posted) = &failure.posted {
        return posted.clone();
    }
    // The one error whose recorded text does not name the request.
    let message = if failure.error_type == "Function.ResponseSizeTooLarge" {
        failure.message.clone()
    } else {
        format!("RequestId: {request_id} Error: {}", failure.message)
    };
    error_json(&failure.error_type, &message)
}

/// What a failure says, without a request: the runtime's own words where it posted some that can be read.
pub fn told(failure: &Failure) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Posted {
        error_message: String,
    }
    let posted = failure.posted.as_deref().and_then(|posted| serde_json::from_slice::<Posted>(posted).ok());
    posted.map_or_else(|| failure.message.clone(), |posted| posted.error_message)
}

/// The payload of a function that ran out of time.
pub fn timeout_payload(timeout: Duration, request_id: &str) -> Vec<u8> {
    let message = format!("RequestId: {request_id} Error: Task timed out after {:.2} seconds", timeout.as_secs_f64());
    error_json("Sandbox.Timedout", &message)
}

/// A response that was larger than a function may return.
pub fn response_too_large(limit: usize) -> Failure {
    Failure {
        error_type: "Function.ResponseSizeTooLarge".to_owned(),
        posted: None,
        message: format!("Response payload size exceeded maximum allowed payload size ({limit} bytes)."),
    }
}

fn error_json(error_type: &str, message: &str) -> Vec<u8> {
    serde_json::json!({ "errorType": error_type, "errorMessage": message }).to_string().into_bytes()
}

/// The kernel's text without Rust's error number behind it: `no such file or directory`.
fn kernel_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// Signal names as Lambda's supervisor prints them.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_worded_as_lambda_does() {
        assert_eq!(exited(Exit::Code(0)).message, "Runtime exited without providing a reason");
        assert_eq!(exited(Exit::Code(137)).message, "Runtime exited with error: exit status 137");
        assert_eq!(exited(Exit::Signal(9)).message, "Runtime exited with error: signal: killed");
        assert_eq!(exited(Exit::Signal(11)).message, "Runtime exited with error: signal: segmentation fault");
    }

    #[test]
    fn payloads_name_the_request() {
        let payload = payload(&exited(Exit::Code(1)), "r-1");
        let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(payload["errorType"], "Runtime.ExitError");
        assert_eq!(payload["errorMessage"], "RequestId: r-1 Error: Runtime exited with error: exit status 1");
        let timeout = timeout_payload(Duration::from_millis(1_500), "r-2");
        let timeout: serde_json::Value = serde_json::from_slice(&timeout).unwrap();
        assert_eq!(timeout["errorMessage"], "RequestId: r-2 Error: Task timed out after 1.50 seconds");
    }

    #[test]
    fn an_oversized_response_is_worded_as_recorded() {
        let payload = payload(&response_too_large(6_291_556), "r-1");
        let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(
            payload["errorMessage"],
            "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
        );
    }

    #[test]
    fn a_start_that_fails_names_the_kernels_reason() {
        let error = SpawnError::Step {
            program: "/var/task/bootstrap".to_owned(),
            step: "fork".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::EAGAIN),
        };
        assert!(spawn(&error).message.contains("Resource temporarily unavailable"), "{:?}", spawn(&error));
    }

    #[test]
    fn a_missing_program_is_worded_as_recorded() {
        let error = SpawnError::Exec {
            program: "/var/task/bootstrap".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::ENOENT),
        };
        let failure = spawn(&error);
        assert_eq!(failure.error_type, "Runtime.InvalidEntrypoint");
        assert_eq!(failure.message, "fork/exec /var/task/bootstrap: no such file or directory");
    }
}
