//! The texts and the order of the answers to requests that do not fit their shapes.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::generated::{operations::OPERATIONS, types};
use crate::route::route;

fn request<T: DeserializeOwned>(method: &str, uri: &str, body: &[u8]) -> Result<T, ApiError> {
    let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
    let found = route(method, path, query).unwrap();
    decode(found.operation, &found.labels, query, |_| None, body)
}

fn create(body: Value) -> Result<types::CreateFunctionRequest, ApiError> {
    request("POST", "/2015-03-31/functions", body.to_string().as_bytes())
}

fn minimal() -> Value {
    json!({"FunctionName": "f", "Role": "arn:aws:iam::123456789012:role/r", "Code": {"ZipFile": "UEsFBg=="}})
}

fn with(member: &str, value: Value) -> Value {
    let mut body = minimal();
    body[member] = value;
    body
}

fn validation(body: Value) -> String {
    let error = create(body).unwrap_err();
    assert_eq!((error.status, error.name), (400, "ValidationException"));
    error.message
}

#[test]
fn a_body_becomes_its_type() {
    let input = create(with("Environment", json!({"Variables": {"KEY": "v"}}))).unwrap();
    assert_eq!(input.function_name.as_deref(), Some("f"));
    assert_eq!(input.code.unwrap().zip_file.unwrap().0.as_ref(), b"PK\x05\x06");
    assert_eq!(input.environment.unwrap().variables.unwrap()["KEY"], "v");
    assert_eq!(input.timeout, None);
}

#[test]
fn labels_query_and_headers_become_members() {
    let uri = "/2015-03-31/functions/f/versions?Marker=a%2Bb%3D&MaxItems=7";
    let input: types::ListVersionsByFunctionRequest = request("GET", uri, b"").unwrap();
    assert_eq!((input.function_name.as_deref(), input.marker.as_deref()), (Some("f"), Some("a+b=")));
    assert_eq!(input.max_items, Some(7));

    let found = route("POST", "/2015-03-31/functions/f/invocations", Some("Qualifier=1")).unwrap();
    let headers = |name: &str| name.eq_ignore_ascii_case("x-amz-invocation-type").then(|| "DryRun".to_owned());
    let input: types::InvocationRequest =
        decode(found.operation, &found.labels, Some("Qualifier=1"), headers, b"not json").unwrap();
    assert_eq!(input.invocation_type.as_deref(), Some("DryRun"));
    assert_eq!(input.qualifier.as_deref(), Some("1"));
    assert_eq!(input.payload, None);
}

#[test]
fn repeated_query_items_are_a_list() {
    let uri = "/2017-03-31/tags/arn:aws:lambda:us-east-1:123456789012:function:f?tagKeys=a&tagKeys=b";
    let input: types::UntagResourceRequest = request("DELETE", uri, b"").unwrap();
    assert_eq!(input.tag_keys, Some(vec!["a".to_owned(), "b".to_owned()]));
    let error = request::<types::UntagResourceRequest>("DELETE", uri.split('?').next().unwrap(), b"").unwrap_err();
    let expected = "1 validation error detected: Value null at 'tagKeys' failed to satisfy constraint: \
                    Member must not be null";
    assert_eq!(error.message, expected);
}

#[test]
fn timestamps_come_as_numbers_or_dates() {
    let uri = "/2025-12-01/functions/f/durable-executions?StartedAfter=2026-01-02T03:04:05.5Z&StartedBefore=12";
    let input: types::ListDurableExecutionsByFunctionRequest = request("GET", uri, b"").unwrap();
    assert_eq!((input.started_after, input.started_before), (Some(1_767_323_045.5), Some(12.0)));
}

#[test]
fn wrong_json_types_are_serialization_errors() {
    let cases = [
        (with("Timeout", json!("x")), "STRING_VALUE can not be converted to an Integer"),
        (with("Timeout", json!(99_999_999_999_u64)), "NUMBER_VALUE can not be converted to an Integer"),
        (with("Description", json!(3)), "NUMBER_VALUE can not be converted to a String"),
        (with("Description", json!({})), "Start of structure or map found where not expected."),
        (with("Description", json!([])), "Start of list found where not expected"),
        (with("Publish", json!("true")), "STRING_VALUE can not be converted to a Boolean"),
        (with("Layers", json!("x")), "Expected list or null"),
        (with("Code", json!({"ZipFile": "%%%"})), "Unable to decode the base64 value of a blob."),
    ];
    for (body, expected) in cases {
        let error = create(body).unwrap_err();
        assert_eq!((error.name, error.message.as_str()), ("SerializationException", expected));
    }
    let error = request::<types::CreateFunctionRequest>("POST", "/2015-03-31/functions", b"{nope").unwrap_err();
    assert_eq!((error.status, error.name), (400, "SerializationException"));
}

#[test]
fn fractions_are_cut_off() {
    assert_eq!(create(with("Timeout", json!(3.7))).unwrap().timeout, Some(3));
}

#[test]
fn one_violation() {
    assert_eq!(
        validation(with("MemorySize", json!(64))),
        "1 validation error detected: Value '64' at 'memorySize' failed to satisfy constraint: \
         Member must have value greater than or equal to 128"
    );
    assert_eq!(
        validation(with("SnapStart", json!({"ApplyOn": "Never"}))),
        "1 validation error detected: Value 'Never' at 'snapStart.applyOn' failed to satisfy constraint: \
         Member must satisfy enum value set: [PublishedVersions, None]"
    );
}

