//! Scalable targets, and seconds of virtual time over them.

use std::collections::BTreeMap;

use super::aliases::{alias, with_versions};
use super::*;
use crate::autoscaling::record::{Activity, Metric, NotScaled, Resource, Statistic, Status, Suspended};
use crate::autoscaling::{ActionChange, Page, Registration, Scaler, ScalingError, Tracking};
use crate::record::VersionId;
use crate::{LiveConcurrency, ProvisionFailure};

fn live() -> Resource {
    Resource::parse("function:f:live").unwrap()
}

fn bounds(min: u32, max: u32) -> Registration {
    Registration { min: Some(min), max: Some(max), ..Registration::default() }
}

fn tracking(target_value: f64) -> Tracking {
    Tracking { target_value, metric: Metric::Predefined, out_cooldown: None, in_cooldown: None, disable_in: None }
}

fn action(schedule: &str, min: Option<u32>, max: Option<u32>) -> ActionChange {
    ActionChange { schedule: Some(schedule.to_owned()), bounds: Some((min, max)), ..ActionChange::default() }
}

/// A target on the alias `live` of `f`, whose environments are ready a second after they were asked for.
struct Drill {
    world: World,
    scaler: Scaler,
    now: Timestamp,
    /// By version.
    ready: BTreeMap<VersionId, u32>,
    used: u32,
    broken: Option<ProvisionFailure>,
    next: Option<Timestamp>,
}

impl Drill {
    async fn new() -> Self {
        let world = with_versions().await;
        world.plane.create_alias(&alias(json!({}))).await.unwrap();
        // On a full minute.
        let now = Timestamp(NOW.0 - NOW.0 % 60_000);
        Self { world, scaler: Scaler::default(), now, ready: BTreeMap::new(), used: 0, broken: None, next: None }
    }

    async fn register(&self, request: &Registration) -> Result<String, ScalingError> {
        self.world.plane.register_scalable_target(&live(), request, self.now).await
    }

    async fn second(&mut self) {
        let (ready, used, broken) = (self.ready.clone(), self.used, self.broken);
        let live = |version: &crate::record::FunctionVersion| {
            let allocated = ready.get(&version.id).copied().unwrap_or_default();
            LiveConcurrency { allocated, available: allocated.saturating_sub(used), failed: broken }
        };
        let scaled = self.world.plane.scale(&mut self.scaler, self.now, live).await;
        for provision in scaled.provisions.iter().filter(|_| broken.is_none()) {
            self.ready.insert(provision.version.id, provision.count);
        }
        self.next = scaled.next;
        self.now.0 += 1_000;
    }

    /// Calls when it is time, and only then, until `end`; answers how often.
    async fn sleeper(&mut self, end: Timestamp) -> usize {
        let mut looks = 0;
        while let Some(next) = self.next.filter(|next| *next < end) {
            self.now = next;
            self.second().await;
            looks += 1;
        }
        looks
    }

    async fn seconds(&mut self, count: usize) {
        for _ in 0..count {
            self.second().await;
        }
    }

    fn capacity(&self) -> u32 {
        let version = self.world.plane.resolve("f", Some("live"), 0.0).unwrap().version;
        self.world.plane.provisioned_count(&version)
    }

    fn activities(&self, all: bool) -> Vec<Activity> {
        self.world.plane.scaling_activities(Some(&live()), all, &Page::default()).unwrap().0
    }

    /// Cause, status and message of the newest activities, the newest first.
    fn told(&self) -> Vec<(String, Status, String)> {
        let told = self.activities(true).into_iter();
        told.map(|activity| (activity.cause, activity.status, activity.message.unwrap_or_default())).collect()
    }
}

#[tokio::test]
async fn a_capacity_below_its_minimum_is_raised_when_a_target_is_registered() {
    let mut drill = Drill::new().await;
    let arn = drill.register(&bounds(3, 10)).await.unwrap();
    assert!(arn.starts_with("arn:aws:application-autoscaling:us-east-1:123456789012:scalable-target/"), "{arn}");
    drill.second().await;
    assert_eq!(drill.capacity(), 3);
    assert_eq!(drill.activities(false)[0].status, Status::InProgress);
    drill.second().await;
    let message = "Successfully set desired concurrency to 3. Change successfully fulfilled by lambda.";
    let expected = ("minimum capacity was set to 3".to_owned(), Status::Successful, message.to_owned());
    assert_eq!(drill.told(), [expected]);
    assert_eq!(drill.activities(false)[0].description, "Setting desired concurrency to 3.");

    // Parts that a change does not name stay; the capacity follows the new ceiling.
    let lower = Registration { min: Some(1), max: Some(2), ..Registration::default() };
    assert_eq!(drill.register(&lower).await.unwrap(), arn);
    drill.second().await;
    assert_eq!((drill.capacity(), drill.told()[0].0.as_str()), (2, "maximum capacity was set to 2"));
    drill.register(&bounds(0, 0)).await.unwrap();
    drill.seconds(2).await;
    assert_eq!((drill.capacity(), drill.told()[0].1), (0, Status::Successful));
}

