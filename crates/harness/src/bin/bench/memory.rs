//! What an idle Python environment costs in memory: the growth of the proportional set size of all of Firelet's processes. And how
//! fast a thousand of them are made, one after the other by a few clients.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use harness::{Firelet, Function, Options, zip_files};
use hyper::Method;
use tokio::task::JoinSet;

use crate::samples::Samples;

const ENVIRONMENTS: u64 = 20;

/// Starts a server of its own, fills it with idle environments and prints what each has added.
pub async fn measure() -> Result<()> {
    let firelet = Firelet::start(Options::default()).await?;
    let mut client = firelet.client().await?;
    let code = b"import time\ndef handler(event, context):\n    time.sleep(event['seconds'])\n";
    let code = zip_files(&[("app.py", 0o644, code)])?;
    client
        .create_function(&Function { memory: 128, ..Function::new("idle", "python3.12", "app.handler", code) })
        .await?;
    client.invoke("idle", r#"{"seconds":0}"#).await?;
    let pid = firelet.pid().context("firelet has ended")?;
    let before = Census::take(pid)?;

    let mut tasks = JoinSet::new();
    for _ in 0..=ENVIRONMENTS {
        let mut client = firelet.client().await?;
        tasks.spawn(async move { client.invoke("idle", r#"{"seconds":3}"#).await });
    }
    while let Some(result) = tasks.join_next().await {
        let answer = result??;
        ensure!(answer.header("x-amz-function-error").is_empty(), "{:?}", answer.body);
    }
    let after = Census::take(pid)?;
    let per = |after: u64, before: u64| after.saturating_sub(before) as f64 / ENVIRONMENTS as f64;
    println!("\nmemory of an idle Python environment, from {ENVIRONMENTS} of them");
    println!("{:<34} {:>8.2} MiB (proportional set size)", "all processes", per(after.pss, before.pss) / 1024.0);
    println!("{:<34} {:>8.2}", "processes each", per(after.processes, before.processes));
    firelet.stop().await
}

/// Clients that start environments at the same time.
const STARTERS: usize = 4;

/// Starts a server of its own and makes so many environments, each the first of its own function, all of them alive at the end.
pub async fn scale(environments: usize) -> Result<()> {
    let firelet = Firelet::start(Options::default()).await?;
    let mut client = firelet.client().await?;
    let code = zip_files(&[("app.py", 0o644, b"def handler(event, context):\n    return 'hello'\n")])?;
    for index in 0..environments {
        let name = format!("scale-{index}");
        client
            .create_function(&Function {
                memory: 128,
                ..Function::new(&name, "python3.12", "app.handler", code.clone())
            })
            .await?;
    }
    // The first is not measured: it starts what all have in common.
    client.invoke("scale-0", "{}").await?;
    let pid = firelet.pid().context("firelet has ended")?;
    let before = Census::take(pid)?;

    let next = Arc::new(AtomicUsize::new(1));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..STARTERS {
        let (mut client, next) = (firelet.client().await?, Arc::clone(&next));
        tasks.spawn(async move {
            let mut samples = Samples::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= environments {
                    return anyhow::Ok(samples);
                }
                let sent = Instant::now();
                let answer = client.invoke(&format!("scale-{index}"), "{}").await?;
                samples.push(sent.elapsed());
                ensure!(answer.body == "\"hello\"", "scale-{index}: {:?}", answer.body);
            }
        });
    }
    let mut times = Samples::default();
    while let Some(samples) = tasks.join_next().await {
        times.extend(samples??);
    }
    let wall = started.elapsed().as_secs_f64();
    let after = Census::take(pid)?;
    let alive = client.request(Method::GET, "/_firelet/environments", &[], "").await?.json()?;
    let alive = alive["environments"].as_array().map_or(0, Vec::len);
    println!("\n{environments} Python environments, each the first of its function, {STARTERS} clients");
    println!("{:<34} {:>8.0} /s", "started", times.len() as f64 / wall);
    println!("{:<34} {:>8.2} ms, p99 {:.2} ms", "sent to answered, p50", times.median(), times.quantile(0.99));
    println!("{:<34} {:>8}", "alive at the end", alive);
    let per = after.pss.saturating_sub(before.pss) as f64 / times.len() as f64 / 1024.0;
    println!("{:<34} {per:>8.2} MiB (proportional set size)", "memory of each");
    firelet.stop().await
}

/// The processes below a server, itself included.
struct Census {
    processes: u64,
    /// Proportional set size of all, in KiB.
    pss: u64,
}

impl Census {
    fn take(server: u32) -> Result<Census> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end while the list is read.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            children.entry(parent.with_context(|| format!("cannot read {stat:?}"))?).or_default().push(pid);
        }
        let (mut census, mut pending) = (Census { processes: 0, pss: 0 }, vec![server]);
        while let Some(pid) = pending.pop() {
            pending.extend(children.remove(&pid).unwrap_or_default());
            let Ok(rollup) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
            let pss = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            census.pss += pss.unwrap_or(0);
            census.processes += 1;
        }
        ensure!(census.pss > 0, "the memory of the processes cannot be read: run the benchmark as root");
        Ok(census)
    }
}
