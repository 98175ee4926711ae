//! What is kept of a mapping, and how the API shows it.

use std::collections::BTreeMap;

use aws_model::arn::Realm;
use aws_model::types;
use serde::{Deserialize, Serialize};

use super::phase::Phase;
use super::source::{Member, SourceKind};
use crate::record::Timestamp;
use crate::wire::int;

/// An event source mapping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mapping {
    /// Its key.
    pub uuid: String,
    pub source: Source,
    pub target: Target,
    pub settings: Settings,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    pub phase: Phase,
    pub last_modified: Timestamp,
}

/// Where events come from. Fixed at creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub kind: SourceKind,
    /// Of all but Kafka of one's own.
    pub arn: Option<String>,
    /// `KAFKA_BOOTSTRAP_SERVERS` and `host:port` of each broker, of Kafka of one's own.
    #[serde(default)]
    pub endpoints: BTreeMap<String, Vec<String>>,
    /// Kafka: one.
    #[serde(default)]
    pub topics: Vec<String>,
    /// MQ: one.
    #[serde(default)]
    pub queues: Vec<String>,
    pub start: Option<Start>,
    /// Kafka.
    pub consumer_group: Option<String>,
}

/// Where in a stream reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    TrimHorizon,
    Latest,
    At(Timestamp),
}

/// The function that gets the events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub function: String,
    /// A version or an alias.
    pub qualifier: Option<String>,
}

impl Target {
    pub(crate) fn arn(&self, realm: &Realm) -> String {
        realm.function_arn(&self.function, self.qualifier.as_deref())
    }
}

/// All that a caller may change of a mapping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Records in a batch at most.
    pub batch_size: u32,
    /// Seconds to wait for a full batch; `None`: 500 ms.
    pub batching_window_secs: Option<u32>,
    /// Event patterns, one of which must match. Empty: everything does.
    #[serde(default)]
    pub filters: Vec<String>,
    /// Where records go that could not be processed: an ARN, or `kafka://TOPIC`.
    pub on_failure: Option<String>,
    /// Streams and Kafka.
    pub retries: Option<Retries>,
    /// Streams.
    pub shards: Option<Shards>,
    /// `ReportBatchItemFailures`.
    #[serde(default)]
    pub report_batch_item_failures: bool,
    /// Concurrent invocations at most, of a queue.
    pub maximum_concurrency: Option<u32>,
    /// Provisioned mode.
    pub pollers: Option<Pollers>,
    /// How to reach a source that is not AWS's own: kind, and the ARN or name of a secret, subnet, host, in the order given.
    #[serde(default)]
    pub access: Vec<(String, String)>,
    /// Kafka. Kept and shown as it was given.
    pub schema_registry: Option<types::KafkaSchemaRegistryConfig>,
    pub document_db: Option<DocumentDb>,
    /// For the filters. Kept and shown; nothing is encrypted with it.
    pub kms_key_arn: Option<String>,
    /// Metrics to emit: `EventCount` and others.
    pub metrics: Option<Vec<String>>,
    /// `SystemLogLevel` of Kafka.
    pub log_level: Option<String>,
}

/// What becomes of records whose processing fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// Seconds; -1: without end.
    pub maximum_age_secs: i32,
    /// -1: without end.
    pub maximum_attempts: i32,
    /// A failed batch is split in two.
    pub bisect: bool,
}

/// How a shard of a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shards {
    /// Concurrent batches of one shard.
    pub parallelization: u32,
    /// Seconds; 0: none.
    pub tumbling_window_secs: u32,
}

/// Pollers of provisioned mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pollers {
    pub minimum: u32,
    pub maximum: u32,
    /// Mappings of one group share their capacity. Kafka.
    pub group: Option<String>,
}

/// What of a DocumentDB cluster is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentDb {
    pub database: String,
    pub collection: Option<String>,
    /// `Default` or `UpdateLookup`.
    pub full_document: String,
}

