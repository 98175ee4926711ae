//! `firelet simulate`: a trace replayed through the server's own decisions in virtual time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use simulator::trace::{Assumptions, azure2019, azure2021, generated};
use simulator::{Cluster, Outcome, Policy, Trace};

use crate::cli::{SimulateOptions, TraceSource};

/// Functions and length of a generated trace, where nothing else is said.
const FUNCTIONS: u32 = 1_000;
const HOURS: u32 = 24;

pub fn run(options: &SimulateOptions) -> anyhow::Result<ExitCode> {
    let trace = trace(options)?;
    eprintln!("{}: {} functions, {:.1} hours", trace.name, trace.functions.len(), trace.length.as_secs_f64() / 3_600.0);
    if let Some(path) = &options.save {
        write(path, |out| azure2021::write(&trace, out))?;
    }
    let began = Instant::now();
    let outcomes = simulator::compare(&trace, &cluster(options), &options.policy, &reporter(&trace, &options.policy));
    eprintln!("replayed in {:.1} s", began.elapsed().as_secs_f64());
    if let Some(path) = &options.plot {
        let title = format!("{} ({} functions)", trace.name, trace.functions.len());
        let svg = simulator::plot::svg(&title, &outcomes);
        write(path, |out| out.write_all(svg.as_bytes()))?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        print!("{}", simulator::outcome::table(&outcomes));
    }
    let clean = outcomes.iter().all(|outcome: &Outcome| outcome.left_over == 0);
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn trace(options: &SimulateOptions) -> anyhow::Result<Trace> {
    let assumptions = Assumptions { cold_start: Duration::from_millis(options.cold_start_ms) };
    let length = options.hours.map(|hours| Duration::from_secs(3_600) * hours);
    let mut trace = match &options.trace {
        TraceSource::Generated => generated::generate(&generated::Options {
            functions: options.functions.unwrap_or(FUNCTIONS),
            length: length.unwrap_or(Duration::from_secs(3_600) * HOURS),
            max_rate: options.max_rate,
            seed: options.seed,
            assumptions,
        }),
        TraceSource::Azure2019(directory) => azure2019::read(directory, length, options.seed, &assumptions)?,
        TraceSource::Azure2021(file) => azure2021::read(file, length, options.seed, &assumptions)?,
    };
    if let Some(functions) = options.functions {
        trace.sample(functions as usize);
    }
    Ok(trace)
}

fn cluster(options: &SimulateOptions) -> Cluster {
    Cluster {
        workers: options.workers,
        memory_mib: options.worker_memory,
        environments: options.worker_environments,
        cpus: options.worker_cpus,
        account_concurrency: options.concurrency,
        ..Cluster::default()
    }
}

/// Says about once a second how far it is.
fn reporter(trace: &Trace, policies: &[Policy]) -> impl Fn(usize, Duration) + Sync {
    let names: Vec<String> = policies.iter().map(Policy::to_string).collect();
    let length = trace.length.as_secs_f64();
    let said = Mutex::new(Instant::now());
    move |policy, now| {
        let Ok(mut said) = said.lock() else { return };
        if said.elapsed() >= Duration::from_secs(1) {
            *said = Instant::now();
            let name = names.get(policy).map_or("", String::as_str);
            eprintln!("{name}: {:.0} %", 100.0 * now.as_secs_f64() / length);
        }
    }
}

fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> anyhow::Result<()> {
    let filled = File::create(path).map(BufWriter::new).and_then(|mut out| {
        fill(&mut out)?;
        out.flush()
    });
    filled.with_context(|| format!("cannot write {}", path.display()))
}
