//! Sandboxes whose first process is a fork of an interpreter: how it differs from one that was started, which interpreter it is of, and
//! what remains when there is none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::namespace::Turnover;
use sandbox::{Backend, Exit, Prestart, ProcessSpec, Sandbox, SandboxSpec};

use crate::prepared::{children, handed, prepared, rig, waiting_spec};
use crate::support::{eventually, read, rig_with, run, spec, wait, waiter};

/// The process that waits in a sandbox, run with a program that says whether it is a fork.
async fn is_fork(sandbox: &dyn Sandbox) -> bool {
    let output = run(sandbox, handed("print('FIRELET_ZYGOTE' in open('/proc/self/environ').read())")).await;
    assert_eq!((output.exit, output.stderr.as_str()), (Exit::Code(0), ""));
    output.stdout == "True\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_like_a_process_that_was_started() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("alike");
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    let look = "
import ctypes, faulthandler, os, signal, sys, threading, _thread
print(open('/proc/self/comm').read(), open('/proc/self/cmdline').read()[:40], sorted(sys.modules), sys.argv, sys.flags, sep='\\n')
print(threading.main_thread().native_id == threading.get_native_id() == os.getpid(), _thread.get_native_id() == os.getpid())
print(open('/proc/self/exe', 'rb').read(4), os.readlink('/proc/self/exe'), os.stat('/proc/self/mem').st_uid == os.getuid())
print([str(signal.getsignal(s)) for s in sorted(signal.valid_signals())], signal.pthread_sigmask(signal.SIG_BLOCK, []))
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), ctypes.CDLL(None).prctl(2, ctypes.byref(ctypes.c_int())), os.nice(0), os.sched_getaffinity(0))
print(open('/proc/self/limits').read(), open('/proc/self/timerslack_ns').read(), [l for l in open('/proc/self/status') if l.startswith(('Threads', 'Cpus', 'Mems', 'Shd', 'Sig'))])
print([line.split()[3:6] for line in open('/proc/self/mountinfo')])
";
    let forked = run(&*sandbox, handed(look)).await;
    let started = run(&*sandbox, handed(look)).await;
    assert_eq!((forked.exit, forked.stderr.as_str()), (Exit::Code(0), ""));
    for (one, other) in forked.stdout.lines().zip(started.stdout.lines()) {
        assert_eq!(one, other);
    }
    assert_eq!(forked.stdout.len(), started.stdout.len());
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_can_do_what_a_process_that_was_started_can() {
    let Some(rig) = rig() else { return };
    let spec = SandboxSpec { memory_bytes: 512 << 20, max_tasks: 256, ..waiting_spec("able") };
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    let program = "
import concurrent.futures, multiprocessing, os, signal, subprocess, sys, threading, time
assert 'FIRELET_ZYGOTE' in open('/proc/self/environ').read()
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(lambda n: n * 2, range(100))) == 9900
pid = os.fork()
if pid == 0:
    import decimal
    t = threading.Thread(target=lambda: os._exit(7 + (threading.get_native_id() == os.getpid())))
    t.start(); t.join(); os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
context = multiprocessing.get_context('fork')
pipe, other = context.Pipe()
process = context.Process(target=lambda: other.send(os.getppid()))
process.start(); assert pipe.recv() == os.getpid(); process.join(); assert process.exitcode == 0
assert subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout == b'1\\n'
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1)); os.kill(os.getpid(), signal.SIGUSR1); assert caught == [1]
try:
    os.kill(os.getpid(), signal.SIGINT); time.sleep(10)
except KeyboardInterrupt:
    caught.append(2)
lock = threading.RLock()
with lock:
    with lock: caught.append(3)
assert caught == [1, 2, 3]
os.abort()
";
    let output = run(&*sandbox, handed(program)).await;
    assert_eq!((output.exit, output.stdout.as_str()), (Exit::Signal(6), ""), "{}", output.stderr);
    assert_eq!(output.stderr, "");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_interpreter_is_in_reach() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("before");
    prepared(&rig, &spec).await;
    let zygote = rig.backend.zygote_pids()[0];
    assert_eq!(std::fs::read(format!("/proc/{zygote}/comm")).unwrap(), b"firelet-zygote\n");
    // The second one, which might find something of the first.
    let before = rig.backend.create(spec).await.unwrap();
    prepared(&rig, &waiting_spec("apart")).await;
    let sandbox = rig.backend.create(waiting_spec("apart")).await.unwrap();
    let look = "
import ctypes, os, re, sys
print([os.readlink('/proc/self/ns/' + n) for n in ('mnt', 'pid', 'ipc', 'uts', 'cgroup', 'net')])
print(os.getpid(), os.getppid(), sorted(os.listdir('/proc/self/fd')), os.environ.get('FIRELET_ZYGOTE'))
held = open('/proc/self/mem', 'rb')
found = set()
for line in open('/proc/self/maps'):
    span, mode, rest = re.match(r'(\\S+) (\\S+) (.*)', line).groups()
    if 'w' in mode and '[v' not in rest:
        start, end = (int(n, 16) for n in span.split('-'))
        held.seek(start)
        found.update(re.findall(rb'/firelet-test[/\\w.-]+', held.read(end - start)))
