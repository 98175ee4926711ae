//! What every [`Metadata`] must do.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::run;
use crate::{CommitError, Entry, Expect, MemoryMetadata, Metadata, Write};

fn put(table: &str, key: &str, value: &str, expect: Expect) -> Write {
    Write::Put { table: table.into(), key: key.into(), value: value.into(), expect }
}

/// The whole contract, on a fresh store.
pub async fn suite(store: Arc<dyn Metadata>) {
    reads_what_was_committed(&*store).await;
    conflicts_apply_nothing(&*store).await;
    refuses_malformed_batches(&*store).await;
    revisions_are_never_used_twice(&*store).await;
    one_of_many_racing_writers_wins(store.clone()).await;
    parallel_batches_all_arrive(store).await;
}

async fn reads_what_was_committed(store: &dyn Metadata) {
    assert_eq!(store.load("t").await.unwrap(), []);
    assert_eq!(store.get("t", "a").await.unwrap(), None);
    let revisions = store
        .commit(vec![
            put("t", "b", "2", Expect::Any),
            put("t", "a", r#" {"x": "é"} "#, Expect::Absent),
            put("u", "a", "3", Expect::Any),
        ])
        .await
        .unwrap();
    assert_eq!(revisions.len(), 3);
    assert!(revisions.is_sorted_by(|a, b| a < b));
    let a = Entry { value: r#" {"x": "é"} "#.into(), revision: revisions[1] };
    let b = Entry { value: "2".into(), revision: revisions[0] };
    assert_eq!(store.get("t", "a").await.unwrap(), Some(a.clone()));
    assert_eq!(store.load("t").await.unwrap(), [("a".into(), a), ("b".into(), b)]);
    // Keys sort by bytes, not by locale; odd ones are kept as they are.
    for key in ["Z", "é", "a/b", "a\u{0}b", "", "%", "'"] {
        store.commit(vec![put("order", key, "null", Expect::Absent)]).await.unwrap();
    }
    let keys: Vec<_> = store.load("order").await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["", "%", "'", "Z", "a\u{0}b", "a/b", "é"]);
    assert!(store.commit(vec![]).await.unwrap().is_empty());
}

async fn conflicts_apply_nothing(store: &dyn Metadata) {
    let first = store.commit(vec![put("c", "k", "1", Expect::Absent)]).await.unwrap()[0];
    let refused = [
        put("c", "k", "2", Expect::Absent),
        put("c", "k", "2", Expect::Revision(first + 1)),
        put("c", "missing", "2", Expect::Revision(first)),
        Write::delete("c", "k", Expect::Absent),
        Write::delete("c", "missing", Expect::Revision(first)),
    ];
    for write in refused {
        let key = write.key().to_owned();
        let error = store.commit(vec![put("c", "innocent", "1", Expect::Any), write]).await.unwrap_err();
        assert!(matches!(&error, CommitError::Conflict { table, key: k } if table == "c" && *k == key), "{error:?}");
    }
    let all = store.load("c").await.unwrap();
    assert_eq!(all, [("k".into(), Entry { value: "1".into(), revision: first })]);
    store.commit(vec![Write::delete("c", "missing", Expect::Any)]).await.unwrap();
    store.commit(vec![put("c", "k", "2", Expect::Revision(first))]).await.unwrap();
}

async fn refuses_malformed_batches(store: &dyn Metadata) {
    let twice = vec![put("m", "k", "1", Expect::Any), Write::delete("m", "k", Expect::Any)];
    assert!(matches!(store.commit(twice).await, Err(CommitError::DuplicateKey { .. })));
    for value in ["", "{", "1 2", "\u{1}"] {
        let error = store.commit(vec![put("m", "k", value, Expect::Any)]).await.unwrap_err();
        assert!(matches!(error, CommitError::NotJson { .. }), "{error:?}");
    }
    assert_eq!(store.load("m").await.unwrap(), []);
}

async fn revisions_are_never_used_twice(store: &dyn Metadata) {
    let first = store.commit(vec![put("r", "k", "1", Expect::Absent)]).await.unwrap()[0];
    let deleted = store.commit(vec![Write::delete("r", "k", Expect::Revision(first))]).await.unwrap()[0];
    let again = store.commit(vec![put("r", "k", "1", Expect::Absent)]).await.unwrap()[0];
    assert!(first < deleted && deleted < again);
    let stale = store.commit(vec![put("r", "k", "2", Expect::Revision(first))]).await;
    assert!(matches!(stale, Err(CommitError::Conflict { .. })));
}

async fn one_of_many_racing_writers_wins(store: Arc<dyn Metadata>) {
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .commit(vec![
                        put("race", &format!("own{i}"), "1", Expect::Any),
                        put("race", "k", &i.to_string(), Expect::Absent),
                    ])
                    .await
            })
        })
        .collect();
    let mut winners = Vec::new();
    for (i, task) in tasks.into_iter().enumerate() {
        match task.await.unwrap() {
            Ok(_) => winners.push(i),
            Err(error) => assert!(matches!(error, CommitError::Conflict { .. }), "{error:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    let keys: Vec<_> = store.load("race").await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["k".to_owned(), format!("own{}", winners[0])], "losers leave nothing");
}

async fn parallel_batches_all_arrive(store: Arc<dyn Metadata>) {
    let tasks: Vec<_> = (0..300u32)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                store.commit(vec![put("many", &format!("{i:03}"), &i.to_string(), Expect::Absent)]).await
            })
        })
        .collect();
    let mut revisions = Vec::new();
    for task in tasks {
        revisions.extend(task.await.unwrap().unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 300);
    assert_eq!(store.load("many").await.unwrap().len(), 300);
}

