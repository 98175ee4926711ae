//! The three operations of CloudWatch Logs that writing takes, JSON 1.1.

use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::queue::Batch;
use crate::client::{Answer, Call, Client, Identity, SendError};
use crate::retry;
use crate::service::Service;

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const JSON_1_1: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Events were not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    #[error("the log group or stream is not there")]
    NoStream,
    #[error("the service answered {status} {kind}: {message}")]
    Refused { status: u16, kind: String, message: String, transient: bool },
    #[error("{}", .0.chain())]
    Send(SendError),
}

impl PutError {
    /// Whether the same events may be taken later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoStream => false,
            Self::Refused { transient, .. } => *transient,
            Self::Send(error) => error.is_transient(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PutLogEvents<'a> {
    log_group_name: &'a str,
    log_stream_name: &'a str,
    log_events: Vec<InputEvent<'a>>,
}

#[derive(Serialize)]
struct InputEvent<'a> {
    timestamp: i64,
    message: &'a str,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Put {
    rejected_log_events_info: Option<Rejected>,
}

/// Indices into the batch.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rejected {
    too_new_log_event_start_index: Option<usize>,
    too_old_log_event_end_index: Option<usize>,
    expired_log_event_end_index: Option<usize>,
}

impl Rejected {
    /// How many of `all` events were not taken.
    fn count(&self, all: usize) -> usize {
        let before = self.too_old_log_event_end_index.max(self.expired_log_event_end_index).unwrap_or(0).min(all);
        let from = self.too_new_log_event_start_index.unwrap_or(all).clamp(before, all);
        before + (all - from)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Names<'a> {
    log_group_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_stream_name: Option<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    #[serde(rename = "__type")]
    kind: String,
    #[serde(alias = "Message")]
    message: String,
}

/// PutLogEvents; answers how many of the events were not taken.
pub(super) async fn put(client: &Client, batch: &Batch) -> Result<usize, PutError> {
    let log_events =
        batch.events.iter().map(|event| InputEvent { timestamp: event.timestamp_ms, message: &event.message });
    let input =
        PutLogEvents { log_group_name: &batch.group, log_stream_name: &batch.stream, log_events: log_events.collect() };
    let answer = call(client, "PutLogEvents", &input).await?;
    let put: Put = serde_json::from_slice(&answer.body).unwrap_or_default();
    Ok(put.rejected_log_events_info.map_or(0, |rejected| rejected.count(batch.events.len())))
}

/// Makes group and stream, where they are missing.
pub(super) async fn create(client: &Client, batch: &Batch) -> Result<(), PutError> {
    let exists =
        |error: &PutError| matches!(error, PutError::Refused { kind, .. } if kind == "ResourceAlreadyExistsException");
    let group = Names { log_group_name: &batch.group, log_stream_name: None };
    let stream = Names { log_stream_name: Some(&batch.stream), ..group };
    for (operation, names) in [("CreateLogGroup", group), ("CreateLogStream", stream)] {
        match call(client, operation, &names).await {
            Ok(_) => {}
            Err(error) if exists(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn call(client: &Client, operation: &str, input: &impl Serialize) -> Result<Answer, PutError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, JSON_1_1);
    // Names of operations are plain.
    if let Ok(target) = HeaderValue::try_from(format!("Logs_20140328.{operation}")) {
        headers.insert(TARGET, target);
    }
    let call = Call {
        service: Service::Logs,
        method: Method::POST,
        path: "/".to_owned(),
        headers,
        // Writing strings and numbers to memory cannot fail.
        body: Bytes::from(serde_json::to_vec(input).unwrap_or_default()),
        identity: Identity::Own,
        limit: LONGEST_ANSWER,
        attempts: 3,
    };
    let answer = client.send(&call).await.map_err(PutError::Send)?;
    if answer.status.is_success() {
        return Ok(answer);
    }
    let problem: Problem = serde_json::from_slice(&answer.body).unwrap_or_default();
    // `com.amazonaws.logs#ResourceNotFoundException`
    let kind = problem.kind.rsplit('#').next().unwrap_or_default().to_owned();
    if kind == "ResourceNotFoundException" {
        return Err(PutError::NoStream);
    }
    let transient =
        retry::is_transient(answer.status) || kind.starts_with("Throttling") || kind == "ServiceUnavailableException";
    Err(PutError::Refused { status: answer.status.as_u16(), kind, message: problem.message, transient })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_events_are_counted_from_both_ends() {
        let rejected = |old: Option<usize>, expired: Option<usize>, new: Option<usize>| Rejected {
            too_old_log_event_end_index: old,
            expired_log_event_end_index: expired,
            too_new_log_event_start_index: new,
        };
        assert_eq!(rejected(None, None, None).count(10), 0);
        assert_eq!(rejected(Some(2), None, Some(7)).count(10), 5);
        assert_eq!(rejected(Some(2), Some(4), None).count(10), 4);
        assert_eq!(rejected(Some(99), None, Some(0)).count(10), 10);
    }
}
