//! CloudWatch Logs, JSON 1.1: enough of it that functions' logs can be read, followed and written with AWS's tools.

mod shapes;

use std::future::Future;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use telemetry::logs::{Events, Filter, GroupName, Groups, PutOutcome, StreamOrder, Streams};
use telemetry::{LogError, LogEvent};

use crate::app::App;
use crate::reply::{self, Reply};
use shapes as wire;

/// What precedes the operation in `X-Amz-Target`.
const TARGET_PREFIX: &str = "Logs_20140328.";

const JSON_1_1: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");

/// An error as clients read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogsError {
    status: u16,
    name: &'static str,
    message: String,
}

impl LogsError {
    pub(crate) fn new(status: u16, name: &'static str, message: impl Into<String>) -> Self {
        Self { status, name, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "InvalidParameterException", message)
    }

    /// The error as an answer.
    pub(crate) fn reply(&self) -> Reply {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = reply::json(status, &wire::Error { kind: self.name, message: &self.message });
        reply.headers_mut().insert(CONTENT_TYPE, JSON_1_1);
        reply
    }
}

impl From<LogError> for LogsError {
    fn from(error: LogError) -> Self {
        let (status, name) = match &error {
            LogError::GroupNotFound | LogError::StreamNotFound => (400, "ResourceNotFoundException"),
            LogError::GroupExists | LogError::StreamExists => (400, "ResourceAlreadyExistsException"),
            LogError::InvalidParameter(_) => (400, "InvalidParameterException"),
            LogError::Pattern(source) => return Self::invalid(format!("{error}: {source}")),
            LogError::Overloaded => (400, "ThrottlingException"),
            LogError::Storage(source) => {
                tracing::error!(error = %source, "the log store failed");
                (500, "ServiceUnavailableException")
            }
            LogError::Closed => (500, "ServiceUnavailableException"),
        };
        Self::new(status, name, error.to_string())
    }
}

pub(crate) async fn dispatch(app: &App, target: &str, body: &[u8]) -> Reply {
    let operation = target.strip_prefix(TARGET_PREFIX).unwrap_or_default();
    let logs = Logs { app };
    let result = match operation {
        "CreateLogGroup" => run(body, |input| logs.create_group(input)).await,
        "DeleteLogGroup" => run(body, |input| logs.delete_group(input)).await,
        "CreateLogStream" => run(body, |input| logs.create_stream(input)).await,
        "DeleteLogStream" => run(body, |input| logs.delete_stream(input)).await,
        "DescribeLogGroups" => run(body, |input| logs.describe_groups(input)).await,
        "DescribeLogStreams" => run(body, |input| logs.describe_streams(input)).await,
        "GetLogEvents" => run(body, |input| logs.get_events(input)).await,
        "FilterLogEvents" => run(body, |input| logs.filter_events(input)).await,
        "PutLogEvents" => run(body, |input| logs.put_events(input)).await,
        "PutRetentionPolicy" => run(body, |input| logs.put_retention(input)).await,
        "DeleteRetentionPolicy" => run(body, |input| logs.delete_retention(input)).await,
        "ListTagsForResource" | "ListTagsLogGroup" => run(body, |input| logs.list_tags(input)).await,
        "StartLiveTail" => Err(LogsError::new(
            400,
            "UnknownOperationException",
            "Firelet does not implement StartLiveTail yet; use FilterLogEvents, `aws logs tail --follow` or `firelet logs --follow`.",
        )),
        _ => Err(LogsError::new(400, "UnknownOperationException", format!("Firelet does not implement {target}."))),
    };
    result.unwrap_or_else(|error| error.reply())
}

/// Reads the input, runs the operation, writes the output; no output is an answer without a body.
async fn run<I, O, F>(body: &[u8], operation: impl FnOnce(I) -> F) -> Result<Reply, LogsError>
where
    I: DeserializeOwned,
    O: Serialize,
    F: Future<Output = Result<Option<O>, LogsError>>,
{
    let body = if body.is_empty() { b"{}" } else { body };
    let input = serde_json::from_slice(body)
        .map_err(|error| LogsError::new(400, "SerializationException", error.to_string()))?;
    let mut reply = match operation(input).await? {
        Some(output) => reply::json(StatusCode::OK, &output),
        None => reply::empty(StatusCode::OK),
    };
    reply.headers_mut().insert(CONTENT_TYPE, JSON_1_1);
    Ok(reply)
}

/// The operation returns nothing.
type Nothing = Option<()>;

struct Logs<'a> {
    app: &'a App,
}

