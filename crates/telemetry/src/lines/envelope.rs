//! The JSON form of platform events: the Telemetry API's envelope and records.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{PlatformEvent, Report, RuntimeVersion, Span, Status, Trace, billed_ms, iso_time};

pub(super) fn envelope(kind: &str, time_ms: i64, record: Value) -> Value {
    json!({ "time": iso_time(time_ms), "type": kind, "record": record })
}

/// Collects the fields of a record; those that are absent are left out.
#[derive(Default)]
struct Record(Map<String, Value>);

impl Record {
    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn runtime(self, runtime: Option<&RuntimeVersion>) -> Self {
        self.with_some("runtimeVersion", runtime.map(|runtime| runtime.version.as_str()))
            .with_some("runtimeVersionArn", runtime.map(|runtime| runtime.arn.as_str()))
    }

    fn status(self, status: &Status) -> Self {
        self.with("status", status.name()).with_some("errorType", status.error_type())
    }

    fn spans(self, spans: &[Span]) -> Self {
        let list = || spans.iter().map(span).collect::<Vec<_>>();
        self.with_some("spans", (!spans.is_empty()).then(list))
    }

    fn trace(self, trace: Option<&Trace>) -> Self {
        let tracing =
            |trace: &Trace| json!({ "spanId": trace.segment_id, "type": "X-Amzn-Trace-Id", "value": trace.header });
        self.with_some("tracing", trace.map(tracing))
    }
}

pub(super) fn record(event: &PlatformEvent) -> Map<String, Value> {
    let record = Record::default();
    let record = match event {
        PlatformEvent::InitStart {
            init_type,
            phase,
            runtime,
            function_name,
            function_version,
            instance_id,
            instance_max_memory,
        } => record
            .with("initializationType", init_type.name())
            .with("phase", phase.name())
            .runtime(runtime.as_ref())
            .with("functionName", function_name.as_str())
            .with("functionVersion", function_version.as_str())
            .with("instanceId", instance_id.as_str())
            .with("instanceMaxMemory", *instance_max_memory),
        PlatformEvent::InitRuntimeDone { init_type, phase, status } => {
            record.with("initializationType", init_type.name()).with("phase", phase.name()).status(status)
        }
        PlatformEvent::InitReport { init_type, phase, status, duration } => record
            .with("initializationType", init_type.name())
            .with("phase", phase.name())
            .status(status)
            .with("metrics", json!({ "durationMs": ms(*duration) })),
        PlatformEvent::RestoreStart { runtime, function_name, function_version } => record
            .with("functionName", function_name.as_str())
            .with("functionVersion", function_version.as_str())
            .runtime(runtime.as_ref()),
        PlatformEvent::RestoreRuntimeDone { status } => record.status(status),
        PlatformEvent::RestoreReport { status, duration } => {
            record.status(status).with("metrics", json!({ "durationMs": ms(*duration) }))
        }
        PlatformEvent::Start { request_id, version, trace } => {
            record.with("requestId", request_id.as_str()).with("version", version.as_str()).trace(trace.as_ref())
        }
        PlatformEvent::RuntimeDone { request_id, status, duration, produced_bytes, spans, trace } => {
            let metrics =
                Record::default().with("durationMs", ms(*duration)).with_some("producedBytes", *produced_bytes);
            record
                .with("requestId", request_id.as_str())
                .status(status)
                .with("metrics", metrics.0)
                .spans(spans)
                .trace(trace.as_ref())
        }
        PlatformEvent::Report(report) => record
            .with("requestId", report.request_id.as_str())
            .status(&report.status)
            .with("metrics", metrics(report))
            .spans(&report.spans)
            .trace(report.trace.as_ref()),
        PlatformEvent::Extension { name, state, events, error_type } => record
            .with("name", name.as_str())
            .with("state", state.as_str())
            .with("events", events.clone())
            .with_some("errorType", error_type.as_deref()),
        PlatformEvent::TelemetrySubscription { name, types } => {
            record.with("name", name.as_str()).with("state", "Subscribed").with("types", types.clone())
        }
        PlatformEvent::LogsDropped { records, bytes, reason } => {
            record.with("droppedBytes", *bytes).with("droppedRecords", *records).with("reason", reason.as_str())
        }
    };
    record.0
}

fn metrics(report: &Report) -> Map<String, Value> {
    Record::default()
        .with("durationMs", ms(report.duration))
        .with("billedDurationMs", billed_ms(report.duration, report.init))
        .with("memorySizeMB", report.memory_mb)
        .with("maxMemoryUsedMB", report.max_memory_mb)
        .with_some("initDurationMs", report.init.map(ms))
        .with_some("restoreDurationMs", report.restore.map(|(restore, _)| ms(restore)))
        .0
}

fn span(span: &Span) -> Value {
    json!({ "name": span.name, "start": iso_time(span.start_ms), "durationMs": ms(span.duration) })
}

/// Milliseconds, kept to the microsecond.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
