//! Event source mappings through the API: what each kind of source takes, states in time, restarts.

use proptest::prelude::*;

use super::*;
use crate::mappings::{Phase, Rest};

const QUEUE: &str = "arn:aws:sqs:us-east-1:123456789012:queue";
const STREAM: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
const TABLE: &str = "arn:aws:dynamodb:us-east-1:123456789012:table/t/stream/2026-01-01T00:00:00.000";
const MSK: &str = "arn:aws:kafka:us-east-1:123456789012:cluster/c/0a0a0a0a-1";
const BROKER: &str = "arn:aws:mq:us-east-1:123456789012:broker:b:b-1";
const DOCS: &str = "arn:aws:rds:us-east-1:123456789012:cluster:docs";
const SECRET: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:s";

/// Moments after [`NOW`].
fn after(ms: i64) -> Timestamp {
    Timestamp(NOW.0 + ms)
}

/// When every movement that began at [`NOW`] is over.
const LATER: i64 = 10_000;

impl World {
    async fn map(&self, members: Value) -> Result<Value, ApiError> {
        let mut body = json!({"FunctionName": "f"});
        for (member, value) in members.as_object().unwrap() {
            body[member] = value.clone();
        }
        let request: types::CreateEventSourceMappingRequest = serde_json::from_value(body).unwrap();
        let shown = self.plane.create_event_source_mapping(self.plane.draft_mapping(&request, NOW)?, NOW).await?;
        Ok(serde_json::to_value(shown).unwrap())
    }

    async fn remap(&self, uuid: &str, members: Value, now: Timestamp) -> Result<Value, ApiError> {
        let mut body = members;
        body["UUID"] = json!(uuid);
        let request: types::UpdateEventSourceMappingRequest = serde_json::from_value(body).unwrap();
        let shown = self.plane.update_event_source_mapping(&request, now).await?;
        Ok(serde_json::to_value(shown).unwrap())
    }

    async fn unmap(&self, uuid: &str, now: Timestamp) -> Result<Value, ApiError> {
        let request = types::DeleteEventSourceMappingRequest { uuid: Some(uuid.to_owned()) };
        let shown = self.plane.delete_event_source_mapping(&request, now).await?;
        Ok(serde_json::to_value(shown).unwrap())
    }

    fn mapping(&self, uuid: &str, now: Timestamp) -> Result<Value, ApiError> {
        let request = types::GetEventSourceMappingRequest { uuid: Some(uuid.to_owned()) };
        Ok(serde_json::to_value(self.plane.get_event_source_mapping(&request, now)?).unwrap())
    }

    async fn refused(&self, members: Value) -> (&'static str, String) {
        let error = self.map(members).await.unwrap_err();
        (error.name, error.message)
    }
}

fn uuid(shown: &Value) -> String {
    shown["UUID"].as_str().unwrap().to_owned()
}

async fn world() -> World {
    let world = World::new().await;
    world.active("f").await;
    world
}

fn secret() -> Value {
    json!([{"Type": "BASIC_AUTH", "URI": SECRET}])
}