impl Logs<'_> {
    async fn create_group(&self, input: wire::Group) -> Result<Nothing, LogsError> {
        self.app.logs.create_group(&input.log_group_name).await?;
        Ok(None)
    }

    async fn delete_group(&self, input: wire::Group) -> Result<Nothing, LogsError> {
        self.app.logs.delete_group(&input.log_group_name).await?;
        Ok(None)
    }

    async fn create_stream(&self, input: wire::Stream) -> Result<Nothing, LogsError> {
        self.app.logs.create_stream(&input.log_group_name, &input.log_stream_name).await?;
        Ok(None)
    }

    async fn delete_stream(&self, input: wire::Stream) -> Result<Nothing, LogsError> {
        self.app.logs.delete_stream(&input.log_group_name, &input.log_stream_name).await?;
        Ok(None)
    }

    async fn put_retention(&self, input: wire::Retention) -> Result<Nothing, LogsError> {
        self.app.logs.set_retention(&input.log_group_name, Some(input.retention_in_days)).await?;
        Ok(None)
    }

    async fn delete_retention(&self, input: wire::Group) -> Result<Nothing, LogsError> {
        self.app.logs.set_retention(&input.log_group_name, None).await?;
        Ok(None)
    }

    /// Tags of log groups are not kept; tools that look for them find none.
    async fn list_tags(&self, _: wire::Anything) -> Result<Option<wire::NoTags>, LogsError> {
        Ok(Some(wire::NoTags::default()))
    }

    async fn describe_groups(&self, input: wire::DescribeGroups) -> Result<Option<wire::GroupPage>, LogsError> {
        let name = match (input.log_group_name_prefix, input.log_group_name_pattern) {
            (Some(_), Some(_)) => {
                return Err(LogsError::invalid(
                    "LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.",
                ));
            }
            (Some(prefix), None) => GroupName::Prefix(prefix),
            (None, Some(pattern)) => GroupName::Contains(pattern),
            (None, None) => GroupName::Any,
        };
        let request = Groups { name, limit: input.limit, token: input.next_token };
        let (groups, next_token) = self.app.logs.describe_groups(request).await?;
        let log_groups = groups
            .into_iter()
            .map(|group| {
                let arn = self.group_arn(&group.name);
                wire::GroupDescription {
                    arn: format!("{arn}:*"),
                    log_group_arn: arn,
                    log_group_name: group.name,
                    creation_time: group.created_ms,
                    retention_in_days: group.retention_days,
                    metric_filter_count: 0,
                    stored_bytes: group.stored_bytes,
                    log_group_class: "STANDARD",
                }
            })
            .collect();
        Ok(Some(wire::GroupPage { log_groups, next_token }))
    }

    async fn describe_streams(&self, input: wire::DescribeStreams) -> Result<Option<wire::StreamPage>, LogsError> {
        let group = group_name(input.log_group_name, input.log_group_identifier)?;
        let order = match input.order_by.as_deref() {
            None | Some("LogStreamName") => StreamOrder::LogStreamName,
            Some("LastEventTime") => StreamOrder::LastEventTime,
            Some(other) => {
                return Err(LogsError::invalid(format!(
                    "1 validation error detected: Value '{other}' at 'orderBy' failed to satisfy constraint: Member \
                     must satisfy enum value set: [LogStreamName, LastEventTime]"
                )));
            }
        };
        let request = Streams {
            prefix: input.log_stream_name_prefix,
            order,
            descending: input.descending.unwrap_or(false),
            limit: input.limit,
            token: input.next_token,
        };
        let (streams, next_token) = self.app.logs.describe_streams(&group, request).await?;
        let group_arn = self.group_arn(&group);
        let log_streams = streams
            .into_iter()
            .map(|stream| wire::StreamDescription {
                arn: format!("{group_arn}:log-stream:{}", stream.name),
                log_stream_name: stream.name,
                creation_time: stream.created_ms,
                first_event_timestamp: stream.first_event_ms,
                last_event_timestamp: stream.last_event_ms,
                last_ingestion_time: stream.last_ingestion_ms,
                stored_bytes: stream.stored_bytes,
            })
            .collect();
        Ok(Some(wire::StreamPage { log_streams, next_token }))
    }

    async fn get_events(&self, input: wire::GetEvents) -> Result<Option<wire::EventPage>, LogsError> {
        let group = group_name(input.log_group_name, input.log_group_identifier)?;
        let request = Events {
            start_ms: input.start_time,
            end_ms: input.end_time,
            limit: input.limit,
            start_from_head: input.start_from_head.unwrap_or(false),
            token: input.next_token,
        };
        let page = self.app.logs.get_events(&group, &input.log_stream_name, request).await?;
        let events = page
            .events
            .into_iter()
            .map(|event| wire::OutputEvent {
                timestamp: event.timestamp_ms,
                message: event.message,
                ingestion_time: event.ingestion_ms,
            })
            .collect();
        Ok(Some(wire::EventPage {
            events,
            next_forward_token: page.next_forward,
            next_backward_token: page.next_backward,
        }))
    }

    async fn filter_events(&self, input: wire::FilterEvents) -> Result<Option<wire::FilteredPage>, LogsError> {
        let group = group_name(input.log_group_name, input.log_group_identifier)?;
        let request = Filter {
            streams: input.log_stream_names.unwrap_or_default(),
            stream_prefix: input.log_stream_name_prefix,
            start_ms: input.start_time,
            end_ms: input.end_time,
            pattern: input.filter_pattern.filter(|pattern| !pattern.is_empty()),
            limit: input.limit,
            token: input.next_token,
        };
        let page = self.app.logs.filter_events(&group, request).await?;
        let events = page
            .events
            .into_iter()
            .map(|found| wire::FilteredEvent {
                log_stream_name: found.stream,
                timestamp: found.event.timestamp_ms,
                message: found.event.message,
                ingestion_time: found.event.ingestion_ms,
                event_id: found.event_id,
            })
            .collect();
        Ok(Some(wire::FilteredPage { events, searched_log_streams: [], next_token: page.next_token }))
    }

    async fn put_events(&self, input: wire::PutEvents) -> Result<Option<wire::PutAnswer>, LogsError> {
        let events = input
            .log_events
            .into_iter()
            .map(|event| LogEvent { timestamp_ms: event.timestamp, message: event.message })
            .collect();
        let outcome = self.app.logs.put_events(&input.log_group_name, &input.log_stream_name, events).await?;
        let rejected = (outcome != PutOutcome::default()).then_some(wire::Rejected {
            too_new_log_event_start_index: outcome.too_new_start,
            too_old_log_event_end_index: outcome.too_old_end,
            expired_log_event_end_index: outcome.expired_end,
        });
        // Sequence tokens are accepted and no longer checked by AWS either, yet old clients read one.
        Ok(Some(wire::PutAnswer { next_sequence_token: "0".repeat(56), rejected_log_events_info: rejected }))
    }

    /// The ARN of a group without `:*`.
    fn group_arn(&self, group: &str) -> String {
        let realm = self.app.control_plane.realm();
        format!("arn:aws:logs:{}:{}:log-group:{group}", realm.region, realm.account)
    }
}

