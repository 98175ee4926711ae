//! Event source mappings: which function gets the events of which source, and how. Their rules and states; whoever
//! polls asks [`ControlPlane::mappings`] what there is to poll.
//!
//! States move by time ([`Phase`]), so a restart resumes nothing: it only looks at the clock. What has moved is written
//! down by [`ControlPlane::settle_mappings`], which its caller repeats whenever the next is due.

mod pattern;
mod phase;
mod record;
mod rules;
mod source;

use std::sync::Arc;

use aws_model::arn::Qualifier;
use aws_model::{ApiError, types};
use store::Metadata;
use tokio::sync::Notify;
use uuid::Uuid;

pub use self::phase::{Motion, Phase, Rest};
pub use self::record::{DocumentDb, Mapping, Pollers, Retries, Settings, Shards, Source, Start, Target};
pub use self::source::SourceKind;

use crate::page::page_of;
use crate::plane::ControlPlane;
use crate::record::Timestamp;
use crate::settings::check_tags;
use crate::shelf::Shelf;
use crate::tables::OpenError;

const MAPPINGS: &str = "mappings";
/// Mappings in one page of a list at most.
const MOST_LISTED: usize = 100;

/// The table of mappings.
pub(crate) struct Mappings {
    pub(crate) shelf: Shelf<Mapping>,
    /// Told of every change.
    changed: Notify,
}

impl Mappings {
    pub async fn open(metadata: Arc<dyn Metadata>) -> Result<Self, OpenError> {
        Ok(Self { shelf: Shelf::open(metadata, MAPPINGS).await?, changed: Notify::new() })
    }
}

impl ControlPlane {
    /// The mapping that a CreateEventSourceMapping asks for. Nothing is kept yet: whoever can asks first whether the source
    /// is there.
    ///
    /// # Errors
    /// InvalidParameterValueException for what does not fit the source and for an absent function,
    /// ResourceConflictException when source and function are mapped already.
    pub fn draft_mapping(
        &self,
        request: &types::CreateEventSourceMappingRequest,
        now: Timestamp,
    ) -> Result<Mapping, ApiError> {
        let uuid = Uuid::new_v4().to_string();
        let source = rules::source(request, &uuid)?;
        let settings = Settings::new(source.kind).with(&source, &changes_of(request))?;
        check_tags(request.tags.as_ref())?;
        let target = self.mapping_target(request.function_name.as_deref())?;
        let rest = if request.enabled == Some(false) { Rest::Disabled } else { Rest::Enabled };
        let mapping = Mapping {
            uuid,
            source,
            target,
            settings,
            tags: request.tags.clone().unwrap_or_default(),
            phase: Phase::create(rest, now),
            last_modified: now,
        };
        self.check_unique(&mapping, now)?;
        Ok(mapping)
    }

    /// Keeps a drafted mapping: it is Creating for a moment, then Enabled or Disabled.
    ///
    /// # Errors
    /// ResourceConflictException when source and function were mapped in the meantime.
    pub async fn create_event_source_mapping(
        &self,
        mapping: Mapping,
        now: Timestamp,
    ) -> Result<types::EventSourceMappingConfiguration, ApiError> {
        let judge = |_: Option<&Mapping>| {
            self.check_unique(&mapping, now)?;
            Ok(Some(mapping.clone()))
        };
        self.inner.mappings.shelf.mutate(&mapping.uuid, (), judge).await?;
        self.inner.mappings.changed.notify_one();
        Ok(mapping.show(self.realm(), mapping.phase))
    }

