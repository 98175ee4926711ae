//! Processes: how they are started, what they write and may do, how they end.

use std::os::unix::fs::DirBuilderExt;

use guest::control::{CONTROL, Event, Reply, Request, Spawn, Step, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Agent, shell, soon};

#[tokio::test]
async fn the_first_request_is_answered_with_what_the_agent_is() {
    let Some(agent) = Agent::start().await else { return };
    let Reply::Welcome { version, kernel, uptime_us, .. } = agent.host().await.ask(Request::Hello).await else {
        panic!("no welcome")
    };
    assert_eq!(version, VERSION);
    assert!(!kernel.is_empty() && uptime_us > 0);
}

#[tokio::test]
async fn a_process_has_its_output_and_its_end() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    let spawn = Spawn {
        env: vec![("NAME".to_owned(), "va lue".to_owned())],
        cwd: "/usr".to_owned(),
        log_fd_env: Some("LOG".to_owned()),
        streams: [10, 11, 12],
        ..shell(1, "echo \"$NAME\" in $PWD; echo err >&2; eval \"echo log >&$LOG\"; exit 3")
    };
    host.start(spawn).await;
    assert_eq!(agent.output(10).await, "va lue in /usr\n");
    assert_eq!(agent.output(11).await, "err\n");
    assert_eq!(agent.output(12).await, "log\n");
    host.exited(1, Some(3), None).await;
}

#[tokio::test]
async fn a_process_is_nobody_and_has_nothing_but_its_own() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    assert!(matches!(
        host.ask(Request::Limits { memory_bytes: 1 << 30, max_tasks: 77 }).await,
        Reply::Done | Reply::Failed { .. }
    ));
    let script = "id -u; id -g; id -G; grep -E '^(CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status; \
                  ulimit -n; ulimit -u; ulimit -c; umask; cat /proc/self/oom_score_adj; echo /proc/self/fd/*; cut -d ' ' -f 19 /proc/self/stat; exec env";
    host.start(shell(1, script)).await;
    let expected = "993\n990\n990\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\n1024\n77\n0\n0022\n500\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n0\n";
    let output = agent.output(10).await;
    let (facts, env) = output.split_at(expected.len().min(output.len()));
    assert_eq!(facts, expected, "{}", agent.output(11).await);
    assert!(env.lines().all(|line| ["PATH=", "PWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own))), "{env}");
    host.exited(1, Some(0), None).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_told_why() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    let program = "/no/such/program".to_owned();
    let absent = Spawn { argv: vec![program.clone()], ..shell(1, "") };
    let failed = |step, what: &str, errno| Reply::Failed { step, what: what.to_owned(), errno };
    assert_eq!(host.ask(Request::Spawn(absent)).await, failed(Step::Exec, &program, libc::ENOENT));
    let private = agent.dir.path().join("private");
    std::fs::DirBuilder::new().mode(0o700).create(&private).unwrap();
    let private = private.to_str().unwrap();
    let nowhere = Spawn { cwd: private.to_owned(), ..shell(2, "") };
    assert_eq!(host.ask(Request::Spawn(nowhere)).await, failed(Step::Cwd, private, libc::EACCES));
    let zero = Spawn { env: vec![("A".to_owned(), "b\0".to_owned())], ..shell(3, "") };
    assert!(matches!(host.ask(Request::Spawn(zero)).await, Reply::Failed { step: Step::Other, .. }));
    let nothing = Spawn { argv: vec![], ..shell(4, "") };
    assert_eq!(host.ask(Request::Spawn(nothing)).await, failed(Step::Exec, "", libc::ENOENT));
    // None of them is told to have ended.
    host.start(shell(5, "exit 0")).await;
    host.exited(5, Some(0), None).await;
}

#[tokio::test]
async fn requests_can_be_sent_before_the_answers_have_come() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    // A stream as well: it is connected before its process is there.
    let mut early = agent.stream(10).await;
    let first = host.send(Request::Hello).await;
    let second = host.send(Request::Spawn(shell(1, "echo here"))).await;
    let third = host.send(Request::Usage).await;
    assert!(matches!(host.answer(first).await, Reply::Welcome { .. }));
    assert_eq!(host.answer(second).await, Reply::Spawned { prestarted: false });
    assert!(matches!(host.answer(third).await, Reply::Usage { .. }));
    let mut text = String::new();
    soon("output", early.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "here\n");
}

#[tokio::test]
async fn nothing_is_lost_when_the_host_connects_late_or_again() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    host.start(shell(1, "head -c 60000 /dev/zero; echo; echo one; exec sleep 1000")).await;
    let mut stream = agent.stream(10).await;
    let mut bytes = vec![0; 60_005];
    soon("early output", stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[60_000..], b"\none\n");
    drop(stream);
    assert_eq!(host.ask(Request::Signal { process: 1, signal: libc::SIGTERM }).await, Reply::Done);
    host.exited(1, None, Some(libc::SIGTERM)).await;
    assert_eq!(agent.output(10).await, "");
}

