//! Application Auto Scaling, as far as Lambda uses it: provisioned concurrency of versions and aliases between two bounds,
//! by schedules and by target tracking.
//!
//! Targets, policies and scheduled actions are kept here; what they ask for is decided by [`ControlPlane::scale`], which
//! says when its caller is to repeat it. The wire that speaks of them is the frontend's.

pub mod record;
pub mod schedule;
pub mod tracking;

mod actions;
mod activities;
mod policies;
mod scaler;

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_model::ApiError;
use aws_model::arn::Qualifier;
use store::Metadata;
use tokio::sync::Notify;
use uuid::Uuid;

pub use self::actions::ActionChange;
pub use self::policies::Tracking;
pub use self::scaler::{Scaled, Scaler};

use self::record::{Activity, Resource, Suspended, Target};
use crate::page::page_of;
use crate::plane::ControlPlane;
use crate::record::Timestamp;
use crate::shelf::Shelf;
use crate::tables::OpenError;

const TARGETS: &str = "scalable_targets";
const ACTIVITIES: &str = "scaling_activities";

/// Targets of one account, at most.
const MOST_TARGETS: usize = 5_000;

/// Tags of one target, at most.
const MOST_TAGS: usize = 50;

/// Items in one page, at most.
const MOST_LISTED: usize = 50;

/// The tables of targets and activities.
pub(crate) struct Autoscaling {
    /// By resource.
    targets: Shelf<Target>,
    activities: Shelf<Activity>,
    /// Targets are not as they were when [`ControlPlane::scale`] looked last.
    changed: Notify,
}

impl Autoscaling {
    pub async fn open(metadata: Arc<dyn Metadata>) -> Result<Self, OpenError> {
        Ok(Self {
            targets: Shelf::open(Arc::clone(&metadata), TARGETS).await?,
            activities: Shelf::open(metadata, ACTIVITIES).await?,
            changed: Notify::new(),
        })
    }
}

/// Application Auto Scaling's refusals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScalingError {
    #[error("{0}")]
    Validation(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    LimitExceeded(String),
    #[error("The next token is not one of this operation's.")]
    NextToken,
    /// Of an ARN, in the operations on tags.
    #[error("The resource {0} does not exist.")]
    NoSuchResource(String),
    #[error("The resource {0} cannot have more than {MOST_TAGS} tags.")]
    TooManyTags(String),
    #[error("{0}")]
    Store(String),
}

impl ScalingError {
    /// The name of the exception on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Validation(_) => "ValidationException",
            Self::NotFound(_) => "ObjectNotFoundException",
            Self::LimitExceeded(_) => "LimitExceededException",
            Self::NextToken => "InvalidNextTokenException",
            Self::NoSuchResource(_) => "ResourceNotFoundException",
            Self::TooManyTags(_) => "TooManyTagsException",
            Self::Store(_) => "InternalServiceException",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Store(_) => 500,
            Self::Validation(_)
            | Self::NotFound(_)
            | Self::LimitExceeded(_)
            | Self::NextToken
            | Self::NoSuchResource(_)
            | Self::TooManyTags(_) => 400,
        }
    }
}

impl From<ApiError> for ScalingError {
    /// What the tables say when the store failed.
    fn from(error: ApiError) -> Self {
        Self::Store(error.message)
    }
}

/// A page of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub size: Option<i32>,
    /// Where the page before ended.
    pub token: Option<String>,
}

/// The items of a page, and where the next one begins if there is one.
pub type Listed<T> = Result<(Vec<T>, Option<String>), ScalingError>;

/// What RegisterScalableTarget takes. A new target needs both bounds.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    pub min: Option<u32>,
    pub max: Option<u32>,
    pub role: Option<String>,
    pub suspended: Option<Suspended>,
    pub tags: BTreeMap<String, String>,
}

