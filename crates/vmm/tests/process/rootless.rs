//! Without root: a user namespace for each process. It takes access to `/dev/kvm`, as the group `kvm` has it on most hosts.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use vmm::host::{Extras, Jail, Launcher, Options, Program};

use crate::support::{PROGRAM, options, soon, status};

/// The user `nobody` of most systems; any but root would do.
const NOBODY: u32 = 65_534;

#[test]
fn a_shell_is_jailed_without_root() {
    if options().is_none() {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (tests, program, kvm) = (dir.path().join("tests"), dir.path().join("vmm-process"), dir.path().join("kvm"));
    std::fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    std::fs::copy(PROGRAM, &program).unwrap();
    mknodat(CWD, &kvm, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(10, 232)).unwrap();
    std::fs::set_permissions(&kvm, std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut unshare = Command::new("/usr/bin/unshare");
    let can_unshare = unshare.args(["-U", "/bin/true"]).uid(NOBODY).gid(NOBODY).output();
    if !can_unshare.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this host has no user namespaces for users, or no unshare to find out");
        return;
    }
    let output = Command::new(tests)
        .args(["--exact", "rootless::inside", "--ignored", "--nocapture"])
        .env("VMM_TEST_PROGRAM", program)
        .env("VMM_TEST_KVM", kvm)
        .current_dir(dir.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("SKIPPED") {
        eprintln!("SKIPPED: a device node in /var/tmp cannot be used here");
        return;
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "started as another user by the test above"]
async fn inside() {
    let Ok(program) = std::env::var("VMM_TEST_PROGRAM") else { return };
    let mut options = Options::new(Jail::without_root());
    options.program = Program { path: program.into(), args: Vec::new() };
    options.kvm = std::env::var("VMM_TEST_KVM").unwrap().into();
    let launcher = match Launcher::new(options) {
        Ok(launcher) => launcher,
        Err(error) => {
            println!("SKIPPED: {error}");
            return;
        }
    };
    let shell = soon(launcher.shell(1, Extras::default())).await.unwrap();
    let pid = shell.pid().to_string();
    assert_eq!(status(&pid, "CapEff"), "0000000000000000");
    assert_eq!(status(&pid, "CapBnd"), "0000000000000000");
    assert_eq!(status(&pid, "Seccomp"), "2");
    let numbers = status(&pid, "NSpid");
    assert_eq!(numbers.split_whitespace().last(), Some("1"), "{numbers}");
    for name in ["user", "mnt", "pid", "net"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&pid), of("self"), "{name}");
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
}
