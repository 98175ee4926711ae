//! What a request may say about each kind of source: members, limits, defaults.

use aws_model::{ApiError, types};

use super::pattern::is_pattern;
use super::record::{DocumentDb, Pollers, Retries, Settings, Shards, Source, Start};
use super::source::{Member, SourceKind};
use crate::record::Timestamp;

/// Filters of one mapping.
const MOST_FILTERS: usize = 5;
/// Shortest finite MaximumRecordAgeInSeconds.
const LEAST_RECORD_AGE_SECS: i32 = 60;

type Changes = types::UpdateEventSourceMappingRequest;

/// The source that a creation names.
///
/// # Errors
/// InvalidParameterValueException.
pub(crate) fn source(request: &types::CreateEventSourceMappingRequest, uuid: &str) -> Result<Source, ApiError> {
    let endpoints = request.self_managed_event_source.as_ref().map(|own| own.endpoints.clone().unwrap_or_default());
    let kind = match (&endpoints, request.event_source_arn.as_deref()) {
        (Some(_), None) => Some(SourceKind::Kafka),
        (None, Some(arn)) => SourceKind::of_arn(arn),
        (None, None) | (Some(_), Some(_)) => None,
    };
    let kind = kind.ok_or_else(|| invalid("Unrecognized event source."))?;
    if kind == SourceKind::Kafka {
        let servers = endpoints.as_ref().and_then(|endpoints| endpoints.get("KAFKA_BOOTSTRAP_SERVERS"));
        if servers.is_none_or(Vec::is_empty) {
            return Err(invalid("Unrecognized event source."));
        }
        if request.source_access_configurations.as_ref().is_none_or(Vec::is_empty) {
            return Err(invalid("Required 'sourceAccessConfigurations' parameter is missing."));
        }
    }
    let list = |given: &Option<Vec<String>>, member, name: &str| match given {
        Some(_) if !kind.takes(member) => Err(unsupported(name)),
        None if kind.takes(member) => Err(null(name)),
        given => Ok(given.clone().unwrap_or_default()),
    };
    let group = match kind {
        SourceKind::Msk => request.amazon_managed_kafka_event_source_config.as_ref().map(|own| &own.consumer_group_id),
        SourceKind::Kafka => request.self_managed_kafka_event_source_config.as_ref().map(|own| &own.consumer_group_id),
        _ => None,
    };
    let group = group.cloned().flatten().filter(|group| !group.is_empty());
    Ok(Source {
        kind,
        arn: request.event_source_arn.clone(),
        endpoints: endpoints.unwrap_or_default(),
        topics: list(&request.topics, Member::Topics, "topics")?,
        queues: list(&request.queues, Member::Queues, "queues")?,
        start: start(kind, request)?,
        consumer_group: kind.is_kafka().then(|| group.unwrap_or_else(|| uuid.to_owned())),
    })
}

fn start(kind: SourceKind, request: &types::CreateEventSourceMappingRequest) -> Result<Option<Start>, ApiError> {
    let position = request.starting_position.as_deref();
    let moment = request.starting_position_timestamp;
    if kind.is_queue() || kind == SourceKind::Mq {
        if position.is_some() || moment.is_some() {
            let kind = if kind.is_queue() { "SQS" } else { "MQ" };
            return Err(invalid(format!("StartingPosition is not valid for {kind} event sources.")));
        }
        return Ok(None);
    }
    let position = match position {
        Some(position) => position,
        // A new consumer group of one's own Kafka begins at the oldest record.
        None if kind == SourceKind::Kafka => "TRIM_HORIZON",
        None => {
            return Err(null("startingPosition"));
        }
    };
    if position != "AT_TIMESTAMP" {
        if moment.is_some() {
            return Err(invalid("Timestamp only valid with StartingPosition AT_TIMESTAMP"));
        }
        return Ok(Some(if position == "LATEST" { Start::Latest } else { Start::TrimHorizon }));
    }
    if kind == SourceKind::DynamoDb {
        let arn = request.event_source_arn.as_deref().unwrap_or_default();
        return Err(invalid(format!("Unsupported starting position for arn type: {arn}")));
    }
    match moment {
        None => Err(null("startingPositionTimestamp")),
        Some(moment) if moment < 0.0 => Err(invalid(
            "Received Exception while reading from provided stream. class java.lang.Long can not be converted to a \
             Timestamp",
        )),
        // Whole milliseconds; the conversion saturates.
        Some(moment) => Ok(Some(Start::At(Timestamp((moment * 1_000.0) as i64)))),
    }
}