#[tokio::test]
async fn each_kind_of_source_has_its_defaults() {
    let world = world().await;
    let function = "arn:aws:lambda:us-east-1:123456789012:function:f";
    let common = |mut expected: Value, shown: &Value| {
        expected["UUID"] = shown["UUID"].clone();
        expected["EventSourceMappingArn"] =
            json!(format!("arn:aws:lambda:us-east-1:123456789012:event-source-mapping:{}", uuid(shown)));
        expected["FunctionArn"] = json!(function);
        expected["LastModified"] = json!(1_767_323_045.678);
        expected["State"] = json!("Creating");
        expected
    };
    let shown = world.map(json!({"EventSourceArn": QUEUE})).await.unwrap();
    let queue = json!({
        "EventSourceArn": QUEUE, "BatchSize": 10, "MaximumBatchingWindowInSeconds": 0, "FunctionResponseTypes": [],
        "StateTransitionReason": "USER_INITIATED",
    });
    assert_eq!(shown, common(queue, &shown));

    for arn in [STREAM, TABLE] {
        let shown = world.map(json!({"EventSourceArn": arn, "StartingPosition": "LATEST"})).await.unwrap();
        let stream = json!({
            "EventSourceArn": arn, "StartingPosition": "LATEST", "BatchSize": 100, "MaximumBatchingWindowInSeconds": 0,
            "ParallelizationFactor": 1, "LastProcessingResult": "No records processed",
            "StateTransitionReason": "User action", "DestinationConfig": {"OnFailure": {}},
            "MaximumRecordAgeInSeconds": -1, "BisectBatchOnFunctionError": false, "MaximumRetryAttempts": -1,
            "TumblingWindowInSeconds": 0, "FunctionResponseTypes": [],
        });
        assert_eq!(shown, common(stream, &shown));
    }

    let given = json!({"EventSourceArn": MSK, "Topics": ["t"], "StartingPosition": "TRIM_HORIZON"});
    let shown = world.map(given).await.unwrap();
    assert_eq!(shown["AmazonManagedKafkaEventSourceConfig"], json!({"ConsumerGroupId": uuid(&shown)}));
    assert_eq!((&shown["Topics"], &shown["BatchSize"]), (&json!(["t"]), &json!(100)));
    assert!(shown.get("MaximumBatchingWindowInSeconds").is_none(), "half a second cannot be shown");

    let servers = json!({"Endpoints": {"KAFKA_BOOTSTRAP_SERVERS": ["h:9092"]}});
    let access = json!([{"Type": "SASL_SCRAM_512_AUTH", "URI": SECRET}]);
    let own = json!({"SelfManagedEventSource": servers, "Topics": ["t"], "SourceAccessConfigurations": access,
        "SelfManagedKafkaEventSourceConfig": {"ConsumerGroupId": "g"}});
    let shown = world.map(own).await.unwrap();
    assert_eq!(shown["SelfManagedKafkaEventSourceConfig"], json!({"ConsumerGroupId": "g"}));
    assert_eq!((&shown["SelfManagedEventSource"], &shown["SourceAccessConfigurations"]), (&servers, &access));
    assert!(shown.get("EventSourceArn").is_none());

    let broker = json!({"EventSourceArn": BROKER, "Queues": ["q"], "SourceAccessConfigurations": secret()});
    let shown = world.map(broker).await.unwrap();
    assert_eq!((&shown["Queues"], &shown["BatchSize"]), (&json!(["q"]), &json!(100)));
    assert!(shown.get("DestinationConfig").is_none() && shown.get("StartingPosition").is_none());

    let watched = json!({"DatabaseName": "d"});
    let docs = json!({"EventSourceArn": DOCS, "SourceAccessConfigurations": secret(), "StartingPosition": "LATEST",
        "DocumentDBEventSourceConfig": watched});
    let shown = world.map(docs).await.unwrap();
    assert_eq!(shown["DocumentDBEventSourceConfig"], json!({"DatabaseName": "d", "FullDocument": "Default"}));
}

