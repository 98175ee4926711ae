//! Every operation's own request comes back to it; the hazards of the paths; arbitrary input never panics.

use proptest::prelude::*;

use super::*;

fn named(method: &str, path: &str, query: Option<&str>) -> Operation {
    route(method, path, query).unwrap().operation
}

#[test]
fn every_operation_is_reached_by_its_own_request() {
    for operation in Operation::ALL {
        let (path, query) = match operation.uri().split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (operation.uri(), None),
        };
        let mut filled = String::new();
        let mut labels = 0;
        for segment in path.trim_start_matches('/').split('/') {
            filled.push('/');
            if segment.starts_with('{') {
                labels += 1;
                filled.push_str("arn%3Aaws%2Fx:1");
            } else {
                filled.push_str(segment);
            }
        }
        assert!(labels <= MOST_LABELS && path.split('/').count() <= LONGEST_PATH);
        let found = route(operation.method(), &filled, query).unwrap();
        assert_eq!(found.operation, *operation, "{filled}");
        assert_eq!(found.labels.iter().count(), labels);
        assert!(found.labels.iter().all(|(_, value)| value == "arn:aws/x:1"));
    }
}

#[test]
fn queries_tell_apart_what_shares_a_path() {
    let layers = "/2018-10-31/layers";
    assert_eq!(named("GET", layers, None), Operation::ListLayers);
    assert_eq!(named("GET", layers, Some("find=LayerVersion&Arn=x")), Operation::GetLayerVersionByArn);
    assert_eq!(named("GET", layers, Some("find=Other")), Operation::ListLayers);
    let provisioned = "/2019-09-30/functions/f/provisioned-concurrency";
    assert_eq!(named("GET", provisioned, Some("Qualifier=1")), Operation::GetProvisionedConcurrencyConfig);
    assert_eq!(named("GET", provisioned, Some("List=ALL")), Operation::ListProvisionedConcurrencyConfigs);
    let invoke_config = "/2019-09-25/functions/f/event-invoke-config";
    assert_eq!(named("GET", invoke_config, None), Operation::GetFunctionEventInvokeConfig);
    assert_eq!(named("GET", &format!("{invoke_config}/list"), None), Operation::ListFunctionEventInvokeConfigs);
}

#[test]
fn old_clients_end_paths_with_a_slash() {
    assert_eq!(named("POST", "/2014-11-13/functions/f/invoke-async/", None), Operation::InvokeAsync);
    assert_eq!(named("GET", "/2015-03-31/functions/", None), Operation::ListFunctions);
    assert_eq!(named("GET", "/2015-03-31/event-source-mappings/", None), Operation::ListEventSourceMappings);
}

#[test]
fn arns_arrive_in_one_label() {
    let found = route("GET", "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A1%3Afunction%3Af", None).unwrap();
    assert_eq!(found.labels.get("FunctionName"), Some("arn:aws:lambda:us-east-1:1:function:f"));
    let found = route("GET", "/2025-12-01/durable-executions/arn:f:1%2Fdurable-execution%2Fn%2Fi/state", None).unwrap();
    assert_eq!(found.operation, Operation::GetDurableExecutionState);
    assert_eq!(found.labels.get("DurableExecutionArn"), Some("arn:f:1/durable-execution/n/i"));
}

#[test]
fn what_is_no_request_is_refused() {
    assert_eq!(route("GET", "/nonsense", None), Err(RouteError::NotFound));
    assert_eq!(route("GET", "", None), Err(RouteError::NotFound));
    assert_eq!(route("GET", "/a/b/c/d/e/f/g/h/i/j", None), Err(RouteError::NotFound));
    assert_eq!(route("PATCH", "/2015-03-31/functions", None), Err(RouteError::MethodNotAllowed));
    assert_eq!(route("GET", "/2015-03-31/functions/%zz", None), Err(RouteError::Malformed));
    assert_eq!(route("GET", "/2015-03-31/functions/%ff", None), Err(RouteError::Malformed));
}

proptest! {
    #[test]
    fn arbitrary_requests_never_panic(method in "[A-Z]{0,7}", path in "\\PC*", query in proptest::option::of("\\PC*")) {
        let _ = route(&method, &path, query.as_deref());
        if let Some(query) = query.as_deref() {
            let _ = query_pairs(query).count();
        }
    }

    #[test]
    fn labels_survive_encoding(name in "\\PC{1,40}") {
        let mut encoded = String::new();
        for byte in name.bytes() {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        let found = route("POST", &format!("/2015-03-31/functions/{encoded}/invocations"), None).unwrap();
        prop_assert_eq!(found.operation, Operation::Invoke);
        prop_assert_eq!(found.labels.get("FunctionName"), Some(name.as_str()));
    }
}
