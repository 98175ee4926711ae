//! How processes end, and that nothing else ends with them.

use std::io::{BufRead, BufReader};

use rustix::process::{Pid, Signal, kill_process};
use vmm::config::Exit;
use vmm::host::Extras;

use crate::support::{launcher, lives, soon, wait_for};

#[tokio::test]
async fn a_killed_process_is_noticed_and_takes_nothing_with_it() {
    let Some(launcher) = launcher() else { return };
    let one = launcher.shell(1, Extras::default()).await.unwrap();
    let two = launcher.shell(1, Extras::default()).await.unwrap();
    kill_process(Pid::from_raw(one.pid()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(soon(one.exited()).await, Exit::Killed);
    assert!(lives(two.pid()));
}

#[tokio::test]
async fn a_dropped_shell_is_gone_and_waited_for() {
    let Some(launcher) = launcher() else { return };
    let shell = launcher.shell(1, Extras::default()).await.unwrap();
    let pid = shell.pid();
    drop(shell);
    wait_for("the process to be waited for", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
}

#[tokio::test]
async fn fifty_shells_live_at_once() {
    let Some(launcher) = launcher() else { return };
    let shells = futures(50, || {
        let launcher = launcher.clone();
        async move { launcher.shell(1, Extras::default()).await.unwrap() }
    })
    .await;
    assert!(shells.iter().all(|shell| lives(shell.pid())));
    let mut users: Vec<String> = shells.iter().map(|s| crate::support::status(&s.pid().to_string(), "Uid")).collect();
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 50);
    // One thread starts them all; those of the tests that may run beside this one are few.
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < 40, "{threads} threads");
}

/// Runs `count` of the same at once.
async fn futures<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    count: usize,
    make: impl Fn() -> F,
) -> Vec<T> {
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(make())).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(soon(task).await.unwrap());
    }
    results
}

/// Tells a test program that it is the host process to be killed.
const ROLE: &str = "VMM_TEST_HOST";

#[tokio::test]
async fn a_killed_host_takes_its_processes_with_it_even_stopped_ones() {
    if std::env::var_os(ROLE).is_some() {
        return be_a_host().await;
    }
    if launcher().is_none() {
        return;
    }
    let name = "ends::a_killed_host_takes_its_processes_with_it_even_stopped_ones";
    let mut host = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ROLE, "yes")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(host.stdout.take().unwrap());
    let line = output.lines().map(Result::unwrap).find_map(|line| Some(line.split_once("shells: ")?.1.to_owned()));
    let pids: Vec<i32> = line.unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() == 2 && pids.iter().all(|pid| lives(*pid)));
    // This one cannot notice by itself that its host is gone.
    kill_process(Pid::from_raw(pids[0]).unwrap(), Signal::STOP).unwrap();
    host.kill().unwrap();
    host.wait().unwrap();
    wait_for("the shells to end", || !pids.iter().any(|pid| lives(*pid))).await;
}

async fn be_a_host() {
    let launcher = launcher().unwrap();
    let one = launcher.shell(1, Extras::default()).await.unwrap();
    let two = launcher.shell(1, Extras::default()).await.unwrap();
    println!("shells: {} {}", one.pid(), two.pid());
    std::future::pending::<()>().await;
}
