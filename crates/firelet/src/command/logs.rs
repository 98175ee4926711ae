//! `firelet logs`: what a function wrote, and what it writes.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};

use crate::cli::LogsOptions;
use crate::client::{Client, encoded};

/// Largest line of the stream of events: the largest event, escaped, with room for its other fields.
const MAX_LINE: usize = 4 << 20;

pub async fn run(options: LogsOptions) -> anyhow::Result<ExitCode> {
    let client = Client::new(&options.server.endpoint)?;
    let group = group_of(&client, &options.function).await?;
    if !options.follow || options.since.is_some() {
        history(&client, &group, &options).await?;
    }
    if options.follow {
        let mut out = std::io::stdout();
        follow(&client, &group, |event| print(&mut out, event, options.json)).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The log group of a function; a function that is gone may have left one.
async fn group_of(client: &Client, function: &str) -> anyhow::Result<String> {
    let functions = client.get("/_firelet/functions").await?;
    let known = functions["functions"].as_array().into_iter().flatten().find(|f| f["name"] == function);
    let group = known.and_then(|found| found["log_group"].as_str());
    Ok(group.map_or_else(|| format!("/aws/lambda/{function}"), str::to_owned))
}

async fn history(client: &Client, group: &str, options: &LogsOptions) -> anyhow::Result<()> {
    let mut input = json!({ "logGroupName": group });
    if let Some(seconds) = options.since {
        let since = SystemTime::now().checked_sub(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        input["startTime"] = json!(u64::try_from(since).unwrap_or(u64::MAX));
    }
    if let Some(pattern) = &options.filter {
        input["filterPattern"] = json!(pattern);
    }
    let mut out = std::io::stdout().lock();
    loop {
        let page = client.logs("FilterLogEvents", &input).await?;
        for event in page["events"].as_array().into_iter().flatten() {
            let event = json!({
                "timestamp": event["timestamp"],
                "stream": event["logStreamName"],
                "message": event["message"],
            });
            print(&mut out, &event, options.json)?;
        }
        match page["nextToken"].as_str() {
            Some(token) => input["nextToken"] = json!(token),
            None => return Ok(()),
        }
    }
}

/// Calls `each` with every event of a group from now on, until the server goes away.
pub async fn follow(
    client: &Client,
    group: &str,
    mut each: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let path = format!("/_firelet/logs/follow?group={}", encoded(group));
    let mut body = client.begin(Method::GET, &path, &[], Bytes::new()).await?.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the connection to the server broke")?;
        pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if line.len() > 1 {
                each(&serde_json::from_slice(&line).context("the server's stream is not JSON")?)?;
            }
        }
        anyhow::ensure!(pending.len() < MAX_LINE, "the server sends a line without an end");
    }
    Ok(())
}

fn print(out: &mut impl Write, event: &Value, as_json: bool) -> anyhow::Result<()> {
    if let Some(missed) = event["missed"].as_u64() {
        eprintln!("firelet: {missed} events were missed, they came faster than they could be printed");
        return Ok(());
    }
    if as_json {
        writeln!(out, "{event}")?;
    } else {
        let message = event["message"].as_str().unwrap_or_default();
        let newline = if message.ends_with('\n') { "" } else { "\n" };
        write!(out, "{message}{newline}")?;
    }
    out.flush()?;
    Ok(())
}
