//! The budget, the leases, and what a restart finds.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::deflated_zip;

struct Zip {
    digest: Digest,
    path: PathBuf,
}

fn zip(dir: &Path, name: &str, bytes: usize) -> Zip {
    let content = deflated_zip([(name, &vec![b'x'; bytes][..], 0o644)]);
    let digest = Digest::of(&content);
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    Zip { digest, path }
}

#[test]
fn what_is_in_use_stays_and_the_longest_unused_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path().join("cache"), 250_000).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| zip(dir.path(), name, 100_000));
    let lease_a = cache.unpacked(&a.digest, &a.path).unwrap();
    let path_b = cache.unpacked(&b.digest, &b.path).unwrap().path().to_owned();
    assert!(path_b.is_dir());
    let copy_of_a = lease_a.clone();
    drop(lease_a);
    let lease_c = cache.unpacked(&c.digest, &c.path).unwrap();
    assert!(!path_b.exists(), "b is unused");
    assert!(copy_of_a.path().is_dir() && lease_c.path().is_dir());
    assert!(cache.bytes() >= 200_000 && cache.bytes() <= 250_000, "{}", cache.bytes());
    // Over budget with everything in use: nothing can go.
    let lease_b = cache.unpacked(&b.digest, &b.path).unwrap();
    assert!(cache.bytes() > 250_000);
    for lease in [&copy_of_a, &lease_b, &lease_c] {
        assert!(lease.path().is_dir());
    }
    let names = fs::read_dir(dir.path().join("cache")).unwrap().count();
    assert_eq!(names, 4, "three trees and the boot id");
}

#[test]
fn concurrent_calls_unpack_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path().join("cache"), 1_000_000).unwrap();
    let made = AtomicUsize::new(0);
    let barrier = Barrier::new(8);
    let name = Digest::of(b"tree").to_string();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                let make = |dir: &Path| {
                    made.fetch_add(1, Ordering::SeqCst);
                    let path = dir.join(&name);
                    fs::create_dir(&path).map(|()| path)
                };
                let lease = cache.lease(name.clone(), make, io::Error::other).unwrap();
                assert!(lease.path().is_dir());
            });
        }
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failure_does_not_block_the_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path().join("cache"), 1_000_000).unwrap();
    let a = zip(dir.path(), "a", 10);
    let absent = dir.path().join("absent");
    cache.unpacked(&a.digest, &absent).unwrap_err();
    cache.unpacked(&a.digest, &a.path).unwrap();
}

#[test]
fn a_restart_keeps_trees_and_removes_rubbish() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    let a = zip(dir.path(), "a", 100_000);
    let cache = CodeCache::open(&root, 1_000_000).unwrap();
    let path = cache.unpacked(&a.digest, &a.path).unwrap().path().to_owned();
    let bytes = cache.bytes();
    drop(cache);
    fs::create_dir(root.join(".staging-x")).unwrap();
    fs::create_dir(root.join(".evicted-1")).unwrap();
    let cache = CodeCache::open(&root, 1_000_000).unwrap();
    assert_eq!(cache.bytes(), bytes);
    assert!(path.is_dir() && !root.join(".staging-x").exists() && !root.join(".evicted-1").exists());
    drop(cache);
    // As if the machine had been started anew since.
    fs::write(root.join(BOOT_FILE), "another boot").unwrap();
    let cache = CodeCache::open(&root, 1_000_000).unwrap();
    assert_eq!(cache.bytes(), 0);
    assert!(!path.exists());
}

#[test]
fn layers_merge_through_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path().join("cache"), 1_000_000).unwrap();
    let leases = ["a", "b"].map(|name| {
        let zip = zip(dir.path(), name, 10);
        cache.unpacked(&zip.digest, &zip.path).unwrap()
    });
    let merged = cache.merged(&leases).unwrap();
    assert!(merged.path().join("a").is_file() && merged.path().join("b").is_file());
    let single = cache.merged(&leases[..1]).unwrap();
    assert_eq!(single.path(), leases[0].path());
    assert!(matches!(cache.merged(&[]), Err(MergeError::NoLayers)));
}

#[test]
fn an_image_is_made_once_and_goes_as_trees_go() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    let cache = CodeCache::open(&root, 150_000).unwrap();
    let [a, b] = ["a", "b"].map(|name| zip(dir.path(), name, 100_000));
    let tree = cache.unpacked(&a.digest, &a.path).unwrap();
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let image = cache.image(&tree).unwrap();
                assert_eq!(image.path(), root.join(format!("{}.erofs", a.digest)));
            });
        }
    });
    let image = cache.image(&tree).unwrap();
    let written = fs::metadata(image.path()).unwrap();
    assert_eq!(written.len(), 4096 + 102_400, "metadata, and the file in whole blocks");
    assert_eq!(cache.bytes(), disk_bytes(tree.path()).unwrap() + written.blocks() * 512);
    // Of the two the image is in use.
    drop(tree);
    let other = cache.unpacked(&b.digest, &b.path).unwrap();
    assert!(!root.join(a.digest.to_string()).exists() && image.path().exists());
    drop((image, other));
    drop(cache);
    fs::write(root.join(".staging-file"), "half an image").unwrap();
    let cache = CodeCache::open(&root, 1).unwrap();
    assert_eq!(cache.bytes(), 0);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "only the boot id");
    let nothing = cache.empty_image().unwrap();
    assert_eq!(fs::metadata(nothing.path()).unwrap().len(), 4096);
}
