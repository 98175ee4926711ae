//! What the tests share: a backend of their own each, a root with the host's programs, and processes that are run to
//! their end.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sandbox::namespace::{Helper, Namespace, Options, PrestartMode};
use sandbox::net::NetworkMode;
use sandbox::{Backend, Bind, Exit, Prestart, Process, ProcessId, ProcessSpec, RootFs, Sandbox, SandboxSpec, Usage};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::MODE;

/// The program that the supervisor runs as.
pub const SUPERVISOR: &str = env!("CARGO_BIN_EXE_sandbox-supervisor");
/// How long a test waits for something that takes milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A backend and the directory that it keeps its disks in.
pub struct Rig {
    pub backend: Namespace,
    _dir: tempfile::TempDir,
}

/// A backend without network, or `None` with the reason on stderr.
pub fn rig() -> Option<Rig> {
    rig_with(|_| {})
}

/// The same with other options.
pub fn rig_with(change: impl FnOnce(&mut Options)) -> Option<Rig> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    change(&mut options);
    Some(Rig { backend: Namespace::start(options).unwrap(), _dir: dir })
}

impl Rig {
    pub async fn sandbox(&self, id: &str) -> Box<dyn Sandbox> {
        self.sandbox_of(spec(id)).await
    }

    pub async fn sandbox_of(&self, spec: SandboxSpec) -> Box<dyn Sandbox> {
        sandbox_of(&self.backend, spec).await
    }

    /// Ends a sandbox and the backend.
    pub async fn end(self, sandbox: Box<dyn Sandbox>) {
        sandbox.destroy().await;
        self.backend.shutdown().await;
    }
}

/// A sandbox; in the tests of a mode that starts processes ahead, one that was prepared.
pub async fn sandbox_of(backend: &Namespace, mut spec: SandboxSpec) -> Box<dyn Sandbox> {
    if MODE != PrestartMode::Off {
        spec.prestart = Some(Prestart { process: waiter(), clonable: true });
        backend.prepare(&spec).await.unwrap();
        // Where it is to be a fork, one of an interpreter that is there: else each is started on its own.
        let forks = MODE == PrestartMode::Zygote;
        let is_prepared = || backend.prepared() > 0 && forks != backend.zygote_pids().is_empty();
        eventually("a sandbox is prepared", is_prepared).await;
    }
    backend.create(spec).await.unwrap()
}

