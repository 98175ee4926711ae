//! What `/proc` tells about a process in its jail.

use std::fs;
use std::os::unix::fs::MetadataExt;

use vmm::host::Extras;

use crate::support::{launcher, status, wait_for};

#[tokio::test]
async fn a_shell_has_a_user_of_its_own_and_no_rights() {
    let Some(launcher) = launcher() else { return };
    let shell = launcher.shell(2, Extras::default()).await.unwrap();
    let other = launcher.shell(1, Extras::default()).await.unwrap();
    let pid = shell.pid().to_string();
    for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&pid, line), "0000000000000000", "{line}");
    }
    let user = status(&pid, "Uid");
    let ids: Vec<&str> = user.split_whitespace().collect();
    assert!(ids.iter().all(|id| *id == ids[0] && *id != "0"), "{user}");
    assert_eq!(status(&pid, "Gid"), user);
    assert_eq!(status(&pid, "Groups"), "");
    assert_ne!(status(&other.pid().to_string(), "Uid"), user);
    assert_eq!(status(&pid, "NoNewPrivs"), "1");
    // Files of an untraceable process belong to root.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

#[tokio::test]
async fn every_thread_of_a_shell_is_filtered() {
    let Some(launcher) = launcher() else { return };
    let shell = launcher.shell(2, Extras::default()).await.unwrap();
    let pid = shell.pid();
    // A vCPU's thread may still be on its way to its first instruction, which installs the filter.
    let filtered = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let threads: Vec<String> = tasks.map(|task| task.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(threads.len(), 3);
        threads.iter().all(|thread| status(&format!("{pid}/task/{thread}"), "Seccomp") == "2")
    };
    wait_for("all threads to be filtered", filtered).await;
}

#[tokio::test]
async fn a_shell_is_alone_in_its_namespaces() {
    let Some(launcher) = launcher() else { return };
    let shell = launcher.shell(1, Extras::default()).await.unwrap();
    let other = launcher.shell(1, Extras::default()).await.unwrap();
    for name in ["mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        let its = of(&shell.pid().to_string());
        assert_ne!(its, of("self"), "{name}");
        assert_ne!(its, of(&other.pid().to_string()), "{name}");
    }
    let numbers = status(&shell.pid().to_string(), "NSpid");
    assert_eq!(numbers.split_whitespace().last(), Some("1"), "{numbers}");
}

#[tokio::test]
async fn the_root_of_a_shell_is_empty_and_read_only() {
    let Some(launcher) = launcher() else { return };
    let shell = launcher.shell(1, Extras::default()).await.unwrap();
    let root = format!("/proc/{}/root", shell.pid());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", shell.pid())).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    let error = fs::write(format!("{root}/file"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[tokio::test]
async fn a_shell_has_only_descriptors_of_its_own() {
    let Some(launcher) = launcher() else { return };
    let shell = launcher.shell(2, Extras::default()).await.unwrap();
    let mut kinds = Vec::new();
    for fd in fs::read_dir(format!("/proc/{}/fd", shell.pid())).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap().into_os_string().into_string().unwrap();
        let allowed = ["socket:", "anon_inode:kvm", "anon_inode:[event", "/dev/null", "/proc/"];
        assert!(allowed.iter().any(|kind| target.starts_with(kind)) || target.ends_with("/pagemap"), "{target}");
        kinds.push(target);
    }
    let of_kind = |kind: &str| kinds.iter().filter(|target| target.starts_with(kind)).count();
    assert_eq!(of_kind("socket:"), 1, "{kinds:?}");
    assert_eq!(of_kind("/dev/null"), 2, "{kinds:?}");
    assert!(kinds.len() < 24, "{kinds:?}");
}

#[tokio::test]
async fn a_shell_joins_the_control_groups_that_it_is_given() {
    let Some(launcher) = launcher() else { return };
    let Some(group) = Group::make() else { return };
    let fresh = launcher.fresh(1, group.extras()).await.unwrap();
    assert!(group.members().contains(&fresh.pid()), "{:?}", group.members());
    fresh.kill();
}

/// A control group of whichever hierarchy can be written here.
struct Group(std::path::PathBuf);

impl Group {
    fn make() -> Option<Group> {
        let name = format!("firelet-test-vmm-{}", std::process::id());
        let mounts = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let made = mounts.into_iter().map(|mount| std::path::Path::new(mount).join(&name)).find(|path| {
            path.parent().is_some_and(|parent| parent.join("cgroup.procs").exists()) && fs::create_dir(path).is_ok()
        });
        if made.is_none() {
            eprintln!("SKIPPED: no control group can be made here");
        }
        made.map(Group)
    }

    fn extras(&self) -> Extras {
        let procs = fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).unwrap();
        Extras { cgroup_procs: vec![procs.into()], netns: None }
    }

    fn members(&self) -> Vec<i32> {
        let members = fs::read_to_string(self.0.join("cgroup.procs")).unwrap();
        members.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was killed leaves its group a little later.
        for _ in 0..5000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        panic!("{} cannot be removed", self.0.display());
    }
}
