//! Invoke: the warm path. What it adds to a function's own time is a lookup, a check that the event is JSON, and a copy
//! of neither event nor answer.

use std::time::{Duration, SystemTime};

use aws_model::types::InvocationRequest;
use aws_model::{ApiError, Operation, Routed};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use control_plane::Resolved;
use control_plane::record::State;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use serde::de::IgnoredAny;
use worker::{InvokeRequest, RestoreFailure};
use worker_manager::{InvokeError, ThrottleReason};

use crate::app::App;
use crate::body::{self, BodyError, RequestBody};
use crate::lambda::payload;
use crate::reply::{self, REQUEST_ID, Reply};

/// Largest event of a synchronous invocation, in bytes.
const MAX_PAYLOAD: u64 = 6_291_456;

/// Largest client context, in bytes of its base64.
const MAX_CLIENT_CONTEXT: usize = 3_583;

/// How long an invocation waits for a new function to become active.
const PENDING_PATIENCE: Duration = Duration::from_secs(60);

const INVOCATION_TYPE: HeaderName = HeaderName::from_static("x-amz-invocation-type");
const LOG_TYPE: HeaderName = HeaderName::from_static("x-amz-log-type");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("x-amz-client-context");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const TRACE_ID: HeaderName = HeaderName::from_static("x-amzn-trace-id");
const DURABLE_NAME: HeaderName = HeaderName::from_static("x-amz-durable-execution-name");
const TENANT_ID: HeaderName = HeaderName::from_static("x-amz-tenant-id");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What the request asks for, apart from its payload.
struct Call {
    name: String,
    qualifier: Option<String>,
    kind: Kind,
    tail: bool,
    client_context: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    RequestResponse,
    Event,
    DryRun,
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "RequestResponse" => Some(Self::RequestResponse),
            "Event" => Some(Self::Event),
            "DryRun" => Some(Self::DryRun),
            _ => None,
        }
    }
}

