//! A `firelet serve` process of a test's own: port 0, its own data directory, ready when it says so, gone with its owner.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::Client;

/// How long a start or a stop may take before the test gives up on it.
const DEADLINE: Duration = Duration::from_secs(60);

/// The line on standard output that names the address.
const READY: &str = "listening on http://";

/// How to start the server.
#[derive(Default)]
pub struct Options {
    /// The binary. Default: `$FIRELET_BIN`, else `firelet` in the target directory that this program was built into.
    pub binary: Option<PathBuf>,
    /// Arguments after `serve --listen … --data-dir …`.
    pub arguments: Vec<String>,
    /// Additional environment variables.
    pub environment: Vec<(String, String)>,
    /// A data directory to go on with, from [`Firelet::kill`] or [`Firelet::stop_keeping_data`].
    pub data: Option<Arc<TempDir>>,
}

/// A running server. Dropping it kills the process; a drop while a test panics prints the end of its log.
pub struct Firelet {
    child: Child,
    address: SocketAddr,
    data: Arc<TempDir>,
    /// Kept open so that the server never writes into a closed pipe.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Firelet {
    /// Starts a server and waits until it answers its health check.
    pub async fn start(options: Options) -> Result<Firelet> {
        let binary = match options.binary {
            Some(binary) => binary,
            None => find_binary()?,
        };
        let data = match options.data {
            Some(data) => data,
            None => Arc::new(tempfile::Builder::new().prefix("firelet-test-").tempdir()?),
        };
        let log = File::options().create(true).append(true).open(log_path(&data))?;
        let mut child = Command::new(&binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data.path().join("data"))
            .args(&options.arguments)
            .envs(options.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let stdout = child.stdout.take().context("the child was started without a pipe")?;
        let mut lines = BufReader::new(stdout).lines();
        let address = match timeout(DEADLINE, read_address(&mut lines)).await {
            Ok(Ok(address)) => address,
            Ok(Err(error)) => bail!("{error:#}\n{}", log_tail(&data)),
            Err(_) => bail!("no `{READY}` line within {DEADLINE:?}\n{}", log_tail(&data)),
        };
        let firelet = Firelet { child, address, data, _stdout: lines };
        let health = firelet.client().await?.request(Method::GET, "/_firelet/health", &[], "").await?;
        ensure!(health.status == StatusCode::OK, "the health check answers {}", health.status);
        Ok(firelet)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id of the server.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The directory given as `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.data.path().join("data")
    }

    /// Everything that the server has written to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(&self.data)).unwrap_or_default()
    }

    /// A new connection to it.
    pub async fn client(&self) -> Result<Client> {
        Client::connect(self.address).await
    }

    /// Asks the server to stop (SIGTERM), waits for its end and requires that it was an orderly one.
    pub async fn stop(self) -> Result<()> {
        self.stop_keeping_data().await.map(drop)
    }

    /// As [`stop`](Self::stop); returns the data for a next start.
    pub async fn stop_keeping_data(mut self) -> Result<Arc<TempDir>> {
        let status = self.signal(Signal::TERM).await?;
        ensure!(status.success(), "firelet ended with {status}\n{}", log_tail(&self.data));
        Ok(self.data.clone())
    }

    /// Kills the server at once (SIGKILL), as a power cut would; returns the data for a next start.
    pub async fn kill(mut self) -> Result<Arc<TempDir>> {
        self.signal(Signal::KILL).await?;
        Ok(self.data.clone())
    }

    async fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32)).context("firelet has already ended")?;
        kill_process(pid, signal)?;
        let started = Instant::now();
        let status = timeout(DEADLINE, self.child.wait()).await;
        Ok(status.with_context(|| format!("still there {:?} after {signal:?}", started.elapsed()))??)
    }
}

impl Drop for Firelet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", log_tail(&self.data));
        }
    }
}

async fn read_address(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<SocketAddr> {
    while let Some(line) = lines.next_line().await? {
        if let Some((_, address)) = line.split_once(READY) {
            return address.trim().parse().with_context(|| format!("cannot read the address in {line:?}"));
        }
    }
    bail!("firelet ended before it listened")
}

fn log_path(data: &TempDir) -> PathBuf {
    data.path().join("firelet.log")
}

/// The last 100 lines of the server's log, with a heading.
fn log_tail(data: &TempDir) -> String {
    let text = std::fs::read_to_string(log_path(data)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("---- firelet's log ----\n{}", lines[lines.len().saturating_sub(100)..].join("\n"))
}

/// `$FIRELET_BIN`, or the binary beside this program (test programs lie one folder deeper, in `deps`).
fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FIRELET_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let found =
        program.ancestors().skip(1).take(2).map(|folder: &Path| folder.join("firelet")).find(|path| path.is_file());
    found.with_context(|| {
        format!("no firelet binary beside {}: run `cargo build -p firelet`, or set FIRELET_BIN", program.display())
    })
}
