//! The store of snapshots: names, keys, sharing, and what crashes and full disks leave.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;
use vmm::snapshot::{LoadFailure, SaveFailure, SnapshotStore, StoreError, Stored, Template};

use crate::support::{all, chain, host, template};

fn open(directory: &TempDir) -> SnapshotStore {
    SnapshotStore::open(directory.path(), host()).unwrap()
}

fn small(seed: u8) -> Arc<Template> {
    Arc::new(template(64, 0..20, seed, b"state"))
}

/// All files below a directory, by their paths in it.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for part in ["snapshots", "keys"] {
        for entry in fs::read_dir(directory.join(part)).unwrap() {
            found.push(format!("{part}/{}", entry.unwrap().file_name().into_string().unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_kept_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let original = small(1);
    let bytes = store.save("hello_1", &original).unwrap();
    store.save("python3-12", &small(2)).unwrap();
    assert_eq!(
        files(directory.path()),
        [
            "keys/hello_1.1.key",
            "keys/python3-12.1.key",
            "snapshots/hello_1.1.snapshot",
            "snapshots/python3-12.1.snapshot"
        ]
    );
    let key = fs::metadata(directory.path().join("keys/hello_1.1.key")).unwrap();
    assert_eq!((key.permissions().mode() & 0o777, key.len()), (0o600, 32));
    drop(store);

    let store = open(&directory);
    let names: Vec<_> = store.list().unwrap();
    assert_eq!(names[0], Stored { name: "hello_1".into(), bytes });
    assert_eq!(names[1].name, "python3-12");
    let loaded = store.load("hello_1").unwrap();
    assert!(all(&loaded) == all(&original));
    assert!(matches!(store.load("unknown"), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_template_is_shared_as_long_as_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let saved = small(1);
    store.save("one", &saved).unwrap();
    assert!(Arc::ptr_eq(&store.load("one").unwrap(), &saved));
    drop(saved);
    let barrier = Barrier::new(8);
    let loaded: Vec<_> = thread::scope(|scope| {
        let load = || {
            barrier.wait();
            store.load("one").unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(loaded.iter().all(|template| Arc::ptr_eq(template, &loaded[0])));
    let weak = Arc::downgrade(&loaded[0]);
    drop(loaded);
    assert!(weak.upgrade().is_none(), "the store itself keeps no memory");
}

#[test]
fn a_replaced_snapshot_has_a_new_key_and_the_old_pair_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.save("one", &small(1)).unwrap();
    let old = fs::read(directory.path().join("keys/one.1.key")).unwrap();
    let new = small(2);
    store.save("one", &new).unwrap();
    assert_eq!(files(directory.path()), ["keys/one.2.key", "snapshots/one.2.snapshot"]);
    assert_ne!(fs::read(directory.path().join("keys/one.2.key")).unwrap(), old);
    assert!(Arc::ptr_eq(&store.load("one").unwrap(), &new));
}

#[test]
fn deleting_takes_key_and_file_and_leaves_users_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let used = small(1);
    store.save("one", &used).unwrap();
    // A second name of the key's file shows that its content was overwritten.
    let spy = directory.path().join("spy");
    fs::hard_link(directory.path().join("keys/one.1.key"), &spy).unwrap();
    assert!(store.delete("one").unwrap());
    assert!(!store.delete("one").unwrap());
    assert_eq!(fs::read(spy).unwrap(), [0; 32]);
    assert_eq!(files(directory.path()), [""; 0]);
    assert!(matches!(store.load("one"), Err(StoreError::NotFound { .. })));
    assert_eq!(all(&used).len(), 64 * 4096);
    store.save("one", &used).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn names_cannot_leave_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    for name in ["", ".", "..", "../x", "a/b", "a.b", "a b", "ä", &"n".repeat(129)] {
        assert!(matches!(store.save(name, &small(1)), Err(StoreError::Name { .. })), "{name:?}");
        assert!(matches!(store.load(name), Err(StoreError::NotFound { .. })), "{name:?}");
        assert!(!store.delete(name).unwrap(), "{name:?}");
    }
    assert_eq!(files(directory.path()), [""; 0]);
    store.save(&"n".repeat(128), &small(1)).unwrap();
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let second = SnapshotStore::open(directory.path(), host()).unwrap_err();
    assert_eq!(
        second.to_string(),
        format!(
            "the snapshots in {} are in use by another process; stop it or use another directory",
            directory.path().display()
        )
    );
    drop(store);
    open(&directory);
}

#[test]
fn what_a_crash_left_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.save("whole", &small(1)).unwrap();
    store.save("half", &small(1)).unwrap();
    drop(store);
    let path = |name: &str| directory.path().join(name);
    let copy = |from: &str, to: &str| fs::copy(path(from), path(to)).unwrap();
    // A key without its snapshot, a snapshot without its key, a write that was not finished, an old and an unfinished
    // generation, a half-written key, and a file that is not ours.
    copy("keys/half.1.key", "keys/lonely.1.key");
    fs::remove_file(path("keys/half.1.key")).unwrap();
    fs::write(path("snapshots/.whole.2.snapshot.0123456789abcdef.tmp"), "half").unwrap();
    copy("keys/whole.1.key", "keys/whole.0.key");
    copy("snapshots/whole.1.snapshot", "snapshots/whole.0.snapshot");
    fs::write(path("keys/whole.2.key"), [1; 5]).unwrap();
    fs::write(path("snapshots/README"), "mine").unwrap();

    let store = open(&directory);
    assert_eq!(files(directory.path()), ["keys/whole.1.key", "snapshots/README", "snapshots/whole.1.snapshot"]);
    assert_eq!(store.list().unwrap().len(), 1);
    store.load("whole").unwrap();
}

#[test]
fn damage_is_told_and_the_name_can_be_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.save("one", &small(1)).unwrap();
    let path = directory.path().join("snapshots/one.1.snapshot");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    fs::write(&path, bytes).unwrap();
    match store.load("one") {
        Err(StoreError::Load(error)) => assert!(matches!(error.failure, LoadFailure::Damaged { .. }), "{error:?}"),
        other => panic!("{other:?}"),
    }
    fs::write(directory.path().join("keys/one.1.key"), [0; 31]).unwrap();
    let error = store.load("one").unwrap_err();
    assert!(chain(&error).ends_with("does not have 32 bytes; delete it with its snapshot"), "{}", chain(&error));
    assert!(store.delete("one").unwrap());
    store.save("one", &small(2)).unwrap();
    store.load("one").unwrap();
}

/// Runs the test on a file system of that size, which only its thread sees. False when that is not allowed.
fn on_a_small_disk(kib: u32, test: impl FnOnce(PathBuf) + Send) -> bool {
    let directory = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the thread's own view of mounts; nothing else is unshared.
            if unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.is_err() {
                return false;
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let size = std::ffi::CString::new(format!("size={kib}k")).unwrap();
            mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(size.as_c_str())).unwrap();
            test(directory.path().to_owned());
            true
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    let ran = on_a_small_disk(512, |path| {
        let store = SnapshotStore::open(&path, host()).unwrap();
        store.save("one", &small(1)).unwrap();
        let before = files(&path);
        let large = Arc::new(template(256, 0..256, 1, b""));
        for name in ["one", "two"] {
            match store.save(name, &large) {
                Err(StoreError::Save(error)) => {
                    assert!(matches!(error.failure, SaveFailure::Write(_)), "{error:?}");
                    assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(files(&path), before);
        }
        assert!(matches!(store.load("two"), Err(StoreError::NotFound { .. })));
        assert!(all(&store.load("one").unwrap()) == all(&small(1)));
        store.save("two", &small(2)).unwrap();
    });
    if !ran {
        eprintln!("SKIPPED: mounting a small file system needs root");
    }
}