#[tokio::test]
async fn what_does_not_fit_the_source_is_refused() {
    let world = world().await;
    let absent = |member: &str| {
        format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null."
        )
    };
    let unsupported = |member: &str| format!("Unsupported {member} parameter for given event source mapping type.");
    let queue = |mut more: Value| {
        more["EventSourceArn"] = json!(QUEUE);
        more
    };
    let stream = |mut more: Value| {
        more["EventSourceArn"] = json!(STREAM);
        more.as_object_mut().unwrap().entry("StartingPosition").or_insert(json!("LATEST"));
        more
    };
    let window = "Maximum batch window in seconds must be greater than 0 if maximum batch size is greater than 10";
    let cases = [
        (json!({}), "Unrecognized event source.".to_owned()),
        (json!({"EventSourceArn": "arn:aws:sns:us-east-1:123456789012:t"}), "Unrecognized event source.".to_owned()),
        (json!({"EventSourceArn": STREAM}), absent("startingPosition")),
        (json!({"EventSourceArn": MSK, "StartingPosition": "LATEST"}), absent("topics")),
        (json!({"EventSourceArn": BROKER, "SourceAccessConfigurations": secret()}), absent("queues")),
        (
            json!({"EventSourceArn": TABLE, "StartingPosition": "AT_TIMESTAMP", "StartingPositionTimestamp": 1.0}),
            format!("Unsupported starting position for arn type: {TABLE}"),
        ),
        (
            stream(json!({"StartingPositionTimestamp": 1.0})),
            "Timestamp only valid with StartingPosition AT_TIMESTAMP".to_owned(),
        ),
        (
            queue(json!({"StartingPosition": "LATEST"})),
            "StartingPosition is not valid for SQS event sources.".to_owned(),
        ),
        (queue(json!({"BatchSize": 11})), window.to_owned()),
        (queue(json!({"BisectBatchOnFunctionError": true})), unsupported("BisectBatchOnFunctionError")),
        (queue(json!({"ParallelizationFactor": 2})), unsupported("ParallelizationFactor")),
        (queue(json!({"DestinationConfig": {"OnFailure": {"Destination": QUEUE}}})), unsupported("DestinationConfig")),
        (queue(json!({"Topics": ["t"]})), unsupported("Topics")),
        (stream(json!({"ScalingConfig": {"MaximumConcurrency": 2}})), unsupported("ScalingConfig")),
        (stream(json!({"Queues": ["q"]})), unsupported("Queues")),
        (
            stream(json!({"FilterCriteria": {"Filters": [{"Pattern": "{"}]}})),
            "Invalid filter pattern definition.".to_owned(),
        ),
        (
            stream(
                json!({"DestinationConfig": {"OnFailure": {"Destination": "arn:aws:lambda:us-east-1:123456789012:function:g"}}}),
            ),
            "The destination ARN arn:aws:lambda:us-east-1:123456789012:function:g is invalid.".to_owned(),
        ),
        (queue(json!({"FunctionName": "nobody"})), "Function does not exist".to_owned()),
        (queue(json!({"FunctionName": "f:7"})), "Function does not exist".to_owned()),
    ];
    for (members, message) in cases {
        assert_eq!(world.refused(members.clone()).await, ("InvalidParameterValueException", message), "{members}");
    }
    let refused = [
        queue(json!({"ScalingConfig": {"MaximumConcurrency": 5}, "ProvisionedPollerConfig": {"MinimumPollers": 3}})),
        queue(json!({"ProvisionedPollerConfig": {"MinimumPollers": 1}})),
        queue(json!({"ProvisionedPollerConfig": {"MinimumPollers": 9, "MaximumPollers": 3}})),
        json!({"EventSourceArn": format!("{QUEUE}.fifo"), "BatchSize": 11}),
        json!({"EventSourceArn": format!("{QUEUE}.fifo"), "MaximumBatchingWindowInSeconds": 1}),
        stream(json!({"MaximumRecordAgeInSeconds": 59})),
        stream(json!({"ParallelizationFactor": 2, "TumblingWindowInSeconds": 30})),
        json!({"EventSourceArn": DOCS, "StartingPosition": "LATEST", "SourceAccessConfigurations": secret()}),
        json!({"SelfManagedEventSource": {"Endpoints": {"KAFKA_BOOTSTRAP_SERVERS": ["h:1"]}}, "Topics": ["t"]}),
    ];
    for members in refused {
        assert_eq!(world.refused(members.clone()).await.0, "InvalidParameterValueException", "{members}");
    }
}

#[tokio::test]
async fn a_change_keeps_what_it_does_not_name() {
    let world = world().await;
    let filters = json!({"Filters": [{"Pattern": "{\"body\": [1]}"}]});
    let members = json!({"EventSourceArn": QUEUE, "BatchSize": 7, "FilterCriteria": filters, "Enabled": false,
        "FunctionResponseTypes": ["ReportBatchItemFailures"], "ScalingConfig": {"MaximumConcurrency": 5}});
    let uuid = uuid(&world.map(members).await.unwrap());
    assert_eq!(world.mapping(&uuid, after(LATER)).unwrap()["State"], "Disabled");
    let shown = world.remap(&uuid, json!({"BatchSize": 3, "ScalingConfig": {}}), after(LATER)).await.unwrap();
    assert_eq!((&shown["State"], &shown["BatchSize"]), (&json!("Updating"), &json!(3)));
    assert!(shown.get("ScalingConfig").is_none());
    assert_eq!(shown["FilterCriteria"], filters);
    assert_eq!(shown["FunctionResponseTypes"], json!(["ReportBatchItemFailures"]));
    let shown = world.remap(&uuid, json!({"Enabled": true, "FilterCriteria": {"Filters": []}}), after(2 * LATER)).await;
    let shown = shown.unwrap();
    assert_eq!(shown["State"], "Enabling");
    assert!(shown.get("FilterCriteria").is_none());
    assert_eq!(world.mapping(&uuid, after(3 * LATER)).unwrap()["State"], "Enabled");
    let error = world.remap(&uuid, json!({"BatchSize": 30}), after(3 * LATER)).await.unwrap_err();
    assert_eq!(error.name, "InvalidParameterValueException");
    assert_eq!(world.mapping(&uuid, after(3 * LATER)).unwrap()["BatchSize"], 3);
}

