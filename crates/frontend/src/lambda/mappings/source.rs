//! Whether the source of a new mapping exists, asked of the service that keeps it. Where the operator has named no endpoint
//! for that service nobody can be asked, and the mapping is made.

use aws_client::{Answer, Call, Client, Identity, Service};
use aws_model::ApiError;
use bytes::Bytes;
use control_plane::mappings::{Mapping, SourceKind};
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::app::App;

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// The error code of the older protocol, which people know: `AWS.SimpleQueueService.NonExistentQueue;Sender`.
const QUERY_ERROR: HeaderName = HeaderName::from_static("x-amzn-query-error");

/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 1024 * 1024;

/// Refuses a mapping whose source is known not to be there, or not to fit the function.
pub(super) async fn check(app: &App, mapping: &Mapping) -> Result<(), ApiError> {
    let (Some(client), Some(arn)) = (app.upstream.as_ref(), mapping.source.arn.as_deref()) else { return Ok(()) };
    let service = match mapping.source.kind {
        SourceKind::Sqs | SourceKind::SqsFifo => Service::Sqs,
        SourceKind::Kinesis => Service::Kinesis,
        SourceKind::DynamoDb => Service::DynamoDbStreams,
        // Nothing here calls these.
        SourceKind::Msk | SourceKind::Kafka | SourceKind::Mq | SourceKind::DocumentDb => return Ok(()),
    };
    if client.endpoints().get(service).is_none() {
        return Ok(());
    }
    match service {
        Service::Sqs => queue(app, client, mapping, arn).await,
        Service::Kinesis => {
            // A consumer's ARN begins with its stream's.
            let stream = arn.split("/consumer/").next().unwrap_or(arn);
            let asked = ask(client, service, "Kinesis_20131202.DescribeStreamSummary", json!({ "StreamARN": stream }));
            stream_found(asked.await?, service, arn)
        }
        _ => {
            let question = json!({ "StreamArn": arn, "Limit": 1 });
            stream_found(ask(client, service, "DynamoDBStreams_20120810.DescribeStream", question).await?, service, arn)
        }
    }
}

async fn queue(app: &App, client: &Client, mapping: &Mapping, arn: &str) -> Result<(), ApiError> {
    let mut parts = arn.rsplitn(3, ':');
    let (name, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let question = json!({ "QueueName": name, "QueueOwnerAWSAccountId": account });
    let found = answered(ask(client, Service::Sqs, "AmazonSQS.GetQueueUrl", question).await?).map_err(not_received)?;
    let question = json!({ "QueueUrl": found["QueueUrl"], "AttributeNames": ["VisibilityTimeout"] });
    let asked = ask(client, Service::Sqs, "AmazonSQS.GetQueueAttributes", question).await?;
    let attributes = answered(asked).map_err(not_received)?;
    let visibility = attributes["Attributes"]["VisibilityTimeout"].as_str().and_then(|text| text.parse::<u32>().ok());
    let target = &mapping.target;
    let timeout = app.control_plane.resolve(&target.function, target.qualifier.as_deref(), 0.0)?.version;
    match visibility {
        Some(visibility) if visibility < timeout.settings.timeout_secs => {
            Err(ApiError::invalid_parameter_value(format!(
                "Queue visibility timeout: {visibility} seconds is less than Function timeout: {} seconds",
                timeout.settings.timeout_secs
            )))
        }
        _ => Ok(()),
    }
}

fn not_received(failed: Failed) -> ApiError {
    let Failed { code, message } = failed;
    ApiError::invalid_parameter_value(format!(
        "Error occurred while ReceiveMessage. SQS Error Code: {code}. SQS Error Message: {message}"
    ))
}

fn stream_found(answer: Answer, service: Service, arn: &str) -> Result<(), ApiError> {
    match answered(answer) {
        Ok(_) => Ok(()),
        Err(failed) if failed.code.ends_with("ResourceNotFoundException") => {
            Err(ApiError::invalid_parameter_value(format!("Stream not found: {arn}")))
        }
        Err(Failed { code, message }) => {
            Err(ApiError::invalid_parameter_value(format!("{service} refused to describe {arn}: {code}: {message}")))
        }
    }
}

/// What a service says when it does not answer the question.
struct Failed {
    code: String,
    message: String,
}

fn answered(answer: Answer) -> Result<Value, Failed> {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if answer.status.is_success() {
        return Ok(body);
    }
    let older = answer.headers.get(QUERY_ERROR).and_then(|value| value.to_str().ok()?.split(';').next());
    let newer = body["__type"].as_str().and_then(|name| name.rsplit('#').next());
    let message = body["message"].as_str().or(body["Message"].as_str()).unwrap_or_default();
    let code = older.or(newer).map_or_else(|| answer.status.to_string(), str::to_owned);
    Err(Failed { code, message: message.to_owned() })
}

/// Asks a service that speaks AWS's JSON protocol.
async fn ask(client: &Client, service: Service, target: &'static str, question: Value) -> Result<Answer, ApiError> {
    let version = if service == Service::Kinesis { "application/x-amz-json-1.1" } else { "application/x-amz-json-1.0" };
    let headers = [(CONTENT_TYPE, version), (TARGET, target)];
    let call = Call {
        service,
        method: Method::POST,
        path: "/".to_owned(),
        headers: HeaderMap::from_iter(headers.map(|(name, value)| (name, HeaderValue::from_static(value)))),
        body: Bytes::from(question.to_string()),
        identity: Identity::Own,
        limit: LONGEST_ANSWER,
        attempts: 2,
    };
    client.send(&call).await.map_err(|error| {
        tracing::warn!(error = error.chain(), %service, "the source of a mapping could not be asked for");
        ApiError::service(format!("{service} could not be asked for the event source: {}.", error.chain()))
    })
}