    /// GetEventSourceMapping.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_event_source_mapping(
        &self,
        request: &types::GetEventSourceMappingRequest,
        now: Timestamp,
    ) -> Result<types::EventSourceMappingConfiguration, ApiError> {
        let found = self.inner.mappings.shelf.get(request.uuid.as_deref().unwrap_or_default());
        let mapping = found.ok_or_else(absent)?;
        let phase = mapping.phase.step(now).ok_or_else(absent)?;
        Ok(mapping.show(self.realm(), phase))
    }

    /// UpdateEventSourceMapping: what the request leaves out stays as it is.
    ///
    /// # Errors
    /// ResourceNotFoundException, ResourceInUseException between two states, and as for creation.
    pub async fn update_event_source_mapping(
        &self,
        request: &types::UpdateEventSourceMappingRequest,
        now: Timestamp,
    ) -> Result<types::EventSourceMappingConfiguration, ApiError> {
        let to = request.enabled.map(|enabled| if enabled { Rest::Enabled } else { Rest::Disabled });
        let judge = |found: Option<&Mapping>| {
            let (mapping, phase) = at(found, now)?;
            let phase = phase.change(to, now).map_err(|_| {
                ApiError::resource_in_use("Cannot update the event source mapping because it is in use.")
            })?;
            let settings = mapping.settings.with(&mapping.source, request)?;
            let target = match request.function_name.as_deref() {
                Some(name) => self.mapping_target(Some(name))?,
                None => mapping.target.clone(),
            };
            let next = Mapping { target, settings, phase, last_modified: now, ..mapping.clone() };
            self.check_unique(&next, now)?;
            Ok(Some(next))
        };
        self.change_mapping(request.uuid.as_deref(), judge).await
    }

    /// DeleteEventSourceMapping: it is Deleting for a moment, then gone.
    ///
    /// # Errors
    /// ResourceNotFoundException; ResourceInUseException between two states.
    pub async fn delete_event_source_mapping(
        &self,
        request: &types::DeleteEventSourceMappingRequest,
        now: Timestamp,
    ) -> Result<types::EventSourceMappingConfiguration, ApiError> {
        let judge = |found: Option<&Mapping>| {
            let (mapping, phase) = at(found, now)?;
            let phase = phase.delete(now).map_err(|_| {
                ApiError::resource_in_use("Cannot delete the event source mapping because it is in use.")
            })?;
            Ok(Some(Mapping { phase, last_modified: now, ..mapping.clone() }))
        };
        self.change_mapping(request.uuid.as_deref(), judge).await
    }

    /// ListEventSourceMappings, of one source or function if the request names it.
    ///
    /// # Errors
    /// InvalidParameterValueException for a marker that is none; the errors of function names.
    pub fn list_event_source_mappings(
        &self,
        request: &types::ListEventSourceMappingsRequest,
        now: Timestamp,
    ) -> Result<types::ListEventSourceMappingsResponse, ApiError> {
        let function = match request.function_name.as_deref() {
            Some(name) => Some(self.realm().arn_of(&self.target(Some(name), None)?)),
            None => None,
        };
        let arn = request.event_source_arn.as_deref();
        let fits = |mapping: &Mapping| {
            arn.is_none_or(|arn| mapping.source.arn.as_deref() == Some(arn))
                && function.as_ref().is_none_or(|function| mapping.target.arn(self.realm()) == *function)
        };
        let items = self.mappings(now).into_iter().filter(|(mapping, _)| fits(mapping));
        let items = items.map(|(mapping, phase)| (mapping.uuid.clone(), (mapping, phase)));
        let (mappings, next_marker) = page_of(items, request.marker.as_deref(), request.max_items, MOST_LISTED)?;
        let shown = mappings.into_iter().map(|(mapping, phase)| mapping.show(self.realm(), phase));
        Ok(types::ListEventSourceMappingsResponse { event_source_mappings: Some(shown.collect()), next_marker })
    }

    /// Every mapping and the state it is in by now, in the order of their UUIDs.
    pub fn mappings(&self, now: Timestamp) -> Vec<(Arc<Mapping>, Phase)> {
        let all = self.inner.mappings.shelf.all().into_iter();
        all.filter_map(|(_, mapping)| mapping.phase.step(now).map(|phase| (mapping, phase))).collect()
    }

    /// Writes down what has moved by now, and answers when the next movement is due.
    ///
    /// # Errors
    /// The store failed; what was not written is tried again by the next call.
    pub async fn settle_mappings(&self, now: Timestamp) -> Result<Option<Timestamp>, ApiError> {
        let shelf = &self.inner.mappings.shelf;
        let mut next = None;
        for (uuid, mapping) in shelf.all() {
            let Some(until) = mapping.phase.until() else { continue };
            if mapping.phase.step(now) == Some(mapping.phase) {
                next = Some(next.map_or(until, |next: Timestamp| next.min(until)));
                continue;
            }
            let judge = |found: Option<&Mapping>| {
                let Some(found) = found else { return Ok(None) };
                Ok(found.phase.step(now).map(|phase| Mapping { phase, ..found.clone() }))
            };
            shelf.mutate(&uuid, (), judge).await?;
        }
        Ok(next)
    }

    /// Resolves when a mapping was created, changed or deleted since this was last awaited. For one waiter.
    pub async fn mapping_changed(&self) {
        self.inner.mappings.changed.notified().await;
    }

    async fn change_mapping(
        &self,
        uuid: Option<&str>,
        judge: impl FnOnce(Option<&Mapping>) -> Result<Option<Mapping>, ApiError>,
    ) -> Result<types::EventSourceMappingConfiguration, ApiError> {
        let change = self.inner.mappings.shelf.mutate(uuid.unwrap_or_default(), (), judge).await?;
        self.inner.mappings.changed.notify_one();
        let mapping = change.after.ok_or_else(absent)?;
        Ok(mapping.show(self.realm(), mapping.phase))
    }

    /// The function that a request names; it must exist.
    fn mapping_target(&self, name: Option<&str>) -> Result<Target, ApiError> {
        let missing = || ApiError::invalid_parameter_value("Function does not exist");
        let target = self.target(name, None)?;
        let function = self.function(&target.name).filter(|_| target.account == self.realm().account);
        let function = function.ok_or_else(missing)?;
        let there = match &target.qualifier {
            None | Some(Qualifier::Latest) => true,
            Some(Qualifier::Version(number)) => function.versions.contains_key(number),
            Some(Qualifier::Alias(alias)) => function.attached.aliases.contains_key(alias),
            Some(Qualifier::LatestPublished) => false,
        };
        if !there {
            return Err(missing());
        }
        Ok(Target { function: target.name, qualifier: target.qualifier.map(|qualifier| qualifier.to_string()) })
    }

    /// A function gets the events of one source once. Asked while the table's writer is held.
    fn check_unique(&self, new: &Mapping, now: Timestamp) -> Result<(), ApiError> {
        let part = |mapping: &Mapping| {
            let Source { arn, endpoints, topics, queues, .. } = mapping.source.clone();
            let watched = mapping.settings.document_db.clone().map(|watched| (watched.database, watched.collection));
            (arn, endpoints, topics, queues, watched, mapping.target.clone())
        };
        let wanted = part(new);
        let all = self.mappings(now);
        let other = all.iter().find(|(mapping, _)| mapping.uuid != new.uuid && part(mapping) == wanted);
        let Some((other, _)) = other else { return Ok(()) };
        let Target { function, qualifier } = &new.target;
        let function = match qualifier {
            Some(qualifier) => format!("{function}:{qualifier}"),
            None => function.clone(),
        };
        let uuid = &other.uuid;
        let source = new.source.arn.clone().unwrap_or_else(|| new.source.topics.join(","));
        Err(ApiError::resource_conflict(if new.source.kind.is_queue() {
            format!(
                "An event source mapping with SQS arn (\" {source} \") and function (\" {function} \") already exists. \
                 Please update or delete the existing mapping with UUID {uuid}"
            )
        } else {
            format!(
                "The event source arn (\" {source} \") and function (\" {function} \") provided mapping already exists. \
                 Please update or delete the existing mapping with UUID {uuid}"
            )
        }))
    }
}