impl Settings {
    /// Of a new mapping that says nothing.
    pub(crate) fn new(kind: SourceKind) -> Self {
        let without_end = Retries { maximum_age_secs: -1, maximum_attempts: -1, bisect: false };
        Self {
            batch_size: kind.default_batch(),
            batching_window_secs: kind.default_window(),
            filters: Vec::new(),
            on_failure: None,
            retries: kind.takes(Member::Retries).then_some(without_end),
            shards: kind.takes(Member::Shards).then_some(Shards { parallelization: 1, tumbling_window_secs: 0 }),
            report_batch_item_failures: false,
            maximum_concurrency: None,
            pollers: None,
            access: Vec::new(),
            schema_registry: None,
            document_db: None,
            kms_key_arn: None,
            metrics: None,
            log_level: None,
        }
    }

    /// With the changes of a request, judged as a whole.
    ///
    /// # Errors
    /// InvalidParameterValueException.
    pub(crate) fn with(&self, source: &Source, changes: &Changes) -> Result<Self, ApiError> {
        let kind = source.kind;
        check_members(kind, changes)?;
        let mut next = self.clone();
        if let Some(size) = changes.batch_size {
            next.batch_size = unsigned(size);
        }
        if let Some(window) = changes.maximum_batching_window_in_seconds {
            next.batching_window_secs = Some(unsigned(window));
        }
        if let Some(criteria) = &changes.filter_criteria {
            next.filters = filters(criteria)?;
        }
        if let Some(destination) = &changes.destination_config {
            next.on_failure = on_failure(kind, destination)?;
        }
        if let Some(retries) = &mut next.retries {
            retries.maximum_age_secs = changes.maximum_record_age_in_seconds.unwrap_or(retries.maximum_age_secs);
            retries.maximum_attempts = changes.maximum_retry_attempts.unwrap_or(retries.maximum_attempts);
            retries.bisect = changes.bisect_batch_on_function_error.unwrap_or(retries.bisect);
        }
        if let Some(shards) = &mut next.shards {
            shards.parallelization = changes.parallelization_factor.map_or(shards.parallelization, unsigned);
            shards.tumbling_window_secs =
                changes.tumbling_window_in_seconds.map_or(shards.tumbling_window_secs, unsigned);
        }
        if let Some(types) = &changes.function_response_types {
            next.report_batch_item_failures = types.iter().any(|name| name == "ReportBatchItemFailures");
        }
        if let Some(scaling) = &changes.scaling_config {
            next.maximum_concurrency = scaling.maximum_concurrency.map(unsigned);
        }
        if let Some(pollers) = &changes.provisioned_poller_config {
            next.pollers = self.pollers_after(kind, pollers)?;
        }
        if let Some(access) = &changes.source_access_configurations {
            let pair = |one: &types::SourceAccessConfiguration| {
                (one.type_.clone().unwrap_or_default(), one.uri.clone().unwrap_or_default())
            };
            next.access = access.iter().map(pair).collect();
        }
        next.schema_registry_after(source, changes)?;
        if let Some(watched) = &changes.document_db_event_source_config {
            next.document_db = Some(document_db(self.document_db.as_ref(), watched)?);
        }
        if let Some(key) = &changes.kms_key_arn {
            next.kms_key_arn = Some(key.clone()).filter(|key| !key.is_empty());
        }
        if let Some(metrics) = &changes.metrics_config {
            next.metrics = metrics.metrics.clone().filter(|metrics| !metrics.is_empty());
        }
        if let Some(logging) = &changes.logging_config {
            next.log_level = logging.system_log_level.clone();
        }
        next.check(kind)?;
        Ok(next)
    }

