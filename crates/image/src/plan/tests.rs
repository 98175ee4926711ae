//! Names, types, permissions and dates, as the plan sees them.

use std::io::Cursor;

use super::*;
use crate::testing::{Raw, raw_zip};

fn plan(entries: &[Raw]) -> Result<Plan, ZipError> {
    Plan::read(&mut Archive::open(Cursor::new(raw_zip(entries)))?, ZipLimits { unzipped_bytes: 1_000, entries: 20 })
}

fn problem(name: &[u8]) -> NameProblem {
    match plan(&[Raw { name: name.to_vec(), ..Raw::file("x", b"1") }]) {
        Err(ZipError::Name { problem, .. }) => problem,
        other => panic!("{name:?} gave {other:?}"),
    }
}

#[test]
fn names_that_are_no_place_below_the_root_are_refused() {
    assert_eq!(problem(b"../x"), NameProblem::Climbs);
    assert_eq!(problem(b"a/../b"), NameProblem::Climbs);
    assert_eq!(problem(b"a/.."), NameProblem::Climbs);
    assert_eq!(problem(b"/etc/passwd"), NameProblem::Absolute);
    assert_eq!(problem(b"a\\b"), NameProblem::Backslash);
    assert_eq!(problem(b"a\0b"), NameProblem::Nul);
    assert_eq!(problem(b"caf\xe9"), NameProblem::NotUtf8);
    assert_eq!(problem(b""), NameProblem::Empty);
    assert_eq!(problem(&[b'a'; 256]), NameProblem::TooLong);
    assert_eq!(problem("a/".repeat(513).as_bytes()), NameProblem::TooLong);
}

#[test]
fn spellings_of_one_path_are_one_path() {
    let plan = plan(&[Raw::dir("./"), Raw::file("./a//b", b"1"), Raw::dir("a/./"), Raw::file("é", b"2")]).unwrap();
    assert_eq!(plan.nodes.keys().collect::<Vec<_>>(), ["a", "a/b", "é"]);
    assert_eq!(plan.nodes["a"].kind, Kind::Dir { implied: false });
}

#[test]
fn one_path_has_one_entry() {
    let twice = plan(&[Raw::file("a", b"1"), Raw::file("a", b"2")]);
    assert!(matches!(twice, Err(ZipError::DuplicateNames)), "{twice:?}");
    for entries in [
        [Raw::file("a", b"1"), Raw::file("./a", b"2")],
        [Raw::file("a", b"1"), Raw::file("a/b", b"2")],
        [Raw::file("a/b", b"1"), Raw::file("a", b"2")],
        [Raw::link("a", "."), Raw::file("a/b", b"2")],
        [Raw::dir("a/"), Raw::link("a", "b")],
    ] {
        let result = plan(&entries);
        assert!(matches!(&result, Err(ZipError::Duplicate { name }) if name == "a"), "{result:?}");
    }
}

#[test]
fn types_and_permissions_are_those_of_unix_archives() {
    let plan = plan(&[
        Raw::file("run", b"1").mode(0o104_755),
        Raw::file("none", b"1").mode(0),
        Raw { system: 0, ..Raw::file("dos", b"1").mode(0o100_777) },
        Raw::dir("private/").mode(0o040_700),
        Raw::dir("bare/").mode(0),
        Raw::link("link", "run"),
    ])
    .unwrap();
    let mode = |path: &str| plan.nodes[path].mode;
    assert_eq!(
        [mode("run"), mode("none"), mode("dos"), mode("private"), mode("bare")],
        [0o755, 0o644, 0o644, 0o700, 0o755]
    );
    assert_eq!(plan.nodes["link"].kind, Kind::Link { target: "run".to_owned() });
    // date -u -d '2024-02-29 12:34:56' +%s
    assert_eq!(plan.nodes["run"].mtime, 1_709_210_096);
}

#[test]
fn what_is_no_file_directory_or_link_is_refused() {
    for mode in [0o020_666, 0o060_666, 0o010_666, 0o140_666] {
        let result = plan(&[Raw::file("device", b"").mode(mode)]);
        assert!(matches!(result, Err(ZipError::Special { .. })), "{result:?}");
    }
    let result = plan(&[Raw::link("link/", "x")]);
    assert!(matches!(result, Err(ZipError::Special { .. })), "{result:?}");
}

#[test]
fn encrypted_and_foreign_methods_are_named() {
    let result = plan(&[Raw { flags: 1, ..Raw::file("secret", b"x") }]);
    assert!(matches!(result, Err(ZipError::Encrypted { .. })), "{result:?}");
    let error = plan(&[Raw { method: 93, ..Raw::file("z", b"x") }]).unwrap_err();
    assert!(matches!(&error, ZipError::Method { name, .. } if name == "z"), "{error:?}");
}

#[test]
fn links_stay_inside() {
    for target in ["../x", "/etc/passwd", "a/../../x", "", "a\0b"] {
        let result = plan(&[Raw::link("link", target), Raw::file("a/b", b"1")]);
        assert!(matches!(&result, Err(ZipError::LinkOutside { .. })), "{target:?}: {result:?}");
    }
    let chained = plan(&[Raw::link("p/q/up", "../.."), Raw::link("l", "p/q/up/..")]);
    assert!(matches!(&chained, Err(ZipError::LinkOutside { name, .. }) if name == "l"), "{chained:?}");
    let long = plan(&[Raw::link("link", &"x/".repeat(400)), Raw::link("long", &"x".repeat(1_025))]);
    assert!(matches!(&long, Err(ZipError::TooLarge { .. })), "{long:?}");
    plan(&[Raw::link("lib/a", "../b"), Raw::link("nowhere", "absent"), Raw::file("b", b"1")]).unwrap();
}

#[test]
fn limits_count_what_is_implied() {
    let result = plan(&[Raw::file(&"d/".repeat(20), b"").mode(0o040_755), Raw::file("a", b"1")]);
    assert!(matches!(result, Err(ZipError::TooManyEntries { limit: 20 })), "{result:?}");
    let result = plan(&[Raw { claimed: Some(u32::MAX - 1), ..Raw::file("a", b"1") }]);
    assert!(matches!(result, Err(ZipError::TooLarge { limit: 1_000 })), "{result:?}");
    plan(&[Raw::file("a", &[0; 999])]).unwrap();
    let result = plan(&[Raw::file("a", &[0; 500]), Raw::file("b", &[0; 500])]);
    assert!(matches!(result, Err(ZipError::TooLarge { .. })), "{result:?}");
}

#[test]
fn an_archive_without_files_is_empty() {
    for entries in [&[][..], &[Raw::dir("a/")][..]] {
        let result = plan(entries);
        assert!(matches!(result, Err(ZipError::Empty)), "{result:?}");
    }
}