/// A mapping and its state by now.
fn at(found: Option<&Mapping>, now: Timestamp) -> Result<(&Mapping, Phase), ApiError> {
    let mapping = found.ok_or_else(absent)?;
    Ok((mapping, mapping.phase.step(now).ok_or_else(absent)?))
}

fn absent() -> ApiError {
    ApiError::resource_not_found("The resource you requested does not exist.")
}

/// What a creation says of the settings, as the change of a mapping that has said nothing yet.
fn changes_of(request: &types::CreateEventSourceMappingRequest) -> types::UpdateEventSourceMappingRequest {
    let request = request.clone();
    types::UpdateEventSourceMappingRequest {
        uuid: None,
        function_name: None,
        enabled: None,
        batch_size: request.batch_size,
        filter_criteria: request.filter_criteria,
        maximum_batching_window_in_seconds: request.maximum_batching_window_in_seconds,
        destination_config: request.destination_config,
        maximum_record_age_in_seconds: request.maximum_record_age_in_seconds,
        bisect_batch_on_function_error: request.bisect_batch_on_function_error,
        maximum_retry_attempts: request.maximum_retry_attempts,
        parallelization_factor: request.parallelization_factor,
        source_access_configurations: request.source_access_configurations,
        tumbling_window_in_seconds: request.tumbling_window_in_seconds,
        function_response_types: request.function_response_types,
        scaling_config: request.scaling_config,
        amazon_managed_kafka_event_source_config: request.amazon_managed_kafka_event_source_config,
        self_managed_kafka_event_source_config: request.self_managed_kafka_event_source_config,
        document_db_event_source_config: request.document_db_event_source_config,
        kms_key_arn: request.kms_key_arn,
        metrics_config: request.metrics_config,
        logging_config: request.logging_config,
        provisioned_poller_config: request.provisioned_poller_config,
    }
}
