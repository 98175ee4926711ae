//! A control plane with much in it: `bench load [FUNCTIONS [VERSIONS]]`, by default 2,000 functions with 10 versions each, made
//! through the API, then read, paged through, and loaded again by a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Client, Firelet, Function, Options, zip_files};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::samples::Samples;

/// Connections that make functions at the same time.
const MAKERS: usize = 8;
/// Reads of each kind.
const READS: usize = 500;
/// How long an update may take to have happened.
const DEADLINE: Duration = Duration::from_secs(60);

/// How much there shall be.
#[derive(Clone, Copy)]
struct Size {
    functions: usize,
    versions: usize,
}

/// The command, with its arguments.
pub async fn run(arguments: &[String]) -> Result<()> {
    let number = |place: usize, default: usize| match arguments.get(place) {
        Some(text) => text.parse().with_context(|| format!("{text} is no number: bench load [FUNCTIONS [VERSIONS]]")),
        None => Ok(default),
    };
    let size = Size { functions: number(0, 2_000)?, versions: number(1, 10)? };
    ensure!(size.functions > 0 && size.versions > 0, "at least one function with one version");
    println!("\n{} functions with {} versions each", size.functions, size.versions);
    let firelet = Firelet::start(options(None)).await?;
    make(&firelet, size).await?;
    read(&firelet, size).await?;
    resident(&firelet)?;
    let started = Instant::now();
    let data = firelet.stop_keeping_data().await?;
    row("stop", &format!("{:.0} ms", ms(started)));
    let started = Instant::now();
    let firelet = Firelet::start(options(Some(data))).await?;
    row("start, until the health check", &format!("{:.0} ms", ms(started)));
    let (count, _) = pages(&mut firelet.client().await?, "/2015-03-31/functions/?", "Functions").await?;
    ensure!(count == size.functions, "{count} functions are left after the restart");
    let data = firelet.kill().await?;
    let started = Instant::now();
    let firelet = Firelet::start(options(Some(data))).await?;
    row("start after a kill", &format!("{:.0} ms", ms(started)));
    resident(&firelet)?;
    firelet.stop().await
}

fn options(data: Option<Arc<tempfile::TempDir>>) -> Options {
    let arguments = ["--network", "off"].map(str::to_owned).to_vec();
    Options { arguments, data, ..Options::default() }
}

/// Creates everything, over several connections.
async fn make(firelet: &Firelet, size: Size) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..MAKERS {
        let (mut client, next) = (firelet.client().await?, Arc::clone(&next));
        tasks.spawn(async move {
            let (mut creates, mut publishes) = (Samples::default(), Samples::default());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= size.functions {
                    return anyhow::Ok((creates, publishes));
                }
                one(&mut client, number, size.versions, &mut creates, &mut publishes).await?;
            }
        });
    }
    let (mut creates, mut publishes) = (Samples::default(), Samples::default());
    while let Some(made) = tasks.join_next().await {
        let (more_creates, more_publishes) = made??;
        creates.extend(more_creates);
        publishes.extend(more_publishes);
    }
    row("everything made in", &format!("{:.1} s over {MAKERS} connections", started.elapsed().as_secs_f64()));
    quantiles("CreateFunction, until Active", &creates);
    quantiles("PublishVersion", &publishes);
    Ok(())
}

async fn one(
    client: &mut Client,
    number: usize,
    versions: usize,
    creates: &mut Samples,
    publishes: &mut Samples,
) -> Result<()> {
    let name = name(number);
    let code = format!("#!/bin/sh\n# {number}\n");
    let code = zip_files(&[("bootstrap", 0o755, code.as_bytes())])?;
    let started = Instant::now();
    client.create_function(&Function::new(&name, "provided.al2023", "handler", code)).await?;
    creates.push(started.elapsed());
    for version in 1..=versions {
        if version > 1 {
            // A version differs from the one before it, or none is made.
            let body = json!({"Description": format!("version {version}")}).to_string();
            let path = format!("/2015-03-31/functions/{name}/configuration");
            call(client, Method::PUT, &path, body, StatusCode::OK).await?;
            updated(client, &path).await?;
        }
        let started = Instant::now();
        let path = format!("/2015-03-31/functions/{name}/versions");
        let published = call(client, Method::POST, &path, "{}".to_owned(), StatusCode::CREATED).await?;
        publishes.push(started.elapsed());
        ensure!(published["Version"].as_str() == Some(version.to_string().as_str()), "{name}: {published}");
    }
    Ok(())
}

