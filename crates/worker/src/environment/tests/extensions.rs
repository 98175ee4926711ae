//! External extensions: how they start, what they hear and how they end.

use super::*;
use crate::testing::{Exit, request};
use tokio::sync::Notify;

/// An extension that prints every event's type and reason, and ends when it is told to.
async fn attentive(mut process: Process) -> std::io::Result<Exit> {
    let id = process.register(r#""INVOKE","SHUTDOWN""#).await?;
    loop {
        let event: serde_json::Value = serde_json::from_str(&process.event(&id).await?)?;
        let kind = event["eventType"].as_str().unwrap_or_default().to_owned();
        let reason = event["shutdownReason"].as_str().unwrap_or_default();
        process.print(&format!("extension: {kind} {reason}\n")).await?;
        if kind == "SHUTDOWN" {
            return Ok(Exit::Code(0));
        }
    }
}

/// Rings when its process has ended, however that came about.
struct AtEnd(Arc<Notify>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn an_extension_is_started_first_shares_every_invocation_and_is_told_of_the_end() {
    let host = Host::new(patient(), |process: Process| async move {
        match process.name() {
            "watcher" => attentive(process).await,
            _ => process.echo().await,
        }
    });
    let mut observed = Observed::ready(&host, host.spec_with_extensions("f", &["watcher"])).await;
    observed.invoke(request("r-1", "1")).await;
    observed.retire(&host).await;
    let log = untimed(&host.log("f").await);
    assert_eq!(
        log[..6],
        [
            INIT_START,
            "EXTENSION\tName: watcher\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n",
            &start_line("r-1"),
            "extension: INVOKE \n",
            &end_line("r-1"),
            &report_line("r-1", "Init Duration: N.NN ms\t").replace("8 MB\tInit", "16 MB\tInit"),
        ]
    );
    assert_eq!(log[6..], ["extension: SHUTDOWN spindown\n"]);
}

#[tokio::test]
async fn a_timeout_tells_the_extensions_why_and_both_start_again() {
    let host = Host::new(patient(), |mut process: Process| async move {
        match (process.name(), process.start()) {
            ("watcher", _) => attentive(process).await,
            (_, 0) => {
                process.next().await?;
                process.hang().await
            }
            _ => process.echo().await,
        }
    });
    let mut spec = host.spec_with_extensions("f", &["watcher"]);
    spec.timeout = Duration::from_millis(500);
    let mut observed = Observed::ready(&host, spec).await;
    observed.invoke(request("r-1", "1")).await;
    // The second one counts as its own whatever it takes: a machine under load may be slow to initialize.
    observed.invoke(request("r-2", "2")).await;
    let log = host.log("f").await;
    assert!(log.contains(&"extension: SHUTDOWN timeout\n".to_owned()), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.starts_with("EXTENSION\t")).count(), 2, "{log:?}");
    assert_eq!(host.backend.created(), 1);
}

#[tokio::test]
async fn an_extension_that_does_not_ask_to_be_told_is_killed_before_the_others_have_to_go() {
    let gone = Arc::new(Notify::new());
    let host = Host::new(patient(), move |mut process: Process| {
        let gone = Arc::clone(&gone);
        async move {
            match process.name() {
                "deaf" => {
                    let _at_end = AtEnd(gone);
                    let id = process.register(r#""INVOKE""#).await?;
                    loop {
                        process.event(&id).await?;
                    }
                }
                "watcher" => {
                    let id = process.register(r#""SHUTDOWN""#).await?;
                    process.event(&id).await?;
                    gone.notified().await;
                    process.print("the deaf one is gone\n").await?;
                    Ok(Exit::Code(0))
                }
                _ => process.echo().await,
            }
        }
    });
    let observed = Observed::ready(&host, host.spec_with_extensions("f", &["deaf", "watcher"])).await;
    observed.retire(&host).await;
    assert_eq!(host.log("f").await.last().unwrap(), "the deaf one is gone\n");
}

#[tokio::test]
async fn a_runtime_that_ignores_sigterm_is_killed_before_the_extensions_are_told() {
    let gone = Arc::new(Notify::new());
    let host = Host::new(patient(), move |mut process: Process| {
        let gone = Arc::clone(&gone);
        async move {
            match process.name() {
                "watcher" => {
                    let id = process.register(r#""SHUTDOWN""#).await?;
                    process.event(&id).await?;
                    gone.notified().await;
                    process.print("the runtime is gone\n").await?;
                    Ok(Exit::Code(0))
                }
                _ => {
                    let _at_end = AtEnd(gone);
                    process.ignore_terminate();
                    process.echo().await
                }
            }
        }
    });
    let observed = Observed::ready(&host, host.spec_with_extensions("f", &["watcher"])).await;
    observed.retire(&host).await;
    assert_eq!(host.log("f").await.last().unwrap(), "the runtime is gone\n");
}

#[tokio::test]
async fn an_extension_that_never_ends_is_killed_when_its_time_is_over() {
    let host = Host::new(patient(), |mut process: Process| async move {
        match process.name() {
            "stubborn" => {
                process.ignore_terminate();
                let id = process.register(r#""SHUTDOWN""#).await?;
                process.event(&id).await?;
                process.hang().await
            }
            _ => process.echo().await,
        }
    });
    let observed = Observed::ready(&host, host.spec_with_extensions("f", &["stubborn"])).await;
    observed.retire(&host).await;
}

#[tokio::test]
async fn an_extension_that_crashes_fails_the_initialization_and_then_the_invocation() {
    let host = Host::new(patient(), |mut process: Process| async move {
        match process.name() {
            "broken" => {
                process.register(r#""INVOKE""#).await?;
                Ok(Exit::Code(4))
            }
            // Does not come to `next`, so that the crash is what ends the initialization.
            _ => process.hang().await,
        }
    });
    let mut observed = Observed::start(&host, host.spec_with_extensions("f", &["broken"]));
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    let reply = observed.invoke(request("r-1", "1")).await;
    assert_eq!(
        (text(&reply), reply.function_error),
        (r#"{"errorMessage":"RequestId: r-1 Error: exit status 4","errorType":"Extension.Crash"}"#, true)
    );
    let log = untimed(&host.log("f").await);
    assert_eq!(
        log[..3],
        [
            INIT_START,
            "EXTENSION\tName: broken\tState: Registered\tEvents: [INVOKE]\n",
            "INIT_REPORT Init Duration: N.NN ms\tPhase: init\tStatus: error\tError Type: Extension.Crash\n",
        ]
    );
}

#[tokio::test]
async fn an_extension_that_cannot_start_or_says_so_itself_is_on_record() {
    let host = Host::new(patient(), |mut process: Process| async move {
        match process.name() {
            "sorry" => {
                let id = process.register(r#""INVOKE""#).await?;
                process.extension_init_error(&id, "Extension.NoKey").await?;
                Ok(Exit::Code(1))
            }
            _ => process.hang().await,
        }
    });
    for (name, extension, line, error_type) in [
        (
            "f",
            "absent",
            "EXTENSION\tName: absent\tState: LaunchError\tEvents: []\tError Type: Extension.LaunchError\n",
            "Extension.LaunchError",
        ),
        (
            "g",
            "sorry",
            "EXTENSION\tName: sorry\tState: InitError\tEvents: [INVOKE]\tError Type: Extension.NoKey\n",
            "Extension.InitError",
        ),
    ] {
        let mut observed = Observed::start(&host, host.spec_with_extensions(name, &[extension]));
        assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
        let log = untimed(&host.log(name).await);
        let report =
            format!("INIT_REPORT Init Duration: N.NN ms\tPhase: init\tStatus: error\tError Type: {error_type}\n");
        assert_eq!(log, [INIT_START, line, &report]);
    }
}

#[tokio::test]
async fn more_extensions_than_there_may_be_fail_the_initialization() {
    let host = Host::new(patient(), Process::echo);
    let names: Vec<String> = (0..11).map(|number| format!("e{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut observed = Observed::start(&host, host.spec_with_extensions("f", &names));
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    let reply = observed.invoke(request("r-1", "1")).await;
    assert!(text(&reply).contains("Extension.LaunchError") && text(&reply).contains("at most 10"), "{}", text(&reply));
}
