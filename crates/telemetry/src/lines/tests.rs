//! The lines, to the letter.

use serde_json::json;
use uuid::Uuid;

use super::*;

const TIME: i64 = 1_665_532_815_064;
const ID: &str = "8f507cfc-xmpl-4697-b07a-ac58fc914c95";

fn report(status: Status) -> Report {
    Report {
        request_id: ID.into(),
        status,
        duration: Duration::from_micros(3_009),
        memory_mb: 128,
        max_memory_mb: 36,
        init: None,
        restore: None,
        trace: None,
        spans: vec![],
    }
}

fn trace(sampled: bool) -> Trace {
    Trace {
        trace_id: "1-5e34a614-10bdd7f1fb44f07bc535a1aa".into(),
        segment_id: "07f5a1b2d1f6f085".into(),
        sampled,
        header: "Root=1-5e34a614-10bdd7f1fb44f07bc535a1aa;Parent=07f5a1b2d1f6f085;Sampled=1".into(),
    }
}

fn runtime() -> Option<RuntimeVersion> {
    let arn = "arn:aws:lambda:us-east-1::runtime:0af1";
    Some(RuntimeVersion { version: "python:3.13.v42".into(), arn: arn.into() })
}

fn init_start(runtime: Option<RuntimeVersion>) -> PlatformEvent {
    PlatformEvent::InitStart {
        init_type: InitType::OnDemand,
        phase: InitPhase::Init,
        runtime,
        function_name: "hello".into(),
        function_version: "$LATEST".into(),
        instance_id: "i1".into(),
        instance_max_memory: 134_217_728,
    }
}

fn start() -> PlatformEvent {
    PlatformEvent::Start { request_id: ID.into(), version: "$LATEST".into(), trace: None }
}

fn done(status: Status) -> PlatformEvent {
    PlatformEvent::RuntimeDone {
        request_id: ID.into(),
        status,
        duration: Duration::from_millis(2),
        produced_bytes: Some(12),
        spans: vec![Span { name: "responseLatency", start_ms: TIME, duration: Duration::from_micros(1500) }],
        trace: None,
    }
}

fn init_report(init_type: InitType, status: Status) -> PlatformEvent {
    PlatformEvent::InitReport { init_type, phase: InitPhase::Init, status, duration: Duration::from_micros(1_236_040) }
}

#[track_caller]
fn assert_text(event: &PlatformEvent, line: &str) {
    assert_eq!(event.line(LogFormat::Text, Level::Warn, TIME).as_deref(), Some(line));
}

#[test]
fn text_lines_of_an_invocation() {
    assert_text(
        &init_start(runtime()),
        "INIT_START Runtime Version: python:3.13.v42\tRuntime Version ARN: arn:aws:lambda:us-east-1::runtime:0af1\n",
    );
    assert_eq!(init_start(None).text(), None);
    assert_text(&start(), "START RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95 Version: $LATEST\n");
    assert_text(&done(Status::Success), "END RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95\n");
    assert_text(
        &PlatformEvent::Report(report(Status::Success)),
        "REPORT RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95\tDuration: 3.01 ms\tBilled Duration: 4 ms\t\
         Memory Size: 128 MB\tMax Memory Used: 36 MB\t\n",
    );
}

#[test]
fn reports_say_what_came_before_and_how_it_ended() {
    let cold = Report { init: Some(Duration::from_micros(110_100)), ..report(Status::Success) };
    assert_text(
        &PlatformEvent::Report(cold),
        "REPORT RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95\tDuration: 3.01 ms\tBilled Duration: 114 ms\t\
         Memory Size: 128 MB\tMax Memory Used: 36 MB\tInit Duration: 110.10 ms\t\n",
    );
    let restore = Some((Duration::from_micros(217_440), Duration::from_micros(180_200)));
    let traced = Report { restore, trace: Some(trace(true)), ..report(Status::error("Runtime.ExitError")) };
    assert_text(
        &PlatformEvent::Report(traced),
        "REPORT RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95\tDuration: 3.01 ms\tBilled Duration: 4 ms\t\
         Memory Size: 128 MB\tMax Memory Used: 36 MB\tRestore Duration: 217.44 ms\tBilled Restore Duration: 181 ms\t\
         Status: error\tError Type: Runtime.ExitError\t\n\
         XRAY TraceId: 1-5e34a614-10bdd7f1fb44f07bc535a1aa\tSegmentId: 07f5a1b2d1f6f085\tSampled: true\t\n",
    );
    let unsampled = Report { trace: Some(trace(false)), ..report(Status::Timeout) };
    let line = PlatformEvent::Report(unsampled).text().unwrap();
    assert!(line.ends_with("\tMax Memory Used: 36 MB\tStatus: timeout\t\n"), "{line}");
}

