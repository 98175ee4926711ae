//! Invocations: answers, logs, failures and what follows them.

use telemetry::logs::Followed;

use super::*;
use crate::LogFormat;
use crate::testing::{Exit, request};

fn tailed(id: &str, payload: &str) -> InvokeRequest {
    InvokeRequest { tail: true, ..request(id, payload) }
}

#[tokio::test]
async fn the_log_of_two_invocations_is_lambdas_to_the_letter() {
    let host = Host::new(patient(), |mut process: Process| async move {
        process.print("loading\n").await?;
        loop {
            let given = process.next().await?;
            process.print(&format!("got {}\n", given.payload)).await?;
            process.print_error("half a line").await?;
            process.respond(&given.request_id, "{}").await?;
        }
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    let reply = observed.invoke(request("r-1", "1")).await;
    assert_eq!((text(&reply), reply.function_error, &reply.log_tail), ("{}", false, &None));
    let tail = observed.invoke(tailed("r-2", "2")).await.log_tail.unwrap();
    observed.retire(&host).await;
    let log = host.log("f").await;
    assert_eq!(
        untimed(&log),
        [
            INIT_START,
            "loading\n",
            &start_line("r-1"),
            "got 1\n",
            "half a line",
            &end_line("r-1"),
            &report_line("r-1", "Init Duration: N.NN ms\t"),
            &start_line("r-2"),
            "got 2\n",
            "half a line",
            &end_line("r-2"),
            &report_line("r-2", ""),
        ]
    );
    assert_eq!(String::from_utf8(tail).unwrap(), log[7..].concat());
}

#[tokio::test]
async fn a_tail_is_the_last_4_kib() {
    let host = Host::new(patient(), |mut process: Process| async move {
        loop {
            let given = process.next().await?;
            process.print(&format!("{}\n", "x".repeat(100)).repeat(100)).await?;
            process.respond(&given.request_id, "1").await?;
        }
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    let tail = String::from_utf8(observed.invoke(tailed("r-1", "1")).await.log_tail.unwrap()).unwrap();
    assert_eq!(tail.len(), 4096);
    assert!(!tail.contains("START") && tail.contains("END RequestId: r-1\nREPORT RequestId: r-1\t"), "{tail}");
}

#[tokio::test]
async fn the_json_format_has_the_platforms_records_at_their_levels() {
    let host = Host::new(patient(), Process::echo);
    let mut logs = Vec::new();
    for (name, level) in [("info", None), ("debug", Some("DEBUG")), ("warn", Some("WARN"))] {
        let mut spec = host.spec(name);
        spec.logging.format = LogFormat::Json;
        spec.logging.system_level = level.map(str::to_owned);
        let mut observed = Observed::ready(&host, spec).await;
        observed.invoke(request("r-1", "\"four\"")).await;
        observed.retire(&host).await;
        let streams = host.streams(name).await;
        let log: Vec<serde_json::Value> =
            streams.concat().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        logs.push(log);
    }
    let kinds = |log: &[serde_json::Value]| -> Vec<String> {
        log.iter().map(|line| line["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds(&logs[0]), ["platform.initStart", "platform.start", "platform.report"]);
    assert_eq!(
        kinds(&logs[1]),
        [
            "platform.initStart",
            "platform.initRuntimeDone",
            "platform.initReport",
            "platform.start",
            "platform.runtimeDone",
            "platform.report"
        ]
    );
    assert!(logs[2].is_empty());
    let (init, done, report) = (&logs[1][2]["record"], &logs[1][4]["record"], &logs[1][5]["record"]);
    assert_eq!((&init["phase"], &init["status"]), (&"init".into(), &"success".into()));
    assert_eq!(done["metrics"]["producedBytes"], 6);
    assert_eq!((&report["requestId"], &report["status"]), (&"r-1".into(), &"success".into()));
    assert_eq!(report["metrics"]["initDurationMs"], init["metrics"]["durationMs"]);
}

#[tokio::test]
async fn an_error_of_the_function_is_an_answer() {
    let host = Host::new(patient(), |mut process: Process| async move {
        loop {
            let given = process.next().await?;
            process.fail(&given.request_id, "Function.Oops", r#"{"errorType":"Oops"}"#).await?;
        }
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    let reply = observed.invoke(request("r-1", "1")).await;
    assert_eq!((text(&reply), reply.function_error), (r#"{"errorType":"Oops"}"#, true));
}

#[tokio::test]
async fn a_response_that_is_too_large_fails_alone() {
    let host = Host::new(patient(), |mut process: Process| async move {
        loop {
            let given = process.next().await?;
            let size: usize = given.payload.parse().unwrap();
            process.respond(&given.request_id, &"x".repeat(size)).await?;
        }
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    let reply = observed.invoke(request("r-1", "6291557")).await;
    assert!(reply.function_error);
    assert_eq!(
        text(&reply),
        r#"{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}"#
    );
    assert_eq!(observed.invoke(request("r-2", "6291556")).await.payload.len(), 6_291_556);
    let log = untimed(&host.log("f").await);
    assert_eq!(
        log[3],
        report_line("r-1", "Init Duration: N.NN ms\tStatus: error\tError Type: Function.ResponseSizeTooLarge\t")
    );
    assert_eq!(host.backend.created(), 1);
}

#[tokio::test]
async fn a_timeout_ends_the_processes_and_the_next_invocation_initializes_again_in_the_same_sandbox() {
    let host = Host::new(patient(), |mut process: Process| async move {
        let start = process.start();
        let given = process.next().await?;
        if start == 0 {
            return process.hang().await;
        }
        process.respond(&given.request_id, &start.to_string()).await?;
        process.hang().await
    });
    let mut spec = host.spec("f");
    spec.timeout = Duration::from_secs(1);
    let mut observed = Observed::ready(&host, spec).await;
    let reply = observed.invoke(request("r-1", "1")).await;
    assert!(reply.function_error);
    assert_eq!(
        text(&reply),
        r#"{"errorMessage":"RequestId: r-1 Error: Task timed out after 1.00 seconds","errorType":"Sandbox.Timedout"}"#
    );
    assert_eq!(host.worker.environments()[0].memory_bytes, 0, "nothing runs in it");
    // Answers, but never asks for more.
    let reply = observed.ask(request("r-2", "1")).await.unwrap();
    assert_eq!((text(&reply), reply.function_error), ("1", false));
    assert_eq!(observed.notice().await, Notice::Settling);
    assert_eq!(observed.notice().await, Notice::Idle);
    assert_eq!(host.backend.created(), 1);
    let log = host.log("f").await;
    assert!(log[3].starts_with("REPORT RequestId: r-1\tDuration: 1000.00 ms\t"), "{}", log[3]);
    assert!(log[3].ends_with("Status: timeout\t\n"), "{}", log[3]);
    assert_eq!(untimed(&log)[4..], [start_line("r-2"), end_line("r-2"), report_line("r-2", "Status: timeout\t")]);
}

#[tokio::test]
async fn what_is_heard_late_of_a_killed_runtime_does_not_touch_the_next_one() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let answer = Arc::clone(&gate);
    let host = Host::new(patient(), move |mut process: Process| {
        let answer = Arc::clone(&answer);
        async move {
            let given = process.next().await?;
            if process.start() == 0 {
                return process.hang().await;
            }
            process.print("at work\n").await?;
            answer.acquire().await.expect("never closed").forget();
            process.respond(&given.request_id, "1").await?;
            process.echo().await
        }
    });
    let mut spec = host.spec("f");
    spec.timeout = Duration::from_secs(1);
    let mut observed = Observed::ready(&host, spec).await;
    host.backend.hold_exits(true);
    assert!(text(&observed.invoke(request("r-1", "1")).await).contains("timed out"));
    let mut said = host.logs.follow("/aws/lambda/f");
    let (reply, answered) = oneshot::channel();
    observed.environment().invoke(request("r-2", "1"), reply);
    let at_work = |said: Followed| matches!(said, Followed::Event { event, .. } if event.message == "at work\n");
    while !at_work(timeout(PATIENCE, said.next()).await.unwrap().unwrap()) {}
    host.backend.hold_exits(false);
    // Everything that is ready to run does so before this task goes on.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    let reply = timeout(PATIENCE, answered).await.unwrap().unwrap().unwrap();
    assert_eq!((text(&reply), reply.function_error), ("1", false));
}

#[tokio::test]
async fn a_crash_is_the_answer_and_the_next_invocation_initializes_again() {
    let host = Host::new(patient(), |mut process: Process| async move {
        let start = process.start();
        loop {
            let given = process.next().await?;
            match given.payload.as_str() {
                "exit" => return Ok(Exit::Code(3)),
                "quit" => return Ok(Exit::Code(0)),
                "kill" => return Ok(Exit::Signal(9)),
                _ => process.respond(&given.request_id, &start.to_string()).await?,
            };
        }
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    for (start, payload, message) in [
        (1, "exit", "Runtime exited with error: exit status 3"),
        (2, "quit", "Runtime exited without providing a reason"),
        (3, "kill", "Runtime exited with error: signal: killed"),
    ] {
        let reply = observed.invoke(request("r-1", payload)).await;
        let expected =
            format!(r#"{{"errorMessage":"RequestId: r-1 Error: {message}","errorType":"Runtime.ExitError"}}"#);
        assert_eq!((text(&reply), reply.function_error), (expected.as_str(), true));
        assert_eq!(text(&observed.invoke(request("r-2", "go")).await), start.to_string());
    }
    let log = untimed(&host.log("f").await);
    let crashed = report_line("r-1", "Init Duration: N.NN ms\tStatus: error\tError Type: Runtime.ExitError\t");
    assert_eq!(log[3], crashed);
    // The initialization inside the invocation is in its duration.
    assert_eq!(log[6], report_line("r-2", ""));
}

#[tokio::test]
async fn a_runtime_that_answers_and_ends_has_answered() {
    let host = Host::new(patient(), |mut process: Process| async move {
        let given = process.next().await?;
        process.respond(&given.request_id, &process.start().to_string()).await?;
        Ok(Exit::Code(0))
    });
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    for start in ["0", "1", "2"] {
        let reply = observed.invoke(request("r-1", "1")).await;
        assert_eq!((text(&reply), reply.function_error), (start, false));
    }
}

#[tokio::test]
async fn an_initialization_that_fails_is_done_again_inside_the_invocation() {
    let host = Host::new(patient(), |process: Process| async move {
        match process.start() {
            0 => Ok(Exit::Code(1)),
            _ => process.echo().await,
        }
    });
    let mut observed = Observed::start(&host, host.spec("f"));
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    assert!(host.worker.cold_starts().is_empty(), "nothing has started yet");
    assert_eq!(text(&observed.invoke(request("r-1", "7")).await), "7");
    assert_eq!(
        untimed(&host.log("f").await),
        [
            INIT_START,
            "INIT_REPORT Init Duration: N.NN ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError\n",
            &start_line("r-1"),
            &end_line("r-1"),
            &report_line("r-1", ""),
        ]
    );
}

#[tokio::test]
async fn what_the_runtime_posts_as_its_init_error_is_what_the_caller_reads() {
    let posted = r#"{"errorMessage":"no module","errorType":"Runtime.ImportModuleError"}"#;
    let host = Host::new(patient(), move |mut process: Process| async move {
        process.init_error("Runtime.ImportModuleError", posted).await?;
        Ok(Exit::Code(1))
    });
    let mut observed = Observed::start(&host, host.spec("f"));
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    let reply = observed.invoke(request("r-1", "1")).await;
    assert_eq!((text(&reply), reply.function_error), (posted, true));
    let failed = |phase: &str| {
        format!(
            "INIT_REPORT Init Duration: N.NN ms\tPhase: {phase}\tStatus: error\tError Type: Runtime.ImportModuleError\n"
        )
    };
    assert_eq!(
        untimed(&host.log("f").await),
        [
            INIT_START.to_owned(),
            failed("init"),
            start_line("r-1"),
            failed("invoke"),
            end_line("r-1"),
            report_line("r-1", "Status: error\tError Type: Runtime.ImportModuleError\t"),
        ]
    );
}

#[tokio::test]
async fn an_initialization_that_takes_too_long_is_given_up_and_runs_again_under_the_functions_timeout() {
    let host = Host::new(quick(), |process: Process| process.hang());
    let mut spec = host.spec("f");
    spec.timeout = Duration::from_millis(100);
    let mut observed = Observed::start(&host, spec);
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    let reply = observed.invoke(request("r-1", "1")).await;
    assert!(text(&reply).contains("Task timed out after 0.10 seconds"), "{}", text(&reply));
    assert_eq!(
        untimed(&host.log("f").await),
        [
            INIT_START,
            "INIT_REPORT Init Duration: N.NN ms\tPhase: init\tStatus: timeout\n",
            &start_line("r-1"),
            "INIT_REPORT Init Duration: N.NN ms\tPhase: invoke\tStatus: timeout\n",
            &end_line("r-1"),
            &report_line("r-1", "Status: timeout\t"),
        ]
    );
}

#[tokio::test]
async fn a_provisioned_environment_reports_its_initialization_and_knows_what_it_is() {
    let host = Host::new(patient(), |mut process: Process| async move {
        let kind = process.env("AWS_LAMBDA_INITIALIZATION_TYPE").unwrap_or_default().to_owned();
        process.print(&format!("{kind}\n")).await?;
        process.echo().await
    });
    let mut observed = Observed::start_as(&host, host.spec("f"), InitType::Provisioned);
    assert_eq!(observed.notice().await, Notice::Ready { initialized: true });
    assert_eq!(
        untimed(&host.log("f").await),
        [INIT_START, "provisioned-concurrency\n", "INIT_REPORT Init Duration: N.NN ms\tPhase: init\n"]
    );
}

#[tokio::test]
async fn a_function_that_floods_its_output_delays_neither_its_timeout_nor_its_end() {
    let host = Host::new(patient(), |mut process: Process| async move {
        process.next().await?;
        let line = format!("{}\n", "y".repeat(1_000));
        loop {
            process.print(&line).await?;
        }
    });
    let mut spec = host.spec("f");
    spec.timeout = Duration::from_millis(100);
    let mut observed = Observed::ready(&host, spec).await;
    assert!(text(&observed.invoke(request("r-1", "1")).await).contains("Task timed out after 0.10 seconds"));
    observed.retire(&host).await;
}

#[tokio::test]
async fn a_function_without_a_bootstrap_is_told_so() {
    let host = Host::new(patient(), Process::echo);
    let spec = EnvironmentSpec { code: host.spec_with_extensions("f", &["a"]).layers.remove(0), ..host.spec("f") };
    let mut observed = Observed::start(&host, spec);
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    assert_eq!(
        text(&observed.invoke(request("r-1", "1")).await),
        r#"{"errorMessage":"RequestId: r-1 Error: Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]","errorType":"Runtime.InvalidEntrypoint"}"#
    );
}

#[tokio::test]
async fn what_metrics_are_made_of_is_true() {
    let host = Host::new(patient(), Process::echo);
    let mut observed = Observed::ready(&host, host.spec("f")).await;
    assert_eq!(host.worker.cold_starts().len(), 1);
    let info = || host.worker.environments().remove(0);
    assert_eq!((info().function.as_str(), info().invocations, info().memory_bytes), ("f", 0, 8 << 20));
    for count in 1..=3 {
        observed.invoke(request("r-1", "1")).await;
        assert_eq!((info().invocations, info().memory_bytes), (count, 8 << 20));
    }
    assert_eq!(host.worker.cold_starts().len(), 1);
    observed.retire(&host).await;
}

#[tokio::test]
async fn a_small_function_is_lent_processor_time_until_it_is_initialized() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let initialize = Arc::clone(&gate);
    let host = Host::new(patient(), move |process: Process| {
        let initialize = Arc::clone(&initialize);
        async move {
            initialize.acquire().await.expect("never closed").forget();
            process.echo().await
        }
    });
    let mut observed = Observed::start(&host, host.spec("f"));
    eventually("it initializes", || host.backend.live() == 1).await;
    assert_eq!(host.backend.cpu_millis(), [2_000]);
    gate.add_permits(1);
    assert_eq!(observed.notice().await, Notice::Ready { initialized: true });
    assert_eq!(host.backend.cpu_millis(), [72]);
}
