//! How environments end, in every state, and what they leave behind: nothing.

use super::*;
use tokio::sync::Notify;

use crate::testing::{Exit, request};

#[tokio::test]
async fn an_environment_that_is_retired_while_its_sandbox_is_made_runs_nothing() {
    let host = Host::new(patient(), Process::echo);
    host.backend.hold(true);
    let mut observed = Observed::start(&host, host.spec("f"));
    eventually("the sandbox is being made", || host.backend.creating() == 1).await;
    assert_eq!(host.worker.environments().len(), 1);
    observed.environment().retire();
    host.backend.hold(false);
    assert_eq!(observed.notice().await, Notice::Gone { error: None });
    nothing_left(&host).await;
    assert!(host.streams("f").await.is_empty());
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_is_told_of() {
    let host = Host::new(patient(), Process::echo);
    host.backend.fill();
    let mut observed = Observed::start(&host, host.spec("f"));
    assert!(matches!(observed.notice().await, Notice::Gone { error: Some(StartError::NoRoom(_)) }));
    let mut unknown = Observed::start(&host, EnvironmentSpec { runtime: "cobol1.x".to_owned(), ..host.spec("g") });
    assert!(matches!(unknown.notice().await, Notice::Gone { error: Some(StartError::Runtime(_)) }));
    nothing_left(&host).await;
}

#[tokio::test]
async fn an_environment_that_nobody_holds_is_retired() {
    let host = Host::new(patient(), Process::echo);
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    observed.environment = None;
    assert_eq!(observed.notice().await, Notice::Gone { error: None });
    nothing_left(&host).await;
}

#[tokio::test]
async fn an_environment_that_never_asks_for_work_can_be_retired() {
    let host = Host::new(patient(), |process: Process| process.hang());
    let observed = Observed::start(&host, host.spec("f"));
    eventually("it initializes", || host.backend.live() == 1).await;
    observed.retire(&host).await;
}

#[tokio::test]
async fn a_frozen_environment_goes_on_when_it_is_invoked_and_can_be_retired() {
    let host = Host::new(patient(), Process::echo);
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    for payload in ["1", "2"] {
        eventually("it is frozen", || host.backend.frozen() == 1).await;
        assert_eq!(text(&observed.invoke(request("r-1", payload)).await), payload);
    }
    eventually("it is frozen", || host.backend.frozen() == 1).await;
    observed.retire(&host).await;
}

#[tokio::test]
async fn a_runtime_that_dies_while_nobody_needs_it_is_replaced() {
    let (dead, die) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (is_dead, told) = (Arc::clone(&dead), Arc::clone(&die));
    let host = Host::new(Options { freeze_delay: PATIENCE, ..patient() }, move |mut process: Process| {
        let (dead, die) = (Arc::clone(&dead), Arc::clone(&die));
        async move {
            loop {
                let given = tokio::select! {
                    given = process.next() => given?,
                    () = die.notified() => {
                        dead.notify_one();
                        return Ok(Exit::Code(0));
                    }
                };
                process.respond(&given.request_id, &process.start().to_string()).await?;
            }
        }
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    assert_eq!(text(&observed.invoke(request("r-1", "1")).await), "0");
    told.notify_one();
    is_dead.notified().await;
    eventually("it has been heard of", || host.worker.environments()[0].memory_bytes == 0).await;
    assert_eq!(text(&observed.invoke(request("r-2", "1")).await), "1");
    observed.retire(&host).await;
}

#[tokio::test]
async fn a_busy_environment_that_is_retired_answers_and_closes_its_log() {
    let host = Host::new(patient(), |mut process: Process| async move {
        process.next().await?;
        process.hang().await
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    let (reply, answer) = oneshot::channel();
    observed.environment().invoke(request("r-1", "1"), reply);
    let (second, refused) = oneshot::channel();
    observed.environment().invoke(request("r-2", "1"), second);
    assert!(matches!(timeout(PATIENCE, refused).await.unwrap().unwrap(), Err(StartError::Broken(_))));
    observed.environment().retire();
    let reply = timeout(PATIENCE, answer).await.unwrap().unwrap().unwrap();
    assert_eq!(
        text(&reply),
        r#"{"errorMessage":"RequestId: r-1 Error: the server is shutting down","errorType":"Sandbox.Failure"}"#
    );
    assert_eq!(observed.notice().await, Notice::Settling);
    assert_eq!(observed.notice().await, Notice::Gone { error: None });
    nothing_left(&host).await;
    let log = untimed(&host.log("f").await);
    assert_eq!(
        log.last().unwrap(),
        &report_line("r-1", "Init Duration: N.NN ms\tStatus: error\tError Type: Sandbox.Failure\t")
    );
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_thawed_is_discarded_and_the_caller_is_told() {
    let host = Host::new(patient(), Process::echo);
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    eventually("it is frozen", || host.backend.frozen() == 1).await;
    host.backend.break_freezers();
    let error = observed.ask(request("r-1", "1")).await.unwrap_err();
    assert!(matches!(&error, StartError::Broken(text) if text.contains("freezer state")), "{error}");
    assert_eq!(observed.notice().await, Notice::Gone { error: Some(error) });
    nothing_left(&host).await;
    assert_eq!(host.log("f").await.len(), 1, "no START without its END");
}

#[tokio::test]
async fn an_invocation_for_an_environment_that_is_ending_does_not_wait_for_its_end() {
    let host = Host::new(patient(), Process::echo);
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    observed.environment().retire();
    let (reply, answer) = oneshot::channel();
    observed.environment().invoke(request("r-1", "1"), reply);
    // Refused with words or by its channel; in either case at once.
    assert!(!matches!(timeout(PATIENCE, answer).await.unwrap(), Ok(Ok(_))));
    assert_eq!(observed.notice().await, Notice::Gone { error: None });
    nothing_left(&host).await;
}

#[tokio::test]
async fn the_host_waits_for_what_is_ending() {
    let host = Host::new(patient(), Process::echo);
    let observed = Observed::ready(&host, host.spec("f")).await;
    observed.environment().retire();
    host.worker.shutdown(PATIENCE).await;
    assert!(host.worker.environments().is_empty());
    assert_eq!(host.backend.live(), 0);
}
