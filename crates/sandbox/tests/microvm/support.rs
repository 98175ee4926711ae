//! What the tests share: a backend of their own each, a root that is nothing but busybox, and processes that are run.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::erofs::{self, Tree};
use sandbox::microvm::{MicroVms, Options, probe};
use sandbox::{Backend, Exit, Process, ProcessSpec, RootFs, Sandbox, SandboxSpec};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;

/// How long a test waits for anything: guests of an emulated machine are slow.
pub const DEADLINE: Duration = Duration::from_secs(180);
/// One program that is all of a small system, linked statically.
const BUSYBOX: &str = "/bin/busybox";
/// What it is called in the root.
const APPLETS: [&str; 14] =
    ["sh", "cat", "dd", "df", "echo", "grep", "head", "hostname", "id", "ls", "mount", "sleep", "sync", "tail"];
/// Users of these tests' VMM processes; those of different backends do not overlap.
const FIRST_UID: u32 = 0x5f2e_0000;
const MACHINES: u32 = 64;

/// A backend and where it keeps things.
pub struct Rig {
    pub backend: MicroVms,
    root_image: PathBuf,
    parent: String,
    first_uid: u32,
    interfaces: BTreeSet<String>,
    _dir: tempfile::TempDir,
}

/// The `number`th test's backend, or `None` with the reason on stderr.
pub fn rig(number: u32) -> Option<Rig> {
    // RUST_LOG=debug tells what the backend did; the first test of the program sets it up for all.
    let _ = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_test_writer().try_init();
    let skip = |reason: String| {
        eprintln!("SKIPPED: {reason}");
        None
    };
    if !rustix::process::geteuid().is_root() {
        return skip("not root".to_owned());
    }
    if let Err(error) = probe::probe() {
        return skip(error.to_string());
    }
    let Some(kernel) = std::env::var_os("FIRELET_GUEST_KERNEL") else {
        return skip("FIRELET_GUEST_KERNEL does not name a guest kernel".to_owned());
    };
    let Some(agent) = std::env::var_os("FIRELET_GUEST_AGENT") else {
        return skip("FIRELET_GUEST_AGENT does not name a guest agent".to_owned());
    };
    let Ok(busybox) = std::fs::read(BUSYBOX) else {
        return skip(format!("there is no {BUSYBOX} (package busybox-static)"));
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let root_image = dir.path().join("busybox.erofs");
    write_root(busybox, &root_image);
    let parent = format!("firelet-test-vm-{number}");
    let first_uid = FIRST_UID + number * MACHINES;
    let interfaces = interfaces();
    let mut options = Options::new(dir.path(), kernel.into(), agent.into());
    options.program.path = env!("CARGO_BIN_EXE_sandbox-supervisor").into();
    options.cgroup_parent.clone_from(&parent);
    options.net.pool_size = 0;
    options.first_uid = first_uid;
    options.max_machines = MACHINES;
    options.pool_size = 0;
    let backend = MicroVms::start(options).unwrap();
    Some(Rig { backend, root_image, parent, first_uid, interfaces, _dir: dir })
}

/// A root file system in which there is a shell and not much else.
fn write_root(busybox: Vec<u8>, to: &Path) {
    let mut tree = Tree::new();
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "var", "var/task"] {
        tree.dir(Path::new("/").join(dir), 0o755).unwrap();
    }
    tree.file("/bin/busybox", busybox, 0o755).unwrap();
    for applet in APPLETS {
        tree.symlink(Path::new("/bin").join(applet), "busybox", 0o777).unwrap();
    }
    tree.file("/etc/resolv.conf", Vec::new(), 0o644).unwrap();
    erofs::write(&tree, &File::create(to).unwrap()).unwrap();
}

