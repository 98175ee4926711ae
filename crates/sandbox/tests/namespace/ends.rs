//! Ends of all kinds: destroyed, dropped, shut down, killed. Nothing may be left on the host.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox::namespace::{Namespace, PrestartMode};
use sandbox::{Backend, CreateError, Exit, Sandbox, SpawnError};
use tokio::task::JoinSet;

use crate::MODE;
use crate::support::{
    Rig, eventually, maker, options, process, processes_of, rig, rig_with, sandbox_of, sh, spawn, spec, uid_of,
};

/// Control groups of the process with this number, wherever they are mounted.
pub fn groups_of(pid: u32) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.rsplit(':').next()).filter(|name| *name != "/").collect();
    let mut found = Vec::new();
    for mount in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        found.extend(names.iter().map(|name| mount.path().join(&name[1..])).filter(|path| path.is_dir()));
    }
    found.extend(names.iter().map(|name| Path::new("/sys/fs/cgroup").join(&name[1..])).filter(|path| path.is_dir()));
    found.retain(|path| path.to_string_lossy().contains("firelet-test"));
    found
}

/// A sandbox with a process, its user and its control groups.
async fn inhabited(rig: &Rig, id: &str) -> (Box<dyn Sandbox>, u32, Vec<PathBuf>) {
    let sandbox = rig.sandbox(id).await;
    let uid = uid_of(&*sandbox).await;
    let running = spawn(&*sandbox, "(setsid sleep 1000 &); echo ready; exec sleep 1000").await;
    running.wait_for("ready\n").await;
    let groups = groups_of(processes_of(uid)[0]);
    (sandbox, uid, groups)
}

/// For tests that count inits; in the modes that start processes ahead there are more of them.
fn rig_that_prepares_nothing() -> Option<Rig> {
    if MODE == PrestartMode::Off { rig() } else { None }
}

