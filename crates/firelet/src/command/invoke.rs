//! `firelet invoke`: one invocation, its answer on standard output.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};

use crate::cli::InvokeOptions;
use crate::client::{Client, encoded};

/// The function answered with an error.
const FUNCTION_ERROR: u8 = 2;

pub async fn run(options: InvokeOptions) -> anyhow::Result<ExitCode> {
    let client = Client::new(&options.server.endpoint)?;
    let mut path = format!("/2015-03-31/functions/{}/invocations", encoded(&options.function));
    if let Some(qualifier) = &options.qualifier {
        path.push_str(&format!("?Qualifier={}", encoded(qualifier)));
    }
    let log_type = if options.logs { "Tail" } else { "None" };
    let headers = [("x-amz-log-type", log_type), ("content-type", "application/json")];
    let answer = client.send(Method::POST, &path, &headers, payload(&options.payload)?).await?.checked()?;
    if let Some(log) = answer.header("x-amz-log-result") {
        let log = STANDARD.decode(log).context("the server's log is not base64")?;
        std::io::stderr().write_all(&log)?;
    }
    let error = answer.header("x-amz-function-error");
    if options.json {
        let payload = String::from_utf8_lossy(&answer.body);
        let line = json!({
            "status": answer.head.status.as_u16(),
            "function_error": error,
            "executed_version": answer.header("x-amz-executed-version"),
            "request_id": answer.header("x-amzn-requestid"),
            "payload": serde_json::from_str::<Value>(&payload).unwrap_or_else(|_| json!(payload)),
        });
        println!("{line}");
    } else {
        let mut out = std::io::stdout();
        out.write_all(&answer.body)?;
        out.write_all(b"\n")?;
    }
    match error {
        Some(error) => {
            eprintln!("firelet: the function failed ({error})");
            Ok(ExitCode::from(FUNCTION_ERROR))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The event: given in full, in a file, or on standard input.
fn payload(argument: &str) -> anyhow::Result<Vec<u8>> {
    if argument == "-" {
        let mut payload = Vec::new();
        std::io::stdin().read_to_end(&mut payload).context("could not read the event from standard input")?;
        return Ok(payload);
    }
    match argument.strip_prefix('@') {
        Some(path) => std::fs::read(path).with_context(|| format!("could not read the event from {path}")),
        None => Ok(argument.as_bytes().to_vec()),
    }
}