    /// What holds between the settings, however they came about.
    fn check(&self, kind: SourceKind) -> Result<(), ApiError> {
        let window = self.batching_window_secs.unwrap_or_default();
        if kind == SourceKind::SqsFifo && window > 0 {
            return Err(invalid("Batching window is not supported for FIFO queues"));
        }
        if self.batch_size > kind.largest_batch() {
            return Err(invalid(format!(
                "Batch size {} exceeds the maximum of {} for this event source.",
                self.batch_size,
                kind.largest_batch()
            )));
        }
        if kind == SourceKind::Sqs && self.batch_size > 10 && window == 0 {
            return Err(invalid(
                "Maximum batch window in seconds must be greater than 0 if maximum batch size is greater than 10",
            ));
        }
        if self.retries.is_some_and(|retries| (0..LEAST_RECORD_AGE_SECS).contains(&retries.maximum_age_secs)) {
            return Err(invalid("MaximumRecordAgeInSeconds must be -1 or between 60 and 604800."));
        }
        if self.shards.is_some_and(|shards| shards.parallelization > 1 && shards.tumbling_window_secs > 0) {
            return Err(invalid("ParallelizationFactor must be 1 with a TumblingWindowInSeconds."));
        }
        if self.pollers.is_some() && self.maximum_concurrency.is_some() {
            return Err(invalid(
                "Provisioned mode for SQS ESM does not support maximum concurrency feature. Use MaximumPollers as the \
                 control mechanism and remove maximum concurrency.",
            ));
        }
        if self.log_level.is_some() && self.pollers.is_none() {
            return Err(invalid("LoggingConfig needs a ProvisionedPollerConfig."));
        }
        let secret = self.access.iter().any(|(kind, _)| kind == "BASIC_AUTH");
        if matches!(kind, SourceKind::Mq | SourceKind::DocumentDb) && !secret {
            return Err(invalid("Required 'sourceAccessConfigurations' parameter is missing."));
        }
        if kind == SourceKind::DocumentDb && self.document_db.is_none() {
            return Err(null("documentDBEventSourceConfig"));
        }
        Ok(())
    }

    fn pollers_after(
        &self,
        kind: SourceKind,
        given: &types::ProvisionedPollerConfig,
    ) -> Result<Option<Pollers>, ApiError> {
        if given.minimum_pollers.is_none() && given.maximum_pollers.is_none() && given.poller_group_name.is_none() {
            return Ok(None);
        }
        if kind.is_queue() && given.poller_group_name.is_some() {
            return Err(unsupported("pollerGroupName"));
        }
        let least = if kind.is_queue() { 2 } else { 1 };
        let before = self.pollers.clone().unwrap_or(Pollers { minimum: least, maximum: 200, group: None });
        let minimum = given.minimum_pollers.map_or(before.minimum, unsigned);
        let maximum = given.maximum_pollers.map_or(before.maximum.max(minimum), unsigned);
        if minimum < least || maximum < minimum {
            return Err(invalid(format!(
                "MinimumPollers should be between [{least}, 200] and MaximumPollers should be between \
                 [MinimumPollers, 10000]"
            )));
        }
        Ok(Some(Pollers { minimum, maximum, group: given.poller_group_name.clone().or(before.group) }))
    }

    fn schema_registry_after(&mut self, source: &Source, changes: &Changes) -> Result<(), ApiError> {
        let managed = changes.amazon_managed_kafka_event_source_config.as_ref();
        let own = changes.self_managed_kafka_event_source_config.as_ref();
        let groups =
            [managed.and_then(|c| c.consumer_group_id.as_ref()), own.and_then(|c| c.consumer_group_id.as_ref())];
        let group = groups.into_iter().flatten().find(|group| !group.is_empty());
        if group.is_some() && group != source.consumer_group.as_ref() {
            return Err(invalid("The ConsumerGroupId of an event source mapping cannot be changed."));
        }
        let registries = [
            managed.and_then(|c| c.schema_registry_config.as_ref()),
            own.and_then(|c| c.schema_registry_config.as_ref()),
        ];
        if let Some(registry) = registries.into_iter().flatten().next() {
            let removed = registry.schema_registry_uri.as_deref().unwrap_or_default().is_empty();
            self.schema_registry = (!removed).then(|| registry.clone());
        }
        Ok(())
    }
}

