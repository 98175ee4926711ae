//! Scaling policies: target tracking of a target's own utilization, which has two names.

use control_plane::autoscaling::record::{Metric, Policy, Resource, Statistic, Target};
use control_plane::autoscaling::tracking::Alarm;
use control_plane::autoscaling::{ScalingError, Tracking};

use super::checks::{self, Checks};
use super::{DIMENSION, NAMESPACE, Service, now, page, seconds, wire};

/// The metric as Application Auto Scaling names it.
const PREDEFINED: &str = "LambdaProvisionedConcurrencyUtilization";

/// The metric as CloudWatch names it.
const CUSTOMIZED: (&str, &str) = ("AWS/Lambda", "ProvisionedConcurrencyUtilization");

const KIND: &str = "TargetTrackingScaling";

impl Service<'_> {
    pub(super) async fn put_policy(&self, input: wire::PutPolicy) -> Result<wire::PolicyPut, ScalingError> {
        let mut checks = Checks::default();
        checks.place(&input.place);
        checks.policy_name(input.policy_name.as_deref());
        if let Some(kind) = input.policy_type.as_deref() {
            checks.word(Some(kind), "policyType", &["StepScaling", KIND, "PredictiveScaling"]);
        }
        let given = input.target_tracking_scaling_policy_configuration;
        let cooldowns = given.as_ref().map(|given| {
            checks.needed(given.target_value.is_some(), "targetTrackingScalingPolicyConfiguration.targetValue");
            let out =
                checks.count(given.scale_out_cooldown, "targetTrackingScalingPolicyConfiguration.scaleOutCooldown");
            (out, checks.count(given.scale_in_cooldown, "targetTrackingScalingPolicyConfiguration.scaleInCooldown"))
        });
        checks.end()?;
        let resource = checks::resource(&input.place)?;
        if input.policy_type.as_deref().is_some_and(|kind| kind != KIND) {
            return invalid(format!("Only {KIND} policies are supported for service namespace {NAMESPACE}"));
        }
        let (Some(given), Some((out_cooldown, in_cooldown))) = (given, cooldowns) else {
            return invalid(format!("TargetTrackingScalingPolicyConfiguration is required for a {KIND} policy"));
        };
        let tracking = Tracking {
            target_value: given.target_value.unwrap_or_default(),
            metric: metric(&given, &resource)?,
            out_cooldown,
            in_cooldown,
            disable_in: given.disable_scale_in,
        };
        let name = input.policy_name.unwrap_or_default();
        let target = self.app.control_plane.put_scaling_policy(&resource, &name, tracking, now()).await?;
        let alarms = target.policies.get(&name).map(|policy| self.alarms(&resource, policy));
        Ok(wire::PolicyPut { arn: self.policy_arn(&target, &name), alarms: alarms.unwrap_or_default() })
    }

    pub(super) async fn delete_policy(&self, input: wire::Delete) -> Result<wire::Nothing, ScalingError> {
        let mut checks = Checks::default();
        checks.place(&input.place);
        checks.id(input.policy_name.as_deref(), "policyName");
        checks.end()?;
        let name = input.policy_name.unwrap_or_default();
        self.app.control_plane.delete_scaling_policy(&checks::resource(&input.place)?, &name).await?;
        Ok(wire::Nothing {})
    }

    pub(super) async fn describe_policies(&self, input: wire::Describe) -> Result<wire::Policies, ScalingError> {
        let page = page(&input)?;
        let Some(resource) = checks::listed(&input.place)? else {
            return Ok(wire::Policies { scaling_policies: Vec::new(), next_token: None });
        };
        let plane = &self.app.control_plane;
        let (found, next_token) = plane.scaling_policies(resource.as_ref(), &input.policy_names, &page)?;
        let policies = found.into_iter().filter_map(|(target, name)| {
            let policy = target.policies.get(&name)?;
            Some(wire::Policy {
                arn: self.policy_arn(&target, &name),
                policy_name: name,
                service_namespace: NAMESPACE,
                resource_id: target.resource.to_string(),
                scalable_dimension: DIMENSION,
                policy_type: KIND,
                target_tracking_scaling_policy_configuration: show(policy),
                alarms: self.alarms(&target.resource, policy),
                creation_time: seconds(policy.created),
            })
        });
        Ok(wire::Policies { scaling_policies: policies.collect(), next_token })
    }

    fn policy_arn(&self, target: &Target, name: &str) -> String {
        format!("{}:policyName/{name}", self.part_arn("scalingPolicy", target))
    }

    fn alarms(&self, resource: &Resource, policy: &Policy) -> Vec<wire::Alarm> {
        let realm = self.app.control_plane.realm();
        let names = [Alarm::High, Alarm::Low].into_iter().filter_map(|alarm| policy.alarm(resource, alarm));
        let alarm = |alarm_name: String| wire::Alarm {
            arn: format!("arn:aws:cloudwatch:{}:{}:alarm:{alarm_name}", realm.region, realm.account),
            alarm_name,
        };
        names.map(alarm).collect()
    }
}

