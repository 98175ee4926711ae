//! Application Auto Scaling, JSON 1.1: the operations by which provisioned concurrency is scaled with AWS's tools. The
//! rules are [`control_plane::autoscaling`]'s; [`driver`] is their clock.

mod checks;
mod driver;
mod policies;
mod shapes;

use std::future::Future;
use std::time::SystemTime;

use control_plane::autoscaling::record::{Activity, NotScaled, Resource, Status, Suspended, Target};
use control_plane::autoscaling::{ActionChange, Page, Registration, ScalingError};
use control_plane::record::Timestamp;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use driver::drive;

use crate::app::App;
use crate::reply::{self, Reply};
use checks::Checks;
use shapes as wire;

/// What precedes the operation in `X-Amz-Target`.
pub(crate) const TARGET_PREFIX: &str = "AnyScaleFrontendService.";

/// The service as signatures and permissions name it.
pub(crate) const SERVICE: &str = "application-autoscaling";

/// The one namespace and the one dimension that there are.
const NAMESPACE: &str = "lambda";
const DIMENSION: &str = "lambda:function:ProvisionedConcurrency";

/// The role that AWS makes for it, shown where a target has no other.
const ROLE: &str = "role/aws-service-role/lambda.application-autoscaling.amazonaws.com/\
                    AWSServiceRoleForApplicationAutoScaling_LambdaConcurrency";

const JSON_1_1: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");

pub(crate) async fn dispatch(app: &App, target: &str, body: &[u8]) -> Reply {
    let service = Service { app };
    match target.strip_prefix(TARGET_PREFIX).unwrap_or_default() {
        "RegisterScalableTarget" => run(body, |input| service.register(input)).await,
        "DeregisterScalableTarget" => run(body, |input| service.deregister(input)).await,
        "DescribeScalableTargets" => run(body, |input| service.describe_targets(input)).await,
        "PutScheduledAction" => run(body, |input| service.put_action(input)).await,
        "DeleteScheduledAction" => run(body, |input| service.delete_action(input)).await,
        "DescribeScheduledActions" => run(body, |input| service.describe_actions(input)).await,
        "PutScalingPolicy" => run(body, |input| service.put_policy(input)).await,
        "DeleteScalingPolicy" => run(body, |input| service.delete_policy(input)).await,
        "DescribeScalingPolicies" => run(body, |input| service.describe_policies(input)).await,
        "DescribeScalingActivities" => run(body, |input| service.describe_activities(input)).await,
        "TagResource" => run(body, |input| service.tag(input)).await,
        "UntagResource" => run(body, |input| service.untag(input)).await,
        "ListTagsForResource" => run(body, |input| service.list_tags(input)).await,
        operation => error(400, "UnknownOperationException", &format!("Firelet does not implement {operation}.")),
    }
}

/// Reads the input, runs the operation, writes the output.
async fn run<I, O, F>(body: &[u8], operation: impl FnOnce(I) -> F) -> Reply
where
    I: DeserializeOwned,
    O: Serialize,
    F: Future<Output = Result<O, ScalingError>>,
{
    let input = match serde_json::from_slice(if body.is_empty() { b"{}" } else { body }) {
        Ok(input) => input,
        Err(problem) => return error(400, "SerializationException", &problem.to_string()),
    };
    match operation(input).await {
        Ok(output) => in_json_1_1(reply::json(StatusCode::OK, &output)),
        Err(refused) => error(refused.status(), refused.name(), &refused.to_string()),
    }
}

fn error(status: u16, kind: &'static str, message: &str) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    in_json_1_1(reply::json(status, &wire::Error { kind, message }))
}

fn in_json_1_1(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONTENT_TYPE, JSON_1_1);
    reply
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

/// Seconds of the epoch.
fn seconds(moment: Timestamp) -> f64 {
    moment.0 as f64 / 1_000.0
}

/// A moment from seconds of the epoch; one beyond all calendars becomes the last or the first.
fn moment(seconds: f64) -> Timestamp {
    // The cast saturates.
    Timestamp((seconds * 1_000.0) as i64)
}

struct Service<'a> {
    app: &'a App,
}