#[tokio::test]
async fn targets_are_listed_tagged_and_forgotten() {
    let mut drill = Drill::new().await;
    let tags = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    let arn = drill.register(&Registration { tags, ..bounds(0, 5) }).await.unwrap();
    let plane = &drill.world.plane;
    let more = BTreeMap::from([("b".to_owned(), "2".to_owned())]);
    plane.tag_scalable_target(&arn, &more, &["a".to_owned()]).await.unwrap();
    let other = Resource::parse("function:f:2").unwrap();
    plane.register_scalable_target(&other, &bounds(0, 1), NOW).await.unwrap();
    drill.world.restart().await;
    let plane = &drill.world.plane;
    assert_eq!(plane.scalable_target_by_arn(&arn).unwrap().tags, more);
    let page = Page { size: Some(1), token: None };
    let (first, token) = plane.scalable_targets(&[], &page).unwrap();
    let (second, end) = plane.scalable_targets(&[], &Page { token, ..page }).unwrap();
    assert_eq!((first[0].resource.clone(), second[0].resource.clone(), end), (other.clone(), live(), None));
    assert_eq!(plane.scalable_targets(&[live()], &Page::default()).unwrap().0.len(), 1);
    let bad = Page { token: Some("%".to_owned()), ..Page::default() };
    assert_eq!(plane.scalable_targets(&[], &bad).unwrap_err(), ScalingError::NextToken);

    plane.deregister_scalable_target(&live()).await.unwrap();
    let absent = plane.deregister_scalable_target(&live()).await.unwrap_err();
    let text = "No scalable target found for service namespace: lambda, resource ID: function:f:live, scalable \
                dimension: lambda:function:ProvisionedConcurrency";
    assert_eq!((absent.name(), absent.to_string().as_str()), ("ObjectNotFoundException", text));
    assert_eq!(plane.scalable_target_by_arn(&arn).unwrap_err(), ScalingError::NoSuchResource(arn));
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let drill = Drill::new().await;
    let plane = &drill.world.plane;
    let refused = async |request| drill.register(&request).await.unwrap_err().to_string();
    let text = "MinCapacity and MaxCapacity are required to register a new scalable target";
    assert_eq!(refused(Registration { min: Some(1), ..Registration::default() }).await, text);
    assert_eq!(refused(bounds(2, 1)).await, "Maximum capacity cannot be less than minimum capacity");
    let absent = Resource::parse("function:f:nobody").unwrap();
    let error = plane.register_scalable_target(&absent, &bounds(1, 2), NOW).await.unwrap_err();
    assert_eq!(error, ScalingError::Validation("Lambda function doesn't exist: function:f:nobody".to_owned()));

    let error = plane.put_scaling_policy(&live(), "p", tracking(0.7), NOW).await.unwrap_err();
    assert_eq!((error.name(), error.status()), ("ObjectNotFoundException", 400));
    assert!(error.to_string().starts_with("No scalable target registered for service namespace: lambda"), "{error}");
    drill.register(&bounds(0, 5)).await.unwrap();
    for (change, text) in [
        (ActionChange::default(), "Schedule is required to create a scheduled action"),
        (action("now", Some(1), None), "Schedule expression must have valid format"),
        (action("rate(5 minutes)", None, None), "ScalableTargetAction must have a minimum or a maximum capacity"),
        (action("rate(5 minutes)", Some(2), Some(1)), "Maximum capacity cannot be less than minimum capacity"),
        (
            ActionChange { zone: Some("Nowhere".to_owned()), ..action("cron(0 8 * * ? *)", Some(1), None) },
            "Unsupported time zone: Nowhere",
        ),
        (
            ActionChange { start: Some(NOW), end: Some(NOW), ..action("cron(0 8 * * ? *)", Some(1), None) },
            "The start time must be before the end time",
        ),
    ] {
        let error = plane.put_scheduled_action(&live(), "a", &change, NOW).await.unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
    let error = plane.put_scaling_policy(&live(), "p", tracking(0.0), NOW).await.unwrap_err();
    assert_eq!(error.name(), "ValidationException");
    for error in [
        plane.delete_scaling_policy(&live(), "p").await.unwrap_err(),
        plane.delete_scheduled_action(&live(), "p").await.unwrap_err(),
    ] {
        assert_eq!(error.name(), "ObjectNotFoundException");
    }
}

#[tokio::test]
async fn a_scheduled_action_sets_bounds_when_its_moment_comes() {
    let mut drill = Drill::new().await;
    drill.register(&bounds(1, 10)).await.unwrap();
    let plane = drill.world.plane.clone();
    plane.put_scheduled_action(&live(), "up", &action("rate(1 minute)", Some(5), None), drill.now).await.unwrap();
    drill.seconds(60).await;
    assert_eq!(drill.capacity(), 1);
    drill.seconds(2).await;
    assert_eq!(drill.capacity(), 5);
    let told = drill.told();
    assert_eq!(told[1].0, "scheduled action name up was triggered");
    assert_eq!((told[1].1, told[1].2.as_str()), (Status::Successful, "Successfully set min capacity to 5"));
    assert_eq!((told[0].0.as_str(), told[0].1), ("minimum capacity was set to 5", Status::Successful));
    let target = plane.scalable_target(&live()).unwrap();
    assert_eq!((target.min, target.max), (5, 10));

    // Changed: what is not named stays, and the past does not count.
    let change = ActionChange { bounds: Some((Some(2), Some(3))), ..ActionChange::default() };
    plane.put_scheduled_action(&live(), "up", &change, drill.now).await.unwrap();
    drill.seconds(57).await;
    assert_eq!(drill.capacity(), 5);
    drill.seconds(3).await;
    assert_eq!(drill.capacity(), 3);
    plane.delete_scheduled_action(&live(), "up").await.unwrap();
    let kept = drill.activities(true).len();
    drill.seconds(120).await;
    assert_eq!(drill.activities(true).len(), kept);
}

#[tokio::test]
async fn nothing_is_looked_at_before_it_is_time() {
    let mut drill = Drill::new().await;
    drill.second().await;
    assert_eq!(drill.next, None, "no target");
    let (plane, start) = (drill.world.plane.clone(), drill.now);
    let told = async || tokio::time::timeout(std::time::Duration::ZERO, plane.scaling_changed()).await.is_ok();
    assert!(!told().await);
    drill.register(&bounds(1, 10)).await.unwrap();
    assert!(told().await);
    drill.second().await;
    assert_eq!(drill.next, Some(Timestamp(start.0 + 1_000)), "the change goes on");
    drill.second().await;
    assert_eq!((drill.capacity(), drill.next), (1, None));
    assert!(!told().await, "what scaling itself changes it knows");

    plane.put_scheduled_action(&live(), "up", &action("rate(1 hour)", Some(5), None), start).await.unwrap();
    assert!(told().await);
    drill.second().await;
    assert_eq!(drill.next, Some(Timestamp(start.0 + 3_600_000)));
    // At the full hour, and until the change is there.
    let hour = Timestamp(start.0 + 3_700_000);
    assert!(drill.sleeper(hour).await <= 3);
    assert_eq!((drill.capacity(), drill.next), (5, Some(Timestamp(start.0 + 7_200_000))));
    plane.delete_scheduled_action(&live(), "up").await.unwrap();
    assert!(told().await);

    plane.put_scaling_policy(&live(), "p", tracking(0.7), drill.now).await.unwrap();
    assert!(told().await);
    let now = drill.now;
    drill.second().await;
    assert_eq!(drill.next, Some(Timestamp(now.0 + 1_000)), "utilization is looked at each second");
    plane.deregister_scalable_target(&live()).await.unwrap();
    assert!(told().await);
    drill.second().await;
    assert_eq!(drill.next, None);
}

#[tokio::test]
async fn what_was_due_while_nobody_ran_is_made_up_for_once_in_order() {
    let mut drill = Drill::new().await;
    drill.register(&bounds(1, 10)).await.unwrap();
    let plane = drill.world.plane.clone();
    let hours = |count: i64| Timestamp(NOW.0 + count * 3_600_000);
    // Given at 03:04: 5 at 6 o'clock, 2 at 7.
    for (name, text, min) in [("a", "cron(0 6 * * ? *)", 5), ("b", "cron(0 7 * * ? *)", 2)] {
        plane.put_scheduled_action(&live(), name, &action(text, Some(min), Some(min)), NOW).await.unwrap();
    }
    drill.second().await;
    drill.world.restart().await;
    drill.scaler = Scaler::default();
    drill.now = hours(48 + 5);
    drill.seconds(3).await;
    assert_eq!(drill.capacity(), 2);
    let told = drill.told();
    let runs: Vec<_> = told.iter().filter(|(cause, ..)| cause.starts_with("scheduled")).collect();
    assert_eq!(runs.len(), 2);
    drill.world.restart().await;
    drill.scaler = Scaler::default();
    drill.seconds(3).await;
    assert_eq!(drill.told().len(), told.len());
}

#[tokio::test]
async fn suspended_schedules_pass_without_effect() {
    let mut drill = Drill::new().await;
    drill.register(&bounds(1, 10)).await.unwrap();
    let still = Suspended { scheduled: true, ..Suspended::default() };
    drill.register(&Registration { suspended: Some(still), ..Registration::default() }).await.unwrap();
    let plane = drill.world.plane.clone();
    let once = action("at(2026-01-02T03:05:00)", Some(5), None);
    plane.put_scheduled_action(&live(), "up", &once, NOW).await.unwrap();
    drill.seconds(120).await;
    let resumed = Registration { suspended: Some(Suspended::default()), ..Registration::default() };
    drill.register(&resumed).await.unwrap();
    drill.seconds(120).await;
    assert_eq!(drill.capacity(), 1);
}

#[tokio::test]
async fn load_is_tracked_out_and_in_again() {
    let mut drill = Drill::new().await;
    drill.register(&bounds(2, 6)).await.unwrap();
    let plane = drill.world.plane.clone();
    plane.put_scaling_policy(&live(), "p", tracking(0.7), drill.now).await.unwrap();
    drill.used = 2;
    drill.seconds(5 * 60).await;
    // Both of two in use: 3 would be at 0.67.
    assert_eq!(drill.capacity(), 3);
    let (cause, status, _) = &drill.told()[0];
    assert!(cause.starts_with("monitor alarm TargetTracking-function:f:live-AlarmHigh-"), "{cause}");
    assert!(cause.ends_with(" in state ALARM triggered policy p"), "{cause}");
    assert_eq!(*status, Status::Successful);
    drill.used = 9;
    drill.seconds(20 * 60).await;
    assert_eq!(drill.capacity(), 6);
    let stays: Vec<_> = drill.activities(true).into_iter().filter(|a| !a.reasons.is_empty()).collect();
    assert_eq!(stays.len(), 1, "an alarm that stays on is told once");
    assert_eq!(stays[0].reasons, [NotScaled::AlreadyAtMax { max: 6, current: 6 }]);
    assert!(drill.activities(false).iter().all(|activity| activity.reasons.is_empty()));
    drill.used = 0;
    drill.seconds(18 * 60).await;
    assert_eq!(drill.capacity(), 2);
    assert!(drill.activities(false)[0].cause.contains("-AlarmLow-"));
}

#[tokio::test]
async fn bursts_scale_out_only_where_the_policy_goes_by_the_maximum() {
    let maximum = Metric::Customized { statistic: Statistic::Maximum, dimensions: Vec::new(), unit: None };
    for (metric, capacity) in [(Metric::Predefined, 2), (maximum, 3)] {
        let mut drill = Drill::new().await;
        drill.register(&bounds(2, 6)).await.unwrap();
        let plane = drill.world.plane.clone();
        plane.put_scaling_policy(&live(), "p", Tracking { metric, ..tracking(0.7) }, drill.now).await.unwrap();
        // All are in use for ten seconds of each minute: 0.17 of the capacity on average.
        for _ in 0..5 {
            for (used, seconds) in [(2, 10), (0, 50)] {
                drill.used = used;
                drill.seconds(seconds).await;
            }
        }
        assert_eq!(drill.capacity(), capacity);
    }
}

#[tokio::test]
async fn a_refused_capacity_and_a_failed_one_are_told() {
    let mut drill = Drill::new().await;
    drill.register(&bounds(950, 1_000)).await.unwrap();
    drill.seconds(30).await;
    let told = drill.told();
    assert_eq!((told.len(), told[0].1, drill.capacity()), (1, Status::Failed, 0));
    assert!(told[0].2.starts_with("Failed to set desired concurrency to 950. Reason: "), "{}", told[0].2);
    for (count, failure, reason) in [
        (1, ProvisionFailure::Initialization, "FUNCTION_ERROR_INIT_FAILURE"),
        (2, ProvisionFailure::Capacity, "INSUFFICIENT_CAPACITY"),
    ] {
        drill.broken = Some(failure);
        drill.register(&bounds(count, 5)).await.unwrap();
        drill.seconds(3).await;
        let message = format!("Failed to set desired concurrency to {count}. Reason: {reason}");
        assert_eq!((drill.told()[0].1, drill.told()[0].2.as_str()), (Status::Failed, message.as_str()));
    }
}

#[tokio::test]
async fn an_alias_that_is_gone_is_left_alone_until_it_is_back() {
    let mut drill = Drill::new().await;
    drill.register(&bounds(2, 5)).await.unwrap();
    drill.seconds(2).await;
    let delete = types::DeleteAliasRequest { function_name: Some("f".to_owned()), name: Some("live".to_owned()) };
    drill.world.plane.delete_alias(&delete).await.unwrap();
    drill.seconds(5).await;
    let told = drill.told().len();
    drill.world.plane.create_alias(&alias(json!({}))).await.unwrap();
    drill.register(&Registration::default()).await.unwrap();
    drill.seconds(2).await;
    assert_eq!((drill.capacity(), drill.told().len()), (2, told + 1));
}
