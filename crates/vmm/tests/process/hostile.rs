//! Bytes that no honest process sends, in both directions.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use vmm::config::Exit;
use vmm::host::{Extras, LaunchError, Launcher, Program};

use crate::support::{PROGRAM, options, soon};

/// `Report::Ready` with seven zeros.
const READY: &str = r"printf '\000\000\000\000\000\000\000\000' >&0; ";

/// A launcher whose VMM processes are shell scripts. Their descriptor 0 is the socket to the host.
fn impostor(script: &str) -> Option<Launcher> {
    let mut options = options()?;
    if std::fs::canonicalize("/bin/sh").is_ok_and(|shell| shell.ends_with("busybox")) {
        // VMM processes are called `firelet`, and busybox becomes what it is called.
        eprintln!("SKIPPED: /bin/sh is busybox, which cannot be called otherwise");
        return None;
    }
    options.program = Program { path: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
    options.patience = Duration::from_millis(300);
    Some(Launcher::new(options).unwrap())
}

#[tokio::test]
async fn a_process_that_is_never_a_shell_is_an_error() {
    let cases = [
        ("exit 0", "Killed"),
        (r"printf '\377\377\377' >&0; sleep 1000", "broke the protocol"),
        // An empty packet reads as the end.
        ("exec 0<&-; sleep 1000", "Killed"),
        // Exit with a text of 31 bytes, which tries to clear the screen.
        (r"printf '\003\002\010\033[2Jgone' >&0; sleep 1000", " [2Jgone"),
        ("dd if=/dev/zero bs=20000 count=1 >&0; sleep 1000", "too long"),
    ];
    for (script, expected) in cases {
        let Some(launcher) = impostor(script) else { return };
        let error = soon(launcher.shell(1, Extras::default())).await.unwrap_err();
        assert!(matches!(&error, LaunchError::Failed(reason) if reason.contains(expected)), "{script}: {error}");
    }
    let Some(launcher) = impostor("sleep 1000") else { return };
    assert!(matches!(soon(launcher.shell(1, Extras::default())).await, Err(LaunchError::Late(_))));
}

#[tokio::test]
async fn a_shell_that_speaks_out_of_turn_is_killed() {
    let cases = [
        ("a second time ready", READY.trim_end_matches([';', ' ']).to_owned()),
        ("an answer without a question", r"printf '\001\007\000\000' >&0".to_owned()),
        ("a connection that nobody waits for", r"printf '\002\007' >&0".to_owned()),
        ("no message", r"printf '\011' >&0".to_owned()),
        ("a message and more", r"printf '\003\000\000' >&0".to_owned()),
    ];
    for (what, script) in cases {
        let Some(launcher) = impostor(&format!("{READY} {script}; sleep 1000")) else { return };
        let shell = soon(launcher.shell(1, Extras::default())).await.unwrap();
        let exit = soon(shell.exited()).await;
        assert!(matches!(&exit, Exit::Failed(reason) if reason.contains("broke the protocol")), "{what}: {exit:?}");
    }
}

#[test]
fn a_process_that_is_sent_nonsense_ends() {
    if options().is_none() {
        return;
    }
    let nonsense: [&[u8]; 5] = [&[0], &[0xff; 64], &[0; 16_384], &[0; 16_385], &[0, 0, 9, 0, 0, 0, 0, 0]];
    for packet in nonsense {
        let (ours, mut child) = bare_process();
        send(&ours, packet, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{packet:?}");
        let mut report = [0; 4096];
        let (length, _) = recv(&ours, &mut report, RecvFlags::DONTWAIT).unwrap();
        // `Report::Exit(Exit::Failed(..))`.
        assert_eq!(report[..2], [3, 2], "{:?}", String::from_utf8_lossy(&report[..length]));
    }
}

#[test]
fn a_process_without_a_host_ends() {
    if options().is_none() {
        return;
    }
    let (ours, mut child) = bare_process();
    drop(ours);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A VMM process that was started by hand, without a clone's namespaces.
fn bare_process() -> (OwnedFd, std::process::Child) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let child = Command::new(PROGRAM).env_clear().env("FIRELET_VMM_ROLE", "vmm").stdin(Stdio::from(theirs)).spawn();
    (ours, child.unwrap())
}