async fn updated(client: &mut Client, path: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let shown = call(client, Method::GET, path, String::new(), StatusCode::OK).await?;
        if shown["LastUpdateStatus"] == "Successful" {
            return Ok(());
        }
        ensure!(started.elapsed() < DEADLINE, "the update does not end: {shown}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Reads of every kind, one after the other, then every page of the lists.
async fn read(firelet: &Firelet, size: Size) -> Result<()> {
    let mut client = firelet.client().await?;
    // A step that has no factor in common with most counts reaches everything in an order of no meaning.
    let name = |place: usize| name(place * 7_919 % size.functions);
    let version = |place: usize| place % size.versions + 1;
    let kinds: [(&str, &dyn Fn(usize) -> String); 4] = [
        ("GetFunction", &|place| format!("/2015-03-31/functions/{}", name(place))),
        ("GetFunctionConfiguration of a version", &|place| {
            format!("/2015-03-31/functions/{}/configuration?Qualifier={}", name(place), version(place))
        }),
        ("ListVersionsByFunction", &|place| format!("/2015-03-31/functions/{}/versions", name(place))),
        ("GetAccountSettings", &|_| "/2016-08-19/account-settings".to_owned()),
    ];
    for (kind, path) in kinds {
        let mut samples = Samples::default();
        for place in 0..READS {
            let path = path(place);
            let started = Instant::now();
            call(&mut client, Method::GET, &path, String::new(), StatusCode::OK).await?;
            samples.push(started.elapsed());
        }
        quantiles(kind, &samples);
    }
    let (count, samples) = pages(&mut client, "/2015-03-31/functions/?", "Functions").await?;
    ensure!(count == size.functions, "{count} functions are listed");
    quantiles("ListFunctions, a page of 50", &samples);
    let (count, samples) = pages(&mut client, "/2015-03-31/functions/?FunctionVersion=ALL&", "Functions").await?;
    ensure!(count == size.functions * (size.versions + 1), "{count} versions are listed");
    quantiles("ListFunctions with versions, a page of 50", &samples);
    Ok(())
}

/// Follows a list to its end: how much was in it, and the times of its pages.
async fn pages(client: &mut Client, path: &str, member: &str) -> Result<(usize, Samples)> {
    let (mut count, mut samples, mut marker) = (0, Samples::default(), String::new());
    loop {
        let started = Instant::now();
        let page = call(client, Method::GET, &format!("{path}{marker}"), String::new(), StatusCode::OK).await?;
        samples.push(started.elapsed());
        count += page[member].as_array().context("the page has no list")?.len();
        match page["NextMarker"].as_str() {
            // Base64 has three letters that a query must not carry as they are.
            Some(next) => {
                marker = format!("Marker={}", next.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"));
            }
            None => return Ok((count, samples)),
        }
    }
}

async fn call(client: &mut Client, method: Method, path: &str, body: String, expected: StatusCode) -> Result<Value> {
    let headers = [("content-type", "application/json")];
    let answer = client.request(method, path, &headers, body).await?;
    ensure!(answer.status == expected, "{path}: {} {:?}", answer.status, answer.body);
    answer.json()
}

fn name(number: usize) -> String {
    format!("function-{number:05}")
}

/// Memory of the server's own process.
fn resident(firelet: &Firelet) -> Result<()> {
    let pid = firelet.pid().context("the server has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    row("resident memory of the server", &format!("{:.0} MiB", kib / 1_024.0));
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

fn quantiles(what: &str, samples: &Samples) {
    let (median, high) = (samples.median(), samples.quantile(0.99));
    row(what, &format!("{median:.2} ms, 99%: {high:.2} ms ({} of them)", samples.len()));
}

fn row(what: &str, figure: &str) {
    println!("{what:<44} {figure}");
}
