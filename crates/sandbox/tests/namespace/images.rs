//! Snapshots: processes that go on from the image that another one has left of itself.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use sandbox::namespace::Options;
use sandbox::{
    Backend, Bind, Exit, Prestart, Process, ProcessSpec, Restored, Sandbox, SandboxSpec, Snapshot, SnapshotError,
};

use crate::prepared::{AHEAD, prepared, rig};
use crate::support::{Rig, first_line, process, read, rig_with, sh, spec};

/// Waits by the runtime's own modules; then it is whatever `CODE` says.
const WAITS: &str = "
import os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, '/var/runtime')
import firelet_prestart
library = os.environ.pop('FIRELET_ZYGOTE', None)
if library:
    firelet_prestart.fork_from_here(library)
firelet_prestart.wait(int(os.environ.pop('FIRELET_PRESTART_FD')))
exec(compile(os.environ['CODE'], 'code', 'exec'), {'keeper': firelet_prestart.keeper})
";

fn waits() -> ProcessSpec {
    let argv = ["/usr/bin/python3", "-S", "-c", WAITS].map(str::to_owned).to_vec();
    ProcessSpec { argv, cwd: "/".into(), ..process(&[]) }
}

fn runs(code: &str) -> ProcessSpec {
    let mut process = ProcessSpec { cwd: "/var/task".into(), ..waits() };
    process.env.push(("CODE".into(), code.into()));
    process
}

fn kept_spec(id: &str) -> SandboxSpec {
    let mut spec =
        SandboxSpec { keep: true, prestart: Some(Prestart { process: waits(), clonable: true }), ..spec(id) };
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes/python").canonicalize().unwrap();
    spec.root.binds.push(Bind { source: modules, target: "/var/runtime".into() });
    spec
}

fn clone_spec(id: &str) -> SandboxSpec {
    SandboxSpec { keep: false, ..kept_spec(id) }
}

/// Runs a program until it has said `ready`, and takes a snapshot of it then.
async fn kept(rig: &Rig, code: &str) -> Result<Arc<dyn Snapshot>, SnapshotError> {
    let sandbox = rig.backend.create(kept_spec("kept")).await.unwrap();
    let process = sandbox.spawn(runs(code)).await.unwrap();
    let line = first_line(process.stdout).await;
    assert_eq!(line, "ready", "{}", read(process.stderr).await);
    let taken = sandbox.snapshot().await;
    drop((process.stderr, process.exit));
    taken
}

async fn clone_of(snapshot: &Arc<dyn Snapshot>, id: &str) -> (Box<dyn Sandbox>, Process) {
    let Restored { sandbox, mut processes } = snapshot.restore(clone_spec(id)).await.unwrap();
    assert_eq!(processes.len(), 1);
    (sandbox, processes.remove(0))
}

async fn said(output: OwnedFd) -> Vec<String> {
    read(output).await.lines().map(str::to_owned).collect()
}

