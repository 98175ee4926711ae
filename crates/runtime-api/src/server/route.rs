//! The paths of the three APIs.

use hyper::Method;

use crate::{ExtensionPhase, Refusal};

/// The call that a request line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Ping,
    Next,
    Response(&'a str),
    Error(&'a str),
    InitError,
    RestoreNext,
    RestoreError,
    Credentials,
    Register,
    EventNext,
    ExtensionError(ExtensionPhase),
    Telemetry,
    Logs,
}

/// Finds the call, or says that the path or the method does not exist.
pub(crate) fn route<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, Refusal> {
    let (route, takes) = match path {
        "/2018-06-01/runtime/invocation/next" => (Route::Next, Method::GET),
        "/2018-06-01/runtime/init/error" => (Route::InitError, Method::POST),
        "/2018-06-01/runtime/restore/next" => (Route::RestoreNext, Method::GET),
        "/2018-06-01/runtime/restore/error" => (Route::RestoreError, Method::POST),
        "/2021-04-23/credentials" => (Route::Credentials, Method::GET),
        "/2018-06-01/ping" | "/ping" => (Route::Ping, Method::GET),
        "/2020-01-01/extension/register" => (Route::Register, Method::POST),
        "/2020-01-01/extension/event/next" => (Route::EventNext, Method::GET),
        "/2020-01-01/extension/init/error" => (Route::ExtensionError(ExtensionPhase::Init), Method::POST),
        "/2020-01-01/extension/exit/error" => (Route::ExtensionError(ExtensionPhase::Exit), Method::POST),
        "/2022-07-01/telemetry" => (Route::Telemetry, Method::PUT),
        "/2020-08-15/logs" => (Route::Logs, Method::PUT),
        _ => (answer_route(path).ok_or(Refusal::NotFound)?, Method::POST),
    };
    if *method == takes {
        Ok(route)
    } else if takes == Method::GET {
        Err(Refusal::Method { allow: "GET" })
    } else if takes == Method::PUT {
        Err(Refusal::Method { allow: "PUT" })
    } else {
        Err(Refusal::Method { allow: "POST" })
    }
}

/// The two calls that carry a request id in their path.
fn answer_route(path: &str) -> Option<Route<'_>> {
    let (id, kind) = path.strip_prefix("/2018-06-01/runtime/invocation/")?.split_once('/')?;
    match kind {
        "response" => Some(Route::Response(id)),
        "error" => Some(Route::Error(id)),
        _ => None,
    }
}
