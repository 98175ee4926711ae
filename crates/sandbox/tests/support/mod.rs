//! What the tests of the namespace backend share: a backend of their own each, a root with the host's programs, and
//! processes that are run to their end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox::namespace::{Helper, Namespace, Options};
use sandbox::net::NetworkMode;
use sandbox::{Backend, Bind, Exit, Process, ProcessSpec, RootFs, Sandbox, SandboxSpec};

/// How long a test waits for something that takes milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A backend and the directory that it keeps its disks in.
pub struct Rig {
    pub backend: Namespace,
    _dir: tempfile::TempDir,
}

/// A backend without network, or `None` with the reason on stderr.
pub fn rig() -> Option<Rig> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let backend = Namespace::start(options(dir.path())).unwrap();
    Some(Rig { backend, _dir: dir })
}

pub fn options(dir: &Path) -> Options {
    Options {
        helper: Helper { program: env!("CARGO_BIN_EXE_sandbox-supervisor").into(), args: Vec::new() },
        cgroup_parent: "firelet-test".into(),
        network: NetworkMode::Off,
        ..Options::new(dir.join("disks"))
    }
}

/// The host's `/usr`, as every function gets it.
pub fn root() -> RootFs {
    let mut root = RootFs::default();
    root.binds.push(Bind { source: "/usr".into(), target: "/usr".into() });
    for name in ["bin", "sbin", "lib", "lib64"] {
        root.symlinks.insert(Path::new("/").join(name), Path::new("usr").join(name));
    }
    root.files.insert("/etc/hosts".into(), b"127.0.0.1 localhost\n".to_vec());
    root.dirs.push("/var/task".into());
    root
}

pub fn spec(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.into(),
        root: root(),
        tmp_bytes: 64 << 20,
        memory_bytes: 256 << 20,
        cpu_millis: 1000,
        max_tasks: 64,
        listen: Vec::new(),
    }
}

pub fn process(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: PathBuf::from("/var/task"),
        log_fd_env: None,
    }
}

/// What a finished process left.
#[derive(Debug)]
pub struct Finished {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

impl Rig {
    pub async fn sandbox(&self, id: &str) -> Box<dyn Sandbox> {
        self.backend.create(spec(id)).await.unwrap()
    }
}

/// Runs a shell script to its end.
pub async fn sh(sandbox: &dyn Sandbox, script: &str) -> Finished {
    run(sandbox, process(&["/bin/sh", "-c", script])).await
}

pub async fn run(sandbox: &dyn Sandbox, spec: ProcessSpec) -> Finished {
    finish(sandbox.spawn(spec).await.unwrap()).await
}

pub async fn finish(process: Process) -> Finished {
    let finished = async {
        let (stdout, stderr) = tokio::join!(read(process.stdout), read(process.stderr));
        Finished { exit: process.exit.await.unwrap(), stdout, stderr }
    };
    tokio::time::timeout(DEADLINE, finished).await.expect("the process ends")
}

/// Everything that comes out of a pipe.
pub async fn read(pipe: OwnedFd) -> String {
    tokio::task::spawn_blocking(move || {
        let flags = rustix::fs::fcntl_getfl(&pipe).unwrap();
        rustix::fs::fcntl_setfl(&pipe, flags.difference(rustix::fs::OFlags::NONBLOCK)).unwrap();
        let mut bytes = Vec::new();
        std::fs::File::from(pipe).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
    .await
    .unwrap()
}

/// Waits until `holds`, or fails.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