/// What a clone says until it ends.
async fn output(process: Process) -> Vec<String> {
    let (lines, errors) = tokio::join!(said(process.stdout), read(process.stderr));
    assert_eq!((process.exit.await.unwrap(), errors.as_str()), (Exit::Code(0), ""), "{lines:?}");
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_go_on_from_there_each_with_what_is_its_own() {
    let Some(rig) = rig() else { return };
    let code = "
import decimal, hashlib, json, os, random, signal, socket, subprocess, sys, threading, time, uuid
mark, count = uuid.uuid4(), 41
os.makedirs('/tmp/folder/inner', mode=0o700)
with open('/tmp/folder/kept', 'w') as file:
    file.write('kept')
os.symlink('kept', '/tmp/folder/link')
with open('/tmp/large', 'wb') as file:
    file.truncate(3 << 20); file.seek(2 << 20); file.write(b'end')
opened = open('/tmp/folder/kept'); opened.read(2)
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
os.umask(0o027)
os.chdir('/tmp/folder')
lock = threading.RLock()
print('ready', flush=True)
keeper.leave(lambda: None)
count += 1
os.kill(os.getpid(), signal.SIGUSR1)
with lock:
    with lock: caught.append(2)
ran = []
thread = threading.Thread(target=lambda: ran.append(threading.get_native_id() != os.getpid())); thread.start(); thread.join()
child = os.fork()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert subprocess.run(['/bin/echo', 'sub'], capture_output=True).stdout == b'sub\\n'
assert threading.main_thread().native_id == threading.get_native_id() == os.getpid() == 2
heap = [bytes(100_000) for _ in range(500)]; del heap
import sqlite3
assert sqlite3.connect(':memory:').execute('select 7').fetchall() == [(7,)]
assert hashlib.sha256(b'').hexdigest()[:4] == 'e3b0' and sorted(os.listdir('/proc/self/fd')) == ['0', '1', '2', '3', '4']
assert os.stat('/tmp/large').st_size == 3 << 20 and open('/tmp/large', 'rb').read()[2 << 20:][:4] == b'end\\0'
held = next(line for line in open('/proc/self/maps') if '/memfd:' in line and 'rw-p' in line).split()[0]
held = '-'.join('%x' % int(address, 16) for address in held.split('-'))
try:
    os.open('/proc/self/map_files/' + held, os.O_RDWR); print('the image can be written')
except PermissionError:
    pass
open('/tmp/own', 'x').write(str(count))
open('/tmp/folder/kept', 'a').write('!')
print(count, caught, ran, os.getcwd(), oct(os.umask(0)), opened.read(), os.readlink('/tmp/folder/link'))
print(mark)
print(os.getuid(), socket.gethostname(), os.urandom(8).hex(), sep='\\n')
";
    let snapshot = kept(&rig, code).await.unwrap();
    assert!(snapshot.memory_bytes() > 1 << 20);
    prepared(&rig, &clone_spec("first")).await;
    let clones = (0..10).map(|number| {
        let snapshot = Arc::clone(&snapshot);
        tokio::spawn(async move { clone_of(&snapshot, &format!("clone-{number}")).await })
    });
    let clones: Vec<_> = clones.collect();
    let (mut sandboxes, mut outputs) = (Vec::new(), Vec::new());
    for clone in clones {
        let (sandbox, process) = clone.await.unwrap();
        sandboxes.push(sandbox);
        outputs.push(output(process).await);
    }
    for lines in &outputs {
        assert_eq!(lines[0], "42 [1, 2] [True] /tmp/folder 0o27 pt! kept");
        assert_eq!(lines[1], outputs[0][1], "what was drawn before is everybody's");
    }
    for own in 2..5 {
        let mut all: Vec<_> = outputs.iter().map(|lines| &lines[own]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10, "{all:?}");
    }
    // From then on /tmp is a clone's own, and its user's.
    for sandbox in sandboxes {
        let found = sh(&*sandbox, "cat /tmp/folder/kept /tmp/own; stat -c '%u' /tmp/folder | grep -qx $(id -u) && echo; stat -c %a /tmp/folder/inner").await;
        assert_eq!((found.stdout.as_str(), found.stderr.as_str()), ("kept!42\n700\n", ""));
        sandbox.destroy().await;
    }
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_confined_like_a_process_that_was_started() {
    let Some(rig) = rig() else { return };
    let look = "
import ctypes, os
status = [l for l in open('/proc/self/status') if l.startswith(('Uid', 'Gid', 'Groups', 'Cap', 'NoNewPrivs', 'Seccomp', 'Shd', 'Sig', 'Threads', 'NSpid'))]
print(status)
print(open('/proc/self/limits').read(), [l.split()[3:6] for l in open('/proc/self/mountinfo')], sorted(os.listdir('/proc/self/fd')))
print([os.readlink('/proc/self/ns/' + n) for n in ('mnt', 'pid', 'ipc', 'uts', 'net', 'user')], {line.rpartition(':')[2] for line in open('/proc/self/cgroup')})
c = ctypes.CDLL(None, use_errno=True)
def refused(*call):
    return (c.syscall(*call), ctypes.get_errno())
print([refused(number, 0, 0, 0, 0, 0) for number in (165, 161, 101, 310, 321, 425, 435, 248, 272)], refused(157, 3, 0, 0, 0, 0))
for path in ('/new', '/usr/new', '/var/task/new', '/etc/passwd', '/proc/1/mem', '/proc/1/environ'):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT)); print(path, 'opened')
    except OSError as error:
        print(path, error.errno)
try:
    os.kill(1, 9); print('killed')
except OSError as error:
    print(error.errno)
print(open('/proc/self/comm').read(), os.readlink('/proc/self/exe'), open('/proc/self/cmdline').read()[:30], os.stat('/proc/self/mem').st_uid == os.getuid())
";
    let snapshot =
        kept(&rig, &format!("print('ready', flush=True)\nkeeper.leave(lambda: None)\n{look}")).await.unwrap();
    let (sandbox, gone_on) = clone_of(&snapshot, "clone").await;
    let clone = output(gone_on).await;
    let argv = ["/usr/bin/python3", "-S", "-c", look].map(str::to_owned).to_vec();
    let started = output(sandbox.spawn(ProcessSpec { argv, ..process(&[]) }).await.unwrap()).await;
    let ignored = |line: &str| line.split("'NSpid").next().unwrap_or_default().to_owned();
    for (one, other) in clone.iter().zip(&started) {
        assert_eq!(ignored(one), ignored(other));
    }
    assert_eq!(clone.len(), started.len());
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused_with_its_reason() {
    let Some(rig) = rig() else { return };
    let reasons = [
        ("import socket; held = socket.socket()", "cannot be opened again: socket:["),
        ("import os; held = os.pipe()", "cannot be opened again: pipe:["),
        ("import select; held = select.epoll()", "cannot be opened again: anon_inode:[eventpoll]"),
        ("import tempfile; held = tempfile.TemporaryFile()", "(deleted)"),
        (
            "import threading, time; threading.Thread(target=lambda: time.sleep(600), daemon=True).start()",
            "it has 2 threads",
        ),
        ("import subprocess; held = subprocess.Popen(['/bin/sleep', '600'])", "other processes"),
        ("import mmap; held = mmap.mmap(-1, 4096)", "shared with others"),
        (
            "import os; os.dup2(os.open('/tmp/log', os.O_WRONLY | os.O_CREAT), 2)",
            "descriptor 2 is not the platform's any more",
        ),
        ("import os; os.mkfifo('/tmp/fifo')", "/tmp/fifo is neither a file nor a directory"),
    ];
    for (before, reason) in reasons {
        let code = format!("{before}\nprint('ready', flush=True)\nkeeper.leave(lambda: None)\n");
        match kept(&rig, &code).await {
            Err(SnapshotError::Unfit(why)) => assert!(why.contains(reason), "{before}: {why}"),
            Err(other) => panic!("{before}: {other}"),
            Ok(_) => panic!("{before}: kept"),
        }
    }
    // Somebody who does not know how, and one that runs beside.
    let plain = rig.backend.create(SandboxSpec { prestart: None, ..kept_spec("plain") }).await.unwrap();
    assert!(matches!(plain.snapshot().await, Err(SnapshotError::Unfit(_))));
    let sandbox = rig.backend.create(kept_spec("beside")).await.unwrap();
    let runtime = sandbox.spawn(runs("print('ready', flush=True)\nkeeper.leave(lambda: None)")).await.unwrap();
    first_line(runtime.stdout).await;
    let beside = sandbox.spawn(process(&["/bin/sleep", "600"])).await.unwrap();
    assert!(matches!(sandbox.snapshot().await, Err(SnapshotError::Unfit(why)) if why.contains("extensions")));
    drop(beside);
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_makes_up_is_its_own_problem() {
    let Some(rig) = rig() else { return };
    let made_up = |what: &str| {
        format!("import os\nprint('ready', flush=True)\nsocket = keeper._socket\nos.read(socket, 1)\n{what}\n")
    };
    let end = "FIRETAIL".to_owned() + "\\0";
    for (what, reason) in [
        ("os._exit(0)".to_owned(), "before its image was whole"),
        ("os.write(socket, b'x' * 5000); os._exit(0)".to_owned(), "before its image was whole"),
        (format!("os.write(socket, b'x' * 5 + b'{end}'.ljust(512, b'\\0')); os._exit(0)"), "row of pages"),
        ("while True: os.write(socket, bytes(1 << 20))".to_owned(), "MiB"),
    ] {
        match kept(&rig, &made_up(&what)).await {
            Err(SnapshotError::Unfit(why)) => assert!(why.contains(reason), "{what}: {why}"),
            Err(error) => {
                // Its end may be noticed by what it leaves unread.
                assert!(error.to_string().contains("image"), "{what}: {error}");
            }
            Ok(_) => panic!("{what}: kept"),
        }
    }
    // Whole, and nonsense: found out by who wants to become it.
    let whole = |head: &str| {
        made_up(&format!(
            "data = {head}; data += bytes(-len(data) % 4096) + b'\\1' * 8192 + b'{end}'.ljust(512, b'\\0')\nwhile data: data = data[os.write(socket, data):]\nos._exit(0)"
        ))
    };
    let record = "b'{\"cwd\":\"/\",\"umask\":0,\"open\":[],\"tmp\":[]}'";
    for head in
        ["(1 << 60).to_bytes(8, 'little')".to_owned(), format!("len({record}).to_bytes(8, 'little') + {record}")]
    {
        match kept(&rig, &whole(&head)).await {
            Err(SnapshotError::Unfit(why)) => assert!(why.contains("no process could go on from its image: "), "{why}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("kept"),
        }
    }
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_on_the_disk_outlives_the_backend_unless_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = dir.path().join("snapshots");
    let with = |options: &mut Options| {
        options.prestart = AHEAD;
        options.snapshots = snapshots.clone();
    };
    let Some(rig) = rig_with(with) else { return };
    let code = "import uuid; mark = uuid.uuid4()\nprint('ready', flush=True)\nkeeper.leave(lambda: None)\nprint(mark)";
    let snapshot = kept(&rig, code).await.unwrap();
    snapshot.save("one", b"note".to_vec()).await.unwrap();
    snapshot.save("other", b"note".to_vec()).await.unwrap();
    let (sandbox, process) = clone_of(&snapshot, "before").await;
    let before = output(process).await;
    drop(snapshot);
    rig.end(sandbox).await;

    let rig = rig_with(with).unwrap();
    let saved = rig.backend.saved_snapshots().await.unwrap();
    let notes: Vec<_> = saved.iter().map(|saved| (saved.name.as_str(), saved.note.as_deref())).collect();
    assert_eq!(notes, [("one", Some(&b"note"[..])), ("other", Some(&b"note"[..]))]);
    let kept = rig.backend.load_snapshot("one").await.unwrap().unwrap();
    assert_eq!(kept.note, b"note");
    let (sandbox, process) = clone_of(&kept.snapshot, "after").await;
    assert_eq!(output(process).await, before);
    assert!(rig.backend.load_snapshot("none").await.unwrap().is_none());
    rig.backend.delete_snapshot("one").await.unwrap();
    assert!(rig.backend.load_snapshot("one").await.unwrap().is_none());
    drop(kept);
    rig.end(sandbox).await;

    let file = std::fs::read_dir(snapshots.join("snapshots")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert!(!String::from_utf8_lossy(&bytes).contains("FIREIMG1"), "it is not encrypted");
    std::fs::write(&file, bytes).unwrap();
    let rig = rig_with(with).unwrap();
    assert!(rig.backend.load_snapshot("other").await.is_err());
    assert_eq!(rig.backend.saved_snapshots().await.unwrap()[0].note, None);
    rig.backend.delete_snapshot("other").await.unwrap();
    assert_eq!(rig.backend.saved_snapshots().await.unwrap(), []);
    rig.backend.shutdown().await;
}