#[tokio::test]
async fn the_end_is_told_after_the_output_even_if_a_grandchild_keeps_the_pipe() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    host.start(shell(1, "sleep 1000 & echo hi; exit 7")).await;
    let mut stream = agent.stream(10).await;
    let _errors = agent.stream(11).await;
    host.exited(1, Some(7), None).await;
    let mut text = [0; 3];
    // There already, without waiting.
    assert_eq!(stream.try_read(&mut text).unwrap(), 3);
    assert_eq!(&text, b"hi\n");
    assert_eq!(host.ask(Request::KillAll).await, Reply::Done);
    assert_eq!(soon("the end", stream.read(&mut text)).await.unwrap(), 0);
}

#[tokio::test]
async fn killing_all_leaves_nobody_whether_running_frozen_or_forking() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    host.start(shell(1, "(setsid sleep 1000 &) ; sleep 1000 & sleep 1000")).await;
    host.start(shell(2, "while :; do (sleep 1000) & sleep 0.01; done")).await;
    assert_eq!(host.ask(Request::Quiesce).await, Reply::Done);
    assert_eq!(host.ask(Request::KillAll).await, Reply::Done);
    let mut ended = vec![host.event().await, host.event().await];
    ended.sort_by_key(|Event::Exited { process, .. }| *process);
    let killed = |process| Event::Exited { process, code: None, signal: Some(libc::SIGKILL) };
    assert_eq!(ended, [killed(1), killed(2)]);
    assert_eq!(host.ask(Request::Wake).await, Reply::Done);
    host.start(shell(3, "exit 0")).await;
    host.exited(3, Some(0), None).await;
}

#[tokio::test]
async fn a_stopped_tenant_does_nothing_until_it_is_woken() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    host.start(shell(1, "while :; do echo tick; sleep 0.001; done")).await;
    let mut stream = agent.stream(10).await;
    let mut byte = [0; 5];
    soon("a tick", stream.read_exact(&mut byte)).await.unwrap();
    assert_eq!(host.ask(Request::Quiesce).await, Reply::Done);
    // What was written before arrives before this answer's successor.
    assert!(matches!(host.ask(Request::Usage).await, Reply::Usage { .. }));
    let Reply::Usage { cpu_us: before, .. } = host.ask(Request::Usage).await else { panic!("no usage") };
    let Reply::Usage { cpu_us: after, .. } = host.ask(Request::Usage).await else { panic!("no usage") };
    assert_eq!(before, after);
    let mut rest = vec![0; 1 << 20];
    while stream.try_read(&mut rest).is_ok_and(|length| length > 0) {}
    assert_eq!(host.ask(Request::Wake).await, Reply::Done);
    soon("another tick", stream.read_exact(&mut byte)).await.unwrap();
}

#[tokio::test]
async fn a_tenant_cannot_end_the_agent_nor_fill_it() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    let before = agent.resident_kib();
    host.start(shell(1, "kill -9 1; kill -TERM 1; kill -9 -1; exit 0")).await;
    let _errors = agent.stream(11).await;
    host.exited(1, Some(0), None).await;
    host.start(shell(2, "yes")).await;
    host.start(shell(3, "exec cat /dev/zero")).await;
    // One that the host reads slowly, one that it does not read at all.
    let mut slow = agent.stream(20).await;
    for _ in 0..100 {
        let mut some = vec![0; 10_000];
        soon("output", slow.read_exact(&mut some)).await.unwrap();
        assert!(matches!(host.ask(Request::Hello).await, Reply::Welcome { .. }));
    }
    let after = agent.resident_kib();
    assert!(after < before + 2048, "it grew from {before} to {after} KiB");
}

#[tokio::test]
async fn events_wait_for_a_host_that_is_away() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    host.start(shell(1, "exec sleep 1000")).await;
    let (_out, _err) = (agent.stream(10).await, agent.stream(11).await);
    host.send(Request::Signal { process: 1, signal: libc::SIGKILL }).await;
    drop(host);
    let mut host = agent.host().await;
    // Whether the agent read the request before it saw the new connection is its luck.
    host.ask(Request::Signal { process: 1, signal: libc::SIGKILL }).await;
    host.exited(1, None, Some(libc::SIGKILL)).await;
}

