//! Real groups with real processes (as root), and the second version's files imitated in a directory.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::host::HostFacts;

const MIB: u64 = 1 << 20;
const LIMITS: Limits = Limits { memory_bytes: 64 * MIB, cpu_millis: 500, cpu_share: 500, max_tasks: 20 };

/// The groups of this machine, or `None` with the reason on stderr.
fn cgroups() -> Option<Cgroups> {
    let cgroups = Cgroups::detect("firelet-test").expect("detect");
    if cgroups.version() == Version::None {
        eprintln!("SKIPPED: control groups are not writable here");
        return None;
    }
    Some(cgroups)
}

/// A group in the unified hierarchy, whatever controllers that has.
fn v2() -> Option<Cgroups> {
    let mounts = parse::mounts(&std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"));
    let Some(mount) = mounts.into_iter().find(|mount| mount.unified) else {
        eprintln!("SKIPPED: the unified hierarchy is not mounted");
        return None;
    };
    match patiently(|| v2::Tree::plant(&mount.point, &mount.point, "firelet-test")) {
        Ok(tree) => Some(Cgroups { tree: Tree::V2(tree) }),
        Err(error) => {
            eprintln!("SKIPPED: the unified hierarchy is not writable: {error}");
            None
        }
    }
}

/// A shell that waits until it has been put into the group, then runs `script`.
pub(crate) fn run_in(group: &Group, script: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    let pid = child.id().to_string();
    match group.entry() {
        Entry::V2 { dir } => {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let procs = rustix::fs::openat(dir, "cgroup.procs", flags, rustix::fs::Mode::empty()).expect("open");
            rustix::io::write(procs, pid.as_bytes()).expect("join");
        }
        Entry::V1 { procs } => {
            assert!(!procs.is_empty());
            for file in procs {
                rustix::io::pwrite(file, pid.as_bytes(), 0).expect("join");
            }
        }
        Entry::None => panic!("no group"),
    }
    child.stdin.take().expect("stdin").write_all(b"go\n").expect("go");
    child
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Clock ticks that a process has run for.
fn ticks(child: &Child) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    fields.get(11).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn is_frozen(group: &Group) -> bool {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    match &group.leaf {
        Leaf::V1(leaf) => leaf.paths.iter().any(|path| read(&path.join("freezer.state")).trim() == "FROZEN"),
        Leaf::V2(leaf) => read(&leaf.path.join("cgroup.events")).contains("frozen 1"),
        Leaf::None => false,
    }
}

fn freezes_and_kills(cgroups: &Cgroups, id: &str) {
    let group = cgroups.create(id, &LIMITS).expect("create");
    let mut child = run_in(&group, "while :; do :; done");
    wait_until("the loop to run", || ticks(&child) > 2);
    group.freeze().expect("freeze");
    group.freeze().expect("freeze twice");
    wait_until("the group to freeze", || is_frozen(&group));
    let before = ticks(&child);
    // Another loop runs for a tenth of a second of CPU time meanwhile; the frozen one may not move.
    let other = run_in(&cgroups.create(&format!("{id}-other"), &LIMITS).expect("create"), "exit 0");
    drop(other.wait_with_output());
    assert_eq!(ticks(&child), before);
    group.thaw().expect("thaw");
    wait_until("the loop to go on", || ticks(&child) > before);

    group.freeze().expect("freeze");
    group.kill_all().expect("kill");
    let status = child.wait().expect("wait");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(!is_frozen(&group));
    let paths = paths(&group);
    group.remove();
    assert!(paths.iter().all(|path| !path.exists()));
}

fn paths(group: &Group) -> Vec<PathBuf> {
    match &group.leaf {
        Leaf::V1(leaf) => leaf.paths.clone(),
        Leaf::V2(leaf) => vec![leaf.path.clone()],
        Leaf::None => Vec::new(),
    }
}

#[test]
fn a_group_freezes_and_is_killed() {
    let Some(cgroups) = cgroups() else { return };
    freezes_and_kills(&cgroups, "freeze");
}

#[test]
fn a_unified_group_freezes_and_is_killed() {
    let Some(cgroups) = v2() else { return };
    freezes_and_kills(&cgroups, "freeze-v2");
}

#[test]
fn a_unified_group_is_killed_without_the_kill_file() {
    let Some(cgroups) = v2() else { return };
    let mut group = cgroups.create("old-kernel", &LIMITS).expect("create");
    let mut child = run_in(&group, "sleep 1000 & sleep 1000");
    match &mut group.leaf {
        Leaf::V2(leaf) => leaf.without_kill_file(),
        other => panic!("{other:?}"),
    }
    group.kill_all().expect("kill");
    assert!(!child.wait().expect("wait").success());
    group.remove();
}

#[test]
fn memory_is_limited_and_counted() {
    let Some(cgroups) = cgroups() else { return };
    if cgroups.missing().contains(&"memory") {
        eprintln!("SKIPPED: no memory controller");
        return;
    }
    let group = cgroups.create("memory", &LIMITS).expect("create");
    let hog = run_in(&group, "x=$(head -c 200000000 /dev/zero | tr '\\0' x); exit 0");
    assert!(!hog.wait_with_output().expect("wait").status.success());
    let usage = group.usage();
    assert!(usage.oom_kills >= 1, "{usage:?}");
    assert!(usage.memory_peak_bytes <= LIMITS.memory_bytes && usage.memory_peak_bytes > 48 * MIB, "{usage:?}");
    assert!(usage.cpu > Duration::ZERO, "{usage:?}");

    group.reset_peak();
    if cgroups.version() == Version::V1 {
        assert!(group.usage().memory_peak_bytes < 16 * MIB, "{:?}", group.usage());
    }
    group.remove();
}

#[test]
fn what_sockets_hold_is_limited_where_it_is_counted_apart() {
    let Some(cgroups) = cgroups() else { return };
    let group = cgroups.create("sockets", &LIMITS).expect("create");
    let limit = |group: &Group| {
        let files = paths(group).into_iter().map(|path| path.join("memory.kmem.tcp.limit_in_bytes"));
        files.filter_map(|path| std::fs::read_to_string(path).ok()).find_map(|text| text.trim().parse::<u64>().ok())
    };
    let Some(bytes) = limit(&group) else {
        eprintln!("SKIPPED: this kernel does not count sockets apart");
        return group.remove();
    };
    assert_eq!(bytes, LIMITS.memory_bytes / 4);
    // Half-made sandboxes get their limits later.
    group.set_limits(&Limits { memory_bytes: 2 * LIMITS.memory_bytes, ..LIMITS }).expect("limits");
    assert_eq!(limit(&group), Some(LIMITS.memory_bytes / 2));
    group.remove();
}

#[test]
fn tasks_are_limited() {
    let Some(cgroups) = cgroups() else { return };
    if cgroups.missing().contains(&"pids") {
        eprintln!("SKIPPED: no pids controller");
        return;
    }
    let group = cgroups.create("tasks", &LIMITS).expect("create");
    let bomb = run_in(
        &group,
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 1000 & done; sleep 1000",
    );
    // The shell gives up at the first fork that is refused, well before the 25th.
    wait_until("a fork to be refused", || {
        paths(&group).iter().any(|path| {
            let events = std::fs::read_to_string(path.join("pids.events")).unwrap_or_default();
            parse::flat_key(&events, "max").unwrap_or(0) > 0
        })
    });
    group.kill_all().expect("kill");
    drop(bomb.wait_with_output());
    group.remove();
}

#[test]
fn a_cpu_share_is_enforced_and_can_be_changed() {
    let Some(cgroups) = cgroups() else { return };
    if cgroups.missing().contains(&"cpu") {
        eprintln!("SKIPPED: no cpu controller");
        return;
    }
    let group = cgroups.create("cpu", &Limits { cpu_millis: 100, ..LIMITS }).expect("create");
    group.set_cpu(50).expect("less");
    let path = paths(&group).into_iter().find(|path| path.join("cpu.stat").exists()).expect("cpu group");
    let throttled = || {
        let text = std::fs::read_to_string(path.join("cpu.stat")).unwrap_or_default();
        parse::flat_key(&text, "nr_throttled").unwrap_or(0)
    };
    let mut child = run_in(&group, "while :; do :; done");
    wait_until("the loop to be throttled", || throttled() > 1);
    group.set_cpu(2000).expect("more");
    group.kill_all().expect("kill");
    child.wait().expect("wait");
    group.remove();
}

#[test]
fn a_living_server_keeps_its_groups_and_a_dead_one_does_not() {
    let Some(alive) = cgroups() else { return };
    let Some(dead) = cgroups() else { return };
    let kept = alive.create("kept", &LIMITS).expect("create");
    let group = dead.create("left", &LIMITS).expect("create");
    let mut child = run_in(&group, "sleep 1000");
    let left = paths(&group);
    group.freeze().expect("freeze");
    wait_until("the group to freeze", || is_frozen(&group));
    // As if it had been killed: the descriptors go, the directories stay.
    match dead.tree {
        Tree::V1(ref tree) => tree.hierarchies.iter().for_each(|(claim, _)| claim.unlock()),
        Tree::V2(ref tree) => tree.claim.unlock(),
        Tree::None => {}
    }
    alive.remove_stale();
    assert!(!child.wait().expect("wait").success());
    assert!(left.iter().all(|path| !path.exists()));
    assert!(paths(&kept).iter().all(|path| path.exists()));
    let places: Vec<PathBuf> = alive.claims().into_iter().map(Path::to_owned).collect();
    std::mem::forget(group);
    std::mem::forget(dead);
    kept.remove();
    drop(alive);
    assert!(places.iter().all(|path| !path.exists()));
}

#[test]
fn the_first_versions_slow_paths_are_avoided() {
    let Some(cgroups) = cgroups() else { return };
    let Tree::V1(tree) = &cgroups.tree else {
        eprintln!("SKIPPED: only version 1 needs that");
        return;
    };
    let state = |path: &Path| std::fs::read_to_string(path.join(v1::ANCHOR).join("freezer.state")).ok();
    let states: Vec<String> = tree.hierarchies.iter().filter_map(|(claim, _)| state(&claim.path)).collect();
    assert_eq!(states, ["FROZEN\n"]);
    assert!(tree.joins.is_some() || HostFacts::probe(Path::new("/")).kernel_version < (6, 0));
}

#[test]
fn what_is_dropped_is_gone() {
    let Some(cgroups) = cgroups() else { return };
    let group = cgroups.create("tasks", &LIMITS).expect("create");
    assert!(matches!(cgroups.create("tasks", &LIMITS), Err(CgroupError::File { .. })));
    let mut child = run_in(&group, "sleep 1000");
    let paths = paths(&group);
    drop(group);
    assert!(!child.wait().expect("wait").success());
    drop(cgroups);
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn names_are_checked() {
    assert!(matches!(Cgroups::detect("a/../b"), Err(CgroupError::Name(_))));
    assert!(matches!(Cgroups::detect(".."), Err(CgroupError::Name(_))));
    let none = Cgroups { tree: Tree::None };
    assert!(matches!(none.create("a/b", &LIMITS), Err(CgroupError::Name(_))));
}

#[test]
fn without_groups_the_limits_of_memory_and_processor_are_lost() {
    let losses = Cgroups { tree: Tree::None }.losses();
    let what: Vec<&str> = losses.iter().filter_map(|loss| loss.what.split(':').next()).collect();
    assert_eq!(what, ["memory limits", "CPU shares"]);
}

#[test]
fn own_group_below_a_mount() {
    assert_eq!(below("/", "/a/b"), PathBuf::from("a/b"));
    assert_eq!(below("/docker/1", "/docker/1/x"), PathBuf::from("x"));
    assert_eq!(below("/docker/1", "/other"), PathBuf::new());
    assert_eq!(below("/", "/../.."), PathBuf::new());
}

/// A directory that looks like a group of the unified hierarchy on a recent kernel.
fn imitation() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temp dir");
    for (name, text) in [
        ("cgroup.freeze", "0"),
        ("cgroup.kill", ""),
        ("cgroup.procs", ""),
        ("cpu.max", "max 100000"),
        ("cpu.max.burst", "0"),
        ("cpu.weight", "100"),
        ("cpu.stat", "usage_usec 2500\nuser_usec 2000\n"),
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("memory.oom.group", "0"),
        ("memory.current", "4096\n"),
        ("memory.peak", "8192\n"),
        ("memory.events", "low 0\noom 1\noom_kill 3\noom_group_kill 1\n"),
        ("pids.max", "max"),
    ] {
        std::fs::write(dir.path().join(name), text).expect("write");
    }
    dir
}

#[test]
fn unified_files_are_written_and_read() {
    let dir = imitation();
    let leaf =
        v2::Leaf::set_up(dir.path(), &Limits { cpu_millis: 1769, cpu_share: 1769, ..LIMITS }, &[]).expect("set up");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("read");
    assert_eq!(read("memory.max"), "67108864");
    assert!(read("memory.swap.max").starts_with('0'));
    assert_eq!(read("memory.oom.group"), "1");
    assert!(read("pids.max").starts_with("20"));
    assert_eq!(read("cpu.max"), "176900 100000");
    assert_eq!(read("cpu.max.burst"), "176900");
    assert_eq!(read("cpu.weight"), "176");
    let expected =
        Usage { memory_peak_bytes: 8192, memory_bytes: 4096, cpu: Duration::from_micros(2500), oom_kills: 3 };
    assert_eq!(leaf.usage(), expected);
    leaf.freeze().expect("freeze");
    assert_eq!(read("cgroup.freeze"), "1");
    leaf.kill_all().expect("kill");
    assert_eq!(read("cgroup.kill"), "1");
    assert_eq!(read("cgroup.freeze"), "0");
    leaf.reset_peak();
    assert!(read("memory.peak").starts_with("reset"));
}

#[test]
fn unified_files_of_missing_controllers_are_not_needed() {
    let dir = imitation();
    for name in ["cpu.max", "cpu.weight", "memory.max", "memory.current", "memory.peak", "memory.events", "pids.max"] {
        std::fs::remove_file(dir.path().join(name)).expect("remove");
    }
    assert!(v2::Leaf::set_up(dir.path(), &LIMITS, &[]).is_err());
    let leaf = v2::Leaf::set_up(dir.path(), &LIMITS, &["cpu", "memory", "pids"]).expect("set up");
    assert_eq!(leaf.usage(), Usage { cpu: Duration::from_micros(2500), ..Usage::default() });
    leaf.set_cpu(100).expect("nothing to set");
}

#[test]
fn controllers_that_are_there_are_handed_down() {
    let dir = imitation();
    std::fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu memory\n").expect("write");
    std::fs::write(dir.path().join("cgroup.subtree_control"), "cpu     ").expect("write");
    assert_eq!(v2::enable(dir.path(), None), ["pids"]);
    let control = std::fs::read_to_string(dir.path().join("cgroup.subtree_control")).expect("read");
    assert!(control.starts_with("+memory"), "{control}");
    std::fs::remove_file(dir.path().join("cgroup.subtree_control")).expect("remove");
    assert_eq!(v2::enable(dir.path(), None), ["cpu", "memory", "pids"]);
}

#[test]
fn an_inner_group_is_emptied_into_a_leaf() {
    let Some(cgroups) = v2() else { return };
    let group = cgroups.create("inner", &LIMITS).expect("create");
    let mut child = run_in(&group, "sleep 1000");
    let path = paths(&group).remove(0);
    v2::evacuate(&path).expect("evacuate");
    let procs = |path: &Path| std::fs::read_to_string(path.join("cgroup.procs")).expect("read");
    assert_eq!(procs(&path), "");
    assert!(procs(&path.join(v2::SERVER_LEAF)).lines().any(|pid| pid == child.id().to_string()));
    // With the whole tree, what is in the leaf goes too.
    drop(cgroups);
    assert!(!child.wait().expect("wait").success());
    assert!(!path.exists());
}

#[test]
fn the_group_that_systemd_handed_over_may_be_above_ours() {
    let dir = tempfile::tempdir().expect("a directory");
    let unit = dir.path().join("system.slice/firelet.service");
    let own = unit.join("main");
    std::fs::create_dir_all(&own).expect("directories");
    assert_eq!(delegated(&own, dir.path()), None);
    let mark = rustix::fs::setxattr(&unit, "user.delegate", b"1", rustix::fs::XattrFlags::empty());
    if let Err(error) = mark {
        eprintln!("SKIPPED: no extended attributes here: {error}");
        return;
    }
    assert_eq!(delegated(&own, dir.path()), Some(unit.as_path()));
    assert_eq!(delegated(&unit, dir.path()), Some(unit.as_path()));
    assert_eq!(delegated(&own, &own), None);
}