impl Service<'_> {
    async fn register(&self, input: wire::Register) -> Result<wire::Registered, ScalingError> {
        let mut checks = Checks::default();
        checks.place(&input.place);
        let min = checks.count(input.min_capacity, "minCapacity");
        let max = checks.count(input.max_capacity, "maxCapacity");
        checks.end()?;
        let suspended = input.suspended_state.map(|state| Suspended {
            dynamic_in: state.dynamic_scaling_in_suspended,
            dynamic_out: state.dynamic_scaling_out_suspended,
            scheduled: state.scheduled_scaling_suspended,
        });
        let tags = input.tags.unwrap_or_default();
        let request = Registration { min, max, role: input.role_arn, suspended, tags };
        let resource = checks::resource(&input.place)?;
        let arn = self.app.control_plane.register_scalable_target(&resource, &request, now()).await?;
        Ok(wire::Registered { arn })
    }

    async fn deregister(&self, input: wire::Place) -> Result<wire::Nothing, ScalingError> {
        let mut checks = Checks::default();
        checks.place(&input);
        checks.end()?;
        self.app.control_plane.deregister_scalable_target(&checks::resource(&input)?).await?;
        Ok(wire::Nothing {})
    }

    async fn describe_targets(&self, input: wire::Describe) -> Result<wire::Targets, ScalingError> {
        let page = page(&input)?;
        let resources: Vec<Resource> = input.resource_ids.iter().filter_map(|id| Resource::parse(id)).collect();
        let foreign = input.place.service_namespace.as_deref() != Some(NAMESPACE);
        // Those that name nothing here find nothing.
        if foreign || (resources.is_empty() && !input.resource_ids.is_empty()) {
            return Ok(wire::Targets { scalable_targets: Vec::new(), next_token: None });
        }
        let (targets, next_token) = self.app.control_plane.scalable_targets(&resources, &page)?;
        let scalable_targets = targets.iter().map(|target| self.target(target)).collect();
        Ok(wire::Targets { scalable_targets, next_token })
    }

    fn target(&self, target: &Target) -> wire::Target {
        let plane = &self.app.control_plane;
        let role = target.role.clone();
        wire::Target {
            service_namespace: NAMESPACE,
            resource_id: target.resource.to_string(),
            scalable_dimension: DIMENSION,
            min_capacity: target.min,
            max_capacity: target.max,
            role_arn: role.unwrap_or_else(|| format!("arn:aws:iam::{}:{ROLE}", plane.realm().account)),
            creation_time: seconds(target.created),
            suspended_state: wire::SuspendedState {
                dynamic_scaling_in_suspended: target.suspended.dynamic_in,
                dynamic_scaling_out_suspended: target.suspended.dynamic_out,
                scheduled_scaling_suspended: target.suspended.scheduled,
            },
            arn: plane.scalable_target_arn(target),
        }
    }

    async fn put_action(&self, input: wire::PutAction) -> Result<wire::Nothing, ScalingError> {
        let mut checks = Checks::default();
        checks.place(&input.place);
        checks.action_name(input.scheduled_action_name.as_deref());
        let bounds = input.scalable_target_action.map(|action| {
            let min = checks.count(action.min_capacity, "scalableTargetAction.minCapacity");
            (min, checks.count(action.max_capacity, "scalableTargetAction.maxCapacity"))
        });
        checks.end()?;
        let change = ActionChange {
            schedule: input.schedule,
            zone: input.timezone,
            start: input.start_time.map(moment),
            end: input.end_time.map(moment),
            bounds,
        };
        let resource = checks::resource(&input.place)?;
        let name = input.scheduled_action_name.unwrap_or_default();
        self.app.control_plane.put_scheduled_action(&resource, &name, &change, now()).await?;
        Ok(wire::Nothing {})
    }

    async fn delete_action(&self, input: wire::Delete) -> Result<wire::Nothing, ScalingError> {
        let mut checks = Checks::default();
        checks.place(&input.place);
        checks.id(input.scheduled_action_name.as_deref(), "scheduledActionName");
        checks.end()?;
        let name = input.scheduled_action_name.unwrap_or_default();
        self.app.control_plane.delete_scheduled_action(&checks::resource(&input.place)?, &name).await?;
        Ok(wire::Nothing {})
    }

    async fn describe_actions(&self, input: wire::Describe) -> Result<wire::Actions, ScalingError> {
        let page = page(&input)?;
        let Some(resource) = checks::listed(&input.place)? else {
            return Ok(wire::Actions { scheduled_actions: Vec::new(), next_token: None });
        };
        let names = &input.scheduled_action_names;
        let (found, next_token) = self.app.control_plane.scheduled_actions(resource.as_ref(), names, &page)?;
        let actions = found.into_iter().filter_map(|(target, name)| self.action(&target, name));
        Ok(wire::Actions { scheduled_actions: actions.collect(), next_token })
    }

    fn action(&self, target: &Target, name: String) -> Option<wire::Action> {
        let action = target.actions.get(&name)?;
        let kind = "scheduledAction";
        Some(wire::Action {
            arn: format!("{}:scheduledActionName/{name}", self.part_arn(kind, target)),
            scheduled_action_name: name,
            service_namespace: NAMESPACE,
            schedule: action.schedule.clone(),
            timezone: action.zone.clone(),
            resource_id: target.resource.to_string(),
            scalable_dimension: DIMENSION,
            start_time: action.start.map(seconds),
            end_time: action.end.map(seconds),
            scalable_target_action: wire::Capacities {
                min_capacity: action.min.map(i64::from),
                max_capacity: action.max.map(i64::from),
            },
            creation_time: seconds(action.created),
        })
    }

    /// How the ARN of a part of a target begins.
    fn part_arn(&self, kind: &str, target: &Target) -> String {
        let realm = self.app.control_plane.realm();
        let (region, account) = (&realm.region, &realm.account);
        format!("arn:aws:autoscaling:{region}:{account}:{kind}:{}:resource/{NAMESPACE}/{}", target.id, target.resource)
    }

    async fn describe_activities(&self, input: wire::Describe) -> Result<wire::Activities, ScalingError> {
        let page = page(&input)?;
        let Some(resource) = checks::listed(&input.place)? else {
            return Ok(wire::Activities { scaling_activities: Vec::new(), next_token: None });
        };
        let all = input.include_not_scaled_activities.unwrap_or(false);
        let (found, next_token) = self.app.control_plane.scaling_activities(resource.as_ref(), all, &page)?;
        Ok(wire::Activities { scaling_activities: found.into_iter().map(activity).collect(), next_token })
    }

    async fn tag(&self, input: wire::Tag) -> Result<wire::Nothing, ScalingError> {
        let arn = arn(&input)?;
        self.app.control_plane.tag_scalable_target(arn, &input.tags, &[]).await?;
        Ok(wire::Nothing {})
    }

    async fn untag(&self, input: wire::Tag) -> Result<wire::Nothing, ScalingError> {
        let arn = arn(&input)?;
        self.app.control_plane.tag_scalable_target(arn, &Default::default(), &input.tag_keys).await?;
        Ok(wire::Nothing {})
    }

    async fn list_tags(&self, input: wire::Tag) -> Result<wire::Tags, ScalingError> {
        let target = self.app.control_plane.scalable_target_by_arn(arn(&input)?)?;
        Ok(wire::Tags { tags: target.tags.clone() })
    }
}