impl Mapping {
    /// As the API shows it in a state.
    pub(crate) fn show(&self, realm: &Realm, phase: Phase) -> types::EventSourceMappingConfiguration {
        let Self { source, settings, .. } = self;
        let kind = source.kind;
        let given = |values: &Vec<String>| Some(values.clone()).filter(|values| !values.is_empty());
        let (starting_position, starting_position_timestamp) = match source.start {
            None => (None, None),
            Some(Start::TrimHorizon) => (Some("TRIM_HORIZON"), None),
            Some(Start::Latest) => (Some("LATEST"), None),
            Some(Start::At(moment)) => (Some("AT_TIMESTAMP"), Some(seconds(moment))),
        };
        let schema_registry_config = settings.schema_registry.clone();
        let consumer_group_id = source.consumer_group.clone();
        types::EventSourceMappingConfiguration {
            uuid: Some(self.uuid.clone()),
            starting_position: starting_position.map(str::to_owned),
            starting_position_timestamp,
            batch_size: Some(int(settings.batch_size)),
            maximum_batching_window_in_seconds: settings.batching_window_secs.map(int),
            parallelization_factor: settings.shards.map(|shards| int(shards.parallelization)),
            event_source_arn: source.arn.clone(),
            filter_criteria: (!settings.filters.is_empty()).then(|| types::FilterCriteria {
                filters: Some(
                    settings.filters.iter().map(|filter| types::Filter { pattern: Some(filter.clone()) }).collect(),
                ),
            }),
            function_arn: Some(self.target.arn(realm)),
            last_modified: Some(seconds(self.last_modified)),
            // Until something polls, no record was ever seen.
            last_processing_result: (!kind.is_queue()).then(|| "No records processed".to_owned()),
            state: Some(phase.name().to_owned()),
            state_transition_reason: Some(kind.user_action().to_owned()),
            destination_config: kind.takes(Member::OnFailure).then(|| types::DestinationConfig {
                on_success: None,
                on_failure: Some(types::OnFailure { destination: settings.on_failure.clone() }),
            }),
            topics: given(&source.topics),
            queues: given(&source.queues),
            source_access_configurations: (!settings.access.is_empty()).then(|| {
                let shown = |(kind, uri): &(String, String)| types::SourceAccessConfiguration {
                    type_: Some(kind.clone()),
                    uri: Some(uri.clone()),
                };
                settings.access.iter().map(shown).collect()
            }),
            self_managed_event_source: (kind == SourceKind::Kafka)
                .then(|| types::SelfManagedEventSource { endpoints: Some(source.endpoints.clone()) }),
            maximum_record_age_in_seconds: settings.retries.map(|retries| retries.maximum_age_secs),
            bisect_batch_on_function_error: settings.retries.map(|retries| retries.bisect),
            maximum_retry_attempts: settings.retries.map(|retries| retries.maximum_attempts),
            tumbling_window_in_seconds: settings.shards.map(|shards| int(shards.tumbling_window_secs)),
            function_response_types: kind.takes(Member::FunctionResponseTypes).then(|| {
                let all = settings.report_batch_item_failures.then(|| "ReportBatchItemFailures".to_owned());
                all.into_iter().collect()
            }),
            amazon_managed_kafka_event_source_config: (kind == SourceKind::Msk).then(|| {
                types::AmazonManagedKafkaEventSourceConfig {
                    consumer_group_id: consumer_group_id.clone(),
                    schema_registry_config: schema_registry_config.clone(),
                }
            }),
            self_managed_kafka_event_source_config: (kind == SourceKind::Kafka)
                .then_some(types::SelfManagedKafkaEventSourceConfig { consumer_group_id, schema_registry_config }),
            scaling_config: settings
                .maximum_concurrency
                .map(|most| types::ScalingConfig { maximum_concurrency: Some(int(most)) }),
            document_db_event_source_config: settings.document_db.as_ref().map(|watched| {
                types::DocumentDBEventSourceConfig {
                    database_name: Some(watched.database.clone()),
                    collection_name: watched.collection.clone(),
                    full_document: Some(watched.full_document.clone()),
                }
            }),
            kms_key_arn: settings.kms_key_arn.clone(),
            filter_criteria_error: None,
            event_source_mapping_arn: Some(arn(realm, &self.uuid)),
            metrics_config: settings
                .metrics
                .clone()
                .map(|metrics| types::EventSourceMappingMetricsConfig { metrics: Some(metrics) }),
            logging_config: settings
                .log_level
                .clone()
                .map(|level| types::EventSourceMappingLoggingConfig { system_log_level: Some(level) }),
            provisioned_poller_config: settings.pollers.as_ref().map(|pollers| types::ProvisionedPollerConfig {
                minimum_pollers: Some(int(pollers.minimum)),
                maximum_pollers: Some(int(pollers.maximum)),
                poller_group_name: pollers.group.clone(),
            }),
        }
    }
}

/// ARN of a mapping.
pub(crate) fn arn(realm: &Realm, uuid: &str) -> String {
    format!("arn:aws:lambda:{}:{}:event-source-mapping:{uuid}", realm.region, realm.account)
}

/// Seconds since the epoch, as JSON carries moments.
fn seconds(moment: Timestamp) -> f64 {
    moment.0 as f64 / 1_000.0
}