impl ControlPlane {
    /// RegisterScalableTarget: makes a target, or changes what the request names. Answers its ARN. A capacity out of
    /// bounds is brought back by the next [`Self::scale`].
    ///
    /// # Errors
    /// ValidationException, also for a version or an alias that is not there; LimitExceededException.
    pub async fn register_scalable_target(
        &self,
        resource: &Resource,
        request: &Registration,
        now: Timestamp,
    ) -> Result<String, ScalingError> {
        let autoscaling = &self.inner.autoscaling;
        let invalid = |message: &str| Err(ScalingError::Validation(message.to_owned()));
        let judge = |found: Option<&Target>| {
            let (min, max) = (request.min.or(found.map(|old| old.min)), request.max.or(found.map(|old| old.max)));
            let (Some(min), Some(max)) = (min, max) else {
                return invalid("MinCapacity and MaxCapacity are required to register a new scalable target");
            };
            if min > max {
                return invalid("Maximum capacity cannot be less than minimum capacity");
            }
            if found.is_none() && autoscaling.targets.all().len() >= MOST_TARGETS {
                return Err(ScalingError::LimitExceeded(format!(
                    "The account has {MOST_TARGETS} scalable targets, and cannot have more."
                )));
            }
            if found.is_none() && !self.is_there(resource) {
                return Err(ScalingError::Validation(format!("Lambda function doesn't exist: {resource}")));
            }
            let new = || Target {
                id: Uuid::new_v4().simple().to_string(),
                resource: resource.clone(),
                min,
                max,
                role: None,
                created: now,
                suspended: Suspended::default(),
                tags: BTreeMap::new(),
                policies: BTreeMap::new(),
                actions: BTreeMap::new(),
                unsettled: true,
            };
            let mut target = found.cloned().unwrap_or_else(new);
            (target.min, target.max, target.unsettled) = (min, max, true);
            target.role = request.role.clone().or(target.role);
            target.suspended = request.suspended.unwrap_or(target.suspended);
            target.tags.extend(request.tags.clone());
            match target.tags.len() > MOST_TAGS {
                true => invalid("A scalable target cannot have more than 50 tags"),
                false => Ok(Some(target)),
            }
        };
        let target = autoscaling.targets.mutate_or(&resource.to_string(), (), judge).await?.after;
        autoscaling.changed.notify_one();
        Ok(target.map(|target| self.scalable_target_arn(&target)).unwrap_or_default())
    }

    /// DeregisterScalableTarget, with its policies and scheduled actions. The capacity stays as it is.
    ///
    /// # Errors
    /// ObjectNotFoundException.
    pub async fn deregister_scalable_target(&self, resource: &Resource) -> Result<(), ScalingError> {
        let judge = |found: Option<&Target>| match found {
            Some(_) => Ok(None),
            None => Err(ScalingError::NotFound(format!("No scalable target found for {}", place(resource)))),
        };
        self.inner.autoscaling.targets.mutate_or(&resource.to_string(), (), judge).await?;
        self.inner.autoscaling.changed.notify_one();
        Ok(())
    }

    /// DescribeScalableTargets; no resources are all.
    ///
    /// # Errors
    /// InvalidNextTokenException.
    pub fn scalable_targets(&self, resources: &[Resource], request: &Page) -> Listed<Arc<Target>> {
        let all = self.inner.autoscaling.targets.all().into_iter();
        page(all.filter(|(_, target)| resources.is_empty() || resources.contains(&target.resource)), request)
    }

    /// A target, if the resource was registered.
    pub fn scalable_target(&self, resource: &Resource) -> Option<Arc<Target>> {
        self.inner.autoscaling.targets.get(&resource.to_string())
    }

    /// The ARN of a target.
    pub fn scalable_target_arn(&self, target: &Target) -> String {
        let realm = self.realm();
        format!("arn:aws:application-autoscaling:{}:{}:scalable-target/{}", realm.region, realm.account, target.id)
    }