#[test]
fn text_lines_of_other_phases() {
    assert_eq!(init_report(InitType::OnDemand, Status::Success).text(), None);
    assert_text(
        &init_report(InitType::Provisioned, Status::Success),
        "INIT_REPORT Init Duration: 1236.04 ms\tPhase: init\n",
    );
    assert_text(
        &init_report(InitType::OnDemand, Status::Timeout),
        "INIT_REPORT Init Duration: 1236.04 ms\tPhase: init\tStatus: timeout\n",
    );
    assert_text(
        &init_report(InitType::OnDemand, Status::error("Extension.Crash")),
        "INIT_REPORT Init Duration: 1236.04 ms\tPhase: init\tStatus: error\tError Type: Extension.Crash\n",
    );
    let duration = Duration::from_micros(217_440);
    assert_text(
        &PlatformEvent::RestoreReport { status: Status::Success, duration },
        "RESTORE_REPORT Restore Duration: 217.44 ms\n",
    );
    assert_text(
        &PlatformEvent::RestoreReport { status: Status::Timeout, duration },
        "RESTORE_REPORT Restore Duration: 217.44 ms\tStatus: timeout\n",
    );
    let restore =
        PlatformEvent::RestoreStart { runtime: runtime(), function_name: "f".into(), function_version: "1".into() };
    assert!(restore.text().unwrap().starts_with("RESTORE_START Runtime Version: python:3.13.v42\t"));
    let extension = PlatformEvent::Extension {
        name: "x".into(),
        state: "Ready".into(),
        events: vec!["INVOKE".into(), "SHUTDOWN".into()],
        error_type: None,
    };
    assert_text(&extension, "EXTENSION\tName: x\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n");
}

#[test]
fn json_lines_are_envelopes() {
    let line = start().line(LogFormat::Json, Level::Info, TIME).unwrap();
    assert_eq!(
        line,
        "{\"time\":\"2022-10-12T00:00:15.064Z\",\"type\":\"platform.start\",\
         \"record\":{\"requestId\":\"8f507cfc-xmpl-4697-b07a-ac58fc914c95\",\"version\":\"$LATEST\"}}\n"
    );
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), start().envelope(TIME));
    let cold = Report {
        init: Some(Duration::from_micros(110_100)),
        trace: Some(trace(true)),
        ..report(Status::error("Runtime.ExitError"))
    };
    assert_eq!(
        PlatformEvent::Report(cold).envelope(TIME),
        json!({"time": "2022-10-12T00:00:15.064Z", "type": "platform.report", "record": {
            "requestId": ID, "status": "error", "errorType": "Runtime.ExitError",
            "metrics": {"durationMs": 3.009, "billedDurationMs": 114, "memorySizeMB": 128, "maxMemoryUsedMB": 36,
                        "initDurationMs": 110.1},
            "tracing": {"spanId": "07f5a1b2d1f6f085", "type": "X-Amzn-Trace-Id", "value": trace(true).header},
        }})
    );
    assert_eq!(
        init_start(runtime()).envelope(TIME)["record"],
        json!({"initializationType": "on-demand", "phase": "init", "runtimeVersion": "python:3.13.v42",
               "runtimeVersionArn": "arn:aws:lambda:us-east-1::runtime:0af1", "functionName": "hello",
               "functionVersion": "$LATEST", "instanceId": "i1", "instanceMaxMemory": 134_217_728})
    );
    assert_eq!(
        done(Status::Timeout).envelope(TIME)["record"],
        json!({"requestId": ID, "status": "timeout", "metrics": {"durationMs": 2.0, "producedBytes": 12},
               "spans": [{"name": "responseLatency", "start": "2022-10-12T00:00:15.064Z", "durationMs": 1.5}]})
    );
    assert_eq!(
        init_report(InitType::SnapStart, Status::Failure { error_type: None }).envelope(TIME)["record"],
        json!({"initializationType": "snap-start", "phase": "init", "status": "failure", "metrics": {"durationMs": 1236.04}})
    );
    let dropped = PlatformEvent::LogsDropped { records: 3, bytes: 40, reason: "why".into() };
    assert_eq!(dropped.envelope(TIME)["record"], json!({"droppedBytes": 40, "droppedRecords": 3, "reason": "why"}));
}

