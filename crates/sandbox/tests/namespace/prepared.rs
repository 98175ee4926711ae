//! Sandboxes that are prepared ahead: who gets which, with what of its own, and what happens when they die meanwhile.

use std::path::Path;

use sandbox::namespace::PrestartMode;
use sandbox::{Backend, Bind, Exit, Prestart, ProcessSpec, SandboxSpec};

use crate::MODE;
use crate::ends::{groups_of, kill};
use crate::support::{DEADLINE, Rig, eventually, maker, process, python, read, rig_with, run, sh, spec, wait, waiter};

/// The mode that is tested: that of the program, or where nothing is started ahead there, the one by an exec.
pub const AHEAD: PrestartMode = match MODE {
    PrestartMode::Off => PrestartMode::Exec,
    mode => mode,
};

pub fn rig() -> Option<Rig> {
    rig_with(|options| options.prestart = AHEAD)
}

pub fn waiting_spec(id: &str) -> SandboxSpec {
    SandboxSpec { prestart: Some(Prestart { process: waiter(), clonable: true }), ..spec(id) }
}

/// Runs a program in the process that waits.
pub fn handed(program: &str) -> ProcessSpec {
    let argv = serde_json::to_string(&["/usr/bin/python3", "-c", program]).unwrap();
    let mut spec = process(&[]);
    spec.argv = waiter().argv;
    spec.env.push(("FIRELET_TEST_ARGV".into(), argv));
    spec
}

pub async fn prepared(rig: &Rig, spec: &SandboxSpec) {
    rig.backend.prepare(spec).await.unwrap();
    eventually("a sandbox is prepared", || rig.backend.prepared() > 0).await;
}

fn code(content: &str) -> tempfile::TempDir {
    // Not below /tmp, which is covered inside.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::write(dir.path().join("code"), content).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_comes_late_and_is_read_only() {
    let Some(rig) = rig() else { return };
    let (mine, other) = (code("mine"), code("other"));
    std::fs::create_dir(mine.path().join("inner")).unwrap();
    let mount = |dir: &Path| vec![Bind { source: dir.into(), target: "/var/task".into() }];
    let spec = SandboxSpec { mounts: mount(mine.path()), ..waiting_spec("late") };
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec.clone()).await.unwrap();
    let program = "
import os
print(open('/var/task/code').read(), os.getcwd(), os.environ['MINE'], sorted(os.listdir('/var/task')))
for path in ('/var/task/new', '/var/task/code', '/var/task/inner/new', '/var/new'):
    try:
        open(path, 'w')
    except OSError as error:
        print(error.strerror)