#[tokio::test]
async fn between_two_states_a_mapping_takes_no_change() {
    let world = world().await;
    let uuid = uuid(&world.map(json!({"EventSourceArn": QUEUE})).await.unwrap());
    let error = world.remap(&uuid, json!({}), after(1)).await.unwrap_err();
    let in_use = "Cannot update the event source mapping because it is in use.";
    assert_eq!(said(&error), ("ResourceInUseException", in_use));
    let error = world.unmap(&uuid, after(1)).await.unwrap_err();
    let in_use = "Cannot delete the event source mapping because it is in use.";
    assert_eq!(said(&error), ("ResourceInUseException", in_use));
    assert_eq!(world.unmap(&uuid, after(LATER)).await.unwrap()["State"], "Deleting");
    assert_eq!(world.unmap(&uuid, after(LATER + 1)).await.unwrap_err().name, "ResourceInUseException");
    let error = world.mapping(&uuid, after(2 * LATER)).unwrap_err();
    assert_eq!(said(&error), ("ResourceNotFoundException", "The resource you requested does not exist."));
    assert_eq!(world.remap(&uuid, json!({}), after(2 * LATER)).await.unwrap_err().name, "ResourceNotFoundException");
}

#[tokio::test]
async fn a_source_is_mapped_to_a_function_once() {
    let world = world().await;
    let first = uuid(&world.map(json!({"EventSourceArn": QUEUE})).await.unwrap());
    let (name, message) = world.refused(json!({"EventSourceArn": QUEUE})).await;
    assert_eq!(name, "ResourceConflictException");
    assert_eq!(
        message,
        format!(
            "An event source mapping with SQS arn (\" {QUEUE} \") and function (\" f \") already exists. Please update \
             or delete the existing mapping with UUID {first}"
        )
    );
    world.map(json!({"EventSourceArn": QUEUE, "FunctionName": "f:$LATEST"})).await.unwrap();
    world.active("g").await;
    let second = uuid(&world.map(json!({"EventSourceArn": QUEUE, "FunctionName": "g"})).await.unwrap());
    let error = world.remap(&second, json!({"FunctionName": "f"}), after(LATER)).await.unwrap_err();
    assert_eq!(error.name, "ResourceConflictException");
    world.unmap(&first, after(LATER)).await.unwrap();
    world.remap(&second, json!({"FunctionName": "f"}), after(2 * LATER)).await.unwrap();
}

#[tokio::test]
async fn lists_are_narrowed_and_paged() {
    let world = world().await;
    world.active("g").await;
    for n in 0..105 {
        world.map(json!({"EventSourceArn": format!("{QUEUE}-{n}")})).await.unwrap();
    }
    world.map(json!({"EventSourceArn": format!("{QUEUE}-0"), "FunctionName": "g"})).await.unwrap();
    let list = |members: Value| {
        let request: types::ListEventSourceMappingsRequest = serde_json::from_value(members).unwrap();
        let listed = world.plane.list_event_source_mappings(&request, NOW).unwrap();
        (listed.event_source_mappings.unwrap().len(), listed.next_marker)
    };
    let (count, marker) = list(json!({"FunctionName": "f"}));
    assert_eq!((count, list(json!({"FunctionName": "f", "Marker": marker.unwrap()}))), (100, (5, None)));
    assert_eq!(list(json!({"EventSourceArn": format!("{QUEUE}-0")})), (2, None));
    assert_eq!(list(json!({"EventSourceArn": format!("{QUEUE}-0"), "FunctionName": "g"})), (1, None));
    assert_eq!(list(json!({"FunctionName": "nobody"})), (0, None));
    assert_eq!(list(json!({"MaxItems": 10_000})).0, 100);
}

