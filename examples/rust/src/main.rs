//! A Lambda function in Rust: echoes its event and tells what the runtime client saw.
//!
//! Events with one of these keys exercise the ways in which a function ends: `fail` returns an error, `panic` panics,
//! `exit` ends the process with that status.

use std::sync::atomic::{AtomicU64, Ordering};

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::{Value, json};

static INVOCATIONS: AtomicU64 = AtomicU64::new(0);

async fn handler(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let (event, context) = event.into_parts();
    if let Some(message) = event["fail"].as_str() {
        return Err(message.into());
    }
    if let Some(message) = event["panic"].as_str() {
        panic!("{message}");
    }
    if let Some(status) = event["exit"].as_i64() {
        std::process::exit(status as i32);
    }
    Ok(json!({
        "event": event,
        "request_id": context.request_id,
        "function_arn": context.invoked_function_arn,
        "deadline_ms": context.deadline,
        "environment": std::env::var("AWS_LAMBDA_LOG_STREAM_NAME").ok(),
        "invocations_here": INVOCATIONS.fetch_add(1, Ordering::Relaxed) + 1,
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(handler)).await
}
