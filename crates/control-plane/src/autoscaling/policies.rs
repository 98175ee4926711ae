//! Scaling policies: target tracking, which is the only kind that Lambda has.

use std::sync::Arc;

use uuid::Uuid;

use super::record::{Metric, Policy, Resource, Target};
use super::tracking::Alarm;
use super::{Listed, Page, ScalingError, place};
use crate::plane::ControlPlane;
use crate::record::Timestamp;

/// Policies of one target, at most.
const MOST: usize = 50;

/// What PutScalingPolicy takes.
#[derive(Debug, Clone)]
pub struct Tracking {
    /// A utilization above 0; Lambda's own advice is 0.1 to 0.9.
    pub target_value: f64,
    pub metric: Metric,
    /// Seconds.
    pub out_cooldown: Option<u32>,
    pub in_cooldown: Option<u32>,
    pub disable_in: Option<bool>,
}

impl Policy {
    /// The name of one of its alarms; there is no low one where scale-in is disabled.
    pub fn alarm(&self, resource: &Resource, alarm: Alarm) -> Option<String> {
        match alarm {
            Alarm::High => Some(format!("TargetTracking-{resource}-AlarmHigh-{}", self.high_alarm)),
            Alarm::Low if self.disable_in == Some(true) => None,
            Alarm::Low => Some(format!("TargetTracking-{resource}-AlarmLow-{}", self.low_alarm)),
        }
    }
}

impl ControlPlane {
    /// PutScalingPolicy: makes a policy, or puts another configuration into one. Answers the target that has it.
    ///
    /// # Errors
    /// ObjectNotFoundException for the target; ValidationException; LimitExceededException.
    pub async fn put_scaling_policy(
        &self,
        resource: &Resource,
        name: &str,
        tracking: Tracking,
        now: Timestamp,
    ) -> Result<Arc<Target>, ScalingError> {
        let Tracking { target_value, metric, out_cooldown, in_cooldown, disable_in } = tracking;
        self.change_target(resource, |target| {
            let old = target.policies.get(name);
            if old.is_none() && target.policies.len() >= MOST {
                return Err(ScalingError::LimitExceeded(format!(
                    "The scalable target has {MOST} scaling policies, and cannot have more."
                )));
            }
            if !(target_value.is_finite() && target_value > 0.0) {
                return Err(ScalingError::Validation("The target value must be greater than 0".to_owned()));
            }
            let id = || Uuid::new_v4().to_string();
            let policy = Policy {
                created: old.map_or(now, |old| old.created),
                target_value,
                metric,
                out_cooldown,
                in_cooldown,
                disable_in,
                high_alarm: old.map_or_else(id, |old| old.high_alarm.clone()),
                low_alarm: old.map_or_else(id, |old| old.low_alarm.clone()),
            };
            target.policies.insert(name.to_owned(), policy);
            Ok(())
        })
        .await
        .inspect(|_| self.inner.autoscaling.changed.notify_one())
    }

    /// DeleteScalingPolicy.
    ///
    /// # Errors
    /// ObjectNotFoundException.
    pub async fn delete_scaling_policy(&self, resource: &Resource, name: &str) -> Result<(), ScalingError> {
        let absent = || {
            let place = place(resource);
            ScalingError::NotFound(format!("No scaling policy found for {place}, policy name: {name}"))
        };
        self.remove_named(resource, name, absent, |target| &mut target.policies).await
    }

    /// DescribeScalingPolicies: targets with the names of their policies.
    ///
    /// # Errors
    /// InvalidNextTokenException.
    pub fn scaling_policies(
        &self,
        resource: Option<&Resource>,
        names: &[String],
        request: &Page,
    ) -> Listed<(Arc<Target>, String)> {
        self.named(resource, names, request, |target| &target.policies)
    }
}
