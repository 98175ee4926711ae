//! Request lines and bodies from anywhere: routing, decoding and validation must answer, never panic.

#![no_main]

use aws_model::{Operation, decode, route};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, String, Option<String>, Vec<u8>)| {
    let (method, path, query, body) = input;
    let method = ["GET", "POST", "PUT", "DELETE", "PATCH"][usize::from(method) % 5];
    let query = query.as_deref();
    let header = |_: &str| Some(String::from_utf8_lossy(&body).into_owned());
    if let Ok(routed) = route(method, &path, query) {
        let _ = decode::<serde_json::Value>(routed.operation, &routed.labels, query, header, &body);
        if let Some(name) = routed.labels.get("FunctionName") {
            let _ = aws_model::arn::NameParts::parse(name);
        }
    }
    // Any body against any operation, whatever the path was.
    let operation = Operation::ALL[body.len() % Operation::ALL.len()];
    if let Err(error) = decode::<serde_json::Value>(operation, &Default::default(), query, |_| None, &body) {
        assert!(error.status == 400 && !error.render().body.is_empty());
    }
});
