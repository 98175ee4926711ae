//! The log store against a real file: queries, tokens, losses, crashes.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::*;

/// Noon of some day.
const NOON: i64 = 1_700_049_600_000;
const DAY: i64 = 24 * 3600 * 1000;

struct Fixture {
    store: LogStore,
    now: Arc<AtomicI64>,
    dir: tempfile::TempDir,
}

fn fixture_with(change: impl FnOnce(&mut LogOptions)) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(NOON));
    let clock = now.clone();
    let mut options = LogOptions { clock: Arc::new(move || clock.load(Ordering::SeqCst)), ..LogOptions::default() };
    change(&mut options);
    let store = LogStore::open(dir.path().join("new/logs.db"), options).unwrap();
    Fixture { store, now, dir }
}

fn fixture() -> Fixture {
    fixture_with(|_| ())
}

fn event(timestamp_ms: i64, message: &str) -> LogEvent {
    LogEvent { timestamp_ms, message: message.into() }
}

fn messages(page: &EventPage) -> Vec<&str> {
    page.events.iter().map(|event| event.message.as_str()).collect()
}

fn found(page: &FilterPage) -> Vec<&str> {
    page.events.iter().map(|event| event.event.message.as_str()).collect()
}

fn head() -> Events {
    Events { start_from_head: true, ..Events::default() }
}

#[tokio::test]
async fn what_was_appended_is_seen_by_the_next_query() {
    // A delay that no test would outlive: queries must not wait for it.
    let f = fixture_with(|options| options.batch_delay = Duration::from_secs(3600));
    f.store.append("/g", "s", vec![event(NOON - 5, "b\n"), event(NOON - 9, "a\n")]);
    f.store.append("/g", "s", vec![]);
    let page = f.store.get_events("/g", "s", head()).await.unwrap();
    assert_eq!(messages(&page), ["a\n", "b\n"], "by time, not by arrival");
    assert_eq!(page.events[0], StoredEvent { timestamp_ms: NOON - 9, ingestion_ms: NOON, message: "a\n".into() });
    let (groups, token) = f.store.describe_groups(Groups::default()).await.unwrap();
    let stored_bytes = 2 * (2 + 26);
    assert_eq!(groups, [GroupInfo { name: "/g".into(), created_ms: NOON, retention_days: None, stored_bytes }]);
    assert_eq!(token, None);
    let (streams, _) = f.store.describe_streams("/g", Streams::default()).await.unwrap();
    assert_eq!(
        streams,
        [StreamInfo {
            name: "s".into(),
            created_ms: NOON,
            first_event_ms: Some(NOON - 9),
            last_event_ms: Some(NOON - 5),
            last_ingestion_ms: Some(NOON),
            stored_bytes,
        }]
    );
}

#[tokio::test]
async fn groups_and_streams_come_and_go() {
    let f = fixture();
    let store = &f.store;
    store.create_group("g").await.unwrap();
    assert!(matches!(store.create_group("g").await, Err(LogError::GroupExists)));
    store.create_stream("g", "s").await.unwrap();
    assert!(matches!(store.create_stream("g", "s").await, Err(LogError::StreamExists)));
    for error in [
        store.create_stream("x", "s").await.unwrap_err(),
        store.delete_group("x").await.unwrap_err(),
        store.delete_stream("x", "s").await.unwrap_err(),
        store.set_retention("x", Some(1)).await.unwrap_err(),
        store.describe_streams("x", Streams::default()).await.unwrap_err(),
        store.get_events("x", "s", head()).await.unwrap_err(),
        store.filter_events("x", Filter::default()).await.unwrap_err(),
        store.put_events("x", "s", vec![event(NOON, "x")]).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "The specified log group does not exist.");
    }
    let unknown = Filter { streams: vec!["x".into()], ..Filter::default() };
    for error in [
        store.delete_stream("g", "x").await.unwrap_err(),
        store.get_events("g", "x", head()).await.unwrap_err(),
        store.filter_events("g", unknown).await.unwrap_err(),
        store.put_events("g", "x", vec![event(NOON, "x")]).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "The specified log stream does not exist.");
    }
    for name in ["", "a b", "aws/x", &"x".repeat(513)] {
        assert!(matches!(store.create_group(name).await, Err(LogError::InvalidParameter(_))), "{name}");
    }
    for name in ["", "a:b", "a*", &"x".repeat(513)] {
        assert!(matches!(store.create_stream("g", name).await, Err(LogError::InvalidParameter(_))), "{name}");
    }
    // What a deleted stream or group held is gone for its successor, whatever the writer remembers.
    store.append("g", "s", vec![event(NOON, "old")]);
    store.delete_stream("g", "s").await.unwrap();
    store.append("g", "s", vec![event(NOON, "new")]);
    assert_eq!(messages(&store.get_events("g", "s", head()).await.unwrap()), ["new"]);
    store.delete_group("g").await.unwrap();
    store.append("g", "s", vec![event(NOON, "newer")]);
    let page = store.filter_events("g", Filter::default()).await.unwrap();
    assert_eq!(found(&page), ["newer"]);
}