/// The group of a request: by name, or by name or ARN.
fn group_name(name: Option<String>, identifier: Option<String>) -> Result<String, LogsError> {
    match (name, identifier) {
        (Some(name), None) => Ok(name),
        (None, Some(identifier)) => match identifier.split_once(":log-group:") {
            Some((_, name)) => Ok(name.strip_suffix(":*").unwrap_or(name).to_owned()),
            None => Ok(identifier),
        },
        (Some(_), Some(_)) => {
            Err(LogsError::invalid("LogGroup name and LogGroup ARN are mutually exclusive parameters."))
        }
        (None, None) => Err(LogsError::invalid("Provide either logGroupName or logGroupIdentifier.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn groups_are_found_by_name_and_by_arn() {
        assert_eq!(group_name(text("/aws/lambda/f"), None).unwrap(), "/aws/lambda/f");
        assert_eq!(group_name(None, text("/aws/lambda/f")).unwrap(), "/aws/lambda/f");
        let arn = "arn:aws:logs:us-east-1:000000000000:log-group:/aws/lambda/f";
        assert_eq!(group_name(None, text(arn)).unwrap(), "/aws/lambda/f");
        assert_eq!(group_name(None, text(&format!("{arn}:*"))).unwrap(), "/aws/lambda/f");
        assert_eq!(group_name(text("a"), text("b")).unwrap_err().name, "InvalidParameterException");
        assert_eq!(group_name(None, None).unwrap_err().name, "InvalidParameterException");
    }

    #[test]
    fn errors_carry_the_names_that_clients_switch_on() {
        let error = LogsError::from(LogError::GroupNotFound);
        assert_eq!((error.status, error.name), (400, "ResourceNotFoundException"));
        assert_eq!(error.message, "The specified log group does not exist.");
        assert_eq!(LogsError::from(LogError::StreamExists).name, "ResourceAlreadyExistsException");
    }
}
