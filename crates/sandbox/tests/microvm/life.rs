//! One machine from its making to its end.

use std::time::Duration;

use sandbox::{Backend, Exit, SandboxSpec, Signal};

use crate::support::{Talk, eventually, rig, says, script, sh, soon};

/// How long something that must not happen is given to happen.
const WHILE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_runs_processes_and_leaves_nothing() {
    let Some(rig) = rig(0) else { return };
    let sandbox = rig.sandbox("life").await;
    assert!(!rig.left().is_empty(), "a machine is a process in a control group");

    let output = sh(&*sandbox, "echo out; echo err >&2; exit 7").await;
    assert_eq!((output.exit, &*output.stdout, &*output.stderr), (Exit::Code(7), "out\n", "err\n"));
    assert_ne!(says(&*sandbox, "id -u").await, "0");
    assert_eq!(sh(&*sandbox, "echo x > /var/task/x").await.exit, Exit::Code(1), "the root can be written");

    let mut talk = Talk::with(sandbox.spawn(script("echo there; sleep 1000")).await.unwrap());
    assert_eq!(talk.line().await, "there");
    sandbox.signal(talk.id, Signal::Terminate);
    assert_eq!(soon("a signal ends it", talk.exit).await.unwrap(), Exit::Signal(15));

    let mut talk = Talk::with(sandbox.spawn(script("echo there; sleep 1000")).await.unwrap());
    assert_eq!(talk.line().await, "there");
    soon("all are killed", sandbox.kill_all()).await;
    assert_eq!(soon("it has ended", talk.exit).await.unwrap(), Exit::Signal(9));
    assert_eq!(says(&*sandbox, "echo again").await, "again");

    soon("it is destroyed", sandbox.destroy()).await;
    assert_eq!(rig.left(), Vec::<String>::new());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies_while_it_is_made_is_made_again() {
    let Some(rig) = rig(4) else { return };
    // So that there is a base, and the next machine is a clone.
    soon("it is destroyed", rig.sandbox("first").await.destroy()).await;
    let killed = rig.kill_next_guest();
    let sandbox = rig.sandbox("second").await;
    assert!(soon("a guest is killed", killed).await.unwrap());
    assert_eq!(says(&*sandbox, "echo there").await, "there");
    soon("it is destroyed", sandbox.destroy()).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let Some(rig) = rig(1) else { return };
    // Small, since each page that is touched for the first time takes an emulated machine milliseconds.
    let spec = SandboxSpec { memory_bytes: 24 << 20, tmp_bytes: 8 << 20, ..rig.spec("limits") };
    let sandbox = soon("a sandbox is made", rig.backend.create(spec)).await.unwrap();

    let full = sh(&*sandbox, "dd if=/dev/zero of=/tmp/large bs=1048576 count=16").await;
    assert!(full.exit != Exit::Code(0) && full.stderr.contains("No space left"), "{full:?}");
    assert_eq!(says(&*sandbox, "dd if=/dev/zero of=/tmp/large bs=1048576 count=6 2>/dev/null; echo $?").await, "0");

    // All of it in one call of the kernel's: a program that ran meanwhile would read its own text from the disk again and
    // again, since that is what the kernel takes back first, and an emulated machine may need minutes for that.
    let greedy = sh(&*sandbox, "dd if=/dev/zero of=/dev/null bs=100000000 count=1").await;
    assert_ne!(greedy.exit, Exit::Code(0), "{greedy:?}");
    let usage = sandbox.usage().await;
    assert!(usage.oom_kills >= 1 && usage.memory_peak_bytes <= 25 << 20, "{usage:?}");
    let few = sh(
        &*sandbox,
        "for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2 3 4; do sleep 1000 >/dev/null 2>&1 & done; done",
    )
    .await;
    assert_ne!(few.exit, Exit::Code(0), "{few:?}");

    soon("it is destroyed", sandbox.destroy()).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_machine_stands_still() {
    let Some(rig) = rig(2) else { return };
    let sandbox = rig.sandbox("frozen").await;
    let mut talk = Talk::with(sandbox.spawn(script("echo one; sleep 0; exec cat /dev/zero >/dev/null")).await.unwrap());
    assert_eq!(talk.line().await, "one");

    sandbox.freeze().unwrap();
    let mut answer = Box::pin(sandbox.spawn(script("echo two")));
    assert!(tokio::time::timeout(WHILE, &mut answer).await.is_err(), "a frozen machine answers");
    sandbox.thaw().unwrap();
    let mut second = Talk::with(soon("a thawed machine answers", answer).await.unwrap());
    assert_eq!(second.line().await, "two");
    drop(sandbox);
    eventually("a sandbox that is dropped goes", || rig.left().is_empty()).await;
    rig.end().await;
}
