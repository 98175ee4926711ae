//! What a process sees of the host and of other sandboxes, and what it cannot do. Every attempt here is one that root or
//! an unconfined user would succeed with.

use std::path::Path;

use sandbox::{Bind, Exit};

use crate::support::{process, python, rig, root, run, sh, spawn, spec, uid_of};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_host_is_visible_but_what_was_bound() {
    let Some(rig) = rig() else { return };
    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("file"), "secret").unwrap();
    let sandbox = rig.sandbox("hidden").await;
    let listing = sh(&*sandbox, "ls -A /; ls -A /etc /var /mnt /tmp /dev").await.stdout;
    let expected = "bin\ndev\netc\nlib\nlib64\nmnt\nproc\nsbin\ntmp\nusr\nvar\n\
        /dev:\nfd\nfull\nnull\nrandom\nstderr\nstdin\nstdout\nurandom\nzero\n\n\
        /etc:\ngroup\nhostname\nhosts\npasswd\nresolv.conf\n\n/mnt:\n\n/tmp:\n\n/var:\ntask\n";
    assert_eq!(listing, expected);
    let path = secret.path().join("file");
    assert_ne!(sh(&*sandbox, &format!("cat {}", path.display())).await.exit, Exit::Code(0));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn binds_are_read_only_all_the_way_down() {
    let Some(rig) = rig() else { return };
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(dir.path().join("code.py"), "print(1)").unwrap();
    // Writable by everybody, so that only the mount stands in the way.
    for path in [dir.path(), &inner, &dir.path().join("code.py")] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mut spec = spec("binds");
    spec.root.binds.push(Bind { source: dir.path().into(), target: "/var/task".into() });
    let sandbox = rig.sandbox_of(spec).await;
    assert_eq!(sh(&*sandbox, "cat /var/task/code.py").await.stdout, "print(1)");
    for script in ["> /var/task/new", "> /var/task/code.py", "> /var/task/inner/new", "rm /var/task/code.py"] {
        let refused = sh(&*sandbox, script).await;
        assert!(refused.stderr.contains("Read-only file system"), "{script}: {refused:?}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("code.py")).unwrap(), "print(1)");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_tmp_can_be_written_and_programs_run_from_there() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("write").await;
    for path in ["/x", "/usr/x", "/etc/hosts", "/etc/x", "/dev/x", "/var/task/x", "/proc/sys/kernel/hostname", "/mnt/x"]
    {
        let refused = sh(&*sandbox, &format!("> {path}")).await;
        assert_ne!(refused.exit, Exit::Code(0), "{path} could be written");
    }
    let script = "printf '#!/bin/sh\\necho ran' > /tmp/program; chmod +x /tmp/program; /tmp/program; stat -c %a /tmp";
    assert_eq!(sh(&*sandbox, script).await.stdout, "ran\n1777\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_is_lambdas_by_name_alone_in_number_and_without_any_privilege() {
    let Some(rig) = rig() else { return };
    let (one, two) = (rig.sandbox("one").await, rig.sandbox("two").await);
    assert_ne!(uid_of(&*one).await, uid_of(&*two).await);
    let ids = sh(&*one, "id -un; id -gn; id -G | wc -w; umask; id -u; id -g").await.stdout;
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids[..4], ["sbx_user1051", "sbx_user1051", "1", "0022"]);
    assert_eq!(ids[4], ids[5]);
    let status = sh(&*one, "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status").await.stdout;
    let status: Vec<String> =
        status.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let none = "0000000000000000";
    let expected = [
        "Groups:".to_owned(),
        format!("CapInh: {none}"),
        format!("CapPrm: {none}"),
        format!("CapEff: {none}"),
        format!("CapBnd: {none}"),
        format!("CapAmb: {none}"),
        "NoNewPrivs: 1".to_owned(),
        "Seccomp: 2".to_owned(),
    ];
    assert_eq!(status, expected);
    two.destroy().await;
    rig.end(one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_namespace_is_its_own() {
    let Some(rig) = rig() else { return };
    let (one, two) = (rig.sandbox("one").await, rig.sandbox("two").await);
    for kind in ["mnt", "pid", "ipc", "uts", "cgroup", "net"] {
        let host = std::fs::read_link(Path::new("/proc/self/ns").join(kind)).unwrap().display().to_string();
        let script = format!("readlink /proc/self/ns/{kind}");
        let (in_one, in_two) = (sh(&*one, &script).await.stdout, sh(&*two, &script).await.stdout);
        assert!(in_one.starts_with(kind), "{in_one}");
        assert!(in_one.trim() != host && in_two.trim() != host, "{kind} is the host's");
        // That of control groups is made for each process: its number may be used again already.
        assert!(in_one != in_two || kind == "cgroup", "{kind} is shared");
    }
    let (name, other) = (sh(&*one, "uname -n").await.stdout, sh(&*two, "uname -n").await.stdout);
    assert!(name.starts_with("169-254-") && name != other, "{name} {other}");
    // The group is the root of what is seen of control groups.
    assert_eq!(
        sh(&*one, "cut -d: -f3 /proc/self/cgroup | sort -u | grep -v '^/$' | grep -c firelet").await.stdout,
        "0\n"
    );
    two.destroy().await;
    rig.end(one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sandboxes_can_be_neither_seen_nor_signalled() {
    let Some(rig) = rig() else { return };
    let (victim, attacker) = (rig.sandbox("victim").await, rig.sandbox("attacker").await);
    let sleeping = spawn(&*victim, "echo ready; exec sleep 1000").await;
    sleeping.wait_for("ready\n").await;
    let attempt = "
import os, signal
own = os.getpid()
print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()) == [1, own])
hit = []
for pid in range(1, 70000):
    if pid != own:
        try:
            os.kill(pid, signal.SIGKILL); hit.append(pid)
        except ProcessLookupError:
            pass
        except PermissionError:
            assert pid == 1, pid
print(hit)
try:
    os.kill(-1, signal.SIGKILL)
except OSError as error:
    # Nobody there.
    print(error.errno)
";
    assert_eq!(python(&*attacker, attempt).await.stdout, "True\n[]\n3\n");
    assert!(!sleeping.has_ended());
    assert_eq!(sh(&*victim, "set -- /proc/[0-9]*; echo $#").await.stdout, "3\n");
    victim.kill_all().await;
    victim.destroy().await;
    rig.end(attacker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_shows_nothing_of_itself() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("init").await;
    for path in ["root", "cwd", "exe", "mem", "environ", "fd", "ns/mnt", "maps", "cgroup"] {
        let refused = sh(&*sandbox, &format!("head -c1 /proc/1/{path} || ls /proc/1/{path}/")).await;
        assert_eq!(refused.stdout, "", "{path}");
    }
    // Nothing of the host's in what everybody may read.
    let line = sh(&*sandbox, "tr '\\0' ' ' < /proc/1/cmdline").await.stdout;
    assert!(line.starts_with("firelet") && !line.contains('/'), "{line}");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_one_sandbox_see_each_other() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("extension").await;
    let first = spawn(&*sandbox, "echo ready; exec sleep 1000").await;
    first.wait_for("ready\n").await;
    let second = spawn(&*sandbox, "echo ready; exec sleep 1001").await;
    second.wait_for("ready\n").await;
    // As an extension that counts the descriptors of the runtime does.
    let names = "until pgrep -fx 'sleep 1000' && pgrep -fx 'sleep 1001'; do :; done > /dev/null; for p in $(pgrep sleep); do tr '\\0' ' ' < /proc/$p/cmdline; done";
    assert_eq!(sh(&*sandbox, names).await.stdout, "sleep 1000 sleep 1001 ");
    assert_eq!(sh(&*sandbox, "ls /proc/$(pgrep -fx 'sleep 1001')/fd").await.stdout, "0\n1\n2\n");
    sandbox.kill_all().await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_about_the_host_in_proc_are_covered() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("proc").await;
    let script =
        "for f in kallsyms keys key-users modules kcore timer_list iomem config.gz cmdline interrupts locks; do
        [ -e /proc/$f ] && head -c1 /proc/$f 2>/dev/null; done
        for d in acpi bus driver fs irq scsi; do [ -e /proc/$d ] && ls -A /proc/$d; done; true";
    assert_eq!(sh(&*sandbox, script).await.stdout, "");
    // What runtimes read is there.
    let runtime = "import os; print(os.cpu_count() > 0, os.path.getsize('/proc/meminfo') == 0)
for name in ['cpuinfo', 'meminfo', 'stat', 'loadavg', 'uptime', 'self/status', 'self/maps', 'sys/vm/overcommit_memory']:
    assert open('/proc/' + name).read()";
    assert_eq!(python(&*sandbox, runtime).await.stdout, "True True\n");
    rig.end(sandbox).await;
}

/// Calls the kernel through libc and prints the name of the error of each attempt.
const ATTEMPTS: &str = r#"
import ctypes, errno, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    number = NUMBERS[name]
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return 'allowed' if result != -1 else errno.errorcode[ctypes.get_errno()]
X86 = dict(mount=165, umount2=166, pivot_root=155, chroot=161, ptrace=101, unshare=272, setns=308, clone=56, clone3=435,
    bpf=321, perf_event_open=298, userfaultfd=323, keyctl=250, add_key=248, request_key=249, init_module=175,
    kexec_load=246, reboot=169, syslog=103, process_vm_readv=310, kcmp=312, personality=135, io_uring_setup=425,
    open_tree=428, fsopen=430, move_mount=429, mount_setattr=442, name_to_handle_at=303, open_by_handle_at=304,
    swapon=167, acct=163, io_setup=206, sethostname=170, settimeofday=164, fanotify_init=300, pidfd_getfd=438, quotactl=179,
    statmount=457, listmount=458, ioctl=16, getpid=39, future=500, x32=0x40000027)
ARM = dict(mount=40, umount2=39, pivot_root=41, chroot=51, ptrace=117, unshare=97, setns=268, clone=220, clone3=435,
    bpf=280, perf_event_open=241, userfaultfd=282, keyctl=219, add_key=217, request_key=218, init_module=105,
    kexec_load=104, reboot=142, syslog=116, process_vm_readv=270, kcmp=272, personality=92, io_uring_setup=425,
    open_tree=428, fsopen=430, move_mount=429, mount_setattr=442, name_to_handle_at=264, open_by_handle_at=265,
    swapon=224, acct=89, io_setup=0, sethostname=161, settimeofday=170, fanotify_init=262, pidfd_getfd=438, quotactl=60,
    statmount=457, listmount=458, ioctl=29, getpid=172, future=500, x32=0x40000027)
NUMBERS = X86 if platform.machine() == 'x86_64' else ARM
"#;

#[tokio::test(flavor = "multi_thread")]
async fn system_calls_that_widen_the_attack_surface_are_refused() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("seccomp").await;
    let program = format!(
        "{ATTEMPTS}
always = [name for name in X86 if name not in
    ('clone', 'clone3', 'unshare', 'personality', 'io_uring_setup', 'io_setup', 'ioctl', 'getpid', 'future', 'x32')]
print([name for name in always if call(name, 0, 0, 0, 0, 0) != 'EPERM'])
for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    print(call('unshare', flag), call('clone', flag | 17, 0, 0, 0, 0))
print(call('unshare', 0x80), call('unshare', 0x400))
print(call('clone3', 0, 0), call('io_uring_setup', 0, 0), call('io_setup', 1, 0), call('future'), call('x32'))
print(call('personality', 0xffffffff), call('personality', 0x0040000))
print(call('ioctl', 0, 0x5412, 0), call('getpid'))
def make(family, kind, protocol=0):
    try:
        socket.socket(family, kind, protocol).close(); return 'allowed'
    except OSError as error:
        return errno.errorcode[error.errno]
print(*[make(f, socket.SOCK_STREAM) for f in (1, 2, 10)], make(16, socket.SOCK_RAW, 0))
print(make(40, socket.SOCK_STREAM), make(17, socket.SOCK_RAW), make(38, socket.SOCK_SEQPACKET),
    make(16, socket.SOCK_RAW, 9))
"
    );
    let output = python(&*sandbox, &program).await;
    let expected = ["[]"]
        .into_iter()
        .chain(["EPERM EPERM"; 7])
        .chain([
            "EPERM allowed",
            "ENOSYS ENOSYS ENOSYS ENOSYS ENOSYS",
            "allowed EPERM",
            "EPERM allowed",
            "allowed allowed allowed allowed",
            "EPERM EPERM EPERM EPERM",
        ])
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    assert_eq!(output.stdout, expected, "{}", output.stderr);
    rig.end(sandbox).await;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn the_system_calls_of_32_bit_programs_are_no_way_around_the_filter() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("i386").await;
    // mov eax, 20 (getpid there); int 0x80; ret
    let program = "import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('b814000000cd80c3'))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print(call())";
    let output = python(&*sandbox, program).await;
    // SIGSYS from the filter, or SIGSEGV from a kernel that does not have these calls at all.
    assert!(matches!(output.exit, Exit::Signal(31 | 11)), "{output:?}");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_programs_are_not_hindered() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("ordinary").await;
    let program = "
import ctypes, json, mmap, os, random, select, signal, socket, subprocess, tempfile, threading, time
threads = [threading.Thread(target=lambda: None) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert subprocess.run(['/bin/sh', '-c', 'echo child'], capture_output=True).stdout == b'child\\n'
os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)
a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'
server = socket.create_server(('127.0.0.1', 0)); socket.create_connection(server.getsockname()).close()
local = socket.socket(socket.AF_UNIX); local.bind('/tmp/socket')
os.mkfifo('/tmp/fifo')
os.makedirs('/tmp/a/b'); open('/tmp/a/b/c', 'w').write('1'); os.rename('/tmp/a/b/c', '/tmp/d'); os.truncate('/tmp/d', 5)
mmap.mmap(-1, 1 << 20, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(1); os.urandom(8); os.getrandom(8)
os.memfd_create('m'); open('/dev/null', 'w').write('x'); assert open('/dev/zero', 'rb').read(1) == b'\\0'
socket.if_nameindex(); os.listdir('/proc/self/task'); epoll = select.epoll(); os.eventfd(0)
signal.setitimer(signal.ITIMER_REAL, 0); time.monotonic()
print('fine')
";
    let output = python(&*sandbox, program).await;
    assert_eq!(output.stdout, "fine\n", "{}", output.stderr);
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_out_of_the_root_and_back_to_privilege_are_closed() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("escape").await;
    let program = "
import os
def attempt(name, action):
    try:
        action()
    except OSError:
        return
    print('succeeded:', name)
attempt('chroot', lambda: os.chroot('/tmp'))
attempt('setuid', lambda: os.setuid(0))
attempt('setgid', lambda: os.setgid(0))
attempt('setgroups', lambda: os.setgroups([0]))
attempt('device', lambda: os.mknod('/tmp/disk', 0o60666, os.makedev(254, 0)))
attempt('chown', lambda: os.chown('/etc/passwd', os.getuid(), -1))
attempt('sysctl', lambda: open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/sh'))
attempt('uninitialized memory of the kernel', lambda: os.open('/dev/kmem', os.O_RDONLY))
attempt('raise priority', lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
attempt('unprotect', lambda: open('/proc/self/oom_score_adj', 'w').write('-1000'))
attempt('uid map', lambda: open('/proc/self/uid_map', 'w').write('0 0 1'))
for up in range(1, 40):
    assert sorted(os.listdir('/' + '../' * up)) == sorted(os.listdir('/')), up
fd = os.open('/', os.O_RDONLY)
assert sorted(os.listdir(fd)) == sorted(os.listdir('/'))
for n in os.listdir('/proc/self/fd'):
    try:
        target = os.readlink('/proc/self/fd/' + n)
    except OSError:
        continue
    assert target in ('/', '/dev/null') or target.startswith(('pipe:', '/proc')), target
print('done')
";
    let output = python(&*sandbox, program).await;
    assert_eq!(output.stdout, "done\n", "{}", output.stderr);
    // A set-user-ID program gains nothing: no-new-privileges, and the mount says nosuid.
    let status = run(&*sandbox, process(&["/usr/bin/findmnt", "-no", "OPTIONS", "/usr"])).await;
    if status.exit == Exit::Code(0) {
        assert!(status.stdout.contains("ro,nosuid,nodev"), "{status:?}");
    }
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_the_specification_cannot_reach_the_host() {
    let Some(rig) = rig() else { return };
    // Not below /tmp, which is covered inside.
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut spec = spec("links");
    spec.root = root();
    // A file below a link that names a directory of the host: it is made inside, or not at all.
    spec.root.symlinks.insert("/link".into(), outside.path().into());
    spec.root.dirs.push(outside.path().into());
    spec.root.files.insert(outside.path().join("file"), b"inside".to_vec());
    let sandbox = rig.sandbox_of(spec).await;
    assert_eq!(sh(&*sandbox, "cat /link/file").await.stdout, "inside");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    rig.end(sandbox).await;
}
