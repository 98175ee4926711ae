//! Versions with SnapStart: initialized once, kept, and gone on from, with what makes each environment its own.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::{Exit, request};
use crate::{RestoreFailure, SnapshotFailure, SnapshotName};

const VERSION_LINE: &str =
    "Runtime Version: provided:al2023.v1\tRuntime Version ARN: arn:aws:lambda:us-east-1::runtime:0af1\n";

fn versioned(host: &Host, name: &str) -> EnvironmentSpec {
    EnvironmentSpec {
        version: "1".to_owned(),
        snap_start: Some(SnapshotName::new(format!("{name}-1"))),
        ..host.spec(name)
    }
}

/// Counts its initializations; says what it does; answers with its credentials and variables.
async fn with_hooks(mut process: Process, initialized: Arc<AtomicUsize>) -> std::io::Result<Exit> {
    if !process.is_clone() {
        initialized.fetch_add(1, Ordering::SeqCst);
    }
    process.print("initialized\n").await?;
    assert_eq!(process.restore_next().await?, 200);
    process.print("restored\n").await?;
    loop {
        let given = process.next().await?;
        let kind = process.env("AWS_LAMBDA_INITIALIZATION_TYPE").unwrap_or_default().to_owned();
        let keys = process.env("AWS_ACCESS_KEY_ID").is_some();
        let credentials = process.credentials().await?;
        let answer = format!(r#"{{"kind":"{kind}","keys":{keys},"credentials":{credentials}}}"#);
        process.respond(&given.request_id, &answer).await?;
    }
}

/// One that is initialized at each start, whatever it was asked to leave when it was published: answers whether it has keys.
async fn initialized_each_time(mut process: Process, initialized: Arc<AtomicUsize>) -> std::io::Result<Exit> {
    initialized.fetch_add(1, Ordering::SeqCst);
    if process.env("AWS_LAMBDA_INITIALIZATION_TYPE") == Some("snap-start") {
        process.restore_next().await?;
    }
    let given = process.next().await?;
    let keys = process.env("AWS_ACCESS_KEY_ID").is_some();
    process.respond(&given.request_id, &keys.to_string()).await?;
    process.hang().await
}

fn host_with_hooks() -> (Host, Arc<AtomicUsize>) {
    let initialized = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&initialized);
    (Host::with_snapshots(patient(), move |process| with_hooks(process, Arc::clone(&count))), initialized)
}

async fn published(host: &Host, spec: &EnvironmentSpec) -> Result<bool, SnapshotFailure> {
    timeout(PATIENCE, host.worker.take_snapshot(&Arc::new(spec.clone()))).await.expect("a snapshot in time")
}

#[tokio::test]
async fn a_version_is_initialized_once_and_its_environments_go_on_from_there() {
    let (host, initialized) = host_with_hooks();
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    nothing_left(&host).await;
    let log = untimed(&host.log("f").await);
    let init_start = format!("INIT_START {VERSION_LINE}");
    assert_eq!(log, [&init_start, "initialized\n", "INIT_REPORT Init Duration: N.NN ms\tPhase: snap-start\n"]);

    let mut seen = Vec::new();
    for id in ["r-1", "r-2"] {
        let mut observed = Observed::ready(&host, spec.clone()).await;
        let answer: serde_json::Value =
            serde_json::from_slice(&observed.invoke(request(id, "1")).await.payload).unwrap();
        assert_eq!((answer["kind"].as_str(), answer["keys"].as_bool()), (Some("snap-start"), Some(false)));
        seen.push(answer["credentials"]["AccessKeyId"].as_str().expect("credentials").to_owned());
        observed.invoke(request("r-3", "1")).await;
        observed.retire(&host).await;
    }
    assert_eq!(initialized.load(Ordering::SeqCst), 1);
    assert_eq!(host.worker.cold_starts().len(), 2, "those of invocations");
    assert_ne!(seen[0], seen[1], "each environment has credentials of its own");

    let streams = host.streams("f").await;
    assert_eq!(streams.len(), 3, "a log stream of its own for each environment");
    for stream in streams.iter().filter(|stream| stream[0].starts_with("RESTORE_START")) {
        let log = untimed(stream);
        assert_eq!(log[0], format!("RESTORE_START {VERSION_LINE}"));
        assert_eq!(log[1..3], ["restored\n", "RESTORE_REPORT Restore Duration: N.NN ms\n"]);
        assert!(log[3].starts_with("START RequestId: r-"), "{log:?}");
        assert!(log[5].contains("\tRestore Duration: N.NN ms\tBilled Restore Duration: "), "{log:?}");
        assert!(log[8].ends_with("Max Memory Used: 8 MB\t\n"), "only the first invocation reports it: {log:?}");
    }
}

