//! Inputs and outputs of the CloudWatch Logs operations, as their JSON has them. Times are Unix milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Serialize)]
pub(super) struct Error<'a> {
    #[serde(rename = "__type")]
    pub(super) kind: &'static str,
    pub(super) message: &'a str,
}

/// Any object; nothing of it matters.
#[derive(Deserialize)]
pub(super) struct Anything {}

/// CreateLogGroup, DeleteLogGroup, DeleteRetentionPolicy.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    pub(super) log_group_name: String,
}

/// CreateLogStream, DeleteLogStream.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stream {
    pub(super) log_group_name: String,
    pub(super) log_stream_name: String,
}

/// PutRetentionPolicy.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Retention {
    pub(super) log_group_name: String,
    pub(super) retention_in_days: u32,
}

#[derive(Serialize, Default)]
pub(super) struct NoTags {
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DescribeGroups {
    pub(super) log_group_name_prefix: Option<String>,
    pub(super) log_group_name_pattern: Option<String>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupPage {
    pub(super) log_groups: Vec<GroupDescription>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupDescription {
    pub(super) log_group_name: String,
    pub(super) creation_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retention_in_days: Option<u32>,
    pub(super) metric_filter_count: u32,
    /// With `:*` at its end, unlike `log_group_arn`.
    pub(super) arn: String,
    pub(super) log_group_arn: String,
    pub(super) stored_bytes: u64,
    pub(super) log_group_class: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DescribeStreams {
    pub(super) log_group_name: Option<String>,
    pub(super) log_group_identifier: Option<String>,
    pub(super) log_stream_name_prefix: Option<String>,
    pub(super) order_by: Option<String>,
    pub(super) descending: Option<bool>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamPage {
    pub(super) log_streams: Vec<StreamDescription>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamDescription {
    pub(super) log_stream_name: String,
    pub(super) creation_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_event_timestamp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_event_timestamp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_ingestion_time: Option<i64>,
    pub(super) arn: String,
    pub(super) stored_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GetEvents {
    pub(super) log_group_name: Option<String>,
    pub(super) log_group_identifier: Option<String>,
    pub(super) log_stream_name: String,
    pub(super) start_time: Option<i64>,
    pub(super) end_time: Option<i64>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<usize>,
    pub(super) start_from_head: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventPage {
    pub(super) events: Vec<OutputEvent>,
    pub(super) next_forward_token: String,
    pub(super) next_backward_token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutputEvent {
    pub(super) timestamp: i64,
    pub(super) message: String,
    pub(super) ingestion_time: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FilterEvents {
    pub(super) log_group_name: Option<String>,
    pub(super) log_group_identifier: Option<String>,
    pub(super) log_stream_names: Option<Vec<String>>,
    pub(super) log_stream_name_prefix: Option<String>,
    pub(super) start_time: Option<i64>,
    pub(super) end_time: Option<i64>,
    pub(super) filter_pattern: Option<String>,
    pub(super) next_token: Option<String>,
    pub(super) limit: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FilteredPage {
    pub(super) events: Vec<FilteredEvent>,
    /// Deprecated by AWS and always empty there.
    pub(super) searched_log_streams: [(); 0],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FilteredEvent {
    pub(super) log_stream_name: String,
    pub(super) timestamp: i64,
    pub(super) message: String,
    pub(super) ingestion_time: i64,
    pub(super) event_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PutEvents {
    pub(super) log_group_name: String,
    pub(super) log_stream_name: String,
    pub(super) log_events: Vec<InputEvent>,
}

#[derive(Deserialize)]
pub(super) struct InputEvent {
    pub(super) timestamp: i64,
    pub(super) message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PutAnswer {
    pub(super) next_sequence_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rejected_log_events_info: Option<Rejected>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rejected {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) too_new_log_event_start_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) too_old_log_event_end_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expired_log_event_end_index: Option<usize>,
}