/// Names of the host's network devices.
fn interfaces() -> BTreeSet<String> {
    let names = std::fs::read_dir("/sys/class/net").unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

impl Rig {
    pub fn spec(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.to_owned(),
            root: RootFs::default(),
            root_image: Some(self.root_image.clone()),
            mounts: Vec::new(),
            tmp_bytes: 32 << 20,
            memory_bytes: 96 << 20,
            cpu_millis: 1000,
            processors: 1,
            max_tasks: 32,
            listen: Vec::new(),
            keep: false,
            prestart: None,
        }
    }

    pub async fn sandbox(&self, id: &str) -> Box<dyn Sandbox> {
        soon("a sandbox is made", self.backend.create(self.spec(id))).await.unwrap()
    }

    /// What is on the host because of machines: processes, control groups, network devices.
    pub fn left(&self) -> Vec<String> {
        let users = self.first_uid..self.first_uid + MACHINES;
        let mut left = processes_of(users);
        let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(dir) = dirs.pop() {
            let ours = dir.components().any(|part| part.as_os_str().to_string_lossy().starts_with(&self.parent));
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if ours && entry.file_name().to_string_lossy().starts_with("vm-") {
                    left.push(entry.path().display().to_string());
                }
                dirs.push(entry.path());
            }
        }
        left
    }

    /// Kills the next machine as soon as its guest has run for some hundredths of a second; says whether there was one.
    pub fn kill_next_guest(&self) -> JoinHandle<bool> {
        const TICKS: u64 = 3;
        let users = self.first_uid..self.first_uid + MACHINES;
        let has_run = |pid: i32| {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
            stats.filter_map(|stat| cpu_ticks(&stat, "vcpu0")).any(|ticks| ticks >= TICKS)
        };
        tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + DEADLINE;
            while Instant::now() < deadline {
                if let Some(pid) = pids_of(users.clone()).into_iter().find(|pid| has_run(*pid)) {
                    let pid = rustix::process::Pid::from_raw(pid).unwrap();
                    return rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            false
        })
    }

    /// Ends the backend and sees that nothing of it is left.
    pub async fn end(self) {
        soon("the backend ends", self.backend.shutdown()).await;
        assert_eq!(self.left(), Vec::<String>::new());
        assert_eq!(interfaces(), self.interfaces);
    }
}

/// Processes of the host that run as one of these users.
fn pids_of(users: Range<u32>) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let uid = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
    };
    pids.filter(|pid| uid(pid).is_some_and(|uid: u32| users.contains(&uid))).collect()
}

/// What these processes are.
fn processes_of(users: Range<u32>) -> Vec<String> {
    let status = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
    let shown = |status: String| status.lines().take(3).collect::<Vec<_>>().join(" ");
    pids_of(users).into_iter().filter_map(|pid| status(pid).map(shown)).collect()
}

/// Processor time of a thread, if it is called so, from its line in `/proc`.
fn cpu_ticks(stat: &str, name: &str) -> Option<u64> {
    let (head, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    head.ends_with(&format!("({name}")).then_some(ticks(11)? + ticks(12)?)
}

/// Fails if it takes longer than anything may.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("in vain: {what}"),
    }
}

/// Waits until `holds`, or fails.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn script(script: &str) -> ProcessSpec {
    ProcessSpec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: PathBuf::from("/tmp"),
        log_fd_env: None,
    }
}

/// What a finished process left.
#[derive(Debug)]
pub struct Output {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a shell script to its end.
pub async fn sh(sandbox: &dyn Sandbox, text: &str) -> Output {
    let ran = async {
        let process = sandbox.spawn(script(text)).await.unwrap();
        let (stdout, stderr) = tokio::join!(read(process.stdout), read(process.stderr));
        Output { exit: process.exit.await.unwrap(), stdout, stderr }
    };
    soon(text, ran).await
}

/// What a shell script that must not fail writes.
pub async fn says(sandbox: &dyn Sandbox, text: &str) -> String {
    let output = sh(sandbox, text).await;
    assert_eq!(output.exit, Exit::Code(0), "{text}: {output:?}");
    output.stdout.trim_end().to_owned()
}

async fn read(stream: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut stream = stream_of(stream);
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process's output, which is a socket here.
fn stream_of(fd: OwnedFd) -> tokio::net::UnixStream {
    tokio::net::UnixStream::from_std(fd.into()).unwrap()
}

/// The lines that a process writes.
pub struct Talk {
    lines: Lines<BufReader<tokio::net::UnixStream>>,
    pub exit: tokio::sync::oneshot::Receiver<Exit>,
    pub id: sandbox::ProcessId,
}

impl Talk {
    pub fn with(process: Process) -> Talk {
        let lines = BufReader::new(stream_of(process.stdout)).lines();
        Talk { lines, exit: process.exit, id: process.id }
    }

    pub async fn line(&mut self) -> String {
        soon("a process writes a line", self.lines.next_line()).await.unwrap().expect("a line before the end")
    }
}