fn arn(input: &wire::Tag) -> Result<&str, ScalingError> {
    let mut checks = Checks::default();
    checks.id(input.arn.as_deref(), "resourceARN");
    checks.end()?;
    Ok(input.arn.as_deref().unwrap_or_default())
}

/// What every list takes, checked.
fn page(input: &wire::Describe) -> Result<Page, ScalingError> {
    let mut checks = Checks::default();
    checks.namespace(&input.place);
    checks.page(input.max_results);
    checks.end()?;
    Ok(Page { size: input.max_results, token: input.next_token.clone() })
}

fn activity(activity: Activity) -> wire::Activity {
    let reason = |reason: NotScaled| match reason {
        NotScaled::AlreadyAtMax { max, current } => wire::NotScaledReason {
            code: "AlreadyAtMaxCapacity",
            max_capacity: Some(max),
            min_capacity: None,
            current_capacity: current,
        },
        NotScaled::AlreadyAtMin { min, current } => wire::NotScaledReason {
            code: "AlreadyAtMinCapacity",
            max_capacity: None,
            min_capacity: Some(min),
            current_capacity: current,
        },
        NotScaled::AlreadyAtDesired { current } => wire::NotScaledReason {
            code: "AlreadyAtDesiredCapacity",
            max_capacity: None,
            min_capacity: None,
            current_capacity: current,
        },
    };
    wire::Activity {
        activity_id: activity.id,
        service_namespace: NAMESPACE,
        resource_id: activity.resource.to_string(),
        scalable_dimension: DIMENSION,
        description: activity.description,
        cause: activity.cause,
        start_time: seconds(activity.start),
        end_time: activity.end.map(seconds),
        status_code: match activity.status {
            Status::InProgress => "InProgress",
            Status::Successful => "Successful",
            Status::Overridden => "Overridden",
            Status::Failed => "Failed",
            Status::Unfulfilled => "Unfulfilled",
        },
        status_message: activity.message,
        not_scaled_reasons: activity.reasons.into_iter().map(reason).collect(),
    }
}
