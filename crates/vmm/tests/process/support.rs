//! What the tests share: a launcher of their own each, and looks at a process from outside.

use std::fs;
use std::time::{Duration, Instant};

use vmm::host::{Jail, Launcher, Options, Program};

/// The program that VMM processes run.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vmm-process");
/// How long a test waits for something that takes milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Options for this machine, or `None` with the reason on stderr.
pub fn options() -> Option<Options> {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: /dev/kvm cannot be opened here");
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return None;
    }
    // A range for each test process, since they run side by side.
    let first = (1 << 30) + std::process::id() % 65_536 * 1024;
    let mut options = Options::new(Jail::with_users(first..first + 1024));
    options.program = Program { path: PROGRAM.into(), args: vec!["microvm".into()] };
    Some(options)
}

/// A launcher without a pool.
pub fn launcher() -> Option<Launcher> {
    options().map(|options| Launcher::new(options).unwrap())
}

/// A line of `/proc/<pid>/status` (or of a thread's), without its name.
pub fn status(process: &str, line: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {line} in {status}")).trim().to_owned()
}

/// Waits for a condition.
pub async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for a future, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// Whether a process is there and no zombie.
pub fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
