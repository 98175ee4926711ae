//! Images are read back by a small reader of our own, by the kernel and by erofs-utils, and compared with the tree.

mod oracle;
mod reader;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::plan::EPOCH;

/// What is at a path of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    what: What,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum What {
    Dir,
    File(Vec<u8>),
    Link(Vec<u8>),
}

impl std::fmt::Debug for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir => write!(f, "Dir"),
            Self::File(content) => write!(f, "File of {}", content.len()),
            Self::Link(target) => write!(f, "Link to {}", String::from_utf8_lossy(target)),
        }
    }
}

pub(super) type Model = BTreeMap<PathBuf, Seen>;

fn image_of(tree: &Tree) -> (tempfile::NamedTempFile, Summary) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let summary = write(tree, file.as_file()).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), summary.bytes);
    assert_eq!(summary.bytes % 4096, 0);
    (file, summary)
}

/// Compares without printing all content.
fn assert_same(found: &Model, expected: &Model, by: &str) {
    let names = |model: &Model| model.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{by}");
    for (path, seen) in found {
        assert!(*seen == expected[path], "{by}: {} is {seen:?}, not {:?}", path.display(), expected[path]);
    }
}

/// Content that is different everywhere, so that a block in a wrong place is seen.
fn content(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

#[derive(Debug, Clone)]
struct Put {
    path: PathBuf,
    attributes: (u32, u32, u32, u64),
    what: PutWhat,
}

#[derive(Debug, Clone)]
enum PutWhat {
    Dir,
    File { seed: u32, bytes: usize },
    Link(String),
}

fn puts() -> impl Strategy<Value = Vec<Put>> {
    // Names around the dots, of both extremes of length, and few enough to meet.
    let name = prop_oneof![
        4 => "[a-c]{1,2}",
        1 => "[ -.,][a.]{1,3}",
        1 => "[x-z]{250,255}",
        1 => "[\u{e4}\u{20ac}]{1,3}",
    ]
    .prop_filter("dots", |name| name != "." && name != "..");
    let path = proptest::collection::vec(name, 1..4).prop_map(|names| PathBuf::from(format!("/{}", names.join("/"))));
    let bytes = prop_oneof![
        Just(0usize),
        1..200usize,
        2040..2060usize,
        4000..4200usize,
        Just(4096),
        Just(8192),
        10_000..20_000usize
    ];
    let what = prop_oneof![
        2 => Just(PutWhat::Dir),
        5 => (any::<u32>(), bytes).prop_map(|(seed, bytes)| PutWhat::File { seed, bytes }),
        2 => "[a-z/.]{1,100}".prop_map(PutWhat::Link),
        1 => "[a-z/.]{4000,4095}".prop_map(PutWhat::Link),
    ];
    let id = || prop_oneof![Just(0u32), Just(993), Just(65_535), Just(65_536), Just(u32::MAX - 1)];
    let mtime = prop_oneof![Just(EPOCH), Just(0u64), 1_600_000_000..1_800_000_000u64, Just(5_000_000_000)];
    let attributes = (0..0o10000u32, id(), id(), mtime);
    let put = (path, attributes, what).prop_map(|(path, attributes, what)| Put { path, attributes, what });
    proptest::collection::vec(put, 0..60)
}

fn implied_dir() -> Seen {
    Seen { mode: 0o755, uid: 0, gid: 0, mtime: EPOCH, what: What::Dir }
}

/// Makes the tree and what it should be.
fn made(puts: &[Put]) -> (Tree, Model) {
    let mut tree = Tree::new();
    let mut model = Model::from([(PathBuf::from("/"), implied_dir())]);
    for Put { path, attributes: (mode, uid, gid, mtime), what } in puts {
        let attributes = Attributes { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime };
        let (result, what) = match what {
            PutWhat::Dir => (tree.dir(path, attributes), What::Dir),
            PutWhat::File { seed, bytes } => {
                (tree.file(path, content(*seed, *bytes), attributes), What::File(content(*seed, *bytes)))
            }
            PutWhat::Link(target) => (tree.symlink(path, target, attributes), What::Link(target.clone().into_bytes())),
        };
        let mut blocked = false;
        for parent in path.ancestors().skip(1) {
            blocked |= model.get(parent).is_some_and(|seen| seen.what != What::Dir);
        }
        assert_eq!(result.is_err(), blocked, "{}", path.display());
        if blocked {
            continue;
        }
        for parent in path.ancestors().skip(1) {
            model.entry(parent.to_owned()).or_insert_with(implied_dir);
        }
        if what != What::Dir {
            model.retain(|other, _| other == path || !other.starts_with(path));
        }
        model.insert(path.clone(), Seen { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, what });
    }
    (tree, model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_was_put(puts in puts()) {
        let (tree, model) = made(&puts);
        let (file, summary) = image_of(&tree);
        let bytes = fs::read(file.path()).unwrap();
        assert_same(&reader::read(&bytes), &model, "reader");
        prop_assert_eq!(summary.files, model.len() as u64);
        prop_assert_eq!(summary.digest, crate::Digest::of(&bytes));
    }
}

#[test]
fn the_kernel_and_erofs_utils_read_what_was_put() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..6 {
        let (tree, model) = made(&puts().new_tree(&mut runner).unwrap().current());
        let (file, _) = image_of(&tree);
        oracle::compare(file.path(), &model);
    }
}

#[test]
fn an_empty_image_can_be_mounted() {
    let (file, summary) = image_of(&Tree::new());
    assert_eq!((summary.bytes, summary.files), (4096, 1));
    oracle::compare(file.path(), &Model::from([(PathBuf::from("/"), implied_dir())]));
}

#[test]
fn large_directories_are_searched_by_name() {
    let mut tree = Tree::new();
    let mut model = Model::from([(PathBuf::from("/"), implied_dir()), (PathBuf::from("/many"), implied_dir())]);
    for number in 0..5_000 {
        let path = PathBuf::from(format!("/many/{}{number}", "n".repeat(number % 90)));
        let text = number.to_string().into_bytes();
        tree.file(&path, text.clone(), 0o644).unwrap();
        model.insert(path, Seen { mode: 0o644, what: What::File(text), ..implied_dir() });
    }
    let (file, _) = image_of(&tree);
    assert_same(&reader::read(&fs::read(file.path()).unwrap()), &model, "reader");
    oracle::compare(file.path(), &model);
}

#[test]
fn a_file_that_fills_its_directory_block_exactly_is_read() {
    // Two dots take 27 bytes; 16 names of 238 bytes and one of 57 make it 4,096.
    let mut tree = Tree::new();
    for number in 0..16 {
        tree.file(format!("/d/{number:0238}"), "", 0o644).unwrap();
    }
    tree.file(format!("/d/{}", "z".repeat(57)), "z", 0o644).unwrap();
    tree.file("/e/-", "before the dots", 0o644).unwrap();
    let (file, _) = image_of(&tree);
    let found = reader::read(&fs::read(file.path()).unwrap());
    assert_eq!(found.len(), 1 + 1 + 17 + 2);
    oracle::compare(file.path(), &found);
}

#[test]
fn names_of_one_file_share_its_inode() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("one"), content(7, 9_000)).unwrap();
    fs::hard_link(host.path().join("one"), host.path().join("two")).unwrap();
    let mut tree = Tree::new();
    tree.graft(host.path(), Path::new("/a"), |_| true).unwrap();
    tree.hard_link("/a/one", "/b/three").unwrap();
    tree.remove("/a/two");
    let (file, summary) = image_of(&tree);
    assert_eq!((summary.files, summary.bytes), (4, 4 * 4096), "a block of metadata and three of content");
    let bytes = fs::read(file.path()).unwrap();
    let found = reader::read(&bytes);
    assert_eq!(found[Path::new("/a/one")], found[Path::new("/b/three")]);
    assert_eq!(reader::links(&bytes, "/a/one"), 2);
    oracle::compare(file.path(), &found);
    let error = tree.hard_link("/a", "/c").unwrap_err();
    assert_eq!(error.problem, PathProblem::Absent);
}