#[tokio::test]
async fn groups_are_described_by_name() {
    let f = fixture();
    let store = &f.store;
    for group in ["/aws/lambda/b", "/aws/lambda/a", "/aws/lambda/A", "/other"] {
        store.create_group(group).await.unwrap();
    }
    store.set_retention("/other", Some(7)).await.unwrap();
    assert!(matches!(store.set_retention("/other", Some(8)).await, Err(LogError::InvalidParameter(_))));
    let names = async |name: GroupName, limit: Option<usize>, token: Option<String>| {
        let (groups, token) = store.describe_groups(Groups { name, limit, token }).await.unwrap();
        (groups.into_iter().map(|group| group.name).collect::<Vec<_>>(), token)
    };
    let prefix = || GroupName::Prefix("/aws/lambda/".into());
    let (page, token) = names(prefix(), Some(2), None).await;
    assert_eq!(page, ["/aws/lambda/A", "/aws/lambda/a"]);
    assert_eq!(names(prefix(), Some(2), token).await, (vec!["/aws/lambda/b".to_owned()], None));
    assert_eq!(names(GroupName::Contains("a/a".into()), None, None).await.0, ["/aws/lambda/a"]);
    assert!(matches!(
        store.describe_groups(Groups { limit: Some(51), ..Groups::default() }).await,
        Err(LogError::InvalidParameter(_))
    ));
}