fn invalid<T>(message: impl Into<String>) -> Result<T, ScalingError> {
    Err(ScalingError::Validation(message.into()))
}

/// The metric of a configuration: whichever way it is named, it has to be the target's own utilization.
fn metric(given: &wire::Tracking, resource: &Resource) -> Result<Metric, ScalingError> {
    match (&given.predefined_metric_specification, &given.customized_metric_specification) {
        (Some(predefined), None) if predefined.predefined_metric_type.as_deref() == Some(PREDEFINED) => {
            match predefined.resource_label {
                Some(_) => invalid(format!("ResourceLabel is not supported for the metric {PREDEFINED}")),
                None => Ok(Metric::Predefined),
            }
        }
        (Some(_), None) => invalid(format!(
            "Only the predefined metric {PREDEFINED} is supported for the scalable dimension {DIMENSION}"
        )),
        (None, Some(customized)) => self::customized(customized, resource),
        _ => {
            invalid("Exactly one of PredefinedMetricSpecification and CustomizedMetricSpecification must be specified")
        }
    }
}

fn customized(given: &wire::Customized, resource: &Resource) -> Result<Metric, ScalingError> {
    let statistic = match given.statistic.as_deref() {
        Some("Average") => Some(Statistic::Average),
        Some("Minimum") => Some(Statistic::Minimum),
        Some("Maximum") => Some(Statistic::Maximum),
        _ => None,
    };
    let named = (given.namespace.as_deref(), given.metric_name.as_deref()) == (Some(CUSTOMIZED.0), Some(CUSTOMIZED.1));
    let own = given.dimensions.iter().all(|dimension| match dimension.name.as_str() {
        "FunctionName" => dimension.value == resource.function,
        "Resource" => dimension.value == format!("{}:{}", resource.function, resource.qualifier),
        _ => false,
    });
    match statistic {
        Some(statistic) if named && own && given.metrics.is_none() => {
            let dimensions = given.dimensions.iter().map(|dimension| (dimension.name.clone(), dimension.value.clone()));
            Ok(Metric::Customized { statistic, dimensions: dimensions.collect(), unit: given.unit.clone() })
        }
        _ => invalid(format!(
            "Firelet tracks one customized metric: {} of the namespace {}, of the scalable target itself, as Average, \
             Minimum or Maximum",
            CUSTOMIZED.1, CUSTOMIZED.0
        )),
    }
}

/// A policy as it was given.
fn show(policy: &Policy) -> wire::Tracking {
    let (predefined, customized) = match &policy.metric {
        Metric::Predefined => {
            let metric = Some(PREDEFINED.to_owned());
            (Some(wire::Predefined { predefined_metric_type: metric, resource_label: None }), None)
        }
        Metric::Customized { statistic, dimensions, unit } => {
            let dimensions = dimensions.iter().cloned().map(|(name, value)| wire::Dimension { name, value });
            let statistic = match statistic {
                Statistic::Average => "Average",
                Statistic::Minimum => "Minimum",
                Statistic::Maximum => "Maximum",
            };
            let shown = wire::Customized {
                metric_name: Some(CUSTOMIZED.1.to_owned()),
                namespace: Some(CUSTOMIZED.0.to_owned()),
                dimensions: dimensions.collect(),
                statistic: Some(statistic.to_owned()),
                unit: unit.clone(),
                metrics: None,
            };
            (None, Some(shown))
        }
    };
    wire::Tracking {
        target_value: Some(policy.target_value),
        predefined_metric_specification: predefined,
        customized_metric_specification: customized,
        scale_out_cooldown: policy.out_cooldown.map(i64::from),
        scale_in_cooldown: policy.in_cooldown.map(i64::from),
        disable_scale_in: policy.disable_in,
    }
}