#[test]
fn a_grafted_directory_is_as_on_the_host_but_for_owner_and_set_id_bits() {
    let host = tempfile::tempdir().unwrap();
    let path = |name: &str| host.path().join(name);
    fs::create_dir_all(path("d/deep")).unwrap();
    fs::create_dir(path("skipped")).unwrap();
    fs::write(path("skipped/x"), "x").unwrap();
    fs::write(path("d/program"), content(3, 5_000)).unwrap();
    fs::set_permissions(path("d/program"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::write(path("d/deep/note"), "note").unwrap();
    std::os::unix::fs::symlink("/etc/shadow", path("link")).unwrap();
    let mut tree = Tree::new();
    tree.file("/there/link/below", "was here before", 0o644).unwrap();
    tree.file("/there/d/other", "stays", 0o600).unwrap();
    tree.graft(host.path(), Path::new("/there"), |found| !found.inside.ends_with("skipped")).unwrap();
    tree.graft(&path("d/deep/note"), Path::new("/single"), |_| true).unwrap();
    let (file, _) = image_of(&tree);
    let found = reader::read(&fs::read(file.path()).unwrap());
    let names: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "/",
            "/single",
            "/there",
            "/there/d",
            "/there/d/deep",
            "/there/d/deep/note",
            "/there/d/other",
            "/there/d/program",
            "/there/link"
        ]
    );
    let program = &found[Path::new("/there/d/program")];
    assert_eq!((program.mode, program.uid, program.gid), (0o750, 0, 0));
    assert_eq!(program.mtime, fs::metadata(path("d/program")).unwrap().mtime() as u64);
    assert_eq!(program.what, What::File(content(3, 5_000)));
    assert_eq!(found[Path::new("/there/link")].what, What::Link(b"/etc/shadow".to_vec()));
    oracle::compare(file.path(), &found);
}