#[tokio::test]
async fn events_are_told_again_until_the_host_has_heard_them() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    let [first, second] = [1, 2].map(|process| Event::Exited { process, code: Some(3), signal: None });
    for (process, event) in [(1, &first), (2, &second)] {
        host.start(shell(process, "exit 3")).await;
        // Written, and nothing says that the host did anything with it.
        assert_eq!(host.unheard_event().await, *event);
    }
    drop(host);
    let mut host = agent.host().await;
    assert_eq!((host.unheard_event().await, host.unheard_event().await), (first, second.clone()));
    assert_eq!(host.ask(Request::Heard { processes: vec![1, 77] }).await, Reply::Done);
    drop(host);
    let mut host = agent.host().await;
    assert_eq!(host.event().await, second);
    drop(host);
    let mut host = agent.host().await;
    host.start(shell(3, "exit 4")).await;
    host.exited(3, Some(4), None).await;
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_not_the_agent() {
    let Some(agent) = Agent::start().await else { return };
    for nonsense in [&b"\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x02\0\0\0\0\0\0\0{}", b"\0\0\0\0\x01\0\0\0x"] {
        let mut stream = agent.connect(CONTROL).await;
        stream.write_all(nonsense).await.unwrap();
        let mut end = Vec::new();
        soon("the end", stream.read_to_end(&mut end)).await.unwrap();
    }
    let mut host = agent.host().await;
    let signal = Request::Signal { process: 1, signal: libc::SIGSTOP };
    assert!(matches!(host.ask(signal).await, Reply::Failed { .. }));
    // Not the clock of the machine on which the test runs.
    let cloned = Request::Cloned { entropy: String::new(), now_ns: 0 };
    assert!(matches!(host.ask(cloned).await, Reply::Failed { .. }));
}

/// A shell that waits for its environment and then shows it.
fn interpreter(process: u32) -> Spawn {
    shell(process, "echo early; eval \"printf . >&$FIRELET_PRESTART_FD; cat <&$FIRELET_PRESTART_FD\"; echo; exit 5")
}

#[tokio::test]
async fn a_process_that_waits_is_given_its_environment() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    assert_eq!(host.ask(Request::Prestart(Spawn { streams: [0; 3], ..interpreter(0) })).await, Reply::Done);
    let mine = Spawn {
        env: vec![("A".to_owned(), "\u{e4}".to_owned())],
        cwd: "/usr".to_owned(),
        prestarted: true,
        ..interpreter(1)
    };
    assert_eq!(host.ask(Request::Spawn(mine.clone())).await, Reply::Spawned { prestarted: true });
    assert_eq!(agent.output(10).await, "early\n{\"cwd\":\"/usr\",\"env\":[[\"A\",\"\u{e4}\"]]}\n");
    assert_eq!(agent.output(11).await, "");
    host.exited(1, Some(5), None).await;
    // There is no other.
    let again = Spawn { process: 2, streams: [20, 21, 0], argv: shell(2, "exit 6").argv, ..mine };
    assert_eq!(host.ask(Request::Spawn(again)).await, Reply::Spawned { prestarted: false });
    assert_eq!((agent.output(20).await, agent.output(21).await), (String::new(), String::new()));
    host.exited(2, Some(6), None).await;
}

#[tokio::test]
async fn a_process_that_waits_and_does_not_fit_is_not_used() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    assert_eq!(host.ask(Request::Prestart(interpreter(0))).await, Reply::Done);
    let other = Spawn { prestarted: true, ..shell(1, "exit 4") };
    assert_eq!(host.ask(Request::Spawn(other)).await, Reply::Spawned { prestarted: false });
    assert_eq!(agent.output(10).await, "");
    assert_eq!(agent.output(11).await, "");
    host.exited(1, Some(4), None).await;
    // One that ends instead of waiting, one that was killed while it waited.
    assert!(matches!(host.ask(Request::Prestart(shell(0, "exit 0"))).await, Reply::Failed { .. }));
    assert_eq!(host.ask(Request::Prestart(interpreter(0))).await, Reply::Done);
    assert_eq!(host.ask(Request::KillAll).await, Reply::Done);
    let late = Spawn { prestarted: true, streams: [20, 21, 0], ..interpreter(2) };
    assert!(matches!(host.ask(Request::Spawn(late)).await, Reply::Spawned { prestarted: false }));
}
