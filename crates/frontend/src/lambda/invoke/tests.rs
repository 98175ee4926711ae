//! What Invoke reads from a request before it looks at the payload.

use aws_model::route;

use super::*;

fn parse(path: &str, query: Option<&str>, headers: &[(&'static str, &str)]) -> Result<Call, ApiError> {
    let routed = route("POST", &format!("/2015-03-31/functions/{path}/invocations"), query).unwrap();
    let headers = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap()))
        .collect();
    call(&routed, query, &headers)
}

#[test]
fn the_usual_request_is_read() {
    let call = parse("my-function_1", None, &[("x-amz-log-type", "Tail"), ("x-amz-client-context", "e30=")]).unwrap();
    assert_eq!((call.name.as_str(), call.qualifier), ("my-function_1", None));
    assert!(call.kind == Kind::RequestResponse && call.tail);
    assert_eq!(call.client_context.as_deref(), Some("e30="));
    assert!(parse("f", None, &[("x-amz-invocation-type", "DryRun")]).unwrap().kind == Kind::DryRun);
    assert!(parse("f", None, &[("x-amz-invocation-type", "Event")]).unwrap().kind == Kind::Event);
}

#[test]
fn names_qualifiers_and_arns_go_through_the_model() {
    let call = parse("f%3Alive", Some("Qualifier=live"), &[]).unwrap();
    assert_eq!((call.name.as_str(), call.qualifier.as_deref()), ("f:live", Some("live")));
    let call = parse("arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af", None, &[]).unwrap();
    assert_eq!(call.name, "arn:aws:lambda:us-east-1:000000000000:function:f");
}

#[test]
fn broken_constraints_are_named() {
    let message = |result: Result<Call, ApiError>| match result {
        Ok(_) => panic!("accepted"),
        Err(error) => (error.name, error.message),
    };
    let (name, text) = message(parse("f", None, &[("x-amz-invocation-type", "Sync")]));
    assert_eq!(name, "ValidationException");
    assert!(
        text.contains("'invocationType' failed to satisfy constraint: Member must satisfy enum value set"),
        "{text}"
    );
    let (name, text) = message(parse("f", None, &[("x-amz-log-type", "All")]));
    assert_eq!(name, "ValidationException");
    assert!(text.contains("'logType'"), "{text}");
    let (name, text) = message(parse("bad%20name", None, &[]));
    assert_eq!(name, "ValidationException");
    assert!(
        text.contains("'functionName' failed to satisfy constraint: Member must satisfy regular expression"),
        "{text}"
    );
}

#[test]
fn client_contexts_are_json_objects_in_base64() {
    let encode = |text: &str| STANDARD.encode(text);
    assert_eq!(client_context(&encode("{\"a\":\n1}")).unwrap(), "{\"a\": 1}");
    for bad in ["{}", "e30", &encode("[1]"), &encode("{"), &STANDARD.encode(b"{\"\xff\":1}")] {
        let error = client_context(bad).unwrap_err();
        assert_eq!(error.name, "InvalidRequestContentException");
        assert_eq!(error.message, "Client context must be a valid Base64-encoded JSON object.");
    }
    let long = encode(&format!("{{\"a\":\"{}\"}}", "x".repeat(2_700)));
    assert!(client_context(&long).unwrap_err().message.contains("3583"));
}

#[test]
fn new_traces_have_the_form_of_x_ray() {
    let id = new_trace_id(SystemTime::UNIX_EPOCH + Duration::from_secs(0x5759_e988));
    let parts: Vec<&str> = id.split(';').collect();
    let [root, parent, sampled] = parts[..] else { panic!("{id}") };
    assert!(root.starts_with("Root=1-5759e988-") && root.len() == "Root=1-5759e988-".len() + 24, "{id}");
    assert!(parent.starts_with("Parent=") && parent.len() == "Parent=".len() + 16, "{id}");
    assert_eq!(sampled, "Sampled=0");
    assert_ne!(id, new_trace_id(SystemTime::UNIX_EPOCH + Duration::from_secs(0x5759_e988)));
}

/// As the caller reads it.
fn throttled(reason: ThrottleReason, retry_after: Duration) -> ApiError {
    refusal(&InvokeError::Throttled { reason, retry_after }, "f")
}

#[test]
fn refusals_have_their_status() {
    let throttled = throttled(ThrottleReason::AccountConcurrency, Duration::from_secs(1)).render();
    assert_eq!(throttled.status, 429);
    assert_eq!(
        throttled.body,
        r#"{"Reason":"ConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#
    );
    assert_eq!(refusal(&InvokeError::RuntimeUnavailable("x".to_owned()), "f").status, 502);
    assert_eq!(refusal(&InvokeError::Platform("x".to_owned()), "f").status, 500);
    assert_eq!(refusal(&InvokeError::ShuttingDown, "f").status, 503);
}

#[test]
fn a_functions_own_limit_has_a_reason_of_its_own() {
    let throttled = throttled(ThrottleReason::FunctionConcurrency, Duration::from_secs(1)).render();
    assert_eq!(throttled.status, 429);
    assert_eq!(
        throttled.body,
        r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#
    );
}

#[test]
fn a_rate_has_a_reason_of_its_own_and_says_when_to_come_again_in_whole_seconds() {
    for (reason, expected) in [
        (ThrottleReason::AccountRate, "FunctionInvocationRateLimitExceeded"),
        (ThrottleReason::FunctionRate, "ReservedFunctionInvocationRateLimitExceeded"),
        (ThrottleReason::ScalingRate, "ConcurrentInvocationLimitExceeded"),
    ] {
        for (millis, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2)] {
            let throttled = throttled(reason, Duration::from_millis(millis));
            assert_eq!(throttled.retry_after, Some(seconds));
            let body = throttled.render().body;
            assert!(body.contains(&format!(r#""Reason":"{expected}""#)), "{body}");
        }
    }
}

#[test]
fn request_ids_choose_evenly() {
    assert_eq!(chance("00000000-0000-4000-8000-000000000000"), 0.0);
    assert_eq!(chance("80000000-0000-4000-8000-000000000000"), 0.5);
    assert!(chance("ffffffff-ffff-4fff-bfff-ffffffffffff") < 1.0);
}
