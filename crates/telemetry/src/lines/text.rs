//! The lines of the text format.

use std::fmt::Write as _;
use std::time::Duration;

use super::{InitType, PlatformEvent, Report, RuntimeVersion, Status, billed_ms};

pub(super) fn text(event: &PlatformEvent) -> Option<String> {
    Some(match event {
        PlatformEvent::InitStart { runtime, .. } => start("INIT_START", runtime.as_ref()?),
        PlatformEvent::RestoreStart { runtime, .. } => start("RESTORE_START", runtime.as_ref()?),
        // A good on-demand init is in the REPORT line already.
        PlatformEvent::InitReport { init_type: InitType::OnDemand, status: Status::Success, .. } => return None,
        PlatformEvent::InitReport { phase, status, duration, .. } => {
            let phase = phase.name();
            format!("INIT_REPORT Init Duration: {} ms\tPhase: {phase}{}\n", ms(*duration), status_fields(status))
        }
        PlatformEvent::RestoreReport { status, duration } => {
            format!("RESTORE_REPORT Restore Duration: {} ms{}\n", ms(*duration), status_fields(status))
        }
        PlatformEvent::Start { request_id, version, .. } => {
            format!("START RequestId: {request_id} Version: {version}\n")
        }
        PlatformEvent::RuntimeDone { request_id, .. } => format!("END RequestId: {request_id}\n"),
        PlatformEvent::Report(report) => report_line(report),
        PlatformEvent::Extension { name, state, events, error_type } => {
            let error = error_type.as_ref().map(|error| format!("\tError Type: {error}")).unwrap_or_default();
            format!("EXTENSION\tName: {name}\tState: {state}\tEvents: [{}]{error}\n", events.join(", "))
        }
        PlatformEvent::TelemetrySubscription { name, types } => {
            format!("TELEMETRY\tName: {name}\tState: Subscribed\tTypes: [{}]\n", types.join(", "))
        }
        PlatformEvent::LogsDropped { records, bytes, reason } => {
            format!("LOGS_DROPPED\tDropped Records: {records}\tDropped Bytes: {bytes}\tReason: {reason}\n")
        }
        PlatformEvent::InitRuntimeDone { .. } | PlatformEvent::RestoreRuntimeDone { .. } => return None,
    })
}

fn start(word: &str, runtime: &RuntimeVersion) -> String {
    format!("{word} Runtime Version: {}\tRuntime Version ARN: {}\n", runtime.version, runtime.arn)
}

fn status_fields(status: &Status) -> String {
    if *status == Status::Success {
        return String::new();
    }
    let error = status.error_type().map(|error| format!("\tError Type: {error}")).unwrap_or_default();
    format!("\tStatus: {}{error}", status.name())
}

fn report_line(report: &Report) -> String {
    let mut line = format!(
        "REPORT RequestId: {}\tDuration: {} ms\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {} MB\t",
        report.request_id,
        ms(report.duration),
        billed_ms(report.duration, report.init),
        report.memory_mb,
        report.max_memory_mb,
    );
    // Writing to a string cannot fail.
    if let Some(init) = report.init {
        let _ = write!(line, "Init Duration: {} ms\t", ms(init));
    }
    if let Some((restore, billed)) = report.restore {
        let billed = billed_ms(billed, None);
        let _ = write!(line, "Restore Duration: {} ms\tBilled Restore Duration: {billed} ms\t", ms(restore));
    }
    if report.status != Status::Success {
        let _ = write!(line, "Status: {}\t", report.status.name());
    }
    if let Some(error) = report.status.error_type() {
        let _ = write!(line, "Error Type: {error}\t");
    }
    line.push('\n');
    if let Some(trace) = report.trace.as_ref().filter(|trace| trace.sampled) {
        let _ = writeln!(line, "XRAY TraceId: {}\tSegmentId: {}\tSampled: true\t", trace.trace_id, trace.segment_id);
    }
    line
}

/// Milliseconds with two decimals.
fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1000.0)
}