fn check_members(kind: SourceKind, changes: &Changes) -> Result<(), ApiError> {
    let given = [
        (changes.destination_config.is_some(), Member::OnFailure, "destinationConfig"),
        (changes.maximum_record_age_in_seconds.is_some(), Member::Retries, "maximumRecordAgeInSeconds"),
        (changes.maximum_retry_attempts.is_some(), Member::Retries, "maximumRetryAttempts"),
        (changes.bisect_batch_on_function_error.is_some(), Member::Retries, "bisectBatchOnFunctionError"),
        (changes.parallelization_factor.is_some(), Member::Shards, "parallelizationFactor"),
        (changes.tumbling_window_in_seconds.is_some(), Member::Shards, "tumblingWindowInSeconds"),
        (
            changes.function_response_types.as_ref().is_some_and(|types| !types.is_empty()),
            Member::FunctionResponseTypes,
            "functionResponseTypes",
        ),
        (changes.source_access_configurations.is_some(), Member::SourceAccess, "sourceAccessConfigurations"),
        (changes.scaling_config.is_some(), Member::ScalingConfig, "scalingConfig"),
        (changes.provisioned_poller_config.is_some(), Member::Pollers, "provisionedPollerConfig"),
        (changes.logging_config.is_some(), Member::Logging, "loggingConfig"),
        (
            changes.amazon_managed_kafka_event_source_config.is_some(),
            Member::AmazonManagedKafka,
            "amazonManagedKafkaEventSourceConfig",
        ),
        (
            changes.self_managed_kafka_event_source_config.is_some(),
            Member::SelfManagedKafka,
            "selfManagedKafkaEventSourceConfig",
        ),
        (changes.document_db_event_source_config.is_some(), Member::DocumentDb, "documentDBEventSourceConfig"),
    ];
    match given.into_iter().find(|(given, member, _)| *given && !kind.takes(*member)) {
        Some((_, _, name)) => Err(unsupported(name)),
        None => Ok(()),
    }
}

fn filters(criteria: &types::FilterCriteria) -> Result<Vec<String>, ApiError> {
    let filters = criteria.filters.as_deref().unwrap_or_default();
    if filters.len() > MOST_FILTERS {
        return Err(invalid(format!(
            "{} filters exceed the limit of {MOST_FILTERS} filters for an event source mapping.",
            filters.len()
        )));
    }
    let patterns = filters.iter().map(|filter| filter.pattern.clone().unwrap_or_default());
    let patterns: Vec<String> = patterns.collect();
    match patterns.iter().all(|pattern| is_pattern(pattern)) {
        true => Ok(patterns),
        false => Err(invalid("Invalid filter pattern definition.")),
    }
}

fn on_failure(kind: SourceKind, config: &types::DestinationConfig) -> Result<Option<String>, ApiError> {
    if config.on_success.as_ref().is_some_and(|success| success.destination.is_some()) {
        return Err(unsupported("destinationConfig"));
    }
    let destination = config.on_failure.as_ref().and_then(|failure| failure.destination.clone());
    let Some(destination) = destination.filter(|destination| !destination.is_empty()) else { return Ok(None) };
    let service = destination.strip_prefix("arn:").and_then(|rest| rest.split(':').nth(1));
    let fits = match service {
        Some("sqs" | "sns") => !destination.ends_with(".fifo"),
        Some("s3") => true,
        Some(_) => false,
        // The shape leaves `kafka://TOPIC` alone.
        None => kind.is_kafka(),
    };
    match fits {
        true => Ok(Some(destination)),
        false => Err(invalid(format!("The destination ARN {destination} is invalid."))),
    }
}

fn document_db(
    before: Option<&DocumentDb>,
    given: &types::DocumentDBEventSourceConfig,
) -> Result<DocumentDb, ApiError> {
    let database = given.database_name.clone().or_else(|| before.map(|before| before.database.clone()));
    let full = given.full_document.clone().or_else(|| before.map(|before| before.full_document.clone()));
    Ok(DocumentDb {
        database: database.ok_or_else(|| null("documentDBEventSourceConfig.databaseName"))?,
        collection: given.collection_name.clone().or_else(|| before.and_then(|before| before.collection.clone())),
        full_document: full.unwrap_or_else(|| "Default".to_owned()),
    })
}

/// The shapes allow nothing negative here.
fn unsigned(number: i32) -> u32 {
    number.unsigned_abs()
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::invalid_parameter_value(message)
}

fn unsupported(member: &str) -> ApiError {
    let mut letters = member.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let name: String = first.into_iter().chain(letters).collect();
    invalid(format!("Unsupported {name} parameter for given event source mapping type."))
}

/// What Lambda says where a member is needed for this kind of source only.
fn null(member: &str) -> ApiError {
    invalid(format!(
        "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null."
    ))
}
