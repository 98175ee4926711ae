//! Starting, ending and talking to processes.

use std::io;

use sandbox::{Exit, Service, Signal, SpawnError};

use crate::support::{DEADLINE, Output, process, python, read, rig, run, sh, spawn, spec, wait};

#[tokio::test(flavor = "multi_thread")]
async fn output_and_exit_code_come_back() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("runs").await;
    let finished = sh(&*sandbox, "echo out; echo err >&2; exit 7").await;
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(finished.exit, Exit::Code(7));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn death_by_signal_is_told_from_an_exit_code() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("signals").await;
    assert_eq!(sh(&*sandbox, "kill -9 $$").await.exit, Exit::Signal(9));
    assert_eq!(sh(&*sandbox, "kill -11 $$").await.exit, Exit::Signal(11));
    assert_eq!(sh(&*sandbox, "exit 137").await.exit, Exit::Code(137));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_named_with_the_reason() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("exec").await;
    for (program, kind) in
        [("/var/task/bootstrap", io::ErrorKind::NotFound), ("/etc/hosts", io::ErrorKind::PermissionDenied)]
    {
        let error = sandbox.spawn(process(&[program])).await.unwrap_err();
        assert_eq!(error.to_string(), format!("fork/exec {program}"));
        let SpawnError::Exec { source, .. } = error else { panic!("another error: {error:?}") };
        assert_eq!(source.kind(), kind);
    }
    assert_eq!(sh(&*sandbox, "exit 0").await.exit, Exit::Code(0));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_directory_that_is_not_there_is_named() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("cwd").await;
    let mut spec = process(&["/bin/true"]);
    spec.cwd = "/var/elsewhere".into();
    let error = sandbox.spawn(spec).await.unwrap_err();
    assert_eq!(error.to_string(), "working directory /var/elsewhere");
    let finished = sh(&*sandbox, "pwd").await;
    assert_eq!(finished.stdout, "/var/task\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_the_one_given_and_no_other() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("env").await;
    let mut spec = process(&["/usr/bin/env"]);
    spec.env = vec![("B".into(), "two words".into()), ("A".into(), "=x=".into()), ("EMPTY".into(), String::new())];
    assert_eq!(run(&*sandbox, spec).await.stdout, "B=two words\nA==x=\nEMPTY=\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_descriptors_but_the_standard_ones_and_the_log_pipe() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("fds").await;
    // The last one is the directory being listed.
    let list = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))";
    assert_eq!(python(&*sandbox, list).await.stdout, "[0, 1, 2, 3]\n");

    let mut spec = process(&["/usr/bin/python3", "-c", &format!("{list}; os.write(int(os.environ['LOG']), b'frame')")]);
    spec.log_fd_env = Some("LOG".into());
    let mut started = sandbox.spawn(spec).await.unwrap();
    let log = started.log.take().unwrap();
    let (log, Output { stdout, exit, .. }) = tokio::join!(read(log), wait(started));
    assert_eq!((log.as_str(), stdout.as_str(), exit), ("frame", "[0, 1, 2, 3, 4]\n", Exit::Code(0)));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_empty_and_output_can_be_opened_by_name() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("stdio").await;
    let finished = sh(&*sandbox, "cat; echo named > /dev/stdout; echo bad > /dev/stderr").await;
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("named\n", "bad\n"));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_have_their_default_actions() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("defaults").await;
    // Inherited, Rust's ignored SIGPIPE would keep `yes` alive and complaining.
    let finished = python(
        &*sandbox,
        "import signal; print([s.name for s in signal.valid_signals() if isinstance(s, signal.Signals) \
         and signal.getsignal(s) == signal.SIG_IGN and s.name not in ('SIGPIPE', 'SIGXFSZ')], \
         signal.pthread_sigmask(signal.SIG_BLOCK, []), open('/proc/self/status').read().split('SigIgn:\\t')[1][:16])",
    )
    .await;
    // SIGPIPE and SIGXFSZ, bits 12 and 24, are ignored by Python itself.
    assert_eq!(finished.stdout, "[] set() 0000000001001000\n");
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_can_be_caught_and_kill_cannot() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("term").await;
    let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done";
    let caught = spawn(&*sandbox, script).await;
    caught.wait_for("ready\n").await;
    sandbox.signal(caught.id, Signal::Terminate);
    assert_eq!(caught.end().await.exit, Exit::Code(42));

    let stubborn = spawn(&*sandbox, "trap '' TERM; echo ready; while :; do sleep 0.01; done").await;
    stubborn.wait_for("ready\n").await;
    sandbox.signal(stubborn.id, Signal::Terminate);
    let id = stubborn.id;
    sandbox.signal(id, Signal::Kill);
    sandbox.signal(id, Signal::Kill);
    assert_eq!(stubborn.end().await.exit, Exit::Signal(9));
    // Neither an error nor a stray shot at a process that came later.
    sandbox.signal(id, Signal::Kill);
    assert_eq!(sh(&*sandbox, "exit 3").await.exit, Exit::Code(3));
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_all_takes_orphans_too_and_leaves_tmp_and_the_sandbox() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("reset").await;
    let script = "echo kept > /tmp/file; (setsid sleep 1000 &) ; (sleep 1000 &) ; echo ready; sleep 1000";
    let started = spawn(&*sandbox, script).await;
    started.wait_for("ready\n").await;
    sandbox.kill_all().await;
    assert_eq!(started.end().await.exit, Exit::Signal(9));
    let after = sh(&*sandbox, "cat /tmp/file; set -- /proc/[0-9]*; echo $#").await;
    // Init and the shell.
    assert_eq!(after.stdout, "kept\n2\n");
    sandbox.kill_all().await;
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_accepts_on_the_loopback_of_the_sandbox() {
    let Some(rig) = rig() else { return };
    let mut listening = spec("listen");
    listening.listen = vec!["127.0.0.1:9001".parse().unwrap(), "127.0.0.1:9002".parse().unwrap()];
    let mut sandbox = rig.sandbox_of(listening).await;
    let Some(Service::Host(listeners)) = sandbox.take_service() else { panic!("no listeners") };
    assert!(sandbox.take_service().is_none());
    // The first process of a sandbox and a later one.
    for (listener, port) in listeners.into_iter().zip([9001, 9002]) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        assert_eq!(listener.local_addr().unwrap().port(), port);
        let connect =
            format!("import socket; s = socket.create_connection(('127.0.0.1', {port})); print(s.recv(5).decode())");
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            stream.writable().await.unwrap();
            assert_eq!(stream.try_write(b"hello").unwrap(), 5);
        };
        let serve = tokio::time::timeout(DEADLINE, serve);
        let (output, served) = tokio::join!(python(&*sandbox, &connect), serve);
        assert_eq!(output.stdout, "hello\n", "{}", output.stderr);
        served.unwrap();
    }
    rig.end(sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_run_side_by_side() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("many").await;
    let scripts: Vec<String> = (0..20).map(|number| format!("echo {number}; exit {number}")).collect();
    let finished = futures(scripts.iter().map(|script| sh(&*sandbox, script))).await;
    for (number, finished) in finished.into_iter().enumerate() {
        assert_eq!((finished.stdout, finished.exit), (format!("{number}\n"), Exit::Code(number as i32)));
    }
    rig.end(sandbox).await;
}

/// Polls all of them until all are done.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = all.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, result) in &mut pending {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if pending.iter().all(|(_, result)| result.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, result)| result).collect()
}
