//! What scaling did: kept for six weeks, the newest first.

use uuid::Uuid;

use super::record::{Activity, NotScaled, Resource, Status};
use super::{Autoscaling, Listed, Page, page};
use crate::plane::ControlPlane;
use crate::record::Timestamp;

/// How long activities are kept, in milliseconds.
const KEPT: i64 = 42 * 24 * 60 * 60 * 1_000;

/// Activities that are kept at most, of all targets together.
const MOST_KEPT: usize = 2_000;

impl Activity {
    /// One that begins now.
    pub(super) fn new(resource: &Resource, description: String, cause: String, now: Timestamp) -> Self {
        Self {
            id: Uuid::new_v4().to_string(),
            resource: resource.clone(),
            description,
            cause,
            start: now,
            end: None,
            status: Status::InProgress,
            message: None,
            reasons: Vec::new(),
            desired: None,
        }
    }

    /// It has come to its end.
    pub(super) fn ended(mut self, status: Status, message: String, now: Timestamp) -> Self {
        (self.status, self.message, self.end) = (status, Some(message), Some(now));
        self
    }

    /// Nothing was to be done.
    pub(super) fn not_scaled(mut self, reason: NotScaled, now: Timestamp) -> Self {
        self.reasons.push(reason);
        self.ended(Status::Unfulfilled, "The capacity stays what it is.".to_owned(), now)
    }

    /// Keys in the order of which the newest comes first; a capacity after the bounds that it was set for.
    fn key(&self) -> String {
        let rank = if self.desired.is_some() { 0 } else { 1 };
        format!("{:020}-{rank}-{}", i64::MAX - self.start.0, self.id)
    }
}

impl Autoscaling {
    /// Keeps an activity, new or changed. One that cannot be kept is told to the operator: scaling goes on.
    pub(super) async fn note(&self, activity: Activity, now: Timestamp) {
        let key = activity.key();
        let is_new = self.activities.get(&key).is_none();
        self.write_activity(&key, Some(activity)).await;
        if !is_new {
            return;
        }
        let all = self.activities.all();
        let old =
            all.iter().enumerate().filter(|(at, (_, activity))| *at >= MOST_KEPT || now.0 - activity.start.0 > KEPT);
        for (_, (key, _)) in old {
            self.write_activity(key, None).await;
        }
    }

    async fn write_activity(&self, key: &str, activity: Option<Activity>) {
        if let Err(error) = self.activities.mutate(key, (), |_| Ok(activity)).await {
            tracing::error!(%error, "a scaling activity was not stored");
        }
    }

    /// The activity of a target that is still going on.
    pub(super) fn unfinished(&self, resource: &Resource) -> Option<Activity> {
        let all = self.activities.all().into_iter();
        let mut open = all.filter(|(_, a)| a.status == Status::InProgress && a.resource == *resource);
        open.next().map(|(_, activity)| activity.as_ref().clone())
    }

    /// Whether the newest activity of a target says the same.
    pub(super) fn is_known(&self, activity: &Activity) -> bool {
        let all = self.activities.all();
        let newest = all.iter().find(|(_, a)| a.resource == activity.resource);
        newest.is_some_and(|(_, newest)| {
            newest.reasons == activity.reasons && newest.cause == activity.cause && newest.status == activity.status
        })
    }
}

impl ControlPlane {
    /// DescribeScalingActivities; those that changed nothing only where they are asked for.
    ///
    /// # Errors
    /// InvalidNextTokenException.
    pub fn scaling_activities(
        &self,
        resource: Option<&Resource>,
        not_scaled_too: bool,
        request: &Page,
    ) -> Listed<Activity> {
        let all = self.inner.autoscaling.activities.all().into_iter();
        let wanted = all.filter(|(_, activity)| {
            resource.is_none_or(|resource| *resource == activity.resource)
                && (not_scaled_too || activity.reasons.is_empty())
        });
        page(wanted.map(|(key, activity)| (key, activity.as_ref().clone())), request)
    }
}