#[tokio::test]
async fn streams_are_described_in_both_orders() {
    let f = fixture();
    let store = &f.store;
    for (stream, time) in [("a", 3), ("b", 1), ("c", 2), ("d", 2)] {
        store.append("g", stream, vec![event(NOON + time, "x")]);
    }
    store.create_stream("g", "empty").await.unwrap();
    let orders = [
        (StreamOrder::LogStreamName, false, ["a", "b", "c", "d", "empty"]),
        (StreamOrder::LogStreamName, true, ["empty", "d", "c", "b", "a"]),
        (StreamOrder::LastEventTime, false, ["empty", "b", "c", "d", "a"]),
        (StreamOrder::LastEventTime, true, ["a", "d", "c", "b", "empty"]),
    ];
    for (order, descending, wanted) in orders {
        for limit in [1, 2, 3, 50] {
            let mut names = Vec::new();
            let mut token = None;
            loop {
                let request = Streams { order, descending, limit: Some(limit), token, ..Streams::default() };
                let (page, next) = store.describe_streams("g", request).await.unwrap();
                assert!(page.len() <= limit && (next.is_none() || page.len() == limit));
                names.extend(page.into_iter().map(|stream| stream.name));
                token = next;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(names, wanted, "{order:?} {descending} {limit}");
        }
    }
    let prefixed = Streams { prefix: Some("e".into()), ..Streams::default() };
    assert_eq!(store.describe_streams("g", prefixed.clone()).await.unwrap().0.len(), 1);
    let error =
        store.describe_streams("g", Streams { order: StreamOrder::LastEventTime, ..prefixed }).await.unwrap_err();
    assert_eq!(error.to_string(), "Cannot order by LastEventTime with a logStreamNamePrefix.");
    let token = Some("nonsense".to_owned());
    assert!(store.describe_streams("g", Streams { token, ..Streams::default() }).await.is_err());
}

#[tokio::test]
async fn pages_of_a_stream_stay_where_they_end() {
    let f = fixture();
    let store = &f.store;
    let get = async |request: Events| store.get_events("g", "s", request).await.unwrap();
    let with = |token: &str| Events { token: Some(token.to_owned()), limit: Some(2), ..Events::default() };
    store.create_group("g").await.unwrap();
    store.create_stream("g", "s").await.unwrap();
    let empty = get(Events::default()).await;
    assert_eq!(empty.events, []);

    // Two events share a time, so that the position is more than the time.
    for (time, message) in [(1, "1"), (2, "2"), (2, "3"), (4, "4"), (5, "5")] {
        store.append("g", "s", vec![event(NOON + time, message)]);
    }
    assert_eq!(messages(&get(with(&empty.next_forward)).await), ["1", "2"], "a follower of an empty stream");
    let newest = get(Events { limit: Some(2), ..Events::default() }).await;
    assert_eq!(messages(&newest), ["4", "5"]);
    let before = get(with(&newest.next_backward)).await;
    assert_eq!(messages(&before), ["2", "3"]);
    let first = get(with(&before.next_backward)).await;
    assert_eq!(messages(&first), ["1"]);
    let start = get(with(&first.next_backward)).await;
    assert_eq!((messages(&start).len(), &start.next_backward), (0, &first.next_backward));
    assert_eq!(messages(&get(with(&start.next_forward)).await), ["1", "2"], "and back again");

    let oldest = get(Events { limit: Some(2), ..head() }).await;
    assert_eq!(messages(&oldest), ["1", "2"]);
    assert_eq!(messages(&get(with(&oldest.next_forward)).await), ["3", "4"]);
    let end = get(with(&newest.next_forward)).await;
    assert_eq!((messages(&end).len(), &end.next_forward), (0, &newest.next_forward));
    assert_eq!(messages(&get(with(&end.next_backward)).await), ["4", "5"]);
    store.append("g", "s", vec![event(NOON + 6, "6")]);
    assert_eq!(messages(&get(with(&end.next_forward)).await), ["6"], "the end goes on when more comes");

    let range = Events { start_ms: Some(NOON + 2), end_ms: Some(NOON + 5), ..head() };
    assert_eq!(messages(&get(range.clone()).await), ["2", "3", "4"], "from inclusive, to exclusive");
    assert_eq!(messages(&get(Events { start_from_head: false, limit: Some(1), ..range }).await), ["4"]);
    for token in ["", "f/", "x/1/2", "f/1", "f/1/x"] {
        let error = store.get_events("g", "s", with(token)).await.unwrap_err();
        assert_eq!(error.to_string(), "The specified nextToken is invalid.");
    }
    for limit in [0, 10_001] {
        assert!(store.get_events("g", "s", Events { limit: Some(limit), ..head() }).await.is_err());
    }
}

#[tokio::test]
async fn pages_end_at_a_mebibyte() {
    let f = fixture();
    let store = &f.store;
    let big = "x".repeat(400_000);
    store.append("g", "s", (0..5).map(|time| event(NOON + time, &big)).collect());
    store.append("g", "t", vec![event(NOON + 9, &"y".repeat(2_000_000))]);
    assert_eq!(store.get_events("g", "s", head()).await.unwrap().events.len(), 2);
    assert_eq!(store.get_events("g", "t", head()).await.unwrap().events.len(), 1, "one event always fits");
    let mut sizes = Vec::new();
    let mut token = None;
    loop {
        let page = store.filter_events("g", Filter { token, ..Filter::default() }).await.unwrap();
        sizes.push(page.events.len());
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [2, 2, 1, 1]);
}

#[tokio::test]
async fn filters_look_through_all_streams() {
    let f = fixture();
    let store = &f.store;
    store.append("g", "a1", vec![event(NOON, "ERROR one"), event(NOON + 2, "INFO three")]);
    store.append("g", "a2", vec![event(NOON + 1, "INFO two"), event(NOON + 3, "{\"level\":\"ERROR\"}\n")]);
    store.append("g", "b", vec![event(NOON + 1, "ERROR two too")]);
    store.append("other", "a1", vec![event(NOON, "ERROR elsewhere")]);
    let filter = async |request: Filter| store.filter_events("g", request).await.unwrap();
    let all = filter(Filter::default()).await;
    assert_eq!(found(&all), ["ERROR one", "INFO two", "ERROR two too", "INFO three", "{\"level\":\"ERROR\"}\n"]);
    assert_eq!(all.next_token, None);
    let mut ids: Vec<_> = all.events.iter().map(|event| event.event_id.as_str()).collect();
    ids.dedup();
    assert!(ids.len() == 5 && ids.is_sorted() && ids.iter().all(|id| id.len() == 56));
    assert_eq!(all.events[2].stream, "b");

    let pattern = |pattern: &str| Filter { pattern: Some(pattern.into()), ..Filter::default() };
    assert_eq!(found(&filter(pattern("ERROR -two")).await), ["ERROR one", "{\"level\":\"ERROR\"}\n"]);
    assert_eq!(found(&filter(pattern("{ $.level = \"ERROR\" }")).await).len(), 1);
    let prefix = Filter { stream_prefix: Some("a".into()), ..Filter::default() };
    assert_eq!(found(&filter(prefix.clone()).await).len(), 4);
    let streams = Filter { streams: vec!["b".into(), "a2".into()], ..Filter::default() };
    assert_eq!(found(&filter(streams.clone()).await), ["INFO two", "ERROR two too", "{\"level\":\"ERROR\"}\n"]);
    let range = Filter { start_ms: Some(NOON + 1), end_ms: Some(NOON + 2), ..Filter::default() };
    assert_eq!(found(&filter(range).await), ["INFO two", "ERROR two too", "INFO three"], "both ends inclusive");

    let error = store.filter_events("g", Filter { stream_prefix: Some("a".into()), ..streams }).await.unwrap_err();
    assert_eq!(error.to_string(), "logStreamNames and logStreamNamePrefix cannot be used together.");
    assert!(matches!(store.filter_events("g", pattern("{ $.x }")).await, Err(LogError::Pattern(_))));
}

#[tokio::test]
async fn puts_keep_the_rules() {
    let f = fixture_with(|options| options.retention_days = Some(30));
    let store = &f.store;
    store.create_group("g").await.unwrap();
    store.create_stream("g", "s").await.unwrap();
    let put = async |events: Vec<LogEvent>| store.put_events("g", "s", events).await;
    let soon = |hours: i64| NOON + hours * 3600 * 1000;
    let outcome = put(vec![event(NOON, "a"), event(soon(2), "b"), event(soon(2) + 1, "c")]).await.unwrap();
    assert_eq!(outcome, PutOutcome { too_new_start: Some(2), ..PutOutcome::default() });
    let old = NOON - 14 * DAY;
    let outcome = put(vec![event(old - 1, "x"), event(old, "y")]).await.unwrap();
    assert_eq!(outcome, PutOutcome { too_old_end: Some(1), ..PutOutcome::default() });
    store.set_retention("g", Some(3)).await.unwrap();
    let outcome = put(vec![event(NOON - 3 * DAY - 1, "x"), event(NOON - 3 * DAY, "z")]).await.unwrap();
    assert_eq!(outcome, PutOutcome { expired_end: Some(1), ..PutOutcome::default() });
    assert_eq!(put(vec![event(old - 1, "x")]).await.unwrap().too_old_end, Some(1));
    let page = store.get_events("g", "s", head()).await.unwrap();
    assert_eq!(messages(&page), ["y", "z", "a", "b"]);
    for (events, text) in [
        (vec![], "a batch has 1 to 10000 log events"),
        (vec![event(NOON, "")], "a log event has an empty message"),
        (
            vec![event(NOON, "b"), event(NOON - 1, "a")],
            "Log events in a single PutLogEvents request must be in chronological order.",
        ),
        (
            vec![event(NOON - DAY - 1, "a"), event(NOON, "b")],
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.",
        ),
        (vec![event(NOON, &"x".repeat(1_048_551))], "Upload too large: 1048577 bytes exceeds limit of 1048576"),
    ] {
        assert_eq!(put(events).await.unwrap_err().to_string(), text);
    }
    put(vec![event(NOON, &"x".repeat(1_048_550))]).await.unwrap();
}

#[tokio::test]
async fn a_full_queue_drops_and_says_so() {
    // Nothing is written before the flush, so that the queue surely fills.
    let f = fixture_with(|options| {
        options.batch_delay = Duration::from_secs(3600);
        options.max_queue_bytes = 3 * (4 + 26);
    });
    for i in 0..5 {
        f.store.append("g", "s", vec![event(NOON + i, "four")]);
    }
    f.store.append("g", "t", vec![event(NOON, "lost"), event(NOON, "lost too")]);
    let page = f.store.get_events("g", "s", head()).await.unwrap();
    let marker = |records: u32, bytes: u32| {
        format!(
            "{{\"time\":\"2023-11-15T12:00:00.000Z\",\"type\":\"platform.logsDropped\",\"record\":{{\
             \"droppedBytes\":{bytes},\"droppedRecords\":{records},\"reason\":\"the log store could not keep up\"}}}}\n"
        )
    };
    assert_eq!(page.events.len(), 4);
    assert!(messages(&page).contains(&marker(2, 8).as_str()), "{page:?}");
    assert_eq!(messages(&f.store.get_events("g", "t", head()).await.unwrap()), [marker(2, 12)]);
    f.store.append("g", "s", vec![event(NOON + 9, "more")]);
    assert_eq!(f.store.get_events("g", "s", head()).await.unwrap().events.len(), 5, "there is room again");
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_is_left_to_others() {
    let free = Arc::new(AtomicI64::new(i64::MAX));
    let told = free.clone();
    let f = fixture_with(|options| {
        let free = move || u64::try_from(told.load(Ordering::SeqCst)).unwrap();
        options.space = Arc::new(move |_| Some(Space { free: free(), total: 1 << 40 }));
    });
    f.store.append("/g", "s", vec![event(NOON, "before")]);
    f.store.flush().await;
    free.store((512 << 20) - 1, Ordering::SeqCst);
    for _ in 0..3 {
        f.store.append("/g", "s", vec![event(NOON, "flood"), event(NOON, "more")]);
        f.store.flush().await;
    }
    // What was there can still be read.
    assert_eq!(messages(&f.store.get_events("/g", "s", head()).await.unwrap()), ["before"]);
    free.store(512 << 20, Ordering::SeqCst);
    f.store.append("/g", "s", vec![event(NOON, "after")]);
    let page = f.store.get_events("/g", "s", head()).await.unwrap();
    let [before, after, marker] = messages(&page)[..] else { panic!("{page:?}") };
    assert_eq!((before, after), ("before", "after"));
    assert!(marker.contains("platform.logsDropped") && marker.contains(r#""droppedRecords":6"#), "{marker}");
}

#[test]
fn a_tenth_of_a_small_disk_is_kept_free() {
    let space = |free| Space { free, total: 1_000 };
    assert!(space(100).is_ample() && !space(99).is_ample());
    assert!(Space::of(env::temp_dir().as_path()).unwrap().total > 0);
}

#[tokio::test]
async fn too_many_changes_are_refused() {
    let f = fixture();
    // The writer is kept busy by a change that ends when the test says so.
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let (started, running) = oneshot::channel();
    f.store
        .shared
        .queue
        .push(Box::new(move |_| {
            let _ = started.send(());
            let _ = wait.recv();
        }))
        .unwrap();
    running.await.unwrap();
    let refused = loop {
        if let Err(error) = f.store.shared.queue.push(Box::new(|_| ())) {
            break error;
        }
    };
    assert!(matches!(refused, LogError::Overloaded));
    assert!(matches!(f.store.create_group("g").await, Err(LogError::Overloaded)));
    // Logging goes on meanwhile.
    f.store.append("g", "s", vec![event(NOON, "x")]);
    release.send(()).unwrap();
    f.store.flush().await;
    f.store.create_group("h").await.unwrap();
    assert_eq!(messages(&f.store.get_events("g", "s", head()).await.unwrap()), ["x"]);
}

#[tokio::test]
async fn expired_events_go() {
    let f = fixture_with(|options| options.retention_days = Some(5));
    f.store.append("g", "s", vec![event(NOON - 5 * DAY - 1, "expired"), event(NOON - 5 * DAY, "é")]);
    f.store.append("keeps", "s", vec![event(NOON - 6 * DAY, "kept")]);
    f.store.set_retention("keeps", Some(7)).await.unwrap();
    f.store.purge_expired().await.unwrap();
    assert_eq!(messages(&f.store.get_events("g", "s", head()).await.unwrap()), ["é"]);
    let (streams, _) = f.store.describe_streams("g", Streams::default()).await.unwrap();
    assert_eq!((streams[0].first_event_ms, streams[0].stored_bytes), (Some(NOON - 5 * DAY), 28));
    assert_eq!(messages(&f.store.get_events("keeps", "s", head()).await.unwrap()), ["kept"]);
    f.now.fetch_add(2 * DAY, Ordering::SeqCst);
    // The writer looks by itself once the hour is over and it has something to do.
    f.store.append("new", "s", vec![event(NOON + 2 * DAY, "x")]);
    f.store.flush().await;
    f.store.flush().await;
    f.store.create_group("barrier").await.unwrap();
    assert!(f.store.get_events("keeps", "s", head()).await.unwrap().events.is_empty());
    let (streams, _) = f.store.describe_streams("g", Streams::default()).await.unwrap();
    assert_eq!((streams[0].first_event_ms, streams[0].stored_bytes), (None, 0));
}

#[tokio::test]
async fn followers_see_their_group() {
    let f = fixture();
    let mut follower = f.store.follow("g");
    let other = f.store.follow("other");
    f.store.append("g", "s", vec![event(1, "a"), event(2, "b")]);
    f.store.append("x", "s", vec![event(1, "not mine")]);
    f.store.create_stream("g", "put").await.unwrap();
    f.store.put_events("g", "put", vec![event(NOON, "c"), event(NOON + DAY / 2, "too new")]).await.unwrap();
    for (stream, wanted) in [("s", event(1, "a")), ("s", event(2, "b")), ("put", event(NOON, "c"))] {
        assert_eq!(follower.next().await, Some(Followed::Event { stream: stream.into(), event: wanted }));
    }
    drop(other);
    for i in 0..5000 {
        f.store.append("g", "s", vec![event(i, "x")]);
    }
    assert_eq!(follower.next().await, Some(Followed::Missed(5000 - 4096)));
    drop(f.store);
    let mut rest = 0;
    while follower.next().await.is_some() {
        rest += 1;
    }
    assert_eq!(rest, 4096);
}

#[tokio::test]
async fn everything_is_there_after_a_reopen() {
    let Fixture { store, dir, .. } = fixture();
    for i in 0..500 {
        store.append("g", &format!("s{}", i % 7), vec![event(NOON + i, &i.to_string())]);
    }
    drop(store);
    let path = dir.path().join("new/logs.db");
    let store = LogStore::open(&path, LogOptions::default()).unwrap();
    let before = store.filter_events("g", Filter::default()).await.unwrap();
    assert_eq!(before.events.len(), 500, "closing writes what waits");
    store.append("g", "s0", vec![event(NOON + 499, "same time")]);
    let after = store.filter_events("g", Filter::default()).await.unwrap();
    assert_eq!(found(&after).last(), Some(&"same time"), "sequence numbers go on");
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    let error = LogStore::open(&path, LogOptions::default()).unwrap_err().to_string();
    assert_eq!(error, format!("{} has schema version 2, this build knows up to 1: use a newer build", path.display()));
    let text = dir.path().join("text");
    std::fs::write(&text, "no database at all ".repeat(100)).unwrap();
    assert!(matches!(LogStore::open(&text, LogOptions::default()), Err(OpenLogsError::Foreign { .. })));
}

const CHILD: &str = "TELEMETRY_TEST_CHILD";

#[test]
fn a_full_disk_costs_events_but_not_the_store() {
    let dir = tempfile::tempdir().unwrap();
    // A mount namespace of its own: the small file system goes away with the child, however that ends.
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", r#"mount -t tmpfs -o size=1m none "$0" && exec "$@""#])
        .arg(dir.path())
        .arg(env::current_exe().unwrap())
        .args(["--exact", "logs::tests::full_disk_child", "--nocapture"])
        .env(CHILD, dir.path().join("logs.db"))
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
    assert!(output.status.success() && out.contains("recovered"), "{out}\n{err}");
}

/// The part of the test above that runs on the small file system.
#[test]
fn full_disk_child() {
    let Some(path) = env::var_os(CHILD).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // As if there were always room, so that the file system itself refuses.
        let options = LogOptions { space: Arc::new(|_| None), ..LogOptions::default() };
        let store = LogStore::open(&path, options).unwrap();
        let filler = path.with_file_name("filler");
        std::fs::write(&filler, vec![1; 300 * 1024]).unwrap();
        const COUNT: i64 = 100;
        for time in 0..COUNT {
            store.append("g", "s", vec![event(time, &"x".repeat(20_000))]);
            store.flush().await;
        }
        std::fs::remove_file(&filler).unwrap();
        store.append("g", "s", vec![event(COUNT, "later")]);
        store.flush().await;
        drop(store);
        let store = LogStore::open(&path, LogOptions::default()).unwrap();
        let page = store.get_events("g", "s", head()).await.unwrap();
        let (mut kept, mut dropped) = (0, 0);
        for message in messages(&page) {
            match serde_json::from_str::<serde_json::Value>(message) {
                Ok(marker) => dropped += marker["record"]["droppedRecords"].as_i64().unwrap(),
                Err(_) => kept += i64::from(message.len() == 20_000),
            }
        }
        assert!(kept > 0 && dropped > 0, "{kept} kept, {dropped} dropped");
        assert_eq!(kept + dropped, COUNT);
        assert!(messages(&page).contains(&"later"));
        println!("recovered");
    });
}

#[test]
fn kill_9_loses_nothing_that_was_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs.db");
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "logs::tests::crash_child", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut flushed = lines.filter_map(|line| line.split("flushed ").nth(1)?.parse::<i64>().ok());
    let mut last = flushed.by_ref().nth(40).expect("the child died before it was killed");
    child.kill().unwrap();
    last = flushed.last().unwrap_or(last);
    child.wait().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = LogStore::open(&path, LogOptions::default()).unwrap();
        let page = store.get_events("g", "s", head()).await.unwrap();
        let times: Vec<_> = page.events.iter().map(|event| event.timestamp_ms).collect();
        assert!(times.len() as i64 >= last, "{last} flushed, {} there", times.len());
        assert!(times.iter().copied().eq(1..=times.len() as i64), "in order, without gaps");
    });
}

