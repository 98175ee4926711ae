//! The machine, as the header of the tables.

use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

/// Prints what the figures depend on.
pub fn print() {
    let field = |file: &str, name: &str| {
        let text = read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_else(|| "unknown".into())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cgroup = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 };
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    println!("processor   {} ({cores} cores)", field("/proc/cpuinfo", "model name"));
    println!("memory      {}", field("/proc/meminfo", "MemTotal"));
    println!("kernel      {}, control groups version {cgroup}", kernel.trim());
    println!(
        "load        {} (1, 5, 15 minutes, before the run)",
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    );
    println!("revision    {}", output("git", &["describe", "--always", "--dirty"]));
    println!("build       {}", if cfg!(debug_assertions) { "debug: the figures mean nothing" } else { "release" });
}

fn output(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}