/// Runs one invocation and answers with what the function returned.
pub(crate) async fn invoke(
    app: &App,
    routed: Routed,
    request: Request<RequestBody>,
    request_id: &str,
) -> Result<Reply, ApiError> {
    let (head, body) = request.into_parts();
    // Read whatever is wrong with the rest: a connection with half a body on it could not be used again.
    let body = body::read(body, MAX_PAYLOAD).await;
    let call = call(&routed, head.uri.query(), &head.headers)?;
    let chance = chance(request_id);
    let resolved = app.control_plane.resolve(&call.name, call.qualifier.as_deref(), chance)?;
    if call.kind == Kind::Event {
        return Err(ApiError::new(
            501,
            "NotImplementedException",
            "Firelet does not implement the invocation type Event yet; use RequestResponse.",
            aws_model::MessageKey::Lower,
            Some(aws_model::ErrorType::Service),
        ));
    }
    let client_context = call.client_context.as_deref().map(client_context).transpose()?;
    let event = event(body)?;
    if call.kind == Kind::DryRun {
        return Ok(reply::empty(StatusCode::NO_CONTENT));
    }
    let resolved = active(app, &call, resolved, chance).await?;
    let spec = app.spec(&resolved.version)?;
    let trace_id = match head.headers.get(TRACE_ID).and_then(|value| value.to_str().ok()) {
        Some(given) => given.to_owned(),
        None => new_trace_id(SystemTime::now()),
    };
    let answer = app
        .workers
        .invoke(
            &spec,
            InvokeRequest {
                request_id: request_id.to_owned(),
                payload: event,
                invoked_function_arn: resolved.invoked_arn,
                trace_id: Some(trace_id.clone()),
                client_context,
                tail: call.tail,
            },
        )
        .await
        .map_err(|error| refusal(&error, &spec.function_name))?;

    let mut reply = reply::reply(StatusCode::OK, JSON, answer.payload);
    let headers = reply.headers_mut();
    let mut set = |name: HeaderName, text: &str| {
        // Ids and versions are printable; a caller's trace id that is not was never read.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    set(EXECUTED_VERSION, &spec.version);
    set(REQUEST_ID, request_id);
    set(TRACE_ID, &trace_id);
    if answer.function_error {
        set(FUNCTION_ERROR, "Unhandled");
    }
    if let Some(tail) = &answer.log_tail {
        set(LOG_RESULT, &STANDARD.encode(tail));
    }
    Ok(reply)
}

/// Reads name, qualifier and headers. The usual form is recognized without the model's tables; everything else goes
/// through them, which also finds the words for what is wrong.
fn call(routed: &Routed, query: Option<&str>, headers: &HeaderMap) -> Result<Call, ApiError> {
    let header = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let client_context = header(&CLIENT_CONTEXT).map(str::to_owned);
    let name = routed.labels.get("FunctionName").unwrap_or_default();
    let plain = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && query.is_none()
        && !headers.contains_key(DURABLE_NAME)
        && !headers.contains_key(TENANT_ID);
    let kind = header(&INVOCATION_TYPE).map_or(Some(Kind::RequestResponse), Kind::parse);
    let tail = match header(&LOG_TYPE) {
        None | Some("None") => Some(false),
        Some("Tail") => Some(true),
        Some(_) => None,
    };
    if let (true, Some(kind), Some(tail)) = (plain, kind, tail) {
        return Ok(Call { name: name.to_owned(), qualifier: None, kind, tail, client_context });
    }
    let by_name = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let input: InvocationRequest = aws_model::decode(Operation::Invoke, &routed.labels, query, by_name, &[])?;
    Ok(Call {
        name: input.function_name.unwrap_or_default(),
        qualifier: input.qualifier,
        kind: input.invocation_type.as_deref().and_then(Kind::parse).unwrap_or(Kind::RequestResponse),
        tail: input.log_type.as_deref() == Some("Tail"),
        client_context,
    })
}

/// What chooses between the versions of an alias with weights, 0 up to 1: the request's id is random anyway.
fn chance(request_id: &str) -> f64 {
    let drawn = request_id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    f64::from(drawn) / 4_294_967_296.0
}

/// The event, checked to be JSON. No body is the same as an empty object.
fn event(body: Result<Bytes, BodyError>) -> Result<Bytes, ApiError> {
    let event = match body {
        Ok(event) => event,
        Err(BodyError::TooLarge { size }) => {
            return Err(ApiError::request_too_large(format!(
                "{size} byte payload is too large for the RequestResponse invocation type (limit {MAX_PAYLOAD} bytes)"
            )));
        }
        Err(BodyError::Broken(error)) => {
            return Err(ApiError::invalid_request_content(format!("Could not read the request body: {error}")));
        }
    };
    if event.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    payload::check(&event).map_err(|problem| {
        ApiError::invalid_request_content(format!(
            "Could not parse request body into json: Could not parse payload into json: {problem}"
        ))
    })?;
    Ok(event)
}

/// The client context as the runtime gets it: JSON, no longer base64.
fn client_context(header: &str) -> Result<String, ApiError> {
    let refuse = || ApiError::invalid_request_content("Client context must be a valid Base64-encoded JSON object.");
    if header.len() > MAX_CLIENT_CONTEXT {
        return Err(ApiError::invalid_request_content(format!(
            "Client context must be no more than {MAX_CLIENT_CONTEXT} bytes when base64-encoded."
        )));
    }
    let decoded = STANDARD.decode(header).map_err(|_| refuse())?;
    let text = String::from_utf8(decoded).map_err(|_| refuse())?;
    let is_object = text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(&text).is_ok();
    // It travels on as a header value, which has no line breaks.
    if is_object { Ok(text.replace(['\r', '\n'], " ")) } else { Err(refuse()) }
}

/// Waits until the version can be invoked.
async fn active(app: &App, call: &Call, resolved: Resolved, chance: f64) -> Result<Resolved, ApiError> {
    if resolved.version.state == State::Active && !resolved.version.is_deactivated() {
        return Ok(resolved);
    }
    let mut completions = app.completions();
    let deadline = tokio::time::Instant::now() + PENDING_PATIENCE;
    let mut resolved = app.control_plane.resolve(&call.name, call.qualifier.as_deref(), chance)?;
    loop {
        match &resolved.version.state {
            State::Active if resolved.version.is_deactivated() => {
                return Err(ApiError::resource_conflict(not_now("Deactivated", "")));
            }
            State::Active => return Ok(resolved),
            State::Failed { code, reason } if code == "InvalidZipFileException" => {
                return Err(ApiError::invalid_zip_file(reason));
            }
            State::Failed { reason, .. } => return Err(ApiError::resource_conflict(not_now("Failed", reason))),
            // A caller does not wait for what may take minutes.
            State::Pending if app.waits_for_snapshot(&resolved.version) => {
                return Err(refusal(&InvokeError::SnapshotNotReady, &resolved.version.function));
            }
            State::Pending => {}
        }
        let waited = tokio::time::timeout_at(deadline, completions.changed()).await;
        if !matches!(waited, Ok(Ok(()))) {
            return Err(ApiError::resource_conflict(not_now("Pending", "")));
        }
        resolved = app.control_plane.resolve(&call.name, call.qualifier.as_deref(), chance)?;
    }
}

fn not_now(state: &str, reason: &str) -> String {
    let text = "The operation cannot be performed at this time. The function is currently in the following state";
    if reason.is_empty() { format!("{text}: {state}") } else { format!("{text}: {state}. {reason}") }
}

/// An invocation that got no answer, as the caller reads it.
fn refusal(error: &InvokeError, function: &str) -> ApiError {
    match error {
        InvokeError::Throttled { reason, retry_after } => {
            let reason = match reason {
                ThrottleReason::AccountConcurrency
                | ThrottleReason::ScalingRate
                | ThrottleReason::MostEnvironments
                | ThrottleReason::HostCapacity => "ConcurrentInvocationLimitExceeded",
                ThrottleReason::FunctionConcurrency => "ReservedFunctionConcurrentInvocationLimitExceeded",
                ThrottleReason::AccountRate => "FunctionInvocationRateLimitExceeded",
                ThrottleReason::FunctionRate => "ReservedFunctionInvocationRateLimitExceeded",
            };
            let seconds = u32::try_from(retry_after.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
            ApiError::too_many_requests("Rate Exceeded.").with("Reason", reason).with_retry_after(seconds.max(1))
        }
        InvokeError::RuntimeUnavailable(text) => ApiError::invalid_runtime(text),
        InvokeError::SnapshotNotReady => ApiError::snap_start_not_ready(
            "Lambda is initializing your function. It will be ready to invoke once your function state becomes ACTIVE.",
        ),
        InvokeError::SnapshotLost(text) => ApiError::snap_start_regeneration_failure(text),
        InvokeError::Restore(failure @ RestoreFailure::Hook(_)) => ApiError::snap_start(failure.to_string()),
        InvokeError::Restore(failure @ RestoreFailure::Timeout(_)) => ApiError::snap_start_timeout(failure.to_string()),
        InvokeError::Platform(text) => {
            tracing::error!(function, error = text, "an invocation failed");
            ApiError::service(format!("The execution environment failed: {text}"))
        }
        InvokeError::ShuttingDown => ApiError::new(
            503,
            "ServiceUnavailableException",
            "The server is shutting down.",
            aws_model::MessageKey::Upper,
            Some(aws_model::ErrorType::Service),
        ),
    }
}

/// A trace of its own for a caller who has none: not sampled.
fn new_trace_id(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as u32;
    let mut buffers = [[0; uuid::fmt::Simple::LENGTH]; 2];
    let [root, parent] = &mut buffers;
    let root = uuid::Uuid::new_v4().simple().encode_lower(root);
    let parent = uuid::Uuid::new_v4().simple().encode_lower(parent);
    format!("Root=1-{seconds:08x}-{};Parent={};Sampled=0", &root[..24], &parent[..16])
}

#[cfg(test)]
mod tests;