/// Logs and flushes until it is killed.
#[test]
fn crash_child() {
    let Some(path) = env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = LogStore::open(path, LogOptions::default()).unwrap();
        for time in 1.. {
            store.append("g", "s", vec![event(time, "x")]);
            if time % 3 == 0 {
                store.flush().await;
                println!("flushed {time}");
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Pages of any size, of one stream and of all, put together are what was logged, in order.
    #[test]
    fn pages_agree_with_a_model(
        logged in prop::collection::vec((0..3u8, 0..6i64), 0..30),
        limit in 1..7usize,
        start in prop::option::of(0..6i64),
        end in prop::option::of(0..6i64),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let f = fixture();
    let store = &f.store;
            let mut model: BTreeMap<(i64, usize), u8> = BTreeMap::new();
            for (i, (stream, time)) in logged.iter().enumerate() {
                store.append("g", &format!("s{stream}"), vec![event(*time, &i.to_string())]);
                model.insert((*time, i), *stream);
            }
            store.append("g", "s0", vec![event(99, "last")]);
            model.insert((99, usize::MAX), 0);
            let name = |i: usize| if i == usize::MAX { "last".to_owned() } else { i.to_string() };
            let from = |time: i64| start.is_none_or(|start| time >= start);

            let mut seen = Vec::new();
            let mut token = None;
            loop {
                let request = Filter { limit: Some(limit), start_ms: start, end_ms: end, token, ..Filter::default() };
                let page = store.filter_events("g", request).await.unwrap();
                prop_assert!(page.events.len() <= limit);
                seen.extend(found(&page).iter().map(|text| (*text).to_owned()));
                token = page.next_token;
                if token.is_none() {
                    break;
                }
            }
            let within = |time: i64| from(time) && end.is_none_or(|end| time <= end);
            let wanted: Vec<_> = model.keys().filter(|(time, _)| within(*time)).map(|(_, i)| name(*i)).collect();
            prop_assert_eq!(seen, wanted);

            let within = |time: i64| from(time) && end.is_none_or(|end| time < end);
            let of_stream = model.iter().filter(|((time, _), stream)| **stream == 0 && within(*time));
            let wanted: Vec<_> = of_stream.map(|((_, i), _)| name(*i)).collect();
            for start_from_head in [true, false] {
                let mut pages: Vec<Vec<String>> = Vec::new();
                let mut token: Option<String> = None;
                loop {
                    let request = Events {
                        limit: Some(limit), start_ms: start, end_ms: end, start_from_head, token: token.clone(),
                    };
                    let page = store.get_events("g", "s0", request).await.unwrap();
                    let next = if start_from_head { page.next_forward.clone() } else { page.next_backward.clone() };
                    prop_assert_eq!(page.events.is_empty(), token.as_ref() == Some(&next) || (token.is_none() && wanted.is_empty()));
                    if page.events.is_empty() {
                        break;
                    }
                    pages.push(messages(&page).iter().map(|text| (*text).to_owned()).collect());
                    token = Some(next);
                }
                if !start_from_head {
                    pages.reverse();
                }
                prop_assert_eq!(pages.concat(), wanted.clone());
            }
            Ok(())
        })?;
    }
}