print(sorted(found))
";
    let output = run(&*sandbox, handed(look)).await;
    assert_eq!((output.exit, output.stderr.as_str()), (Exit::Code(0), ""));
    let lines: Vec<&str> = output.stdout.lines().collect();
    for kind in ["mnt", "pid", "ipc", "uts", "cgroup", "net"] {
        let of_zygote = std::fs::read_link(format!("/proc/{zygote}/ns/{kind}")).unwrap();
        assert!(!lines[0].contains(&of_zygote.display().to_string()), "{kind} is the interpreter's");
    }
    assert_eq!(lines[1], "2 1 ['0', '1', '2', '3'] None");
    assert_eq!(lines[2], "[]", "the names of control groups of others");
    before.destroy().await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_none_that_is_prepared_gets_a_fork_at_once() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("burst");
    prepared(&rig, &spec).await;
    let creations = (0..6).map(|number| {
        let (backend, spec) = (rig.backend.clone(), SandboxSpec { id: format!("burst-{number}"), ..spec.clone() });
        tokio::spawn(async move { backend.create(spec).await.unwrap() })
    });
    let creations: Vec<_> = creations.collect();
    let mut sandboxes = Vec::new();
    for creation in creations {
        sandboxes.push(creation.await.unwrap());
    }
    for sandbox in &sandboxes {
        assert!(is_fork(&**sandbox).await);
    }
    assert_eq!(rig.backend.zygote_pids().len(), 1);
    drop(sandboxes);
    rig.backend.shutdown().await;
    assert!(rig.backend.zygote_pids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interpreter_is_replaced_after_some_forks_and_ends_with_the_last_of_them() {
    let Some(rig) = rig_with(|options| options.turnover = Turnover { forks: 2, ..Turnover::default() }) else { return };
    let spec = waiting_spec("first");
    prepared(&rig, &spec).await;
    let first = rig.backend.zygote_pids()[0];
    let old = rig.backend.create(spec).await.unwrap();
    let others = || rig.backend.zygote_pids().into_iter().any(|pid| pid != first);
    let mut sandboxes = Vec::new();
    let mut number = 0;
    while !others() {
        number += 1;
        assert!(number < 1000, "the first is never replaced");
        sandboxes.push(rig.backend.create(waiting_spec(&format!("next-{number}"))).await.unwrap());
    }
    for sandbox in sandboxes {
        sandbox.destroy().await;
    }
    // What was forked from the first goes on.
    assert!(is_fork(&*old).await);
    let is_there = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(is_there(first));
    let fresh = || {
        let spec = waiting_spec("fresh");
        async { (rig.backend.create(spec).await.unwrap(), rig.backend.prepared()) }
    };
    let (sandbox, _) = fresh().await;
    assert!(is_fork(&*sandbox).await);
    sandbox.destroy().await;
    old.destroy().await;
    // Those of the first that are still prepared are given to somebody in their turn.
    let deadline = std::time::Instant::now() + crate::support::DEADLINE;
    while is_there(first) {
        assert!(std::time::Instant::now() < deadline, "the first does not end");
        fresh().await.0.destroy().await;
    }
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interpreter_that_nobody_wants_any_more_ends() {
    let Some(rig) = rig_with(|options| options.prepared.patience = Duration::from_millis(500)) else { return };
    let spec = waiting_spec("wanted");
    rig.backend.prepare(&spec).await.unwrap();
    let sandbox = rig.backend.create(spec).await.unwrap();
    eventually("an interpreter is there", || !rig.backend.zygote_pids().is_empty()).await;
    eventually("it has ended", || rig.backend.prepared() == 0 && rig.backend.zygote_pids().is_empty()).await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_knows_nothing_of_forks_is_started_on_its_own() {
    let Some(rig) = rig() else { return };
    let mut spec = spec("plain");
    // Waits, and does not care for the variable that asks it to be forked.
    let program =
        "import os; fd = int(os.environ['FIRELET_PRESTART_FD']); os.write(fd, b'.'); os.read(fd, 9); print('ran')";
    let argv = ["/usr/bin/python3", "-S", "-c", program].map(str::to_owned).to_vec();
    let process = ProcessSpec { argv, env: Vec::new(), cwd: PathBuf::from("/"), log_fd_env: None };
    spec.prestart = Some(Prestart { process: process.clone(), clonable: true });
    prepared(&rig, &spec).await;
    assert!(rig.backend.zygote_pids().is_empty());
    let sandbox = rig.backend.create(spec).await.unwrap();
    assert_eq!(wait(sandbox.spawn(process).await.unwrap()).await.stdout, "ran\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_may_not_be_copied_is_started_on_its_own() {
    let Some(rig) = rig() else { return };
    let mut spec = waiting_spec("alone");
    spec.prestart = Some(Prestart { process: waiter(), clonable: false });
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    assert!(!is_fork(&*sandbox).await && rig.backend.zygote_pids().is_empty());
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_interpreter_leaves_nothing_and_the_next_fork_is_of_another() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("orphans");
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec.clone()).await.unwrap();
    let first = rig.backend.zygote_pids()[0];
    let inits = children(first);
    let mut process = sandbox.spawn(handed("import signal; print(1, flush=True); signal.pause()")).await.unwrap();
    let (empty, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let said = std::mem::replace(&mut process.stdout, empty);
    let pid = rustix::process::Pid::from_raw(first as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(wait(process).await.exit, Exit::Signal(9));
    drop(read(said).await);
    sandbox.destroy().await;
    let gone = |pid: &u32| !Path::new(&format!("/proc/{pid}")).exists();
    eventually("its inits are gone", || !inits.is_empty() && inits.iter().all(gone)).await;
    prepared(&rig, &spec).await;
    eventually("another one serves", || rig.backend.zygote_pids().iter().any(|pid| *pid != first)).await;
    eventually("the first is waited for", || gone(&first)).await;
    let next = rig.backend.create(spec).await.unwrap();
    assert!(is_fork(&*next).await);
    rig.end(next).await;
}
