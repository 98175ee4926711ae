//! Scheduled actions: bounds that come into force by the clock.

use std::sync::Arc;

use super::record::{Resource, ScheduledAction, Target};
use super::schedule::{Bounds, Schedule, ScheduleError};
use super::{Listed, Page, ScalingError, place};
use crate::plane::ControlPlane;
use crate::record::Timestamp;

/// Scheduled actions of one target, at most.
const MOST: usize = 200;

/// What PutScheduledAction takes. A new action needs a schedule and one bound at least.
#[derive(Debug, Clone, Default)]
pub struct ActionChange {
    pub schedule: Option<String>,
    /// A zone of the IANA database.
    pub zone: Option<String>,
    /// These two are forgotten where a change does not name them.
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
    /// The lower and the upper bound.
    pub bounds: Option<(Option<u32>, Option<u32>)>,
}

impl ScheduledAction {
    /// Its schedule, read.
    ///
    /// # Errors
    /// It is none.
    pub fn read(&self) -> Result<Schedule, ScheduleError> {
        Schedule::parse(&self.schedule, self.zone.as_deref())
    }

    /// Between which moments the schedule counts.
    pub fn bounds(&self) -> Bounds {
        Bounds { created: self.created, start: self.start, end: self.end }
    }
}

impl ControlPlane {
    /// PutScheduledAction: makes one, or changes what the request names. Moments that have passed do not count.
    ///
    /// # Errors
    /// ObjectNotFoundException for the target; ValidationException; LimitExceededException.
    pub async fn put_scheduled_action(
        &self,
        resource: &Resource,
        name: &str,
        change: &ActionChange,
        now: Timestamp,
    ) -> Result<(), ScalingError> {
        self.change_target(resource, |target| {
            let old = target.actions.get(name);
            if old.is_none() && target.actions.len() >= MOST {
                return Err(ScalingError::LimitExceeded(format!(
                    "The scalable target has {MOST} scheduled actions, and cannot have more."
                )));
            }
            let (min, max) = change.bounds.or(old.map(|old| (old.min, old.max))).unwrap_or_default();
            let schedule = change.schedule.clone().or_else(|| old.map(|old| old.schedule.clone()));
            let action = ScheduledAction {
                created: old.map_or(now, |old| old.created),
                schedule: schedule.ok_or_else(|| invalid("Schedule is required to create a scheduled action"))?,
                zone: change.zone.clone().or_else(|| old.and_then(|old| old.zone.clone())),
                start: change.start,
                end: change.end,
                min,
                max,
                handled: now,
            };
            check(&action)?;
            target.actions.insert(name.to_owned(), action);
            Ok(())
        })
        .await?;
        self.inner.autoscaling.changed.notify_one();
        Ok(())
    }

    /// DeleteScheduledAction.
    ///
    /// # Errors
    /// ObjectNotFoundException.
    pub async fn delete_scheduled_action(&self, resource: &Resource, name: &str) -> Result<(), ScalingError> {
        let absent = || {
            let place = place(resource);
            ScalingError::NotFound(format!("No scheduled action found for {place}, scheduled action name: {name}"))
        };
        self.remove_named(resource, name, absent, |target| &mut target.actions).await
    }

    /// DescribeScheduledActions: targets with the names of their actions.
    ///
    /// # Errors
    /// InvalidNextTokenException.
    pub fn scheduled_actions(
        &self,
        resource: Option<&Resource>,
        names: &[String],
        request: &Page,
    ) -> Listed<(Arc<Target>, String)> {
        self.named(resource, names, request, |target| &target.actions)
    }
}

fn invalid(message: &str) -> ScalingError {
    ScalingError::Validation(message.to_owned())
}

fn check(action: &ScheduledAction) -> Result<(), ScalingError> {
    match action.read() {
        Ok(_) => {}
        Err(ScheduleError::Zone) => {
            let zone = action.zone.as_deref().unwrap_or_default();
            return Err(ScalingError::Validation(format!("Unsupported time zone: {zone}")));
        }
        Err(ScheduleError::Kind) => {
            return Err(invalid(
                "Schedule expression must have valid format, e.g. at(2026-01-31T08:00:00), rate(5 minutes) or \
                 cron(0 8 ? * MON-FRI *)",
            ));
        }
    }
    if action.start.zip(action.end).is_some_and(|(start, end)| start >= end) {
        return Err(invalid("The start time must be before the end time"));
    }
    match (action.min, action.max) {
        (None, None) => Err(invalid("ScalableTargetAction must have a minimum or a maximum capacity")),
        (Some(min), Some(max)) if min > max => Err(invalid("Maximum capacity cannot be less than minimum capacity")),
        _ => Ok(()),
    }
}