open('/tmp/file', 'w').write('x')
";
    let mut process = handed(program);
    process.env.push(("MINE".into(), "yes".into()));
    let output = run(&*sandbox, process).await;
    let refused = "Read-only file system\n".repeat(4);
    assert_eq!(output.stdout, format!("mine /var/task yes ['code', 'inner']\n{refused}"), "{}", output.stderr);
    // A later process finds it just so.
    assert_eq!(sh(&*sandbox, "cat /var/task/code /tmp/file; > /var/task/code").await.stdout, "minex");
    assert_eq!(std::fs::read_to_string(mine.path().join("code")).unwrap(), "mine");
    let options = "import re; print([re.split(' ', l)[5] for l in open('/proc/self/mountinfo') if ' /var/task ' in l])";
    assert!(python(&*sandbox, options).await.stdout.starts_with("['ro,nosuid,nodev"));

    eventually("the next is prepared", || rig.backend.prepared() > 0).await;
    let next = rig.backend.create(SandboxSpec { mounts: mount(other.path()), ..waiting_spec("next") }).await.unwrap();
    assert_eq!(run(&*next, handed("print(open('/var/task/code').read())")).await.stdout, "other\n");
    next.destroy().await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_started_ahead_has_what_another_has() {
    let Some(rig) = rig() else { return };
    let look = "
import os, resource
print(sorted(int(n) for n in os.listdir('/proc/self/fd')))
for line in open('/proc/self/status'):
    if line.split(':')[0] in ('Uid', 'Gid', 'Groups', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters', 'Umask', 'SigBlk', 'SigIgn',
            'SigCgt', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'PPid'):
        print(line.split())
print([resource.getrlimit(n) for n in range(16)], os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
# Python adds LC_CTYPE where its locale is C.
print(sorted(set(os.environ) - {'LC_CTYPE'}), os.getcwd(), sorted(os.listdir('/')), open('/proc/self/oom_score_adj').read())
print([os.readlink('/proc/self/ns/' + n) for n in ('mnt', 'pid', 'net', 'ipc', 'uts', 'user')])
print([(os.fstat(fd).st_uid == os.getuid(), fd) for fd in (1, 2)], os.readlink('/proc/self/fd/0'))
";
    let spec = waiting_spec("same");
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    let ahead = run(&*sandbox, handed(look)).await;
    let after = run(&*sandbox, handed(look)).await;
    assert_eq!((ahead.exit, ahead.stderr.as_str()), (Exit::Code(0), ""));
    assert_eq!(ahead.stdout, after.stdout);
    assert!(ahead.stdout.starts_with("[0, 1, 2, 3]\n"), "{}", ahead.stdout);
    let line = run(&*sandbox, handed("print(open('/proc/1/cmdline').read())")).await.stdout;
    assert!(line.starts_with("firelet\0") && !line.contains("python"), "{line}");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_pipe_is_there_from_the_beginning() {
    let Some(rig) = rig() else { return };
    let mut spec = waiting_spec("log");
    spec.prestart.as_mut().unwrap().process.log_fd_env = Some("LOG".into());
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    let mut process =
        handed("import os; os.write(int(os.environ['LOG']), b'frame'); print(sorted(os.listdir('/proc/self/fd')))");
    process.log_fd_env = Some("LOG".into());
    let mut started = sandbox.spawn(process).await.unwrap();
    let log = started.log.take().unwrap();
    let (log, output) = tokio::join!(read(log), wait(started));
    assert_eq!((log.as_str(), output.stdout.as_str()), ("frame", "['0', '1', '2', '3', '4']\n"));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_those_of_whoever_gets_it() {
    let Some(rig) = rig() else { return };
    let spec = SandboxSpec { memory_bytes: 64 << 20, ..waiting_spec("limits") };
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    let output = run(&*sandbox, handed("x = bytearray(200 << 20); print('still there')")).await;
    if output.stdout.contains("still there") && sandbox.usage().await.memory_peak_bytes == 0 {
        eprintln!("SKIPPED: memory is not limited here");
    } else {
        assert_eq!((output.exit, output.stdout.as_str()), (Exit::Signal(9), ""));
    }
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_died_waiting_is_never_handed_out() {
    let Some(rig) = rig() else { return };
    let mut spec = waiting_spec("dead");
    prepared(&rig, &spec).await;
    // The first sandbox' process; nobody else runs as a user of this backend.
    let supervisor = maker(&rig.backend);
    let inits = children(supervisor);
    let waiting: Vec<u32> = inits.iter().flat_map(|init| children(*init)).collect();
    assert_eq!(waiting.len(), 1);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(waiting[0] as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("it is gone", || !Path::new(&format!("/proc/{}", waiting[0])).exists()).await;
    spec.id = "alive".into();
    let sandbox = rig.backend.create(spec).await.unwrap();
    assert_eq!(run(&*sandbox, handed("print('runs')")).await.stdout, "runs\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_wait_costs_no_cold_start() {
    let Some(rig) = rig() else { return };
    let mut spec = spec("no");
    spec.prestart = Some(Prestart { process: process(&["/bin/true"]), clonable: false });
    rig.backend.prepare(&spec).await.unwrap();
    let sandbox = tokio::time::timeout(DEADLINE, rig.backend.create(spec)).await.unwrap().unwrap();
    assert_eq!((sh(&*sandbox, "echo runs").await.stdout.as_str(), rig.backend.prepared()), ("runs\n", 0));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_something_else_gets_something_else() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("one");
    prepared(&rig, &spec).await;
    let other = SandboxSpec { tmp_bytes: 32 << 20, ..waiting_spec("other") };
    let sandbox = rig.backend.create(other).await.unwrap();
    // No process waits in it.
    assert_eq!(sh(&*sandbox, "set -- /proc/[0-9]*; echo $#").await.stdout, "2\n");
    let file = code("file");
    let target = "/var/task".into();
    let with_file = SandboxSpec { mounts: vec![Bind { source: file.path().join("code"), target }], ..spec };
    // Needs another root than the one that is ready: made from the beginning, it fails as it always did.
    assert!(rig.backend.create(with_file).await.is_err());
    sandbox.destroy().await;
    rig.backend.shutdown().await;
    assert_eq!(rig.backend.prepared(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_the_process_that_waits_too() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("reset");
    prepared(&rig, &spec).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    let beside = sandbox.spawn(process(&["/bin/sh", "-c", "set -- /proc/[0-9]*; echo $#"])).await.unwrap();
    assert_eq!(wait(beside).await.stdout, "3\n");
    sandbox.kill_all().await;
    assert_eq!(
        run(&*sandbox, handed("import os; print(len([n for n in os.listdir('/proc') if n.isdigit()]))")).await.stdout,
        "2\n"
    );
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_of_a_kind_have_drawn_the_same() {
    let Some(rig) = rig() else { return };
    let drawn = "
import os, random, ssl, sys, uuid
maps = [line.split('-')[0] for line in open('/proc/self/maps') if '[stack]' in line or 'libc.so' in line]
print(random.random(), uuid.uuid4(), os.urandom(8).hex(), ssl.RAND_bytes(8).hex(), hash('x'), sep='\\n')
print(*maps, sep='\\n')
";
    let mut seen = std::collections::HashSet::new();
    for id in 0..6 {
        let mut spec = waiting_spec(&format!("drawn-{id}"));
        // Both imported before it is known for whom, as a runtime may.
        let argv = &mut spec.prestart.as_mut().unwrap().process.argv;
        let program = argv.last_mut().unwrap();
        *program = format!("import random, ssl; random.random(); ssl.RAND_bytes(8)\n{program}");
        let argv = argv.clone();
        prepared(&rig, &spec).await;
        let sandbox = rig.backend.create(spec).await.unwrap();
        let output = run(&*sandbox, ProcessSpec { argv, ..handed(drawn) }).await;
        let mut lines: Vec<&str> = output.stdout.lines().collect();
        assert!(lines.len() >= 8, "{output:?}");
        if AHEAD == PrestartMode::Zygote {
            // Forks of one interpreter have its hash seed and its address layout; that is what `exec` is for.
            lines.truncate(4);
        }
        for line in lines {
            // One mapping of a library begins where the last one ended; addresses of one process differ too.
            assert!(seen.insert(line.to_owned()), "drawn twice: {line}");
        }
        sandbox.destroy().await;
    }
    rig.backend.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_waited_is_left_behind() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("left");
    // Wanted by several at once: more than one are kept.
    let (one, two) = tokio::join!(rig.backend.create(spec.clone()), rig.backend.create(spec.clone()));
    eventually("several are prepared", || rig.backend.prepared() >= 2).await;
    let supervisor = maker(&rig.backend);
    let waiting: Vec<u32> = children(supervisor).iter().flat_map(|init| children(*init)).collect();
    let groups: Vec<_> = waiting.iter().flat_map(|pid| groups_of(*pid)).collect();
    assert!(waiting.len() >= 2, "{waiting:?}");
    drop((one, two));
    rig.backend.shutdown().await;
    let ended = || waiting.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    eventually("all processes and groups are gone", || ended() && groups.iter().all(|group| !group.exists())).await;
    drop(rig);
    // In a process of its own: among the threads of other tests there would be nothing to count.
    if std::env::var_os("NEXTEST").is_some() {
        eventually("the server has no more descriptors than before", || descriptors() <= before).await;
    }
}

/// The share of the processors in whichever version of control groups this is; `None` where there is no such controller.
fn share_of(pid: u32) -> Option<u64> {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    let files = ["cpu.shares", "cpu.weight"];
    groups_of(pid).into_iter().find_map(|group| files.iter().find_map(|file| read(group.join(file))))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_for_later_leaves_the_processors_to_functions() {
    let Some(rig) = rig() else { return };
    let spec = SandboxSpec { cpu_millis: 1000, ..waiting_spec("later") };
    prepared(&rig, &spec).await;
    let inits = children(maker(&rig.backend));
    let waiting = inits.iter().flat_map(|init| children(*init)).next().unwrap();
    let Some(before) = share_of(waiting) else {
        eprintln!("SKIPPED: no cpu controller");
        return;
    };
    let sandbox = rig.backend.create(spec).await.unwrap();
    let after = share_of(waiting).unwrap();
    // A twentieth of one processor's, and one processor's.
    assert!(before * 10 < after && [1024, 100].contains(&after), "{before} {after}");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_supervisor_takes_what_waited_with_it_and_nobody_gets_it() {
    let Some(rig) = rig() else { return };
    let spec = waiting_spec("killed");
    prepared(&rig, &spec).await;
    let supervisor = maker(&rig.backend);
    let waiting: Vec<u32> = children(supervisor).iter().flat_map(|init| children(*init)).collect();
    let pid = rustix::process::Pid::from_raw(supervisor as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("it is gone", || waiting.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())).await;
    let sandbox = rig.backend.create(spec).await.unwrap();
    assert_eq!(run(&*sandbox, handed("print('runs')")).await.stdout, "runs\n");
    rig.end(sandbox).await;
}

/// The host's numbers of a process' children.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_what_makes_one_is_killed_meanwhile_another_one_is_prepared() {
    let Some(rig) = rig() else { return };
    rig.backend.prepare(&waiting_spec("later")).await.unwrap();
    eventually("a sandbox is being made", || !children(maker(&rig.backend)).is_empty()).await;
    kill(maker(&rig.backend));
    eventually("a sandbox is prepared", || rig.backend.prepared() > 0).await;
    rig.backend.shutdown().await;
}
