//! Inputs and outputs of the Application Auto Scaling operations, as their JSON has them. Times are seconds of the epoch.
//! Every member of an input may be absent here: what is required is asked for by [`super::checks`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Error<'a> {
    #[serde(rename = "__type")]
    pub(super) kind: &'static str,
    pub(super) message: &'a str,
}

/// An answer without members.
#[derive(Serialize)]
pub(super) struct Nothing {}

/// What names a target, in nearly every input.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Place {
    pub(super) service_namespace: Option<String>,
    pub(super) resource_id: Option<String>,
    pub(super) scalable_dimension: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Register {
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) min_capacity: Option<i64>,
    pub(super) max_capacity: Option<i64>,
    #[serde(rename = "RoleARN")]
    pub(super) role_arn: Option<String>,
    pub(super) suspended_state: Option<SuspendedState>,
    pub(super) tags: Option<BTreeMap<String, String>>,
}

#[derive(Default, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct SuspendedState {
    pub(super) dynamic_scaling_in_suspended: bool,
    pub(super) dynamic_scaling_out_suspended: bool,
    pub(super) scheduled_scaling_suspended: bool,
}

#[derive(Serialize)]
pub(super) struct Registered {
    #[serde(rename = "ScalableTargetARN")]
    pub(super) arn: String,
}

/// The members of every Describe input together.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Describe {
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) resource_ids: Vec<String>,
    pub(super) policy_names: Vec<String>,
    pub(super) scheduled_action_names: Vec<String>,
    pub(super) include_not_scaled_activities: Option<bool>,
    pub(super) max_results: Option<i32>,
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Targets {
    pub(super) scalable_targets: Vec<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Target {
    pub(super) service_namespace: &'static str,
    pub(super) resource_id: String,
    pub(super) scalable_dimension: &'static str,
    pub(super) min_capacity: u32,
    pub(super) max_capacity: u32,
    #[serde(rename = "RoleARN")]
    pub(super) role_arn: String,
    pub(super) creation_time: f64,
    pub(super) suspended_state: SuspendedState,
    #[serde(rename = "ScalableTargetARN")]
    pub(super) arn: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PutAction {
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) scheduled_action_name: Option<String>,
    pub(super) schedule: Option<String>,
    pub(super) timezone: Option<String>,
    pub(super) start_time: Option<f64>,
    pub(super) end_time: Option<f64>,
    pub(super) scalable_target_action: Option<Capacities>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Capacities {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_capacity: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_capacity: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Delete {
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) scheduled_action_name: Option<String>,
    pub(super) policy_name: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Actions {
    pub(super) scheduled_actions: Vec<Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Action {
    pub(super) scheduled_action_name: String,
    #[serde(rename = "ScheduledActionARN")]
    pub(super) arn: String,
    pub(super) service_namespace: &'static str,
    pub(super) schedule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timezone: Option<String>,
    pub(super) resource_id: String,
    pub(super) scalable_dimension: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_time: Option<f64>,
    pub(super) scalable_target_action: Capacities,
    pub(super) creation_time: f64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PutPolicy {
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) policy_name: Option<String>,
    pub(super) policy_type: Option<String>,
    pub(super) target_tracking_scaling_policy_configuration: Option<Tracking>,
}

/// A target tracking configuration, in and out.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Tracking {
    pub(super) target_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predefined_metric_specification: Option<Predefined>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) customized_metric_specification: Option<Customized>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scale_out_cooldown: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scale_in_cooldown: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disable_scale_in: Option<bool>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Predefined {
    pub(super) predefined_metric_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource_label: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Customized {
    pub(super) metric_name: Option<String>,
    pub(super) namespace: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) dimensions: Vec<Dimension>,
    pub(super) statistic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<String>,
    /// Metric math, which nothing here does.
    #[serde(skip_serializing)]
    pub(super) metrics: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Dimension {
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PolicyPut {
    #[serde(rename = "PolicyARN")]
    pub(super) arn: String,
    pub(super) alarms: Vec<Alarm>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Alarm {
    pub(super) alarm_name: String,
    #[serde(rename = "AlarmARN")]
    pub(super) arn: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Policies {
    pub(super) scaling_policies: Vec<Policy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Policy {
    #[serde(rename = "PolicyARN")]
    pub(super) arn: String,
    pub(super) policy_name: String,
    pub(super) service_namespace: &'static str,
    pub(super) resource_id: String,
    pub(super) scalable_dimension: &'static str,
    pub(super) policy_type: &'static str,
    pub(super) target_tracking_scaling_policy_configuration: Tracking,
    pub(super) alarms: Vec<Alarm>,
    pub(super) creation_time: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Activities {
    pub(super) scaling_activities: Vec<Activity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Activity {
    pub(super) activity_id: String,
    pub(super) service_namespace: &'static str,
    pub(super) resource_id: String,
    pub(super) scalable_dimension: &'static str,
    pub(super) description: String,
    pub(super) cause: String,
    pub(super) start_time: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_time: Option<f64>,
    pub(super) status_code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_message: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_scaled_reasons: Vec<NotScaledReason>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NotScaledReason {
    pub(super) code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_capacity: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_capacity: Option<u32>,
    pub(super) current_capacity: u32,
}

/// TagResource, UntagResource and ListTagsForResource.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Tag {
    #[serde(rename = "ResourceARN")]
    pub(super) arn: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) tag_keys: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tags {
    pub(super) tags: BTreeMap<String, String>,
}
