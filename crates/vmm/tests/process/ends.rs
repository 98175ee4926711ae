//! How processes end, and that nothing else ends with them.

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
    // One thread starts them all; the runtime of this test has one of its own.
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < 10, "{threads} threads");
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