/// A write by numbers: table, key, value (`None`: delete), and which expectation.
type Step = (u8, u8, Option<u16>, Guess);

#[derive(Debug, Clone, Copy)]
enum Guess {
    Any,
    Absent,
    Current,
    Stale,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let guess = prop_oneof![4 => Just(Guess::Any), 2 => Just(Guess::Absent), 3 => Just(Guess::Current), 1 => Just(Guess::Stale)];
    let step = (0..2u8, 0..5u8, prop::option::weighted(0.7, any::<u16>()), guess);
    prop::collection::vec(prop::collection::vec(step, 0..5), 0..25)
}

/// Random batches against a map: same answers, same content. `fresh` makes an empty store; `reopened` closes and opens
/// it again, or hands it back where the store has no such thing.
pub fn agrees_with_a_map<S: Metadata>(cases: u32, fresh: impl Fn() -> S, reopened: impl Fn(S) -> S) {
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    TestRunner::new(config).run(&steps(), |batches| run(compare(fresh(), batches, &reopened))).unwrap();
}

async fn compare<S: Metadata>(
    mut store: S,
    batches: Vec<Vec<Step>>,
    reopened: &impl Fn(S) -> S,
) -> Result<(), TestCaseError> {
    let mut model: BTreeMap<(String, String), Entry> = BTreeMap::new();
    let mut last = 0;
    for batch in batches {
        let mut writes = Vec::new();
        for (table, key, value, guess) in batch {
            let (table, key) = (format!("t{table}"), format!("k{key}"));
            if writes.iter().any(|write: &Write| (write.table(), write.key()) == (table.as_str(), key.as_str())) {
                continue;
            }
            let current = model.get(&(table.clone(), key.clone())).map(|entry| entry.revision);
            let expect = match guess {
                Guess::Any => Expect::Any,
                Guess::Absent => Expect::Absent,
                Guess::Current => current.map_or(Expect::Absent, Expect::Revision),
                Guess::Stale => Expect::Revision(current.map_or(last, |revision| revision - 1)),
            };
            writes.push(match value {
                Some(value) => Write::put(table, key, &value, expect).unwrap(),
                None => Write::delete(table, key, expect),
            });
        }
        let revision =
            |write: &Write| model.get(&(write.table().to_owned(), write.key().to_owned())).map(|e| e.revision);
        let bad =
            writes.iter().find(|write| !write.expect().allows(revision(write))).map(|write| write.key().to_owned());
        match (store.commit(writes.clone()).await, bad) {
            (Err(CommitError::Conflict { key, .. }), Some(bad)) => prop_assert_eq!(key, bad),
            (Ok(revisions), None) => {
                prop_assert_eq!(revisions.len(), writes.len());
                for (write, revision) in writes.into_iter().zip(revisions) {
                    prop_assert!(revision > last);
                    last = revision;
                    let name = (write.table().to_owned(), write.key().to_owned());
                    match write {
                        Write::Put { value, .. } => model.insert(name, Entry { value, revision }),
                        Write::Delete { .. } => model.remove(&name),
                    };
                }
            }
            (answer, bad) => prop_assert!(false, "answer {answer:?}, conflict expected at {bad:?}"),
        }
        same_content(&store, &model).await?;
    }
    store = reopened(store);
    same_content(&store, &model).await?;
    let next = store.commit(vec![put("t0", "k0", "1", Expect::Any)]).await.unwrap()[0];
    prop_assert!(next > last, "revisions go on after a restart");
    Ok(())
}

async fn same_content(store: &dyn Metadata, model: &BTreeMap<(String, String), Entry>) -> Result<(), TestCaseError> {
    for table in ["t0", "t1"] {
        let wanted: Vec<_> = model
            .iter()
            .filter(|((t, _), _)| t == table)
            .map(|((_, key), entry)| (key.clone(), entry.clone()))
            .collect();
        prop_assert_eq!(store.load(table).await.unwrap(), wanted);
    }
    Ok(())
}

#[test]
fn memory_keeps_the_contract() {
    run(suite(Arc::new(MemoryMetadata::new())));
}

#[test]
fn memory_agrees_with_a_map() {
    agrees_with_a_map(64, MemoryMetadata::new, |store| store);
}
