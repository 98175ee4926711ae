//! Warm invocations per second of the empty function, at several levels of concurrency.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{Client, Firelet};
use hyper::StatusCode;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::Plan;
use crate::samples::Samples;
use crate::warm::EMPTY;

const LEVELS: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Measures each level and prints the table.
pub async fn measure(firelet: &Firelet, plan: &Plan) -> Result<()> {
    println!("\nwarm throughput of {EMPTY}, {} s each", plan.seconds);
    println!("{:<34} {:>12} {:>8} {:>8}", "connections", "invokes/s", "p50 ms", "p99 ms");
    for level in LEVELS {
        let barrier = Arc::new(Barrier::new(level));
        let mut tasks = JoinSet::new();
        for _ in 0..level {
            tasks.spawn(one(firelet.client().await?, barrier.clone(), Duration::from_secs(plan.seconds)));
        }
        let mut all = Samples::default();
        let mut slowest = Duration::ZERO;
        while let Some(result) = tasks.join_next().await {
            let (samples, took) = result??;
            all.extend(samples);
            slowest = slowest.max(took);
        }
        let rate = all.len() as f64 / slowest.as_secs_f64();
        println!("{level:<34} {rate:>12.0} {:>8.3} {:>8.3}", all.median(), all.quantile(0.99));
    }
    Ok(())
}

/// Invokes once to have an environment for each connection, then counts for `duration`.
async fn one(mut client: Client, barrier: Arc<Barrier>, duration: Duration) -> Result<(Samples, Duration)> {
    client.invoke(EMPTY, "{}").await?;
    barrier.wait().await;
    let started = Instant::now();
    let mut samples = Samples::default();
    while started.elapsed() < duration {
        let sent = Instant::now();
        let answer = client.invoke(EMPTY, "{}").await?;
        ensure!(answer.status == StatusCode::OK, "{} {:?}", answer.status, answer.body);
        samples.push(sent.elapsed());
    }
    Ok((samples, started.elapsed()))
}
