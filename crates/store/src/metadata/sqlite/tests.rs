//! The SQLite file: the contract, and what only a file can get wrong - other owners, other versions, crashes, full disks.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::{env, fs};

use super::*;
use crate::contract::metadata::{agrees_with_a_map, suite};
use crate::contract::run;
use crate::{Expect, Write};

/// The file that a re-executed test binary is to work on.
const CHILD: &str = "STORE_TEST_CHILD";

#[test]
fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    run(suite(Arc::new(SqliteMetadata::open(dir.path().join("new/meta.db")).unwrap())));
}

#[test]
fn sqlite_agrees_with_a_map() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = || SqliteMetadata::open(tempfile::tempdir_in(dir.path()).unwrap().keep().join("meta.db")).unwrap();
    agrees_with_a_map(24, fresh, |store| {
        let path = store.path.clone();
        drop(store);
        SqliteMetadata::open(path).unwrap()
    });
}

#[test]
fn a_second_server_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let mut child = spawn_writer(&path);
    let mut acknowledged = BufReader::new(child.stdout.take().unwrap()).lines();
    await_commit(&mut acknowledged);
    let error = SqliteMetadata::open(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is in use by another server: stop that one, or choose another data directory", path.display())
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let first = SqliteMetadata::open(&path).unwrap();
    assert!(matches!(SqliteMetadata::open(&path), Err(OpenError::InUse { .. })), "the same process is no exception");
    drop(first);
    SqliteMetadata::open(&path).unwrap();
}

#[test]
fn newer_and_foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    drop(SqliteMetadata::open(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    let error = SqliteMetadata::open(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{} has schema version 2, this build knows up to 1: use a newer build", path.display()));

    let other = dir.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "not a database, but long enough to be looked at as one".repeat(40)).unwrap();
    for foreign in [other, text] {
        let before = fs::read(&foreign).unwrap();
        let error = SqliteMetadata::open(&foreign).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
        assert_eq!(fs::read(&foreign).unwrap(), before);
    }
}

#[test]
fn kill_9_loses_no_acknowledged_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let mut known = BTreeSet::new();
    for round in 1..=4u64 {
        let mut child = spawn_writer(&path);
        let mut acknowledged = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..round * 20 {
            known.insert(await_commit(&mut acknowledged));
        }
        child.kill().unwrap();
        // What it still managed to say before it died counts as well.
        known.extend(commits(&mut acknowledged));
        child.wait().unwrap();

        let store = SqliteMetadata::open(&path).unwrap();
        let (pairs, mirror) = run(async { (store.load("a").await.unwrap(), store.load("b").await.unwrap()) });
        let there: BTreeSet<u64> = pairs.iter().map(|(key, _)| key.parse().unwrap()).collect();
        assert_eq!(known.difference(&there).count(), 0, "round {round}: {known:?} acknowledged, {there:?} there");
        assert!(pairs.iter().map(|(key, _)| key).eq(mirror.iter().map(|(key, _)| key)), "batches are whole");
    }
}

#[test]
fn a_full_disk_refuses_commits_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    // A mount namespace of its own: the small file system goes away with the child, however that ends.
    let script = r#"mount -t tmpfs -o size=1m none "$0" && exec "$@""#;
    let (exe, name) = (env::current_exe().unwrap(), "metadata::sqlite::tests::full_disk_child");
    let output = Process::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script])
        .arg(dir.path())
        .arg(exe)
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir.path().join("meta.db"))
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: unshare is not installed");
        return;
    };
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !out.contains("running 1 test") {
        eprintln!("SKIPPED: cannot mount a tmpfs: {err}");
        return;
    }
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("recovered"), "{out}");
}

/// The part of the test above that runs on the small file system.
#[test]
fn full_disk_child() {
    let Some(path) = env::var_os(CHILD).map(PathBuf::from) else { return };
    run(async {
        let filler = path.with_file_name("filler");
        fs::write(&filler, vec![1; 300 * 1024]).unwrap();
        let store = Arc::new(SqliteMetadata::open(&path).unwrap());
        // One batch that can never fit does not take its neighbours in the group with it.
        let batches = (0..20).map(|i| {
            let size = if i == 10 { 3_000_000 } else { 10 };
            let write = Write::put("group", format!("{i:02}"), &"x".repeat(size), Expect::Absent).unwrap();
            let store = store.clone();
            tokio::spawn(async move { store.commit(vec![write]).await })
        });
        for (i, batch) in batches.collect::<Vec<_>>().into_iter().enumerate() {
            match batch.await.unwrap() {
                Ok(_) => assert_ne!(i, 10),
                Err(error) => {
                    assert!(i == 10 && matches!(error, CommitError::Store(StoreError::Full { .. })), "{error:?}")
                }
            }
        }
        assert_eq!(store.load("group").await.unwrap().len(), 19);

        let value = "x".repeat(5000);
        let mut acknowledged = Vec::new();
        let error = loop {
            let key = format!("{:05}", acknowledged.len());
            match store.commit(vec![Write::put("t", &key, &value, Expect::Absent).unwrap()]).await {
                Ok(_) => acknowledged.push(key),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CommitError::Store(StoreError::Full { .. })), "{error:?}");
        let keys = |entries: Vec<(String, Entry)>| entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(store.load("t").await.unwrap()), acknowledged);
        fs::remove_file(&filler).unwrap();
        acknowledged.push("later".to_owned());
        store.commit(vec![Write::put("t", "later", &value, Expect::Absent).unwrap()]).await.unwrap();
        drop(store);
        let store = SqliteMetadata::open(&path).unwrap();
        assert_eq!(keys(store.load("t").await.unwrap()), acknowledged);
        println!("recovered");
    });
}

/// Commits pairs until it is killed, and prints each number once its commit is acknowledged.
#[test]
fn crash_child() {
    let Some(path) = env::var_os(CHILD).map(PathBuf::from) else { return };
    run(async {
        let store = Arc::new(SqliteMetadata::open(path).unwrap());
        let mut next: u64 = store.load("a").await.unwrap().last().map_or(0, |(key, _)| key.parse().unwrap());
        loop {
            // Several at once, so that kills land in group commits too.
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    next += 1;
                    let (store, key) = (store.clone(), format!("{next:08}"));
                    tokio::spawn(async move {
                        let write = |table: &str| Write::put(table, &key, "x", Expect::Absent).unwrap();
                        store.commit(vec![write("a"), write("b")]).await.unwrap();
                        key
                    })
                })
                .collect();
            for task in tasks {
                println!("acknowledged {}", task.await.unwrap());
            }
        }
    });
}

fn spawn_writer(path: &Path) -> Child {
    Process::new(env::current_exe().unwrap())
        .args(["--exact", "metadata::sqlite::tests::crash_child", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

fn commits(lines: &mut Lines) -> impl Iterator<Item = u64> {
    lines.map_while(Result::ok).filter_map(|line| line.split("acknowledged ").nth(1)?.parse().ok())
}

fn await_commit(lines: &mut Lines) -> u64 {
    commits(lines).next().expect("the child died before its first commit")
}
