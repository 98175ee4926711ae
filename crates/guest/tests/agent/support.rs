//! Starts an agent and talks to it as the host does.

use std::collections::VecDeque;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use guest::control::{CONTROL, Event, FromAgent, Numbered, RUNTIME, Reply, Request, STREAMS, Spawn};
use guest::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// Longest wait for anything that must happen; reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(30);

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// An agent in namespaces of its own.
pub struct Agent {
    unshare: Child,
    pub dir: tempfile::TempDir,
    group: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ends the process namespace, with everything in it.
        let _ = std::fs::write(self.group.join("cgroup.kill"), "1");
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        for _ in 0..1000 {
            // Refused as long as a process is on its way out.
            match std::fs::remove_dir(&self.group) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::yield_now(),
                _gone_or_hopeless => break,
            }
        }
    }
}

impl Agent {
    /// `None`, with the reason on standard error, where this cannot be done.
    pub async fn start() -> Option<Self> {
        let skip = |reason: &str| {
            eprintln!("SKIPPED: {reason}");
            None
        };
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            return skip("the agent needs root to start processes as another user");
        }
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("firelet-test-guest-{}-{count}", std::process::id());
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().map(Path::new);
        let mut groups = unified.filter(|mount| mount.join("cgroup.procs").exists()).map(|mount| mount.join(&name));
        let Some(group) = groups.find(|path| std::fs::create_dir(path).is_ok()) else {
            return skip("no control groups of version 2 that can be written here");
        };
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"])
            .arg(env!("CARGO_BIN_EXE_guest-agent"))
            .arg("--local")
            .args([dir.path(), Path::new("/"), &group])
            .stdin(Stdio::null())
            .process_group(0);
        let unshare = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let _ = std::fs::remove_dir(&group);
                return skip(&format!("cannot make namespaces: unshare(1): {error}"));
            }
        };
        let mut agent = Self { unshare, dir, group };
        // The last one that it makes.
        let socket = agent.dir.path().join(RUNTIME.to_string());
        let listening = async {
            while UnixStream::connect(&socket).await.is_err() {
                if agent.unshare.try_wait().unwrap().is_some() {
                    return false;
                }
                tokio::task::yield_now().await;
            }
            true
        };
        match soon("the agent to listen", listening).await {
            true => Some(agent),
            // What it lacks stands above, on standard error.
            false => skip("the agent cannot run here"),
        }
    }

    pub async fn connect(&self, port: u32) -> UnixStream {
        UnixStream::connect(self.dir.path().join(port.to_string())).await.unwrap()
    }

    pub async fn host(&self) -> Host {
        let (read, write) = self.connect(CONTROL).await.into_split();
        Host { read: frame::Reader::new(read, 0), write, number: 0, events: VecDeque::new() }
    }

    pub async fn stream(&self, number: u64) -> UnixStream {
        let mut stream = self.connect(STREAMS).await;
        stream.write_all(&number.to_le_bytes()).await.unwrap();
        stream
    }

    /// The stream to its end.
    pub async fn output(&self, number: u64) -> String {
        let mut stream = self.stream(number).await;
        let mut text = String::new();
        soon("the end of a stream", stream.read_to_string(&mut text)).await.unwrap();
        text
    }

    /// Resident memory of the agent itself, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let children = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        let pid = std::fs::read_to_string(children).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
    }
}

/// The host's end of the control connection.
pub struct Host {
    read: frame::Reader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    number: u64,
    pub events: VecDeque<Event>,
}

impl Host {
    pub async fn send(&mut self, message: Request) -> u64 {
        self.number += 1;
        let request = Numbered { number: self.number, message };
        frame::write(&mut self.write, &request, &[]).await.unwrap();
        self.number
    }

    async fn next(&mut self) -> FromAgent {
        soon("a message of the agent", self.read.next::<FromAgent>()).await.unwrap().0
    }

    pub async fn answer(&mut self, wanted: u64) -> Reply {
        loop {
            match self.next().await {
                FromAgent::Reply { number, reply } => {
                    assert_eq!(number, wanted);
                    return reply;
                }
                FromAgent::Event(event) => self.events.push_back(event),
            }
        }
    }

    pub async fn ask(&mut self, message: Request) -> Reply {
        let number = self.send(message).await;
        self.answer(number).await
    }

    /// The next event, which will be told again to the next host.
    pub async fn unheard_event(&mut self) -> Event {
        if let Some(event) = self.events.pop_front() {
            return event;
        }
        match self.next().await {
            FromAgent::Event(event) => event,
            reply => panic!("{reply:?} where an event was expected"),
        }
    }

    pub async fn event(&mut self) -> Event {
        let event = self.unheard_event().await;
        let Event::Exited { process, .. } = event;
        assert_eq!(self.ask(Request::Heard { processes: vec![process] }).await, Reply::Done);
        event
    }

    pub async fn start(&mut self, spawn: Spawn) {
        assert_eq!(self.ask(Request::Spawn(spawn)).await, Reply::Spawned { prestarted: false });
    }

    pub async fn exited(&mut self, process: u32, code: Option<i32>, signal: Option<i32>) {
        assert_eq!(self.event().await, Event::Exited { process, code, signal });
    }
}

/// A shell that runs `script` as process `process`, whose streams are ten times that, and one and two more.
pub fn shell(process: u32, script: &str) -> Spawn {
    let first = u64::from(process) * 10;
    Spawn {
        process,
        argv: ["/bin/bash", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        cwd: "/".to_owned(),
        log_fd_env: None,
        streams: [first, first + 1, 0],
        prestarted: false,
    }
}
