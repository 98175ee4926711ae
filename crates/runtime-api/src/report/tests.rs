//! Filters and parsers of error reports.

use super::*;

#[test]
fn only_runtime_and_function_types_pass_the_filter() {
    for (given, expected) in [
        ("Runtime.ExitError", "Runtime.ExitError"),
        ("Function.TypeError", "Function.TypeError"),
        ("Function.Ab", "Function.Ab"),
        ("Function.A", "Function.Unknown"),
        ("Function.typeError", "Function.Unknown"),
        ("Function.Type1", "Function.Unknown"),
        ("Function.", "Function.Unknown"),
        ("Runtime.a", "Runtime.Unknown"),
        ("Runtime.Exit.Error", "Runtime.Unknown"),
        ("ValueError", "Runtime.Unknown"),
        ("xRuntime.ExitError", "Runtime.Unknown"),
        ("Extension.Crash", "Runtime.Unknown"),
        ("", "Runtime.Unknown"),
    ] {
        assert_eq!(filter_error_type(given), expected, "{given}");
    }
}

#[test]
fn a_cause_is_reduced_to_its_fields() {
    let given = br#"{"working_directory":"/var/task","paths":["a.py"],"extra":1,
        "exceptions":[{"type":"E","message":"m","stack":[{"path":"a.py","line":3,"label":"f","x":0}],"y":1}]}"#;
    let expected = r#"{"exceptions":[{"message":"m","type":"E","stack":[{"path":"a.py","line":3,"label":"f"}]}],"working_directory":"/var/task","paths":["a.py"]}"#;
    assert_eq!(xray_cause(given).unwrap(), expected);
    for none in [&b""[..], b"{}", b"[]", b"not json", b"{\"paths\":[]}", b"{\"paths\":3}", b"\"text\""] {
        assert_eq!(xray_cause(none), None, "{}", String::from_utf8_lossy(none));
    }
}

#[test]
fn a_large_cause_loses_its_tail() {
    let paths: Vec<String> = (0..1000).map(|number| format!("{number:0>100}")).collect();
    let given = serde_json::json!({"paths": paths, "message": "m"}).to_string();
    let cause = xray_cause(given.as_bytes()).unwrap();
    assert!(cause.len() <= MAX_CAUSE);
    let cause: serde_json::Value = serde_json::from_slice(&cause).unwrap();
    assert_eq!(cause["paths"].as_array().unwrap().len(), 600, "as many fifths as fit");
    assert_eq!(cause["message"], "m");
}

#[test]
fn a_cause_of_endless_text_is_cropped_to_what_fits() {
    for unit in ["x", "é", "\u{1}", "\"", "\u{1F525}"] {
        let text = unit.repeat(40_000);
        let given = serde_json::json!({"message": text, "working_directory": text}).to_string();
        let cause = xray_cause(given.as_bytes()).unwrap();
        assert!(cause.len() <= MAX_CAUSE, "{unit:?}: {}", cause.len());
        let cause: serde_json::Value = serde_json::from_slice(&cause).unwrap();
        let message = cause["message"].as_str().unwrap();
        assert!(message.ends_with("...") && message.len() > 3, "{unit:?}");
    }
}

#[test]
fn the_combined_content_type_is_taken_apart() {
    let (error, cause) = split_error_and_cause(
        br#"{"errorMessage":"m","errorType":"T","stackTrace":["a"],"errorCause":{"message":"c"},"other":1}"#,
    );
    assert_eq!(error, r#"{"errorMessage":"m","errorType":"T","stackTrace":["a"]}"#);
    assert_eq!(cause.unwrap(), r#"{"exceptions":null,"working_directory":"","paths":null,"message":"c"}"#);
    let (error, cause) = split_error_and_cause(br#"{"errorMessage":"m","errorType":"T","errorCause":"no object"}"#);
    assert_eq!((error, cause), (Bytes::from_static(br#"{"errorMessage":"m","errorType":"T"}"#), None));
    assert_eq!(split_error_and_cause(b"{"), (Bytes::from_static(b"\"Invalid error body\""), None));
}

#[test]
fn trailers_written_as_text_are_found_only_at_the_very_end() {
    let body = b"partLambda-Runtime-Function-Error-Type: Function.Boom\r\nLambda-Runtime-Function-Error-Body: eyJhIjoxfQ==\r\n";
    assert_eq!(
        text_trailers(body),
        Some(("Function.Boom".to_owned(), Bytes::from_static(b"{\"a\":1}"))),
        "the part before it was not sent as an answer"
    );
    let longer = [&body[..], b"x"].concat();
    for none in [&longer[..], b"", b"\r\n", &body[..body.len() - 2], b"Lambda-Runtime-Function-Error-Type: A\r\n"] {
        assert_eq!(text_trailers(none), None, "{}", String::from_utf8_lossy(none));
    }
}

#[test]
fn a_trailer_without_a_usable_object_still_fails_the_invocation() {
    let made = Bytes::from_static(br#"{"errorMessage":"","errorType":"Boom"}"#);
    for body in [None, Some(""), Some("%%%")] {
        assert_eq!(trailer_error("Boom", body), ("Runtime.Unknown".to_owned(), made.clone()));
    }
}
