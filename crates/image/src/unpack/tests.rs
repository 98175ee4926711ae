//! Trees on a disk: equal to what was packed, and never anywhere else.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;

use super::*;
use crate::inspect_zip;
use crate::testing::{Raw, deflated_zip, raw_zip};

fn write(dir: &Path, bytes: &[u8]) -> (PathBuf, Digest) {
    let digest = Digest::of(bytes);
    let path = dir.join(format!("{digest}.zip"));
    fs::write(&path, bytes).unwrap();
    (path, digest)
}

#[test]
fn contents_permissions_links_and_times_survive() {
    let dir = tempfile::tempdir().unwrap();
    let (zip, digest) = write(
        dir.path(),
        &raw_zip(&[
            Raw::file("bootstrap", b"#!/bin/sh\n").mode(0o104_755),
            Raw::file("lib/private", b"p").mode(0o100_600),
            Raw::dir("closed/").mode(0o040_055),
            Raw::file("closed/inner", b"i"),
            Raw::link("lib/start", "../bootstrap"),
        ]),
    );
    let cache = dir.path().join("cache");
    let tree = unpack_zip(&zip, &cache, &digest).unwrap();
    assert_eq!(tree, cache.join(digest.to_string()));
    let mode = |path: &str| fs::symlink_metadata(tree.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("bootstrap"), 0o755);
    assert_eq!(mode("lib/private"), 0o600);
    assert_eq!(mode("lib"), 0o755);
    assert_eq!(mode("closed"), 0o755, "the owner keeps access");
    assert_eq!(mode(""), 0o755);
    assert_eq!(fs::read_link(tree.join("lib/start")).unwrap(), Path::new("../bootstrap"));
    assert_eq!(fs::read(tree.join("lib/start")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::metadata(tree.join("bootstrap")).unwrap().mtime(), 1_709_210_096);
    assert_eq!(fs::metadata(tree.join("lib")).unwrap().mtime(), 315_532_800);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "nothing but the tree is left");
}

#[test]
fn a_tree_that_is_there_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"x");
    fs::create_dir(dir.path().join(digest.to_string())).unwrap();
    let tree = unpack_zip(Path::new("/nonexistent.zip"), dir.path(), &digest).unwrap();
    assert_eq!(tree, dir.path().join(digest.to_string()));
}

#[test]
fn an_archive_that_breaks_halfway_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = raw_zip(&[Raw::file("good", b"1"), Raw::file("zbad", b"needle")]);
    let at = bytes.windows(6).position(|window| window == b"needle").unwrap();
    bytes[at] = b'N';
    let (zip, digest) = write(dir.path(), &bytes);
    let cache = dir.path().join("cache");
    let error = unpack_zip(&zip, &cache, &digest).unwrap_err();
    assert!(matches!(error, UnpackError::Zip { source: ZipError::Malformed { .. }, .. }), "{error:?}");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

#[test]
fn a_missing_archive_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = unpack_zip(&dir.path().join("absent"), dir.path(), &Digest::of(b"")).unwrap_err();
    assert!(matches!(error, UnpackError::Zip { source: ZipError::Io(_), .. }), "{error:?}");
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("small");
    fs::create_dir(&cache).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&cache)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a tmpfs is not allowed here");
        return;
    }
    let content: Vec<u8> = (0..150_000u32).flat_map(u32::to_le_bytes).collect();
    let (zip, digest) = write(dir.path(), &deflated_zip([("large", &content[..], 0o644)]));
    let result = unpack_zip(&zip, &cache, &digest);
    let left = fs::read_dir(&cache).unwrap().count();
    let unmounted = std::process::Command::new("umount").arg(&cache).status().unwrap();
    assert!(unmounted.success());
    assert!(matches!(result, Err(UnpackError::Staging(StagingError::NoSpace { .. }))), "{result:?}");
    assert_eq!(left, 0);
}

/// Files of a tree by path: content and permissions.
type Files = BTreeMap<String, (Vec<u8>, u32)>;

fn files() -> impl Strategy<Value = Files> {
    let path = proptest::collection::vec("[a-c. é]{1,3}", 1..4).prop_map(|parts| parts.join("/"));
    let file = (proptest::collection::vec(any::<u8>(), 0..200), 0o400..0o777u32);
    proptest::collection::btree_map(path, file, 1..12).prop_map(|files| {
        let valid = |path: &String| path.split('/').all(|part| !matches!(part, "." | ".."));
        let mut kept = Files::new();
        for (path, file) in files.into_iter().filter(|(path, _)| valid(path)) {
            let inside = |outer: &String, inner: &String| inner.starts_with(&format!("{outer}/"));
            if !kept.keys().any(|other| inside(other, &path) || inside(&path, other)) {
                kept.insert(path, file);
            }
        }
        if kept.is_empty() {
            kept.insert("a".to_owned(), (Vec::new(), 0o644));
        }
        kept
    })
}

fn read_back(root: &Path) -> Files {
    let mut files = Files::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, (fs::read(&path).unwrap(), metadata.permissions().mode() & 0o7777));
            }
        }
    }
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn unpacking_gives_back_what_was_packed(files in files()) {
        if files.values().any(|(_, mode)| mode & 0o400 == 0) {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let bytes = deflated_zip(files.iter().map(|(path, (content, mode))| (path.as_str(), &content[..], *mode)));
        let (zip, digest) = write(dir.path(), &bytes);
        let info = inspect_zip(Cursor::new(&bytes)).unwrap();
        prop_assert_eq!(info.files, files.len());
        prop_assert_eq!(info.unzipped_size, files.values().map(|(content, _)| content.len() as u64).sum::<u64>());
        let tree = unpack_zip(&zip, &dir.path().join("cache"), &digest).unwrap();
        prop_assert_eq!(read_back(&tree), files);
    }

    #[test]
    fn mutated_archives_write_nowhere_else(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut bytes = raw_zip(&[
            Raw::file("a/b", b"content"),
            Raw::link("a/l", "b"),
            Raw::link("up", "a/l"),
            Raw::dir("d/"),
            Raw::file("d/x/y", &[9; 300]),
        ]);
        bytes.extend(deflated_zip([("f", &[1; 2_000][..], 0o755)]));
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path().join("outer");
        fs::create_dir(&outer).unwrap();
        let (zip, digest) = write(dir.path(), &bytes);
        let accepted = inspect_zip(Cursor::new(&bytes)).is_ok();
        let unpacked = unpack_zip(&zip, &outer.join("cache"), &digest);
        prop_assert_eq!(accepted, unpacked.is_ok(), "{:?}", unpacked);
        let expected = if accepted { vec![digest.to_string()] } else { Vec::new() };
        let names = |dir: &Path| -> Vec<String> {
            fs::read_dir(dir).map_or_else(|_| Vec::new(), |listing| {
                listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            })
        };
        prop_assert_eq!(names(&outer.join("cache")), expected);
        prop_assert!(names(&outer).iter().all(|name| name == "cache"));
        prop_assert_eq!(names(dir.path()).len(), 2);
    }
}
