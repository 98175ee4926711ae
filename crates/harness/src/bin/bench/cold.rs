//! Cold starts: Python and Node.js functions through the API, the Python one beside the same interpreter started bare and by other
//! sandboxes, and a hundred environments at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Client, Firelet, Function, zip_files};
use tokio::task::JoinSet;

use crate::Plan;
use crate::peers::{Interpreter, Peer};
use crate::samples::Samples;

const HELLO: &[u8] = b"def handler(event, context):\n    return 'hello'\n";
const NODE_HELLO: &[u8] = b"exports.handler = async () => 'hello'\n";
const NODE_RUNTIME: &str = "nodejs20.x";
const RUNTIME: &str = "python3.12";
const BURST: usize = 100;

/// Makes Firelet tell how long each sandbox took.
pub const LOG_FILTER: &str = "info,sandbox::namespace::live=debug";

/// Measures all rounds and prints the table.
pub async fn measure(firelet: &Firelet, plan: &Plan) -> Result<()> {
    let interpreter = Interpreter::find(firelet, RUNTIME).await?;
    let peers = Peer::all(&interpreter)?;
    let mut client = firelet.client().await?;
    let code = zip_files(&[("app.py", 0o644, HELLO)])?;
    // Every first invocation of a function is a cold one. The functions exist before anything is measured.
    let count = plan.cold;
    for index in 0..=count {
        let name = format!("cold-{index}");
        client
            .create_function(&Function { memory: 1769, ..Function::new(&name, RUNTIME, "app.handler", code.clone()) })
            .await?;
    }
    client.invoke("cold-0", "{}").await?;
    let node = node_functions(&mut client, count).await?;
    let told = firelet.log().len();

    let mut through_api = Samples::default();
    let mut init = Samples::default();
    let mut through_node = Samples::default();
    let mut beside: Vec<Samples> = peers.iter().map(|_| Samples::default()).collect();
    for index in 1..=count {
        let started = Instant::now();
        let (answer, log) = client.invoke_with_log(&format!("cold-{index}"), "{}").await?;
        through_api.push(started.elapsed());
        ensure!(answer.body == "\"hello\"", "cold-{index}: {:?}", answer.body);
        init.push(init_duration(&log).with_context(|| format!("no Init Duration in {log:?}"))?);
        if node {
            let started = Instant::now();
            let answer = client.invoke(&format!("cold-node-{index}"), "{}").await?;
            through_node.push(started.elapsed());
            ensure!(answer.body == "\"hello\"", "cold-node-{index}: {:?}", answer.body);
        }
        for (peer, samples) in peers.iter().zip(&mut beside) {
            if let Some(time) = peer.start()? {
                samples.push(time);
            }
        }
    }

    println!("\ncold starts of Python {}, ms ({count} of each, interleaved)", interpreter.version);
    println!("{:<58} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99", "x bare");
    let bare = beside.first().map_or(f64::NAN, Samples::median);
    let row = |name: &str, samples: &Samples| {
        let [median, p90, p99] = [0.5, 0.9, 0.99].map(|quantile| samples.quantile(quantile));
        println!("{name:<58} {median:>8.2} {p90:>8.2} {p99:>8.2} {:>8.2}", median / bare);
    };
    for (peer, samples) in peers.iter().zip(&beside) {
        match &peer.absent {
            Some(hint) => println!("{:<58} absent: {hint}", peer.name),
            None => row(&peer.name, samples),
        }
    }
    row("firelet: invoke of a new function, sent to answered", &through_api);
    row("firelet: Init Duration of the same invocations", &init);
    row("firelet: sandbox ready for its runtime", &ready_times(&firelet.log()[told..])?);
    if node {
        row("firelet: the same for Node.js 20, sent to answered", &through_node);
    }
    Ok(())
}

/// Makes as many functions of Node.js; false where none can be had.
async fn node_functions(client: &mut Client, count: usize) -> Result<bool> {
    let code = zip_files(&[("index.js", 0o644, NODE_HELLO)])?;
    for index in 0..=count {
        let name = format!("cold-node-{index}");
        let function = Function { memory: 1769, ..Function::new(&name, NODE_RUNTIME, "index.handler", code.clone()) };
        client.create_function(&function).await?;
        if index == 0 && client.invoke(&name, "{}").await?.body != "\"hello\"" {
            println!("\n{NODE_RUNTIME} is left out: it is not there");
            return Ok(false);
        }
    }
    Ok(true)
}

/// The `ready_us=` of each sandbox in Firelet's log.
fn ready_times(log: &str) -> Result<Samples> {
    let mut samples = Samples::default();
    for (_, rest) in log.lines().filter_map(|line| line.split_once(" ready_us=")) {
        let microseconds = rest.split(' ').next().unwrap_or_default();
        samples.push(Duration::from_micros(microseconds.parse().with_context(|| format!("ready_us={rest}"))?));
    }
    Ok(samples)
}

/// `Init Duration: 12.34 ms` in a REPORT line.
fn init_duration(log: &str) -> Option<Duration> {
    let (_, rest) = log.split_once("Init Duration: ")?;
    let milliseconds: f64 = rest.split(' ').next()?.parse().ok()?;
    Some(Duration::from_secs_f64(milliseconds / 1000.0))
}

/// A hundred cold environments asked for at once.
pub async fn burst(firelet: &Firelet) -> Result<()> {
    let code = b"import time\ndef handler(event, context):\n    time.sleep(event['seconds'])\n    return 'hello'\n";
    let mut client = firelet.client().await?;
    let code = zip_files(&[("app.py", 0o644, code)])?;
    client.create_function(&Function { memory: 128, ..Function::new("burst", RUNTIME, "app.handler", code) }).await?;
    let mut clients = Vec::new();
    for _ in 0..BURST {
        clients.push(firelet.client().await?);
    }
    // Each holds its environment long enough that none is used twice.
    let hold = 5;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let (answer, log) = client.invoke_with_log("burst", format!("{{\"seconds\":{hold}}}")).await?;
            anyhow::Ok((answer.body == "\"hello\"", init_duration(&log).is_some()))
        });
    }
    let (mut answered, mut cold) = (0, 0);
    while let Some(result) = tasks.join_next().await {
        let (good, initialized) = result??;
        answered += usize::from(good);
        cold += usize::from(initialized);
    }
    let wall = started.elapsed().as_secs_f64() - f64::from(hold);
    println!("\n{BURST} Python environments asked for at once (each then sleeps {hold} s, subtracted)");
    println!("{answered} answered, {cold} of them cold, after {wall:.2} s: {:.0} environments/s", cold as f64 / wall);
    ensure!(answered == BURST, "{} of {BURST} were not answered", BURST - answered);
    Ok(())
}
