//! The benchmark: Firelet beside its peers in one run, printed as tables. `just bench` builds a release and starts it.
//!
//! `bench load` is apart from that: a control plane with thousands of functions.
//!
//! Everything that is compared is measured in the same run and interleaved, round by round, so that a noisy moment of the machine
//! hits all sides. Times are a client's, from sending to the last byte of the answer, on a kept-open loopback connection.
//!
//! This program plays three parts: the benchmark; with `echo` as its argument, the bare HTTP server that warm
//! invocations are compared with; and, deployed under the name `bootstrap`, an empty function for `provided.al2023`.

mod cold;
mod facts;
mod function;
mod load;
mod memory;
mod peers;
mod samples;
mod throughput;
mod warm;

use std::process::ExitCode;

use anyhow::Result;
use harness::{Firelet, Options};

/// How much is measured; `--quick` is for trying the benchmark itself out.
pub struct Plan {
    /// Interleaved rounds of warm invocations.
    warm_rounds: usize,
    /// Cold starts of each kind, interleaved one by one.
    cold: usize,
    /// Seconds at each level of concurrency.
    seconds: u64,
    /// Environments alive at once.
    environments: usize,
}

fn main() -> ExitCode {
    let program = std::env::args().next().unwrap_or_default();
    let result = match std::env::args().nth(1).as_deref() {
        _ if program.ends_with("bootstrap") => function::run(),
        Some("echo") => runtime(2).and_then(|runtime| runtime.block_on(warm::echo_server())),
        Some("load") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            runtime(2).and_then(|runtime| runtime.block_on(load::run(&arguments)))
        }
        Some("--quick") => run(Plan { warm_rounds: 5, cold: 6, seconds: 1, environments: 20 }),
        None => run(Plan { warm_rounds: 200, cold: 200, seconds: 5, environments: 1_000 }),
        Some(other) => {
            Err(anyhow::anyhow!("unknown argument {other}: there are --quick and load [FUNCTIONS [VERSIONS]]"))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?)
}

fn run(plan: Plan) -> Result<()> {
    facts::print();
    runtime(2)?.block_on(async {
        let log = ("FIRELET_LOG".to_owned(), cold::LOG_FILTER.to_owned());
        let firelet = Firelet::start(Options { environment: vec![log], ..Options::default() }).await?;
        warm::measure(&firelet, &plan).await?;
        throughput::measure(&firelet, &plan).await?;
        cold::measure(&firelet, &plan).await?;
        cold::burst(&firelet).await?;
        firelet.stop().await?;
        memory::measure().await?;
        memory::scale(plan.environments).await
    })
}
