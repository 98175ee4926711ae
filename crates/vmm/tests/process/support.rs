//! What the tests share: a launcher of their own each, and looks at a process from outside.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vmm::host::{Jail, Launcher, Options, Program, UserRange};

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
    // A range for each test, since they run side by side, in one process or in many.
    static TESTS: AtomicU32 = AtomicU32::new(0);
    let first = (1 << 30) + std::process::id() % 4096 * 16_384 + TESTS.fetch_add(1, Ordering::Relaxed) % 64 * 256;
    let mut options = Options::new(Jail::with_users(first..first + 256));
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

/// The VMM processes that were launched with these options and have not been waited for.
pub fn processes(options: &Options) -> Vec<i32> {
    let UserRange::Range(users) = &options.jail.users else { return Vec::new() };
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_one = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        user.is_some_and(|user| users.contains(&user))
    };
    numbers.filter(is_one).collect()
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