fn gone(uid: u32, groups: &[PathBuf]) -> bool {
    processes_of(uid).is_empty() && groups.iter().all(|group| !group.exists())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_sandbox_leaves_nothing() {
    let Some(rig) = rig() else { return };
    let (sandbox, uid, groups) = inhabited(&rig, "destroyed").await;
    assert!(!groups.is_empty() || !rig.backend.losses().is_empty());
    sandbox.destroy().await;
    assert!(gone(uid, &groups), "{:?} {groups:?}", processes_of(uid));
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_sandbox_leaves_nothing() {
    let Some(rig) = rig() else { return };
    let (sandbox, uid, groups) = inhabited(&rig, "dropped").await;
    drop(sandbox);
    eventually("the sandbox is gone", || gone(uid, &groups)).await;
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_is_given_up_leaves_nothing() {
    let Some(rig) = rig_that_prepares_nothing() else { return };
    for id in ["one", "two", "three"] {
        // Polled once: the order is out, nothing has come back.
        let mut creation = rig.backend.create(spec(id));
        let _ =
            std::future::poll_fn(|context| std::task::Poll::Ready(creation.as_mut().poll(context).is_ready())).await;
        drop(creation);
    }
    let sandbox = rig.sandbox("four").await;
    assert_eq!(sh(&*sandbox, "echo fine").await.stdout, "fine\n");
    let supervisor = rig.backend.supervisor_pid().unwrap();
    eventually("only one init is left", || children_of(supervisor).len() == 1).await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_init_died_says_so_when_it_is_thawed() {
    let Some(rig) = rig() else { return };
    let (sandbox, uid, groups) = inhabited(&rig, "headless").await;
    sandbox.freeze().unwrap();
    sandbox.thaw().unwrap();
    let init = children_of(maker(&rig.backend))[0];
    rustix::process::kill_process(rustix::process::Pid::from_raw(init as i32).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    eventually("the processes are gone", || processes_of(uid).is_empty()).await;
    // Its group is still there, and would do both.
    assert!(sandbox.thaw().is_err() && sandbox.freeze().is_err());
    sandbox.destroy().await;
    assert!(gone(uid, &groups), "{groups:?}");
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_all_sandboxes_and_the_supervisor() {
    let Some(rig) = rig() else { return };
    let (first, uid, groups) = inhabited(&rig, "first").await;
    let (second, other_uid, other_groups) = inhabited(&rig, "second").await;
    let supervisor = rig.backend.supervisor_pid().unwrap();
    rig.backend.shutdown().await;
    assert!(gone(uid, &groups) && gone(other_uid, &other_groups));
    assert!(!Path::new(&format!("/proc/{supervisor}")).exists());
    assert!(matches!(first.spawn(process(&["/bin/true"])).await, Err(SpawnError::SandboxGone)));
    assert!(matches!(rig.backend.create(spec("late")).await, Err(CreateError::SupervisorGone)));
    drop(first);
    second.destroy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_supervisor_is_killed_all_sandboxes_die_and_say_so() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("orphan").await;
    let uid = uid_of(&*sandbox).await;
    let running = spawn(&*sandbox, "echo ready; exec sleep 1000").await;
    running.wait_for("ready\n").await;
    let dead = maker(&rig.backend);
    kill(dead);
    assert_eq!(running.end().await.exit, Exit::Signal(9));
    eventually("its processes are gone", || processes_of(uid).is_empty()).await;
    assert!(matches!(sandbox.spawn(process(&["/bin/true"])).await, Err(SpawnError::SandboxGone)));
    sandbox.kill_all().await;
    sandbox.destroy().await;
    // The next sandbox gets another supervisor.
    let next = rig.sandbox("next").await;
    assert_ne!(dead, maker(&rig.backend));
    assert_eq!(sh(&*next, "echo fine").await.stdout, "fine\n");
    eventually("the dead supervisor is buried", || !Path::new(&format!("/proc/{dead}")).exists()).await;
    rig.end(next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_an_init_is_killed_only_its_sandbox_dies() {
    let Some(rig) = rig_that_prepares_nothing() else { return };
    let victim = rig.sandbox("victim").await;
    let uid = uid_of(&*victim).await;
    let running = spawn(&*victim, "echo ready; exec sleep 1000").await;
    running.wait_for("ready\n").await;
    let inits = children_of(rig.backend.supervisor_pid().unwrap());
    assert_eq!(inits.len(), 1);
    let other = rig.sandbox("other").await;
    kill(inits[0]);
    assert_eq!(running.end().await.exit, Exit::Signal(9));
    eventually("its processes are gone", || processes_of(uid).is_empty()).await;
    let error = victim.spawn(process(&["/bin/true"])).await.unwrap_err();
    assert_eq!(error.to_string(), "the sandbox has ended");
    assert_eq!(sh(&*other, "echo fine").await.stdout, "fine\n");
    victim.destroy().await;
    rig.end(other).await;
}

/// The server of the test below: makes two sandboxes, one of them frozen, tells what is to be gone, and waits.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the test below"]
async fn server_that_will_be_killed() {
    let Ok(dir) = std::env::var("FIRELET_TEST_SERVER_DIR") else { return };
    let mut options = options(Path::new(&dir));
    options.pool_size = 2;
    let backend = Namespace::start(options).unwrap();
    let mut sandboxes = Vec::new();
    for id in ["running", "frozen"] {
        let sandbox = sandbox_of(&backend, spec(id)).await;
        let uid = uid_of(&*sandbox).await;
        spawn(&*sandbox, "echo ready; while :; do :; done").await.wait_for("ready\n").await;
        for group in groups_of(processes_of(uid)[0]) {
            println!("group {}", group.display());
        }
        println!("uid {uid}");
        sandboxes.push(sandbox);
    }
    sandboxes[1].freeze().unwrap();
    println!("supervisor {}", maker(&backend));
    println!("end");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_without_warning_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ends::server_that_will_be_killed", "--ignored", "--nocapture"])
        .env("FIRELET_TEST_SERVER_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut uids, mut groups, mut supervisor) = (Vec::new(), Vec::new(), 0);
    for line in BufReader::new(server.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "end" {
            break;
        }
        match line.split_once(' ') {
            Some(("uid", uid)) => uids.push(uid.parse().unwrap()),
            Some(("group", group)) => groups.push(PathBuf::from(group)),
            Some(("supervisor", pid)) => supervisor = pid.parse().unwrap(),
            // What the test runner says.
            _ => {}
        }
    }
    assert_eq!(uids.len(), 2);
    let inits = children_of(supervisor);
    assert!(inits.len() >= 2 && uids.iter().all(|uid| !processes_of(*uid).is_empty()));
    server.kill().unwrap();
    assert_eq!(server.wait().unwrap().signal(), Some(9));
    let alive = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    eventually("everything is gone", || {
        uids.iter().all(|uid| gone(*uid, &groups)) && !alive(supervisor) && !inits.iter().any(|pid| alive(*pid))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_sandboxes_made_at_once_all_work() {
    let Some(rig) = rig() else { return };
    let mut all = JoinSet::new();
    for number in 0..100 {
        let backend = rig.backend.clone();
        all.spawn(async move {
            let sandbox = backend.create(spec(&format!("crowd-{number}"))).await.unwrap();
            let output = sh(&*sandbox, &format!("echo {number}; id -u")).await;
            (sandbox, output, number)
        });
    }
    let mut uids = std::collections::BTreeSet::new();
    let mut sandboxes = Vec::new();
    while let Some(done) = all.join_next().await {
        let (sandbox, output, number) = done.unwrap();
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(lines[0], number.to_string());
        assert!(uids.insert(lines[1].to_owned()), "two sandboxes share a user");
        sandboxes.push(sandbox);
    }
    rig.backend.shutdown().await;
    for uid in uids {
        assert_eq!(processes_of(uid.parse().unwrap()), Vec::<u32>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_from_the_pool_are_as_good_and_are_not_left_behind() {
    if MODE != PrestartMode::Off {
        return;
    }
    let Some(rig) = rig_with(|options| options.pool_size = 2) else { return };
    let supervisor = rig.backend.supervisor_pid().unwrap();
    let mut uids = Vec::new();
    for round in 0..4 {
        let sandbox = rig.sandbox(&format!("round-{round}")).await;
        eventually("two are ready", || children_of(supervisor).len() == 3).await;
        let output = sh(&*sandbox, "id -u; cat /etc/passwd | grep -c \"$(id -u)\"").await;
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(lines[1], "1");
        uids.push(lines[0].parse().unwrap());
        assert_eq!(sh(&*sandbox, "exit 5").await.exit, Exit::Code(5));
        sandbox.destroy().await;
    }
    // One that died while it was waiting is passed over.
    let ready = children_of(supervisor);
    ready.iter().for_each(|init| kill(*init));
    eventually("they are gone", || children_of(supervisor).iter().all(|init| !ready.contains(init))).await;
    let sandbox = rig.sandbox("after-death").await;
    assert_eq!(sh(&*sandbox, "echo fine").await.stdout, "fine\n");
    sandbox.destroy().await;
    // Other limits: those that are ready do not fit.
    let mut other = spec("other");
    other.max_tasks = 5;
    let other = rig.sandbox_of(other).await;
    assert_eq!(sh(&*other, "echo fine").await.stdout, "fine\n");
    eventually("two of the new kind are ready, and no others", || children_of(supervisor).len() == 3).await;
    rig.backend.shutdown().await;
    assert!(!Path::new(&format!("/proc/{supervisor}")).exists());
    assert!(uids.into_iter().all(|uid| processes_of(uid).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_says_which_step_failed_and_leaves_nothing() {
    let Some(rig) = rig() else { return };
    let mut absent = spec("absent");
    absent.root.binds.push(sandbox::Bind { source: "/no/such/place".into(), target: "/var/task".into() });
    let Err(error) = rig.backend.create(absent).await else { panic!("it was made") };
    assert_eq!(error.to_string(), "could not make the sandbox: open /no/such/place");
    let supervisor = rig.backend.supervisor_pid().unwrap();
    eventually("no init is left", || children_of(supervisor).is_empty()).await;
    rig.backend.shutdown().await;
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Processes whose parent is `parent`, zombies too.
fn children_of(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in parentheses may hold anything; the parent is the second field after it.
        let parent_field = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if parent_field.and_then(|field| field.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    found
}