#[tokio::test]
async fn a_restart_goes_on_with_what_was_moving() {
    let mut world = world().await;
    let kept = uuid(&world.map(json!({"EventSourceArn": QUEUE, "Tags": {"a": "b"}})).await.unwrap());
    let gone = uuid(&world.map(json!({"EventSourceArn": STREAM, "StartingPosition": "LATEST"})).await.unwrap());
    world.unmap(&gone, after(LATER)).await.unwrap();
    world.restart().await;
    assert_eq!(world.mapping(&kept, NOW).unwrap()["State"], "Creating");
    assert_eq!(world.mapping(&gone, after(LATER)).unwrap()["State"], "Deleting");
    let due = world.plane.settle_mappings(after(LATER)).await.unwrap();
    assert!(due.is_some_and(|due| due > after(LATER)), "the deletion is still to come: {due:?}");
    assert_eq!(world.plane.settle_mappings(after(2 * LATER)).await.unwrap(), None);
    world.restart().await;
    let all = world.plane.mappings(NOW);
    assert_eq!(all.len(), 1, "what is gone was forgotten: {all:?}");
    assert_eq!((all[0].0.uuid.as_str(), all[0].1), (kept.as_str(), Phase::Resting(Rest::Enabled)));
    assert_eq!(all[0].0.tags["a"], "b");
}

#[tokio::test]
async fn whoever_waits_hears_of_changes() {
    let world = world().await;
    world.map(json!({"EventSourceArn": QUEUE})).await.unwrap();
    world.plane.mapping_changed().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Updates, deletions and looks at any time, with restarts, against a model of the states.
    #[test]
    fn states_follow_a_model(steps in prop::collection::vec((0u8..6, 0i64..3_000), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = world().await;
            let uuid = uuid(&world.map(json!({"EventSourceArn": QUEUE})).await.unwrap());
            // The state, where it goes (nothing: gone), and since when.
            let mut model: Option<(&str, Option<&str>, i64)> = Some(("Creating", Some("Enabled"), 0));
            let mut now = 0;
            for (step, wait) in steps {
                now += wait;
                if let Some((_, Some(to), since)) = model && now >= since + 2_000 {
                    model = Some((to, Some(to), i64::MAX / 2));
                } else if let Some((_, None, since)) = model && now >= since + 2_000 {
                    model = None;
                }
                let resting = matches!(model, Some(("Enabled" | "Disabled", _, _)));
                let expected = |done: &'static str| match (&model, resting) {
                    (None, _) => Err("ResourceNotFoundException"),
                    (Some(_), false) => Err("ResourceInUseException"),
                    (Some(_), true) => Ok(done),
                };
                match step {
                    0 | 1 => {
                        let enable = step == 1;
                        let to = if enable { "Enabled" } else { "Disabled" };
                        let through = match model {
                            Some((at, _, _)) if at == to => "Updating",
                            _ => if enable { "Enabling" } else { "Disabling" },
                        };
                        let got = world.remap(&uuid, json!({"Enabled": enable}), after(now)).await;
                        let expected = expected(through);
                        assert_eq!(got.as_ref().map(|shown| shown["State"].as_str().unwrap()).map_err(|e| e.name), expected);
                        if expected.is_ok() { model = Some((through, Some(to), now)); }
                    }
                    2 => {
                        let got = world.unmap(&uuid, after(now)).await;
                        let expected = expected("Deleting");
                        assert_eq!(got.as_ref().map(|shown| shown["State"].as_str().unwrap()).map_err(|e| e.name), expected);
                        if expected.is_ok() { model = Some(("Deleting", None, now)); }
                    }
                    3 => world.restart().await,
                    4 => drop(world.plane.settle_mappings(after(now)).await.unwrap()),
                    _ => {}
                }
                let seen = world.mapping(&uuid, after(now)).ok().map(|shown| shown["State"].as_str().unwrap().to_owned());
                assert_eq!(seen.as_deref(), model.map(|(at, _, _)| at));
            }
        });
    }
}