#[test]
fn equal_trees_give_equal_images() {
    let make = |order: [usize; 3]| {
        let mut tree = Tree::new();
        for number in order {
            tree.file(format!("/f{number}"), content(number as u32, 3_000 * number), 0o644).unwrap();
        }
        let (file, summary) = image_of(&tree);
        (fs::read(file.path()).unwrap(), summary.digest)
    };
    assert_eq!(make([0, 1, 2]), make([2, 0, 1]));
}

#[test]
fn the_fingerprint_tells_trees_apart() {
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("f");
    let set = |content: &str, seconds: u64| {
        let mut file = File::create(&path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
    };
    let fingerprint = |change: &dyn Fn(&mut Tree)| {
        let mut tree = Tree::new();
        tree.graft(&path, Path::new("/a"), |_| true).unwrap();
        tree.file("/b", "content", 0o644).unwrap();
        change(&mut tree);
        tree.fingerprint()
    };
    set("one", 1_000);
    let first = fingerprint(&|_| ());
    assert_eq!(fingerprint(&|_| ()), first);
    let mut all = std::collections::BTreeSet::from([first]);
    let changes: [&dyn Fn(&mut Tree); 8] = [
        &|tree| tree.hard_link("/b", "/c").unwrap(),
        &|tree| tree.file("/c", "content", 0o644).unwrap(),
        &|tree| tree.remove("/b"),
        &|tree| tree.file("/b", "contenu", 0o644).unwrap(),
        &|tree| tree.file("/b", "content", 0o600).unwrap(),
        &|tree| tree.symlink("/b", "content", 0o644).unwrap(),
        &|tree| tree.dir("/b", 0o644).unwrap(),
        &|tree| tree.dir("/c", 0o755).unwrap(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(all.insert(fingerprint(change)), "change {index}");
    }
    set("three", 1_000);
    assert!(all.insert(fingerprint(&|_| ())));
    set("one", 1_001);
    assert!(all.insert(fingerprint(&|_| ())));
    set("one", 1_000);
    assert!(!all.insert(fingerprint(&|_| ())));
}

#[test]
fn content_beyond_four_gigabytes_is_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    let mut file = File::create(&large).unwrap();
    let bytes = (4u64 << 30) + 12_345;
    file.seek(SeekFrom::Start(bytes - 5)).unwrap();
    file.write_all(b"the e").unwrap();
    let mut tree = Tree::new();
    tree.graft(&large, Path::new("/large"), |_| true).unwrap();
    tree.file("/large2", content(9, 5_000), 0o644).unwrap();
    let image = File::create(dir.path().join("image")).unwrap();
    let summary = write(&tree, &image).unwrap();
    assert!(summary.bytes > bytes);
    assert!(image.metadata().unwrap().blocks() * 512 < 10 << 20, "zeros take no room");
    let Some(mounted) = oracle::mount(&dir.path().join("image")) else { return };
    let mut file = File::open(mounted.path().join("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), bytes);
    file.seek(SeekFrom::End(-6)).unwrap();
    let mut tail = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut tail).unwrap();
    assert_eq!(tail, b"\0the e");
    assert_eq!(fs::read(mounted.path().join("large2")).unwrap(), content(9, 5_000));
}

#[test]
fn what_cannot_be_in_an_image_is_refused() {
    let mut tree = Tree::new();
    let long = "n".repeat(256);
    for (path, problem) in [
        ("", PathProblem::Empty),
        ("/", PathProblem::Empty),
        ("/a/../b", PathProblem::Dots),
        ("/./a", PathProblem::Dots),
        ("a\0b", PathProblem::Nul),
        (long.as_str(), PathProblem::TooLong),
        (&"d/".repeat(2_100), PathProblem::TooLong),
    ] {
        assert_eq!(tree.file(path, "x", 0o644).unwrap_err().problem, problem, "{path:?}");
    }
    for (target, problem) in
        [("", PathProblem::Empty), ("a\0", PathProblem::Nul), (&"t".repeat(4_096), PathProblem::TooLong)]
    {
        assert_eq!(tree.symlink("/l", target, 0o777).unwrap_err().problem, problem);
    }
    tree.file("/file", "x", 0o644).unwrap();
    let error = tree.file("/file/below", "x", 0o644).unwrap_err();
    assert_eq!(error.to_string(), "/file/below cannot be in an image: a parent of it is no directory");
    assert!(tree.contains("/file") && !tree.contains("/l"));

    let host = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(host.path().join("socket")).unwrap();
    let error = tree.graft(host.path(), Path::new("/s"), |_| true).unwrap_err();
    assert!(matches!(error, GraftError::Special { .. }), "{error}");
    let error = tree.graft(Path::new("/nonexistent/x"), Path::new("/s"), |_| true).unwrap_err();
    assert_eq!(error.to_string(), "could not find /nonexistent/x");
}

#[test]
fn a_file_that_changes_meanwhile_spoils_the_image() {
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("file");
    for (index, after) in [&b"longer"[..], b"x", b""].into_iter().enumerate() {
        fs::write(&path, "four").unwrap();
        let mut tree = Tree::new();
        tree.graft(host.path(), Path::new("/"), |_| true).unwrap();
        fs::write(&path, after).unwrap();
        let error = write(&tree, tempfile::tempfile().as_ref().unwrap()).unwrap_err();
        assert!(matches!(error, WriteError::Changed { .. }), "{index}: {error}");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        let error = write(&tree, tempfile::tempfile().as_ref().unwrap()).unwrap_err();
        assert!(matches!(error, WriteError::Host { .. }), "{index}: {error}");
        fs::remove_file(&path).unwrap();
    }
}

/// What the kernel shows below a directory.
pub(super) fn listed(root: &Path) -> Model {
    let mut model = Model::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let what = if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            What::Dir
        } else if metadata.is_symlink() {
            What::Link(fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else {
            What::File(fs::read(&path).unwrap())
        };
        let seen = Seen {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: metadata.mtime() as u64,
            what,
        };
        model.insert(Path::new("/").join(path.strip_prefix(root).unwrap()), seen);
    }
    model
}
