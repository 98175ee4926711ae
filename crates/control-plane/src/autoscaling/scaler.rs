//! Carries out what schedules and policies ask for. The decisions are [`super::schedule`]'s and [`super::tracking`]'s; here
//! they meet the clock, the settings and what is really there. Time is an argument; each call says when the next one is
//! due.

use std::collections::HashMap;

use aws_model::arn::Qualifier;
use aws_model::types;

use super::ScalingError;
use super::record::{Activity, NotScaled, Resource, ScheduledAction, Status, Target};
use super::schedule::Schedule;
use super::tracking::{Tracker, Wish};
use crate::plane::ControlPlane;
use crate::provisioned::{LiveConcurrency, Provision};
use crate::record::{FunctionVersion, Scope, Timestamp};

/// How often utilizations are looked at, and changes that go on, in milliseconds.
const LOOK: i64 = 1_000;

/// How long a target rests after its capacity was refused, in milliseconds.
const REST: i64 = 5 * 60_000;

/// What is remembered of targets between two calls of [`ControlPlane::scale`]; lost with the process, like the minutes
/// that it watched.
#[derive(Debug, Default)]
pub struct Scaler {
    watched: HashMap<Resource, Watched>,
}

/// What came of a look at the targets.
#[derive(Debug, Default)]
pub struct Scaled {
    /// The environments whose number has changed.
    pub provisions: Vec<Provision>,
    /// When to look again, unless a target changes before; absent where nothing is to come.
    pub next: Option<Timestamp>,
}

#[derive(Debug)]
struct Watched {
    tracker: Tracker,
    /// The change of capacity that is going on.
    pending: Option<Activity>,
    plans: HashMap<String, Plan>,
    /// After a refusal.
    rests_until: Timestamp,
}

/// The next moment of a scheduled action.
#[derive(Debug)]
struct Plan {
    /// As it was when the moment was found.
    action: ScheduledAction,
    schedule: Option<Schedule>,
    next: Option<Timestamp>,
}

/// What there is of a target's capacity.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    requested: u32,
    live: LiveConcurrency,
}

impl Watched {
    /// When there will be something to do about the target.
    fn next(&self, target: &Target, now: Timestamp) -> Option<Timestamp> {
        let soon = Timestamp(now.0.saturating_add(LOOK));
        if !target.policies.is_empty() || target.unsettled || self.pending.is_some() {
            return Some(soon);
        }
        // What was due now is planned anew by the next look.
        self.plans.values().filter_map(|plan| plan.next).min().map(|next| next.max(soon))
    }
}

impl Plan {
    fn of(action: &ScheduledAction) -> Self {
        // What was stored was read once; a zone that a newer database lacks is no reason to stop.
        let schedule = action.read().ok();
        let next = schedule.as_ref().and_then(|schedule| schedule.next(action.handled, action.bounds()));
        Self { action: action.clone(), schedule, next }
    }

    /// The last moment that has come since the action was looked at. Moments that were slept through come as one.
    fn due(&self, now: Timestamp) -> Option<Timestamp> {
        self.next.filter(|next| *next <= now)?;
        self.schedule.as_ref()?.last(now, self.action.bounds())
    }
}