/// Nothing kept ready and no network unless a test is about that: tests run many at a time.
pub fn options(dir: &Path) -> Options {
    let mut options = Options::new(dir.join("disks"));
    let program = std::env::var_os("FIRELET_TEST_SUPERVISOR").unwrap_or(SUPERVISOR.into());
    options.helper = Helper { program: program.into(), args: Vec::new() };
    options.cgroup_parent = "firelet-test".into();
    options.network = NetworkMode::Off;
    options.net.pool_size = 0;
    options.tmp.pool_size = 0;
    options.pool_size = 0;
    options.prestart = MODE;
    options
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
        root_image: None,
        mounts: vec![],
        processors: 1,
        keep: false,
        prestart: None,
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
pub struct Output {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a shell script to its end.
pub async fn sh(sandbox: &dyn Sandbox, script: &str) -> Output {
    run(sandbox, process(&["/bin/sh", "-c", script])).await
}

/// Runs a Python program to its end.
pub async fn python(sandbox: &dyn Sandbox, program: &str) -> Output {
    run(sandbox, process(&["/usr/bin/python3", "-c", program])).await
}

/// Runs a program to its end, in the process that was started ahead if there is one.
pub async fn run(sandbox: &dyn Sandbox, spec: ProcessSpec) -> Output {
    wait(sandbox.spawn(led(spec)).await.unwrap()).await
}

/// The same program, by way of the process that was started ahead.
pub fn led(spec: ProcessSpec) -> ProcessSpec {
    let is_led = spec.env.iter().any(|(name, _)| name == "FIRELET_TEST_ARGV");
    if MODE == PrestartMode::Off || spec.log_fd_env.is_some() || is_led {
        return spec;
    }
    let argv = serde_json::to_string(&spec.argv).unwrap();
    let env = spec.env.into_iter().chain([("FIRELET_TEST_ARGV".to_owned(), argv)]).collect();
    ProcessSpec { argv: waiter().argv, env, ..spec }
}

/// The first process of a sandbox in the modes that start it ahead; it becomes whatever is asked for then.
pub fn waiter() -> ProcessSpec {
    const PROGRAM: &str = "
import json, os, sys
library = os.environ.pop('FIRELET_ZYGOTE', None)
if library is not None:
    try:
        __import__('_imp').create_dynamic(type(sys.__spec__)('firelet_zygote', None, origin=library))
    except SystemError:
        pass
fd = os.environ.pop('FIRELET_PRESTART_FD', None)
if fd is not None:
    fd = int(fd)
    os.write(fd, b'\\n')
    given = b''
    while True:
        part = os.read(fd, 65536)
        if not part:
            break
        given += part
    os.close(fd)
    if not given:
        sys.exit(0)
    given = json.loads(given)
    log = os.environ.get('LOG')
    os.environ.clear()
    os.environ.update(given['env'])
    if log is not None:
        os.environ['LOG'] = log
    os.chdir(given['cwd'])
argv = json.loads(os.environ.pop('FIRELET_TEST_ARGV'))
if argv[0] == '/usr/bin/python3':
    code = argv[2]
    for name in ('library', 'fd', 'given', 'part', 'log', 'argv', 'json'):
        globals().pop(name, None)
    exec(compile(code, '<string>', 'exec'))
else:
    os.execve(argv[0], argv, os.environ)
";
    let argv = ["/usr/bin/python3", "-S", "-c", PROGRAM].map(str::to_owned).to_vec();
    let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    ProcessSpec { argv, env, cwd: PathBuf::from("/"), log_fd_env: None }
}

/// Reads all that a process writes, until it has ended.
pub async fn wait(process: Process) -> Output {
    let output = async {
        let (stdout, stderr) = tokio::join!(read(process.stdout), read(process.stderr));
        Output { exit: process.exit.await.unwrap(), stdout, stderr }
    };
    tokio::time::timeout(DEADLINE, output).await.expect("the process ends")
}

/// Everything that comes out of a pipe.
pub async fn read(pipe: OwnedFd) -> String {
    let mut bytes = Vec::new();
    pipe::Receiver::from_owned_fd(pipe).unwrap().read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process that goes on while the test does.
pub struct Running {
    pub id: ProcessId,
    output: Arc<Mutex<String>>,
    ended: tokio::task::JoinHandle<Output>,
}

/// Starts a shell script.
pub async fn spawn(sandbox: &dyn Sandbox, script: &str) -> Running {
    let mut process = sandbox.spawn(led(process(&["/bin/sh", "-c", script]))).await.unwrap();
    let output = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&output);
    // The wait below finds nothing more to read there.
    let (empty, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdout = std::mem::replace(&mut process.stdout, empty);
    let id = process.id;
    let ended = tokio::spawn(async move {
        let mut pipe = pipe::Receiver::from_owned_fd(stdout).unwrap();
        let copy = async {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        let ((), output) = tokio::join!(copy, wait(process));
        Output { stdout: seen.lock().unwrap().clone(), ..output }
    });
    Running { id, output, ended }
}

impl Running {
    /// Waits until the process has written `text`.
    pub async fn wait_for(&self, text: &str) {
        eventually(&format!("the process writes {text:?}"), || self.output.lock().unwrap().contains(text)).await;
    }

    pub fn has_ended(&self) -> bool {
        self.ended.is_finished()
    }

    pub async fn end(self) -> Output {
        tokio::time::timeout(DEADLINE, self.ended).await.expect("the process ends").unwrap()
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

/// What a sandbox has used, outside of async code; that of a namespace sandbox is known at once.
pub fn usage_now(sandbox: &dyn Sandbox) -> Usage {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match sandbox.usage().as_mut().poll(&mut context) {
        std::task::Poll::Ready(usage) => usage,
        std::task::Poll::Pending => panic!("the usage is not known at once"),
    }
}

/// Numbers of the host's processes that run as `uid`.
pub fn processes_of(uid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        if status.lines().any(|line| line.starts_with("Uid:") && line.contains(&format!("\t{uid}\t"))) {
            found.push(pid);
        }
    }
    found
}

/// The process that the inits of a backend are children of: in the mode that forks an interpreter, that.
pub fn maker(backend: &Namespace) -> u32 {
    backend.zygote_pids().first().copied().or(backend.supervisor_pid()).unwrap()
}

/// The user that a sandbox's processes run as.
pub async fn uid_of(sandbox: &dyn Sandbox) -> u32 {
    sh(sandbox, "id -u").await.stdout.trim().parse().unwrap()
}

/// The first line that comes out of a pipe.
pub async fn first_line(pipe: OwnedFd) -> String {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut line = String::new();
    let reading = async { BufReader::new(pipe::Receiver::from_owned_fd(pipe).unwrap()).read_line(&mut line).await };
    tokio::time::timeout(DEADLINE, reading).await.expect("the process writes a line").unwrap();
    line.trim_end().to_owned()
}