    /// The target with this ARN, as the operations on tags name it.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn scalable_target_by_arn(&self, arn: &str) -> Result<Arc<Target>, ScalingError> {
        let mut all = self.targets_of(None).into_iter();
        let found = all.find(|target| self.scalable_target_arn(target) == arn);
        found.ok_or_else(|| ScalingError::NoSuchResource(arn.to_owned()))
    }

    /// TagResource and UntagResource: these tags come, those go.
    ///
    /// # Errors
    /// ResourceNotFoundException; TooManyTagsException.
    pub async fn tag_scalable_target(
        &self,
        arn: &str,
        added: &BTreeMap<String, String>,
        removed: &[String],
    ) -> Result<(), ScalingError> {
        let resource = self.scalable_target_by_arn(arn)?.resource.clone();
        let tag = |target: &mut Target| {
            target.tags.extend(added.clone());
            target.tags.retain(|key, _| !removed.contains(key));
            match target.tags.len() > MOST_TAGS {
                true => Err(ScalingError::TooManyTags(arn.to_owned())),
                false => Ok(()),
            }
        };
        self.change_target(&resource, tag).await?;
        Ok(())
    }

    /// The targets that a list is about.
    fn targets_of(&self, resource: Option<&Resource>) -> Vec<Arc<Target>> {
        let all = self.inner.autoscaling.targets.all().into_iter().map(|(_, target)| target);
        all.filter(|target| resource.is_none_or(|resource| *resource == target.resource)).collect()
    }

    /// The names of what targets have; with none asked for, all of them.
    fn named<T>(
        &self,
        resource: Option<&Resource>,
        names: &[String],
        request: &Page,
        of: fn(&Target) -> &BTreeMap<String, T>,
    ) -> Listed<(Arc<Target>, String)> {
        let all = self.targets_of(resource);
        let items = all.iter().flat_map(|target| {
            let wanted = of(target).keys().filter(|name| names.is_empty() || names.contains(name));
            wanted.map(|name| (format!("{}\0{name}", target.resource), (Arc::clone(target), name.clone())))
        });
        page(items, request)
    }

    /// Removes what a target has under a name.
    async fn remove_named<T>(
        &self,
        resource: &Resource,
        name: &str,
        absent: impl Fn() -> ScalingError,
        of: fn(&mut Target) -> &mut BTreeMap<String, T>,
    ) -> Result<(), ScalingError> {
        self.scalable_target(resource).ok_or_else(&absent)?;
        let remove = |target: &mut Target| of(target).remove(name).map(drop).ok_or_else(&absent);
        self.change_target(resource, remove).await?;
        self.inner.autoscaling.changed.notify_one();
        Ok(())
    }

    /// Changes a target that has to be there.
    async fn change_target(
        &self,
        resource: &Resource,
        change: impl FnOnce(&mut Target) -> Result<(), ScalingError>,
    ) -> Result<Arc<Target>, ScalingError> {
        let absent = || ScalingError::NotFound(format!("No scalable target registered for {}", place(resource)));
        let judge = |found: Option<&Target>| -> Result<_, ScalingError> {
            let mut target = found.ok_or_else(absent)?.clone();
            change(&mut target)?;
            Ok(Some(target))
        };
        let change = self.inner.autoscaling.targets.mutate_or(&resource.to_string(), (), judge).await?;
        change.after.ok_or_else(absent)
    }

    /// Whether the version or alias is there.
    fn is_there(&self, resource: &Resource) -> bool {
        let qualifier = Qualifier::parse(&resource.qualifier);
        self.function(&resource.function).is_some_and(|function| function.named(Some(&qualifier)).is_some())
    }
}

/// A resource in the words of the service's messages.
fn place(resource: &Resource) -> String {
    format!(
        "service namespace: lambda, resource ID: {resource}, scalable dimension: lambda:function:ProvisionedConcurrency"
    )
}

/// One page of what comes in the order of its keys.
fn page<T>(items: impl IntoIterator<Item = (String, T)>, request: &Page) -> Listed<T> {
    page_of(items, request.token.as_deref(), request.size, MOST_LISTED).map_err(|_| ScalingError::NextToken)
}
