//! Without root: a user namespace per sandbox.

use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use sandbox::namespace::{Namespace, StartError};
use sandbox::net::NetworkMode;
use sandbox::{Backend, Exit, Service, Signal};

use crate::support::{SUPERVISOR, eventually, options, process, python, sh, spawn, spec};

/// The user `nobody` of most systems; any but root would do.
const NOBODY: u32 = 65_534;

/// Runs one of the tests below as another user, who gets a copy of the programs and a directory.
fn as_nobody(test: &str) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root, so there is no way to become another user");
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (program, supervisor) = (dir.path().join("tests"), dir.path().join("supervisor"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::copy(SUPERVISOR, &supervisor).unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let unshare = Command::new("/usr/bin/unshare").args(["-U", "/bin/true"]).uid(NOBODY).gid(NOBODY).output();
    if !unshare.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this host has no user namespaces for users, or no unshare to find out");
        return;
    }
    let output = Command::new(program)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("FIRELET_TEST_SUPERVISOR", supervisor)
        .env("FIRELET_TEST_HOME", &home)
        .current_dir(&home)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_sandbox_works_without_root() {
    as_nobody("rootless::inside_without_root");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started as another user by the test above"]
async fn inside_without_root() {
    let Ok(home) = std::env::var("FIRELET_TEST_HOME") else { return };
    let mut nat = options(Path::new(&home));
    nat.network = NetworkMode::Nat;
    assert!(matches!(Namespace::start(nat), Err(StartError::NatNeedsRoot)));

    let backend = Namespace::start(options(Path::new(&home))).unwrap();
    let lost: Vec<&str> = backend.losses().iter().map(|loss| loss.what.as_str()).collect();
    assert!(lost.iter().any(|what| what.starts_with("user of their own")), "{lost:?}");

    let mut spec = spec("rootless");
    let address: SocketAddrV4 = "127.0.0.1:9001".parse().unwrap();
    spec.listen.push(address);
    spec.max_tasks = 20;
    let mut sandbox = backend.create(spec).await.unwrap();

    // The runtime API's way: the server accepts what is connected to inside.
    let Some(Service::Host(listeners)) = sandbox.take_service() else { panic!("no listeners") };
    assert_eq!(listeners.len(), 1);
    assert_eq!(listeners[0].local_addr().unwrap(), address.into());
    let listener = tokio::net::TcpListener::from_std(listeners.into_iter().next().unwrap()).unwrap();
    let connect = "import socket; s = socket.create_connection(('127.0.0.1', 9001)); print(s.recv(5).decode())";
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        assert_eq!(stream.try_write(b"hello").unwrap(), 5);
    };
    let (output, ()) = tokio::join!(python(&*sandbox, connect), serve);
    assert_eq!(output.stdout, "hello\n", "{}", output.stderr);

    let identity = sh(&*sandbox, "id -un; id -u; grep -E '^(CapEff|Seccomp:|NoNewPrivs)' /proc/self/status").await;
    assert_eq!(
        identity.stdout, "sbx_user1051\n993\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
        "{}",
        identity.stderr
    );
    for script in ["> /x", "> /usr/x", "ls /home", "cat /proc/1/environ"] {
        assert_ne!(sh(&*sandbox, script).await.exit, Exit::Code(0), "{script}");
    }
    // The same user for the host, but process 1 takes no signals from inside.
    for signal in [2, 9, 11, 15, 19] {
        sh(&*sandbox, &format!("kill -{signal} 1")).await;
    }
    // Limited by RLIMIT_NPROC, because there is no control group.
    let many = "import os
n = 0
try:
    while os.fork(): n += 1
    import time; time.sleep(1000)
except OSError: print(n < 20, flush=True)";
    let bomb = sandbox.spawn(process(&["/usr/bin/python3", "-c", many])).await.unwrap();
    let line = crate::support::first_line(bomb.stdout).await;
    assert_eq!(line, "True");
    sandbox.kill_all().await;

    // Frozen by signals.
    let counting = spawn(&*sandbox, "echo ready; while :; do :; done # looping").await;
    counting.wait_for("ready\n").await;
    sandbox.freeze().unwrap();
    eventually("the loop is stopped", || state_of("looping") == Some('T')).await;
    sandbox.thaw().unwrap();
    eventually("the loop runs", || state_of("looping") == Some('R')).await;
    sandbox.signal(counting.id, Signal::Kill);
    assert_eq!(counting.end().await.exit, Exit::Signal(9));

    sandbox.destroy().await;
    let supervisor = backend.supervisor_pid().unwrap();
    backend.shutdown().await;
    eventually("the supervisor is gone", || !Path::new(&format!("/proc/{supervisor}")).exists()).await;
}

/// What the process does whose command line contains `text`; on the host it is this test's user's.
fn state_of(text: &str) -> Option<char> {
    let mut processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let found = processes.find(|path| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
    })?;
    let stat = std::fs::read_to_string(found.join("stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}
