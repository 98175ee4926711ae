//! `firelet functions`: a table of the functions.

use std::process::ExitCode;

use serde_json::Value;

use crate::cli::FunctionsOptions;
use crate::client::Client;

pub async fn run(options: FunctionsOptions) -> anyhow::Result<ExitCode> {
    let answer = Client::new(&options.server.endpoint)?.get("/_firelet/functions").await?;
    let functions = answer["functions"].as_array().cloned().unwrap_or_default();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&functions)?);
        return Ok(ExitCode::SUCCESS);
    }
    if functions.is_empty() {
        eprintln!("no functions yet; make one with `aws lambda create-function` or `firelet dev DIR`");
        return Ok(ExitCode::SUCCESS);
    }
    let width = functions.iter().filter_map(|f| f["name"].as_str()).map(str::len).max().unwrap_or(0).max(4);
    println!("{:width$}  {:16}  {:8}  {:>7}  {:>7}  VERSIONS", "NAME", "RUNTIME", "STATE", "MEMORY", "TIMEOUT");
    for function in &functions {
        let text = |key: &str| function[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str, unit: &str| format!("{}{unit}", function[key].as_u64().unwrap_or_default());
        let versions: Vec<String> =
            function["versions"].as_array().into_iter().flatten().map(Value::to_string).collect();
        println!(
            "{:width$}  {:16}  {:8}  {:>7}  {:>7}  {}",
            text("name"),
            text("runtime"),
            text("state"),
            number("memory_mb", " MB"),
            number("timeout_secs", " s"),
            versions.join(" "),
        );
    }
    Ok(ExitCode::SUCCESS)
}
