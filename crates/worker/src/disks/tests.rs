//! Small roots of our own, and the real ones of this machine's runtimes, which are mounted and run.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use runtimes::{Catalog, Language, Resolved};
use sandbox::Bind;

use super::*;

/// A root of a directory `source`, which stands for an interpreter.
fn small_root(source: &Path) -> RootFs {
    RootFs {
        binds: vec![Bind { source: source.to_owned(), target: "/var/lang".into() }],
        symlinks: [("/link".into(), "var/lang".into())].into(),
        files: [("/etc/hosts".into(), b"hosts".to_vec())].into(),
        dirs: vec!["/var/task".into(), "/mine".into()],
        programs: vec![],
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name != ".lock").collect()
}

#[test]
fn an_image_is_made_once_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (source, images) = (dir.path().join("source"), dir.path().join("images"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("program"), "one").unwrap();
    let root = small_root(&source);
    let disks = RootDisks::open(&images).unwrap();
    let first = disks.of(&root).unwrap();
    assert!(Arc::ptr_eq(&first, &disks.of(&root).unwrap()));
    assert_eq!(first.bytes, first.file.metadata().unwrap().len());
    // As another process would find it.
    let again = RootDisks::open(&images).unwrap().of(&root).unwrap();
    assert_eq!((&again.path, again.identity), (&first.path, first.identity));
    assert_eq!(names(&images).len(), 1);

    fs::write(source.join("program"), "another").unwrap();
    assert_eq!(disks.of(&root).unwrap().identity, first.identity, "a process looks once");
    let changed = RootDisks::open(&images).unwrap().of(&root).unwrap();
    assert_ne!(changed.identity, first.identity);
}

#[test]
fn old_images_go_and_stay_readable_for_who_has_them() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (source, images) = (dir.path().join("source"), dir.path().join("images"));
    fs::create_dir(&source).unwrap();
    let disk = |number: usize| {
        fs::write(source.join("program"), "x".repeat(number + 1)).unwrap();
        RootDisks::open(&images).unwrap().of(&small_root(&source)).unwrap()
    };
    fs::create_dir(&images).unwrap();
    fs::write(images.join(".making-something"), "of a process that was killed").unwrap();
    let all: Vec<_> = (0..4).map(disk).collect();
    let expected = [&all[2], &all[3]].map(|disk| disk.path.file_name().unwrap().to_str().unwrap().to_owned());
    assert_eq!(names(&images), expected.into());
    let mut magic = [0; 4];
    all[0].file.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(magic, 0xE0F5_E1E2_u32.to_le_bytes());
}

#[test]
fn several_processes_make_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let (source, images) = (dir.path().join("source"), dir.path().join("images"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("program"), vec![7; 3 << 20]).unwrap();
    let root = small_root(&source);
    let barrier = Barrier::new(4);
    let inodes: BTreeSet<u64> = std::thread::scope(|scope| {
        let make = || {
            let disks = RootDisks::open(&images).unwrap();
            barrier.wait();
            std::os::unix::fs::MetadataExt::ino(&disks.of(&root).unwrap().file.metadata().unwrap())
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(inodes.len(), 1);
    assert_eq!(names(&images).len(), 1);
}

#[test]
fn a_root_that_is_not_there_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let disks = RootDisks::open(dir.path()).unwrap();
    let error = disks.of(&small_root(Path::new("/nonexistent/runtime"))).unwrap_err();
    assert_eq!(crate::host::chain(&error).split(": ").nth(1), Some("could not find /nonexistent/runtime"));
    assert!(names(dir.path()).is_empty());
}

struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-R").arg(self.0.path()).status();
    }
}

/// Mounts an image, or says why that cannot be.
fn mount(image: &Path) -> Option<Mounted> {
    let dir = tempfile::tempdir().unwrap();
    let supported = fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\terofs"));
    if !supported || !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED: mounting erofs takes root, loop devices and a kernel that has it");
        return None;
    }
    let output = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(dir.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
    Some(Mounted(dir))
}

#[test]
fn the_image_shows_what_the_binds_would() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    for path in ["bin", "include", "lib/python3.12/test", "lib/python3.12/__pycache__"] {
        fs::create_dir_all(source.join(path)).unwrap();
    }
    for path in ["bin/program", "lib/python3.12/os.py", "lib/python3.12/__pycache__/os.cpython-312.pyc", "include/x.h"]
    {
        fs::write(source.join(path), path).unwrap();
    }
    let mut root = small_root(&source);
    let over = dir.path().join("over");
    fs::create_dir(&over).unwrap();
    root.binds.push(Bind { source: over, target: "/var/lang/bin".into() });
    let disk = RootDisks::open(dir.path().join("images")).unwrap().of(&root).unwrap();
    let Some(mounted) = mount(&disk.path) else { return };
    let inside = |path: &str| mounted.0.path().join(path);
    assert_eq!(fs::read_dir(inside("var/lang/bin")).unwrap().count(), 0, "the later bind hides the earlier one");
    assert_eq!(fs::read_to_string(inside("link/lib/python3.12/os.py")).unwrap(), "lib/python3.12/os.py");
    assert!(inside("var/lang/lib/python3.12/__pycache__/os.cpython-312.pyc").is_file());
    assert!(!inside("var/lang/include").exists() && !inside("var/lang/lib/python3.12/test").exists());
    assert_eq!(fs::read_to_string(inside("etc/hosts")).unwrap(), "hosts");
    assert!(inside("etc/resolv.conf").is_file());
    for mount_point in ["mine", "var/task", "opt", "proc", "sys", "dev", "run"] {
        assert!(inside(mount_point).is_dir(), "{mount_point}");
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(inside("tmp")).unwrap());
    assert_eq!(mode & 0o7777, 0o1777);
}