#[test]
fn several_violations_are_joined() {
    assert_eq!(
        validation(json!({"FunctionName": "f", "Timeout": 0})),
        "3 validation errors detected: Value null at 'role' failed to satisfy constraint: Member must not be null; \
         Value null at 'code' failed to satisfy constraint: Member must not be null; \
         Value '0' at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1"
    );
    let name = "a b".repeat(50);
    let message = validation(with("FunctionName", json!(name)));
    assert!(message.starts_with("2 validation errors detected: Value 'a ba"), "{message}");
    assert!(message.ends_with("Member must have length less than or equal to 140"), "{message}");
}

#[test]
fn elements_report_all_their_constraints() {
    assert_eq!(
        validation(with("Architectures", json!(["mips"]))),
        "1 validation error detected: Value '[mips]' at 'architectures' failed to satisfy constraint: \
         Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], Member must not be null]"
    );
    assert_eq!(
        validation(with("Architectures", json!(["x86_64", "arm64"]))),
        "1 validation error detected: Value '[x86_64, arm64]' at 'architectures' failed to satisfy constraint: \
         Member must have length less than or equal to 1"
    );
    let alias = json!({"Name": "a", "FunctionVersion": "1", "RoutingConfig": {"AdditionalVersionWeights": {"2": 2.0}}});
    let body = alias.to_string();
    let error = request::<types::CreateAliasRequest>("POST", "/2015-03-31/functions/f/aliases", body.as_bytes());
    assert_eq!(
        error.unwrap_err().message,
        "1 validation error detected: Value '{2=2.0}' at 'routingConfig.additionalVersionWeights' failed to satisfy \
         constraint: Map value must satisfy constraint: [Member must have value less than or equal to 1.0, \
         Member must have value greater than or equal to 0.0, Member must not be null]"
    );
}

#[test]
fn secrets_are_not_repeated() {
    assert_eq!(
        validation(with("Environment", json!({"Variables": {"1bad": "secret"}}))),
        "1 validation error detected: Value at 'environment.variables' failed to satisfy constraint: \
         Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+, \
         Member must not be null]"
    );
}

#[test]
fn structures_in_lists_are_counted_from_one() {
    let body = with("FileSystemConfigs", json!([{"Arn": "arn:x", "LocalMountPath": "/tmp"}]));
    let message = validation(body);
    assert!(message.contains("at 'fileSystemConfigs.1.member.localMountPath' failed"), "{message}");
}

#[test]
fn an_unknown_runtime_is_left_to_the_control_plane() {
    assert_eq!(create(with("Runtime", json!("cobol"))).unwrap().runtime.as_deref(), Some("cobol"));
}

#[test]
fn null_is_absent() {
    assert_eq!(create(with("Timeout", Value::Null)).unwrap().timeout, None);
    assert!(validation(with("Role", Value::Null)).contains("Value null at 'role'"));
}

/// Compiles every pattern: [`crate::shape::Pattern::matches`] relies on it.
#[test]
fn every_pattern_of_the_model_compiles() {
    fn visit(shape: &'static Shape, seen: &mut Vec<*const Shape>) {
        if seen.contains(&std::ptr::from_ref(shape)) {
            return;
        }
        seen.push(shape);
        match &shape.kind {
            Kind::String { pattern: Some(pattern), .. } => drop(pattern.matches("x")),
            Kind::Structure(members) => members.iter().for_each(|member| visit(member.shape, seen)),
            Kind::List { element, .. } => visit(element, seen),
            Kind::Map { key, value, .. } => {
                visit(key, seen);
                visit(value, seen);
            }
            _ => {}
        }
    }
    let mut seen = Vec::new();
    for info in &OPERATIONS {
        visit(info.input, &mut seen);
    }
    assert!(seen.len() > 250, "{}", seen.len());
}

#[test]
fn every_input_type_takes_its_members() {
    // A body that is an empty object must fail by constraints only, never because tables and types disagree.
    for info in &OPERATIONS {
        let labels = Labels::default();
        let outcome = decode::<Value>(info.operation, &labels, None, |_| None, b"{}");
        assert!(outcome.is_ok() || outcome.is_err_and(|error| error.name == "ValidationException"), "{}", info.name);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("\\PC{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any JSON under the real names of the members: an answer, never a panic, and tables that agree with the types.
    #[test]
    fn any_body_is_answered(index in 0..OPERATIONS.len(), values in proptest::collection::vec(any_json(), 24)) {
        let info = &OPERATIONS[index];
        let members = info.input.members().iter().zip(values.iter().cycle());
        let body: Map<String, Value> = members.map(|(member, value)| (member.name.to_owned(), value.clone())).collect();
        let body = Value::Object(body).to_string();
        let labels = Labels::default();
        if let Err(error) = decode::<Value>(info.operation, &labels, None, |_| None, body.as_bytes()) {
            prop_assert_eq!(error.status, 400);
            prop_assert!(matches!(error.name, "ValidationException" | "SerializationException"));
        }
    }

    /// What passes the tables passes the type.
    #[test]
    fn tables_and_types_agree(values in proptest::collection::vec(any_json(), 24)) {
        let mut body = minimal();
        for (member, value) in Operation::CreateFunction.info().input.members().iter().zip(values) {
            if coerce(member.shape, value.clone()).is_ok_and(|value| value.is_some()) {
                body[member.name] = value;
            }
        }
        if let Err(error) = create(body) {
            prop_assert_eq!(error.name, "ValidationException");
        }
    }
}
