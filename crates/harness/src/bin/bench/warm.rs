//! Warm invocations beside a bare hyper server that echoes, in a process of its own.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use harness::{Client, Firelet, Function, zip_files};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::Plan;
use crate::samples::Samples;

const PAYLOAD: &str = "{}";
/// Invocations of each kind in a round: few, so that all kinds see the same moments of the machine.
const ROUND: usize = 100;
/// The name of the empty `provided` function, which other measurements use as well.
pub const EMPTY: &str = "empty-provided";

const PYTHON: &[u8] = b"def handler(event, context):\n    return {}\n";
const NODE: &[u8] = b"exports.handler = async () => ({})\n";

/// The part of this program that echoes: prints its address, then serves until it is killed.
pub async fn echo_server() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(echo)),
        );
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    Ok(Response::new(Full::new(request.into_body().collect().await?.to_bytes())))
}

/// Creates the functions, measures all rounds and prints the table. A language that is absent is said to be so.
pub async fn measure(firelet: &Firelet, plan: &Plan) -> Result<()> {
    let program = std::env::current_exe()?;
    let mut echo = Command::new(&program).arg("echo").stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(echo.stdout.take().context("no pipe to the echo server")?).lines();
    let address = lines.next_line().await?.context("the echo server did not start")?.parse()?;
    let mut echo_client = Client::connect(address).await?;

    let mut client = firelet.client().await?;
    let bootstrap = std::fs::read(&program)?;
    let mut functions = vec![(EMPTY, "provided.al2023", "empty", zip_files(&[("bootstrap", 0o755, &bootstrap)])?)];
    if let Some(path) = std::env::var_os("FIRELET_TEST_RUST_BOOTSTRAP") {
        let bootstrap = std::fs::read(&path).with_context(|| format!("cannot read {}", path.to_string_lossy()))?;
        functions.push(("lambda_runtime", "provided.al2023", "any", zip_files(&[("bootstrap", 0o755, &bootstrap)])?));
    }
    functions.push(("python", "python3.12", "app.handler", zip_files(&[("app.py", 0o644, PYTHON)])?));
    functions.push(("node", "nodejs20.x", "index.handler", zip_files(&[("index.js", 0o644, NODE)])?));

    let mut measured = Vec::new();
    for (name, runtime, handler, code) in functions {
        client.create_function(&Function { memory: 1769, ..Function::new(name, runtime, handler, code) }).await?;
        let first = client.invoke(name, PAYLOAD).await?;
        if first.status == StatusCode::OK && first.header("x-amz-function-error").is_empty() {
            measured.push((name, runtime, Samples::default(), Samples::default()));
        } else {
            println!("\n{name} ({runtime}) is left out: {}", String::from_utf8_lossy(&first.body));
        }
    }

    let mut echoed = Samples::default();
    for round in 0..=plan.warm_rounds {
        // The first round warms caches and branch predictors, and is thrown away.
        let keep = round > 0;
        for _ in 0..ROUND {
            let started = Instant::now();
            let answer = echo_client.request(Method::POST, "/", &[], PAYLOAD).await?;
            let time = started.elapsed();
            ensure!(answer.body == PAYLOAD, "the echo server answered {:?}", answer.body);
            if keep {
                echoed.push(time);
            }
        }
        for (name, _, samples, thawed) in &mut measured {
            for place in 0..=ROUND {
                let started = Instant::now();
                let answer = client.invoke(name, PAYLOAD).await?;
                let time = started.elapsed();
                ensure!(answer.status == StatusCode::OK, "{name}: {} {:?}", answer.status, answer.body);
                // The other kinds had their turn: the first one finds a frozen environment.
                if keep && place == 0 {
                    thawed.push(time);
                } else if keep {
                    samples.push(time);
                }
            }
        }
    }

    println!("\nwarm invocations, one connection, ms ({} of each, 1,769 MB)", echoed.len());
    println!("{:<34} {:>8} {:>8} {:>8} {:>11} {:>11}", "", "p50", "p99", "p99.9", "added p50", "added p99");
    let row = |name: String, samples: &Samples, added: bool| {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| samples.quantile(quantile));
        let difference = |value: f64, quantile| {
            if added { format!("{:.3}", value - echoed.quantile(quantile)) } else { String::new() }
        };
        let (added50, added99) = (difference(p50, 0.5), difference(p99, 0.99));
        println!("{name:<34} {p50:>8.3} {p99:>8.3} {p999:>8.3} {added50:>11} {added99:>11}");
    };
    row("bare hyper echo".into(), &echoed, false);
    for (name, runtime, samples, _) in &measured {
        row(format!("{name} ({runtime})"), samples, true);
    }
    for (name, _, _, thawed) in &measured {
        row(format!("{name}, thawed for it"), thawed, true);
    }
    Ok(())
}
