//! Limits: each is reached on purpose, and nobody else notices.

use std::time::{Duration, Instant};

use sandbox::{Exit, Sandbox};

use crate::support::{eventually, python, rig, sh, spawn, spec, usage_now};

/// Whether the limits of control groups can be had here.
fn limited(rig: &crate::support::Rig, controller: &str) -> bool {
    let lost = rig.backend.losses().iter().find(|loss| loss.what.contains(controller));
    if let Some(loss) = lost {
        eprintln!("SKIPPED: {}", loss.what);
    }
    lost.is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn tmp_is_full_at_its_size_and_can_be_emptied() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("tmp").await;
    let program = "
import os, sys
size = 0
try:
    with open('/tmp/fill', 'wb', buffering=0) as f:
        while True:
            size += f.write(bytes(1 << 20))
except OSError as error:
    print(os.strerror(error.errno))
print(60 << 20 <= size <= 72 << 20, file=sys.stdout)
os.remove('/tmp/fill')
print(open('/tmp/again', 'wb', buffering=0).write(bytes(1 << 20)))
";
    let output = python(&*sandbox, program).await;
    assert_eq!(output.stdout, "No space left on device\nTrue\n1048576\n", "{}", output.stderr);
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_kills_the_process_and_nothing_else() {
    let Some(rig) = rig() else { return };
    if !limited(&rig, "memory") {
        return;
    }
    let mut small = spec("small");
    small.memory_bytes = 128 << 20;
    let (sandbox, other) = (rig.sandbox_of(small).await, rig.sandbox("other").await);
    let neighbour = spawn(&*other, "echo ready; exec sleep 1000").await;
    neighbour.wait_for("ready\n").await;
    let greedy = "x = []
while True: x.append(b'x' * (1 << 20))";
    assert_eq!(python(&*sandbox, greedy).await.exit, Exit::Signal(9));
    let usage = sandbox.usage().await;
    assert!(usage.oom_kills >= 1, "{usage:?}");
    assert!((100 << 20..=128 << 20).contains(&usage.memory_peak_bytes), "{usage:?}");
    assert_eq!(other.usage().await.oom_kills, 0);
    assert!(!neighbour.has_ended());
    // Init was not in the group, so the sandbox still works.
    assert_eq!(sh(&*sandbox, "echo alive").await.stdout, "alive\n");
    other.destroy().await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_in_sockets_counts_as_memory() {
    let Some(rig) = rig() else { return };
    if !limited(&rig, "memory") {
        return;
    }
    let mut small = spec("sockets");
    small.memory_bytes = 128 << 20;
    let sandbox = rig.sandbox_of(small).await;
    // Nobody reads: each connection takes as much as the kernel holds for it.
    let program = "import socket
listener = socket.create_server(('127.0.0.1', 0), backlog=500)
held, sent = [], 0
for _ in range(100):
    one = socket.create_connection(listener.getsockname(), timeout=5)
    held += [one, listener.accept()[0]]
    one.setblocking(False)
    try:
        while True: sent += one.send(bytes(65536))
    except BlockingIOError: pass
print(sent >> 20)";
    let output = python(&*sandbox, program).await;
    match output.exit {
        Exit::Signal(9) => {}
        Exit::Code(0) => assert!(output.stdout.trim().parse::<u64>().unwrap() <= 160, "{output:?} MiB in sockets"),
        Exit::Code(_) | Exit::Signal(_) => panic!("{output:?}"),
    }
    assert_eq!(sh(&*sandbox, "echo alive").await.stdout, "alive\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stays_inside() {
    let Some(rig) = rig() else { return };
    if !limited(&rig, "pids") {
        return;
    }
    let mut few = spec("bomb");
    few.max_tasks = 30;
    let (sandbox, other) = (rig.sandbox_of(few).await, rig.sandbox("other").await);
    let bomb = spawn(&*sandbox, "b() { b | b & }; b; echo thrown; exec sleep 1000").await;
    bomb.wait_for("thrown").await;
    let count = "import os, threading
started = []
hold = threading.Event()
try:
    while True:
        t = threading.Thread(target=hold.wait, daemon=True); t.start(); started.append(t)
except RuntimeError:
    print(len(started), flush=True)
    os._exit(0)";
    assert_eq!(sh(&*other, "echo fine").await.stdout, "fine\n");
    sandbox.kill_all().await;
    assert_eq!(bomb.end().await.exit, Exit::Signal(9));
    // The main thread is one of the thirty.
    let counted = python(&*sandbox, count).await;
    assert_eq!(counted.stdout, "29\n", "{counted:?}");
    other.destroy().await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resource_limits_are_those_of_lambda() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("rlimits").await;
    let limits = sh(&*sandbox, "ulimit -Sn; ulimit -Hn; ulimit -Hc; ulimit -Hl; ulimit -Ss").await.stdout;
    assert_eq!(limits, "1024\n1024\n0\n64\n8192\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sandbox_stands_still_and_goes_on_where_it_was() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("freeze").await;
    let counting = spawn(&*sandbox, "echo ready; while :; do :; done").await;
    counting.wait_for("ready\n").await;
    runs(&*sandbox).await;
    for _ in 0..2 {
        sandbox.freeze().unwrap();
        sandbox.freeze().unwrap();
        let (mut last, mut since) = (Duration::MAX, Instant::now());
        // A busy loop does not show the same figure for so long.
        eventually("the frozen loop uses no CPU", || {
            let now = usage_now(&*sandbox).cpu;
            if std::mem::replace(&mut last, now) != now {
                since = Instant::now();
            }
            since.elapsed() > Duration::from_millis(150)
        })
        .await;
        sandbox.thaw().unwrap();
        sandbox.thaw().unwrap();
        runs(&*sandbox).await;
    }
    assert!(!counting.has_ended());
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sandbox_can_be_killed_and_destroyed() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("frozen").await;
    let first = spawn(&*sandbox, "echo ready; while :; do :; done").await;
    first.wait_for("ready\n").await;
    sandbox.freeze().unwrap();
    sandbox.kill_all().await;
    assert_eq!(first.end().await.exit, Exit::Signal(9));
    let second = spawn(&*sandbox, "echo ready; while :; do :; done").await;
    second.wait_for("ready\n").await;
    sandbox.freeze().unwrap();
    rig.end(sandbox).await;
    assert_eq!(second.end().await.exit, Exit::Signal(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_grows_and_the_peak_can_be_measured_anew() {
    let Some(rig) = rig() else { return };
    if !limited(&rig, "memory") {
        return;
    }
    let sandbox = rig.sandbox("usage").await;
    assert_eq!(python(&*sandbox, "x = b'x' * (100 << 20)").await.exit, Exit::Code(0));
    let first = sandbox.usage().await;
    assert!(first.memory_peak_bytes >= 100 << 20, "{first:?}");
    assert!(first.cpu > Duration::ZERO);
    sandbox.reset_peak();
    let second = sandbox.usage().await;
    if second.memory_peak_bytes == first.memory_peak_bytes {
        eprintln!("SKIPPED: this kernel cannot reset the peak");
    } else {
        assert!(second.memory_peak_bytes < 50 << 20, "{second:?}");
    }
    rig.end(sandbox).await;
}

/// Waits until the processes of a sandbox have used more CPU time than now.
async fn runs(sandbox: &dyn Sandbox) {
    let before = sandbox.usage().await.cpu;
    eventually("the loop runs", || usage_now(&*sandbox).cpu > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processor_share_can_be_changed_while_a_process_runs() {
    let Some(rig) = rig() else { return };
    if !limited(&rig, "CPU") {
        return;
    }
    let mut whole = spec("boost");
    whole.cpu_millis = 1_000;
    let sandbox = rig.sandbox_of(whole).await;
    sandbox.set_cpu(50);
    let spinner = spawn(&*sandbox, "echo ready; while :; do :; done").await;
    spinner.wait_for("ready\n").await;
    // Five hundredths of a processor, and what the burst allows: far less than the half second that passes.
    let (began, before) = (Instant::now(), sandbox.usage().await.cpu);
    eventually("half a second passed", || began.elapsed() >= Duration::from_millis(500)).await;
    let used = sandbox.usage().await.cpu.saturating_sub(before);
    assert!(used < began.elapsed() / 4, "{used:?} of {:?}", began.elapsed());
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_was_kept_ready_has_the_limits_of_whoever_takes_it() {
    let Some(rig) = rig() else { return };
    if !limited(&rig, "memory") {
        return;
    }
    // The first creation has the pool filled, with sandboxes of no limits in particular.
    rig.sandbox("first").await.destroy().await;
    for (id, mib) in [("large", 512_u64), ("small", 96)] {
        let mut wanted = spec(id);
        wanted.memory_bytes = mib << 20;
        let sandbox = rig.sandbox_of(wanted).await;
        let fill = format!("x = b'x' * ({mib} * 3 // 4 << 20)\nprint('fits', flush=True)\ny = b'y' * ({mib} << 20)");
        let output = python(&*sandbox, &fill).await;
        assert_eq!((output.stdout.as_str(), output.exit), ("fits\n", Exit::Signal(9)), "{id}: {}", output.stderr);
        sandbox.destroy().await;
    }
    let last = rig.sandbox("last").await;
    rig.end(last).await;
}