impl ControlPlane {
    /// Carries out what is due at `now`, for every target; to be repeated when it says so, and after
    /// [`Self::scaling_changed`]. `live` says what is really there of a version.
    pub async fn scale(
        &self,
        scaler: &mut Scaler,
        now: Timestamp,
        live: impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> Scaled {
        let targets = self.targets_of(None);
        scaler.watched.retain(|resource, _| targets.iter().any(|target| target.resource == *resource));
        let mut scaled = Scaled::default();
        for target in targets {
            let resource = &target.resource;
            let watched = scaler.watched.entry(resource.clone()).or_insert_with(|| Watched {
                tracker: Tracker::new(now),
                pending: self.inner.autoscaling.unfinished(resource),
                plans: HashMap::new(),
                rests_until: now,
            });
            match self.scale_one(watched, &target, now, &live).await {
                Ok(changed) => scaled.provisions.extend(changed),
                Err(error) => tracing::error!(%resource, %error, "a scalable target was left alone"),
            }
            // As it is now.
            let target = self.scalable_target(resource);
            let next = target.and_then(|target| watched.next(&target, now));
            scaled.next = scaled.next.into_iter().chain(next).min();
        }
        scaled
    }

    /// Returns when a target, a policy or a scheduled action has been registered, changed or removed; at once where that
    /// has happened since the last time.
    pub async fn scaling_changed(&self) {
        self.inner.autoscaling.changed.notified().await;
    }

    async fn scale_one(
        &self,
        watched: &mut Watched,
        target: &Target,
        now: Timestamp,
        live: &impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> Result<Vec<Provision>, ScalingError> {
        let resource = &target.resource;
        self.run_schedules(watched, target, now).await?;
        // As the schedules left it.
        let Some(target) = self.scalable_target(resource) else { return Ok(Vec::new()) };
        let Some(capacity) = self.capacity(resource, live) else {
            // Version or alias are gone. Who makes them again finds the target as it was.
            watched.tracker.unready(now);
            return Ok(Vec::new());
        };
        self.finish(watched, capacity, now).await;
        let utilization = observe(&mut watched.tracker, capacity, now);
        let minute_over = watched.tracker.sample(now, utilization);
        if target.unsettled {
            let seen = (target.min, target.max);
            self.change_target(resource, |target| {
                // Bounds that were given in the meantime have their turn next.
                target.unsettled = (target.min, target.max) != seen;
                Ok(())
            })
            .await?;
            let bound = capacity.requested.clamp(target.min, target.max.max(target.min));
            if bound != capacity.requested {
                let which = if bound > capacity.requested { "minimum" } else { "maximum" };
                let cause = format!("{which} capacity was set to {bound}");
                watched.tracker.unready(now);
                return Ok(self.set(watched, resource, bound, cause, now).await);
            }
        }
        if !minute_over || watched.pending.is_some() || now < watched.rests_until {
            return Ok(Vec::new());
        }
        match watched.tracker.judge(&target, capacity.requested, now) {
            None => Ok(Vec::new()),
            Some(Wish::Set { desired, policy, alarm }) => {
                let cause = triggered(&target, &policy, alarm);
                watched.tracker.scaled(capacity.requested, desired, now);
                Ok(self.set(watched, resource, desired, cause, now).await)
            }
            Some(Wish::Stay { policy, alarm, reason }) => {
                self.note_stay(resource, triggered(&target, &policy, alarm), reason, now).await;
                Ok(Vec::new())
            }
        }
    }

    /// Puts the bounds of scheduled actions into force whose moment has come, in the order of those moments.
    async fn run_schedules(&self, watched: &mut Watched, target: &Target, now: Timestamp) -> Result<(), ScalingError> {
        watched.plans.retain(|name, _| target.actions.contains_key(name));
        let mut due = Vec::new();
        for (name, action) in &target.actions {
            let plan = watched.plans.entry(name.clone()).or_insert_with(|| Plan::of(action));
            if plan.action != *action {
                *plan = Plan::of(action);
            }
            if let Some(moment) = plan.due(now) {
                due.push((moment, name));
            }
        }
        due.sort();
        for (moment, name) in due {
            self.run_schedule(&target.resource, name, moment, now).await?;
        }
        Ok(())
    }

    async fn run_schedule(
        &self,
        resource: &Resource,
        name: &str,
        moment: Timestamp,
        now: Timestamp,
    ) -> Result<(), ScalingError> {
        let mut outcome = None;
        self.change_target(resource, |target| {
            let Some(action) = target.actions.get_mut(name) else { return Ok(()) };
            action.handled = action.handled.max(moment);
            let (min, max) = (action.min, action.max);
            if target.suspended.scheduled {
                return Ok(());
            }
            let (lower, upper) = (min.unwrap_or(target.min), max.unwrap_or(target.max));
            let parts =
                [min.map(|min| format!("min capacity to {min}")), max.map(|max| format!("max capacity to {max}"))];
            let words = parts.into_iter().flatten().collect::<Vec<_>>().join(" and ");
            outcome = Some((words, lower <= upper));
            if lower <= upper {
                (target.min, target.max, target.unsettled) = (lower, upper, true);
            }
            Ok(())
        })
        .await?;
        if let Some((words, good)) = outcome {
            let cause = format!("scheduled action name {name} was triggered");
            let activity = Activity::new(resource, format!("Setting {words}"), cause, now);
            let activity = if good {
                activity.ended(Status::Successful, format!("Successfully set {words}"), now)
            } else {
                let reason = "Maximum capacity cannot be less than minimum capacity";
                activity.ended(Status::Failed, format!("Failed to set {words}. Reason: {reason}"), now)
            };
            self.inner.autoscaling.note(activity, now).await;
        }
        Ok(())
    }

    /// Sets another capacity, and notes that it was.
    async fn set(
        &self,
        watched: &mut Watched,
        resource: &Resource,
        desired: u32,
        cause: String,
        now: Timestamp,
    ) -> Vec<Provision> {
        let description = format!("Setting desired concurrency to {desired}.");
        let mut activity = Activity::new(resource, description, cause, now);
        activity.desired = Some(desired);
        let function_name = Some(resource.function.clone());
        let qualifier = Some(resource.qualifier.clone());
        let outcome = match i32::try_from(desired).unwrap_or(i32::MAX) {
            0 => {
                let request = types::DeleteProvisionedConcurrencyConfigRequest { function_name, qualifier };
                self.delete_provisioned_concurrency_config(&request).await
            }
            count => {
                let request = types::PutProvisionedConcurrencyConfigRequest {
                    function_name,
                    qualifier,
                    provisioned_concurrent_executions: Some(count),
                };
                self.put_provisioned_concurrency_config(&request, now).await.map(|(_, provisions)| provisions)
            }
        };
        match outcome {
            Ok(provisions) => {
                if let Some(before) = watched.pending.replace(activity.clone()) {
                    let message = "Another capacity was set before this one was there.".to_owned();
                    self.inner.autoscaling.note(before.ended(Status::Overridden, message, now), now).await;
                }
                self.inner.autoscaling.note(activity, now).await;
                provisions
            }
            Err(error) => {
                watched.rests_until = Timestamp(now.0 + REST);
                tracing::warn!(%resource, desired, %error, "provisioned concurrency was not set");
                let message = format!(
                    "Failed to set desired concurrency to {desired}. Reason: {} (Service: AWSLambda; Status Code: {}; \
                     Error Code: {})",
                    error.message, error.status, error.name
                );
                self.inner.autoscaling.note(activity.ended(Status::Failed, message, now), now).await;
                Vec::new()
            }
        }
    }

    /// Ends the change that is going on, if it has come to an end.
    async fn finish(&self, watched: &mut Watched, capacity: Capacity, now: Timestamp) {
        let Some(desired) = watched.pending.as_ref().and_then(|activity| activity.desired) else { return };
        let (status, message) = if capacity.requested != desired {
            (Status::Overridden, "Another capacity was set before this one was there.".to_owned())
        } else if capacity.live.allocated >= desired {
            let message =
                format!("Successfully set desired concurrency to {desired}. Change successfully fulfilled by lambda.");
            (Status::Successful, message)
        } else if let Some(failure) = capacity.live.failed {
            watched.rests_until = Timestamp(now.0 + REST);
            let message = format!("Failed to set desired concurrency to {desired}. Reason: {}", failure.reason());
            (Status::Failed, message)
        } else {
            return;
        };
        if let Some(activity) = watched.pending.take() {
            self.inner.autoscaling.note(activity.ended(status, message, now), now).await;
        }
    }

    async fn note_stay(&self, resource: &Resource, cause: String, reason: NotScaled, now: Timestamp) {
        let desired = match reason {
            NotScaled::AlreadyAtMax { current, .. }
            | NotScaled::AlreadyAtMin { current, .. }
            | NotScaled::AlreadyAtDesired { current } => current,
        };
        let description = format!("Attempting to scale due to alarm triggered; desired concurrency is {desired}.");
        let activity = Activity::new(resource, description, cause, now).not_scaled(reason, now);
        // An alarm that stays on says the same each minute.
        if !self.inner.autoscaling.is_known(&activity) {
            self.inner.autoscaling.note(activity, now).await;
        }
    }

    /// The capacity of a version or alias, absent where that is.
    fn capacity(&self, resource: &Resource, live: &impl Fn(&FunctionVersion) -> LiveConcurrency) -> Option<Capacity> {
        let qualifier = Qualifier::parse(&resource.qualifier);
        let function = self.function(&resource.function)?;
        function.named(Some(&qualifier))?;
        let (requested, live) = function.provisioned_of(&Scope::of(Some(&qualifier)), live);
        Some(Capacity { requested, live })
    }
}

/// Shows the tracker what is there; answers the utilization of this moment.
fn observe(tracker: &mut Tracker, capacity: Capacity, now: Timestamp) -> Option<f64> {
    let Capacity { requested, live } = capacity;
    if live.allocated < requested || requested == 0 {
        tracker.unready(now);
    }
    let used = live.allocated.saturating_sub(live.available);
    (live.allocated > 0).then(|| f64::from(used) / f64::from(live.allocated))
}

fn triggered(target: &Target, policy: &str, alarm: super::tracking::Alarm) -> String {
    let alarm = target.policies.get(policy).and_then(|policy| policy.alarm(&target.resource, alarm));
    format!("monitor alarm {} in state ALARM triggered policy {policy}", alarm.unwrap_or_default())
}