/// Makes the image of a runtime's root, prints what it costs, and runs a command in it.
fn run_in_image(resolved: &Resolved, images: &Path, command: &[&str]) {
    let plan = resolved.root.clone();
    let root = RootFs {
        binds: plan.binds.into_iter().map(|(source, target)| Bind { source, target }).collect(),
        symlinks: plan.symlinks,
        files: plan.files,
        dirs: plan.dirs,
        programs: plan.programs,
    };
    let began = Instant::now();
    let disk = RootDisks::open(images).unwrap().of(&root).unwrap();
    let made = began.elapsed();
    let began = Instant::now();
    RootDisks::open(images).unwrap().of(&root).unwrap();
    let found: Duration = began.elapsed();
    eprintln!("{}: {} MiB, made in {made:?}, found in {found:?}", resolved.runtime, disk.bytes >> 20);
    if resolved.runtime == "python3.12" || resolved.language == Language::Provided {
        assert!(disk.bytes < 250 << 20, "{} MiB", disk.bytes >> 20);
    }
    let Some(mounted) = mount(&disk.path) else { return };
    let proc = mounted.0.path().join("proc");
    assert!(Command::new("mount").args(["-t", "proc", "proc"]).arg(proc).status().unwrap().success());
    let output = Command::new("chroot")
        .arg(mounted.0.path())
        .args(command)
        .env_clear()
        .envs(resolved.env.iter().map(|(name, value)| (name, value)))
        // The host's chroot is looked for with it, too.
        .env("PATH", "/var/lang/bin:/usr/bin:/bin:/usr/sbin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{}: {command:?}: {text}", resolved.serves);
}

/// The best interpreter of each series of a language.
fn resolved(language: Language, data: &Path) -> Vec<Resolved> {
    let catalog = Catalog::discover(&runtimes::Options { data_dir: data.to_owned(), ..Default::default() });
    let names: BTreeSet<String> = catalog
        .list()
        .iter()
        .filter(|installed| installed.language == language && installed.unavailable.is_none())
        .map(|installed| installed.serves.clone())
        .collect();
    if names.is_empty() {
        eprintln!("SKIPPED: no {language} on this machine");
    }
    names.iter().map(|name| catalog.resolve(name).unwrap()).collect()
}

#[test]
fn pythons_run_from_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let all = resolved(Language::Python, dir.path());
    let wanted = all.iter().enumerate().filter(|(index, one)| *index == 0 || one.runtime == "python3.12");
    for (_, resolved) in wanted {
        let script = "import bz2, ctypes, decimal, hashlib, lzma, sqlite3, ssl, sys, uuid, zlib, json\n\
                      assert ssl.create_default_context().get_ca_certs()\n\
                      assert json.__cached__ and __import__('os').path.exists(json.__cached__)\n\
                      assert not __import__('os').path.exists('/usr/bin/gcc')\n";
        run_in_image(resolved, dir.path(), &[&resolved.command[0], "-c", script]);
    }
}

#[test]
fn other_interpreters_run_from_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(Language, &[&str]); 3] = [
        (Language::Nodejs, &["-e", "require('https'); require('zlib').gzipSync('x')"]),
        (Language::Ruby, &["-ropenssl", "-rjson", "-e", "OpenSSL::SSL::SSLContext.new.set_params"]),
        (Language::Java, &["-version"]),
    ];
    for (language, arguments) in cases {
        for resolved in resolved(language, dir.path()).iter().take(1) {
            let binary = if language == Language::Ruby { &resolved.command[0] } else { &resolved.command[1] };
            run_in_image(resolved, dir.path(), &[&[binary.as_str()], arguments].concat());
        }
    }
}

#[test]
fn the_base_for_custom_runtimes_has_a_shell_and_its_tools() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::discover(&runtimes::Options { data_dir: dir.path().to_owned(), ..Default::default() });
    let resolved = catalog.resolve("provided.al2023").unwrap();
    let script = "set -e; ls / | grep -q usr; echo 1 | awk '{exit $1-1}'; echo | sed s/x// | gzip | gzip -d; date; \
                  test -e /usr/share/zoneinfo/UTC; test ! -e /usr/share/doc; test ! -e /usr/bin/gcc";
    run_in_image(&resolved, dir.path(), &["/bin/bash", "-c", script]);
}