#[tokio::test]
async fn a_runtime_without_hooks_goes_on_from_its_first_next() {
    let host = Host::with_snapshots(patient(), Process::echo);
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    let mut observed = Observed::ready(&host, spec).await;
    assert_eq!(text(&observed.invoke(request("r-1", "7")).await), "7");
    observed.retire(&host).await;
}

#[tokio::test]
async fn extensions_go_on_with_their_runtime() {
    let host = Host::with_snapshots(patient(), |mut process: Process| async move {
        if process.name() == "bootstrap" {
            process.restore_next().await?;
            return process.echo().await;
        }
        let id = process.register(r#""INVOKE","SHUTDOWN""#).await?;
        loop {
            let event = process.event(&id).await?;
            let kind = if event.contains("SHUTDOWN") { "shutdown" } else { "invoke" };
            process.print(&format!("told of {kind}\n")).await?;
            if kind == "shutdown" {
                return Ok(Exit::Code(0));
            }
        }
    });
    let spec = EnvironmentSpec { layers: host.spec_with_extensions("f", &["watcher"]).layers, ..versioned(&host, "f") };
    assert_eq!(published(&host, &spec).await, Ok(true));
    let mut observed = Observed::ready(&host, spec).await;
    assert_eq!(text(&observed.invoke(request("r-1", "7")).await), "7");
    observed.retire(&host).await;
    let streams = host.streams("f").await;
    let restored = streams.iter().find(|stream| stream[0].starts_with("RESTORE_START")).expect("a restored one");
    let told: Vec<_> = restored.iter().filter(|line| line.starts_with("told")).map(|line| line.trim_end()).collect();
    assert_eq!(told, ["told of invoke", "told of shutdown"]);
}

#[tokio::test]
async fn a_version_that_cannot_be_initialized_says_why() {
    let host = Host::with_snapshots(patient(), |mut process: Process| async move {
        let body = r#"{"errorMessage":"No module named 'x'","errorType":"Runtime.ImportModuleError"}"#;
        process.init_error("Runtime.ImportModuleError", body).await?;
        Ok(Exit::Code(1))
    });
    let failure = published(&host, &versioned(&host, "f")).await.unwrap_err();
    let expected = SnapshotFailure::Initialization {
        error_type: "Runtime.ImportModuleError".to_owned(),
        message: "No module named 'x'".to_owned(),
    };
    assert_eq!(failure, expected);
    nothing_left(&host).await;
    let log = untimed(&host.log("f").await);
    let report = "INIT_REPORT Init Duration: N.NN ms\tPhase: snap-start\tStatus: error\tError Type: \
                  Runtime.ImportModuleError\n";
    assert_eq!(log.last().unwrap(), report);
    assert!(host.backend.saved().names().is_empty());
}

#[tokio::test]
async fn an_initialization_for_a_snapshot_has_minutes_and_not_more() {
    let options = Options { provisioned_init_timeout: Duration::from_millis(200), ..quick() };
    let host = Host::with_snapshots(options, |process: Process| process.hang());
    let failure = published(&host, &versioned(&host, "f")).await.unwrap_err();
    assert!(matches!(&failure, SnapshotFailure::Initialization { error_type, .. } if error_type == "Sandbox.Timedout"));
    nothing_left(&host).await;
}

#[tokio::test]
async fn a_hook_that_fails_is_the_callers_answer_and_the_environments_end() {
    let host = Host::with_snapshots(patient(), |mut process: Process| async move {
        process.restore_next().await?;
        let body = r#"{"errorMessage":"no database","errorType":"Runtime.AfterRestoreError"}"#;
        process.restore_error("Runtime.AfterRestoreError", body).await?;
        process.hang().await
    });
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    let mut observed = Observed::start(&host, spec);
    let Notice::Gone { error: Some(StartError::Restore(RestoreFailure::Hook(failure))) } = observed.notice().await
    else {
        panic!("not a failed hook");
    };
    assert_eq!(failure.error_type, "Runtime.AfterRestoreError");
    nothing_left(&host).await;
    let streams = host.streams("f").await;
    let restored = streams.iter().find(|stream| stream[0].starts_with("RESTORE_START")).expect("a restored one");
    let report = "RESTORE_REPORT Restore Duration: N.NN ms\tStatus: error\tError Type: Runtime.AfterRestoreError\n";
    assert_eq!(untimed(restored)[1], report);
}

#[tokio::test]
async fn hooks_that_take_too_long_are_ended() {
    let options = Options { restore_timeout: Duration::from_millis(100), ..patient() };
    let host = Host::with_snapshots(options, |mut process: Process| async move {
        process.restore_next().await?;
        process.hang().await
    });
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    let mut observed = Observed::start(&host, spec);
    let notice = observed.notice().await;
    let timed_out = matches!(&notice, Notice::Gone { error: Some(StartError::Restore(RestoreFailure::Timeout(limit))) } if *limit >= Duration::from_millis(100));
    assert!(timed_out, "{notice:?}");
    nothing_left(&host).await;
    let streams = host.streams("f").await;
    let restored = streams.iter().find(|stream| stream[0].starts_with("RESTORE_START")).expect("a restored one");
    assert_eq!(untimed(restored)[1], "RESTORE_REPORT Restore Duration: N.NN ms\tStatus: timeout\n");
}

#[tokio::test]
async fn an_environment_that_breaks_is_not_initialized_again_but_followed_by_another_restored_one() {
    let host = Host::with_snapshots(patient(), |mut process: Process| async move {
        process.restore_next().await?;
        let given = process.next().await?;
        if given.payload == "1" {
            return Ok(Exit::Code(3));
        }
        process.respond(&given.request_id, &given.payload).await?;
        process.hang().await
    });
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    let mut observed = Observed::ready(&host, spec.clone()).await;
    let answer = observed.ask(request("r-1", "1")).await.unwrap();
    assert!(answer.function_error && text(&answer).contains("exit status 3"), "{}", text(&answer));
    assert_eq!(observed.notice().await, Notice::Settling);
    assert_eq!(observed.notice().await, Notice::Gone { error: None });
    let mut observed = Observed::ready(&host, spec).await;
    assert_eq!(text(&observed.ask(request("r-2", "2")).await.unwrap()), "2");
    drop(observed);
    nothing_left(&host).await;
    assert_eq!(host.backend.created(), 3);
}

#[tokio::test]
async fn what_is_kept_outlives_the_server_and_is_made_again_where_it_is_of_no_use() {
    let (mut host, initialized) = host_with_hooks();
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    host.restart();
    Observed::ready(&host, spec.clone()).await.retire(&host).await;
    assert_eq!(initialized.load(Ordering::SeqCst), 1);

    host.restart();
    host.backend.saved().damage();
    let mut observed = Observed::start(&host, spec.clone());
    assert_eq!(observed.notice().await, Notice::Gone { error: Some(StartError::SnapshotNotReady) });
    eventually("it is made again", || host.backend.saved().names() == ["f-1"] && host.backend.live() == 0).await;
    assert_eq!(initialized.load(Ordering::SeqCst), 2);
    loop {
        let mut observed = Observed::start(&host, spec.clone());
        match observed.notice().await {
            Notice::Ready { initialized: true } => break observed.retire(&host).await,
            // On the disk already, and in the table the next moment.
            notice => assert_eq!(notice, Notice::Gone { error: Some(StartError::SnapshotNotReady) }),
        }
    }
    assert_eq!(initialized.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_snapshot_of_another_interpreter_is_made_again() {
    let (mut host, initialized) = host_with_hooks();
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    host.restart();
    host.backend.saved().age();
    let mut observed = Observed::start(&host, spec.clone());
    assert_eq!(observed.notice().await, Notice::Gone { error: Some(StartError::SnapshotNotReady) });
    eventually("it is initialized again", || initialized.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_made_again_says_so_and_is_tried_once_more() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let mut host = Host::with_snapshots(patient(), move |mut process: Process| {
        let broken = Arc::clone(&is_broken);
        async move {
            if broken.load(Ordering::SeqCst) {
                return Ok(Exit::Code(9));
            }
            process.restore_next().await?;
            process.echo().await
        }
    });
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    host.restart();
    host.backend.saved().damage();
    broken.store(true, Ordering::SeqCst);
    let mut lost = None;
    while lost.is_none() {
        let mut observed = Observed::start(&host, spec.clone());
        match observed.notice().await {
            Notice::Gone { error: Some(StartError::SnapshotNotReady) } => tokio::task::yield_now().await,
            Notice::Gone { error: Some(StartError::SnapshotLost(reason)) } => lost = Some(reason),
            other => panic!("{other:?}"),
        }
        broken.store(lost.is_none(), Ordering::SeqCst);
    }
    assert!(lost.as_ref().unwrap().contains("exit status 9"), "{lost:?}");
    // Whoever was told so has it made again.
    loop {
        let mut observed = Observed::start(&host, spec.clone());
        match observed.notice().await {
            Notice::Ready { initialized: true } => break observed.retire(&host).await,
            notice => assert_eq!(notice, Notice::Gone { error: Some(StartError::SnapshotNotReady) }),
        }
    }
}

#[tokio::test]
async fn a_version_that_is_no_more_leaves_nothing() {
    let (host, _) = host_with_hooks();
    for name in ["f", "g", "h"] {
        assert_eq!(published(&host, &versioned(&host, name)).await, Ok(true));
    }
    assert_eq!(host.backend.saved().names(), ["f-1", "g-1", "h-1"]);
    host.worker.forget_snapshot(&SnapshotName::new("f-1".to_owned())).await;
    assert_eq!(host.backend.saved().names(), ["g-1", "h-1"]);
    let specs = ["h", "i"].map(|name| Arc::new(versioned(&host, name)));
    let kept = host.worker.retain_snapshots(&specs).await;
    assert_eq!(kept, [SnapshotName::new("h-1".to_owned())]);
    assert_eq!(host.backend.saved().names(), ["h-1"]);
    // Nor is one of use that was made of another interpreter than there is now, or that is damaged.
    host.backend.saved().age();
    assert_eq!(host.worker.retain_snapshots(&specs).await, []);
    assert_eq!(host.backend.saved().names(), Vec::<String>::new());
    assert_eq!(published(&host, &specs[0]).await, Ok(true));
    host.backend.saved().damage();
    assert_eq!(host.worker.retain_snapshots(&specs).await, []);
    assert_eq!(host.backend.saved().names(), Vec::<String>::new());
    nothing_left(&host).await;
}

#[tokio::test]
async fn a_version_that_is_deleted_while_it_is_initialized_is_not_kept() {
    let host = Host::with_snapshots(patient(), Process::echo);
    host.backend.hold(true);
    let spec = Arc::new(versioned(&host, "f"));
    let (worker, taken) = (host.worker.clone(), Arc::clone(&spec));
    let taking = tokio::spawn(async move { worker.take_snapshot(&taken).await });
    eventually("it is being made", || host.backend.creating() == 1).await;
    host.worker.forget_snapshot(spec.snap_start.as_ref().unwrap()).await;
    host.backend.hold(false);
    assert_eq!(timeout(PATIENCE, taking).await.unwrap().unwrap(), Err(SnapshotFailure::Forgotten));
    assert!(host.backend.saved().names().is_empty());
    nothing_left(&host).await;
}

#[tokio::test]
async fn without_snapshots_a_version_is_tried_and_then_initialized_each_time() {
    let initialized = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&initialized);
    let host = Host::new(patient(), move |process| initialized_each_time(process, Arc::clone(&count)));
    assert!(!host.worker.has_snapshots());
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(false));
    let mut observed = Observed::ready(&host, spec.clone()).await;
    assert_eq!(text(&observed.ask(request("r-1", "1")).await.unwrap()), "true");
    drop(observed);
    nothing_left(&host).await;
    assert_eq!(initialized.load(Ordering::SeqCst), 2);

    let broken = Host::new(patient(), |_: Process| async { Ok(Exit::Code(4)) });
    let failure = published(&broken, &versioned(&broken, "f")).await.unwrap_err();
    assert!(failure.to_string().contains("exit status 4"), "{failure}");
}

#[tokio::test]
async fn where_nothing_goes_on_from_a_snapshot_environments_are_initialized_instead() {
    let initialized = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&initialized);
    let host = Host::with_snapshots(patient(), move |process| initialized_each_time(process, Arc::clone(&count)));
    let spec = versioned(&host, "f");
    assert_eq!(published(&host, &spec).await, Ok(true));
    host.backend.saved().refuse();
    for start in 2..=3 {
        let mut observed = Observed::ready(&host, spec.clone()).await;
        assert_eq!(text(&observed.ask(request("r-1", "1")).await.unwrap()), "true");
        assert_eq!(initialized.load(Ordering::SeqCst), start);
    }
    // The second did not try.
    assert_eq!(host.backend.saved().failed_restores(), 1);
    nothing_left(&host).await;
}

#[tokio::test]
async fn a_version_that_cannot_be_kept_is_initialized_at_each_start() {
    let initialized = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&initialized);
    let host = Host::with_snapshots(patient(), move |process| initialized_each_time(process, Arc::clone(&count)));
    host.backend.saved().refuse();
    let spec = versioned(&host, "f");
    // Before it was tried, as after a restart, nobody waits either.
    let mut early = Observed::ready(&host, spec.clone()).await;
    assert_eq!(text(&early.ask(request("r-0", "0")).await.unwrap()), "true");
    drop(early);
    assert_eq!(published(&host, &spec).await, Ok(false));
    let mut observed = Observed::ready(&host, spec.clone()).await;
    assert_eq!(text(&observed.ask(request("r-1", "1")).await.unwrap()), "true");
    drop(observed);
    nothing_left(&host).await;
    assert_eq!((initialized.load(Ordering::SeqCst), host.backend.saved().names().len()), (3, 0));
}