#[test]
fn system_levels() {
    let (success, timeout) = (Status::Success, Status::Timeout);
    let on_demand = InitType::OnDemand;
    let init_done = |status| PlatformEvent::InitRuntimeDone { init_type: on_demand, phase: InitPhase::Init, status };
    let restored = |status| PlatformEvent::RestoreReport { status, duration: Duration::ZERO };
    for (event, level) in [
        (init_start(runtime()), Level::Info),
        (init_start(None), Level::Debug),
        (init_done(success.clone()), Level::Debug),
        (init_done(timeout.clone()), Level::Warn),
        (init_report(on_demand, success.clone()), Level::Debug),
        (init_report(InitType::Provisioned, success.clone()), Level::Info),
        (init_report(on_demand, timeout.clone()), Level::Warn),
        (start(), Level::Info),
        (done(success.clone()), Level::Debug),
        (done(timeout.clone()), Level::Warn),
        (PlatformEvent::Report(report(success.clone())), Level::Info),
        (PlatformEvent::Report(report(timeout.clone())), Level::Warn),
        (restored(success), Level::Info),
        (restored(timeout), Level::Warn),
        (PlatformEvent::RestoreRuntimeDone { status: Status::Success }, Level::Debug),
        (PlatformEvent::TelemetrySubscription { name: "x".into(), types: vec![] }, Level::Info),
        (PlatformEvent::LogsDropped { records: 1, bytes: 1, reason: String::new() }, Level::Warn),
    ] {
        assert_eq!(event.level(), level, "{event:?}");
        for threshold in [Level::Debug, Level::Info, Level::Warn] {
            assert_eq!(event.line(LogFormat::Json, threshold, TIME).is_some(), level >= threshold, "{event:?}");
        }
    }
}

#[test]
fn application_levels() {
    assert_eq!(application_level("plain"), Level::Info);
    assert_eq!(application_level("{\"level\":\"error\",\"message\":\"x\"}\n"), Level::Error);
    assert_eq!(application_level(" {\"level\":\"WARNING\"}"), Level::Warn);
    assert_eq!(application_level("{\"level\":30}"), Level::Info);
    assert_eq!(application_level("{\"message\":\"x\"}"), Level::Info);
    assert_eq!(application_level("{\"level\":\"DEBUG\""), Level::Info);
    assert_eq!(application_level("[\"level\",\"DEBUG\"]"), Level::Info);
    assert!(application_passes(LogFormat::Text, Level::Fatal, None, "plain"));
    assert!(application_passes(LogFormat::Json, Level::Info, None, "plain"));
    assert!(!application_passes(LogFormat::Json, Level::Warn, None, "plain"));
    assert!(!application_passes(LogFormat::Json, Level::Info, None, "{\"level\":\"DEBUG\"}"));
    assert!(application_passes(LogFormat::Json, Level::Error, Some(Level::Error), "{\"level\":\"DEBUG\"}"));
    for level in [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error, Level::Fatal] {
        assert_eq!(Level::from_name(level.name()), Some(level));
    }
}

#[test]
fn billing_rounds_up() {
    let (zero, micro) = (Duration::ZERO, Duration::from_micros);
    assert_eq!(billed_ms(zero, None), 1);
    assert_eq!(billed_ms(micro(1), None), 1);
    assert_eq!(billed_ms(micro(1000), None), 1);
    assert_eq!(billed_ms(micro(1001), None), 2);
    assert_eq!(billed_ms(micro(400), Some(micro(600))), 1, "the sum is rounded, not the parts");
    assert_eq!(billed_ms(micro(500), Some(micro(501))), 2);
    assert_eq!(billed_ms(Duration::MAX / 2, None), u64::MAX);
}

#[test]
fn names() {
    let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    assert_eq!(stream_name(TIME, None, "$LATEST", id), "2022/10/12/[$LATEST]0123456789abcdef0123456789abcdef");
    assert_eq!(stream_name(TIME, Some("hello"), "7", id), "2022/10/12/hello[7]0123456789abcdef0123456789abcdef");
    assert_eq!(log_group("hello"), "/aws/lambda/hello");
    assert_eq!(iso_time(i64::MAX), "1970-01-01T00:00:00.000Z");
}
