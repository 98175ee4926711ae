//! What the platform itself says about environments and invocations, to the letter.
//!
//! A [`PlatformEvent`] has up to two forms: the text line of the classic log format, and the JSON envelope
//! `{"time","type","record"}` that the Telemetry API and the JSON log format share. [`PlatformEvent::line`] picks the one
//! that belongs into the function's log stream and applies the system log level. Times are arguments throughout.
//!
//! Every line ends with a newline, and the fields of most text lines with a tab, as in Lambda's own logs.

mod envelope;
mod names;
mod text;

use std::time::Duration;

use serde_json::{Map, Value};

pub use names::{log_group, stream_name};

/// The two log formats of a function's `LoggingConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Classic lines.
    #[default]
    Text,
    /// One JSON document per event; log levels apply.
    Json,
}

/// A log level. The order is that of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// TRACE
    Trace,
    /// DEBUG
    Debug,
    /// INFO
    Info,
    /// WARN
    Warn,
    /// ERROR
    Error,
    /// FATAL
    Fatal,
}

impl Level {
    /// The upper-case name, as `LoggingConfig` and the function's JSON lines write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }

    /// Reads a name in any case; the spellings of common loggers (`WARNING`, `CRITICAL`) count too.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "TRACE" => Self::Trace,
            "DEBUG" => Self::Debug,
            "INFO" => Self::Info,
            "WARN" | "WARNING" => Self::Warn,
            "ERROR" => Self::Error,
            "FATAL" | "CRITICAL" => Self::Fatal,
            _ => return None,
        })
    }
}

/// How an environment came to be initialized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitType {
    /// By an invocation that found no idle environment.
    OnDemand,
    /// Ahead of time, by provisioned concurrency.
    Provisioned,
    /// At publish, for a snapshot.
    SnapStart,
}

impl InitType {
    /// The name that `AWS_LAMBDA_INITIALIZATION_TYPE` and the records carry.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::Provisioned => "provisioned-concurrency",
            Self::SnapStart => "snap-start",
        }
    }
}

/// In which phase an initialization ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitPhase {
    /// On its own, within 10 s.
    Init,
    /// Again, inside the first invocation ("suppressed init").
    Invoke,
    /// At publish, for a snapshot.
    SnapStart,
}

impl InitPhase {
    fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Invoke => "invoke",
            Self::SnapStart => "snap-start",
        }
    }
}

/// How a phase or an invocation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Well.
    Success,
    /// The function or its runtime reported or caused an error. The type is that of the platform or the runtime, for
    /// example `Runtime.ExitError`.
    Error {
        /// The error type, where there is one.
        error_type: Option<String>,
    },
    /// The platform failed.
    Failure {
        /// The error type, where there is one.
        error_type: Option<String>,
    },
    /// It took longer than it may.
    Timeout,
}

impl Status {
    /// An error of this type.
    pub fn error(error_type: impl Into<String>) -> Self {
        Self::Error { error_type: Some(error_type.into()) }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error { .. } => "error",
            Self::Failure { .. } => "failure",
            Self::Timeout => "timeout",
        }
    }

    fn error_type(&self) -> Option<&str> {
        match self {
            Self::Error { error_type } | Self::Failure { error_type } => error_type.as_deref(),
            Self::Success | Self::Timeout => None,
        }
    }

    fn level(&self, success: Level) -> Level {
        if *self == Self::Success { success } else { Level::Warn }
    }
}

/// The runtime that an environment runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// For example `python:3.13.v42`.
    pub version: String,
    /// `arn:aws:lambda:REGION::runtime:HASH`
    pub arn: String,
}

/// The trace that an invocation belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `Root` of the header, for example `1-5e34a614-10bdd7f1fb44f07bc535a1aa`.
    pub trace_id: String,
    /// The segment of this invocation, 16 hex digits.
    pub segment_id: String,
    /// Whether the trace is recorded; the XRAY line appears only then.
    pub sampled: bool,
    /// The whole `X-Amzn-Trace-Id` header.
    pub header: String,
}

/// A stretch of time within a phase, such as `responseLatency`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The name, in camel case.
    pub name: &'static str,
    /// When it began, Unix time in milliseconds.
    pub start_ms: i64,
    /// How long it took.
    pub duration: Duration,
}

/// What an invocation cost: the REPORT line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The request id.
    pub request_id: String,
    /// How it ended.
    pub status: Status,
    /// The time of the invocation, without init.
    pub duration: Duration,
    /// The configured memory in MB.
    pub memory_mb: u32,
    /// The most memory that the environment used so far, in MB.
    pub max_memory_mb: u32,
    /// The time of the init phase, in the first invocation of an environment that was initialized on demand.
    pub init: Option<Duration>,
    /// The time of the restore, and the part of it that is billed, in the first invocation after a snapshot's restore.
    pub restore: Option<(Duration, Duration)>,
    /// The trace, where tracing is on.
    pub trace: Option<Trace>,
    /// Overheads after the response.
    pub spans: Vec<Span>,
}

/// Something that the platform puts on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformEvent {
    /// An environment begins to initialize: INIT_START.
    InitStart {
        /// How it came to be.
        init_type: InitType,
        /// In which phase.
        phase: InitPhase,
        /// The runtime; a container image has none.
        runtime: Option<RuntimeVersion>,
        /// The function's name.
        function_name: String,
        /// The function's version.
        function_version: String,
        /// Names the environment.
        instance_id: String,
        /// The configured memory in bytes.
        instance_max_memory: u64,
    },
    /// The runtime asked for its first invocation, or failed to.
    InitRuntimeDone {
        /// How it came to be.
        init_type: InitType,
        /// In which phase.
        phase: InitPhase,
        /// How it ended.
        status: Status,
    },
    /// The init phase is over: INIT_REPORT.
    InitReport {
        /// How it came to be.
        init_type: InitType,
        /// In which phase.
        phase: InitPhase,
        /// How it ended.
        status: Status,
        /// How long it took.
        duration: Duration,
    },
    /// A snapshot begins to be restored: RESTORE_START.
    RestoreStart {
        /// The runtime; a container image has none.
        runtime: Option<RuntimeVersion>,
        /// The function's name.
        function_name: String,
        /// The function's version.
        function_version: String,
    },
    /// The runtime ran its hooks after a restore.
    RestoreRuntimeDone {
        /// How it ended.
        status: Status,
    },
    /// The restore is over: RESTORE_REPORT.
    RestoreReport {
        /// How it ended.
        status: Status,
        /// How long it took.
        duration: Duration,
    },
    /// An invocation begins: START.
    Start {
        /// The request id.
        request_id: String,
        /// The version that runs, `$LATEST` or a number.
        version: String,
        /// The trace, where tracing is on.
        trace: Option<Trace>,
    },
    /// The runtime answered, or failed to. Text logs have the END line here.
    RuntimeDone {
        /// The request id.
        request_id: String,
        /// How it ended.
        status: Status,
        /// The time of the invocation.
        duration: Duration,
        /// Bytes of the response.
        produced_bytes: Option<u64>,
        /// `responseLatency`, `responseDuration`, `runtimeOverhead`.
        spans: Vec<Span>,
        /// The trace, where tracing is on.
        trace: Option<Trace>,
    },
    /// An invocation is over: REPORT.
    Report(Report),
    /// An extension registered or failed: EXTENSION.
    Extension {
        /// The extension's name.
        name: String,
        /// For example `Ready`, `Registered`, `LaunchError`.
        state: String,
        /// The events that it asked for.
        events: Vec<String>,
        /// Why it failed.
        error_type: Option<String>,
    },
    /// An extension subscribed to telemetry.
    TelemetrySubscription {
        /// The extension's name.
        name: String,
        /// What it subscribed to.
        types: Vec<String>,
    },
    /// Log events were lost because they came faster than they could be kept.
    LogsDropped {
        /// How many.
        records: u64,
        /// Their bytes.
        bytes: u64,
        /// Why.
        reason: String,
    },
}

impl PlatformEvent {
    /// The `type` of the envelope.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InitStart { .. } => "platform.initStart",
            Self::InitRuntimeDone { .. } => "platform.initRuntimeDone",
            Self::InitReport { .. } => "platform.initReport",
            Self::RestoreStart { .. } => "platform.restoreStart",
            Self::RestoreRuntimeDone { .. } => "platform.restoreRuntimeDone",
            Self::RestoreReport { .. } => "platform.restoreReport",
            Self::Start { .. } => "platform.start",
            Self::RuntimeDone { .. } => "platform.runtimeDone",
            Self::Report(_) => "platform.report",
            Self::Extension { .. } => "platform.extension",
            Self::TelemetrySubscription { .. } => "platform.telemetrySubscription",
            Self::LogsDropped { .. } => "platform.logsDropped",
        }
    }

    /// The system log level of this event.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::InitStart { runtime: Some(_), .. } => Level::Info,
            Self::InitStart { runtime: None, .. } => Level::Debug,
            Self::InitRuntimeDone { status, .. }
            | Self::RuntimeDone { status, .. }
            | Self::RestoreRuntimeDone { status } => status.level(Level::Debug),
            Self::InitReport { init_type: InitType::OnDemand, status, .. } => status.level(Level::Debug),
            Self::InitReport { status, .. } | Self::RestoreReport { status, .. } => status.level(Level::Info),
            Self::Report(report) => report.status.level(Level::Info),
            Self::Start { .. } | Self::RestoreStart { .. } => Level::Info,
            Self::Extension { .. } | Self::TelemetrySubscription { .. } => Level::Info,
            Self::LogsDropped { .. } => Level::Warn,
        }
    }

    /// The event as the log stream has it, newline included; `None` when the format has no such line or the system log
    /// level filters it out. `time_ms` is Unix time. The text format knows no levels: its lines are always there.
    #[must_use]
    pub fn line(&self, format: LogFormat, system_level: Level, time_ms: i64) -> Option<String> {
        match format {
            LogFormat::Text => self.text(),
            LogFormat::Json if self.level() < system_level => None,
            LogFormat::Json => Some(self.json_line(time_ms)),
        }
    }

    /// The line of the text format, if it has one.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        text::text(self)
    }

    /// The line of the JSON format: the envelope, its three fields in the order that Lambda writes.
    #[must_use]
    pub fn json_line(&self, time_ms: i64) -> String {
        let record = Value::Object(self.record());
        format!("{{\"time\":\"{}\",\"type\":\"{}\",\"record\":{record}}}\n", iso_time(time_ms), self.kind())
    }

    /// The envelope of the Telemetry API and the JSON log format.
    #[must_use]
    pub fn envelope(&self, time_ms: i64) -> Value {
        envelope::envelope(self.kind(), time_ms, Value::Object(self.record()))
    }

    fn record(&self) -> Map<String, Value> {
        envelope::record(self)
    }
}

/// Billed time in whole milliseconds: init and invocation together, rounded up, at least 1.
#[must_use]
pub fn billed_ms(duration: Duration, init: Option<Duration>) -> u64 {
    let nanos = (duration + init.unwrap_or_default()).as_nanos();
    u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// The level of a line that the function wrote in the JSON format: its `level` field, INFO where it has none or is not
/// a JSON object.
#[must_use]
pub fn application_level(message: &str) -> Level {
    #[derive(serde::Deserialize)]
    struct Line {
        level: Option<Value>,
    }
    let message = message.trim();
    if !message.starts_with('{') {
        return Level::Info;
    }
    let line: Option<Line> = serde_json::from_str(message).ok();
    line.and_then(|line| Level::from_name(line.level?.as_str()?)).unwrap_or(Level::Info)
}

/// Whether a line of the function goes to the log stream. `frame_level` is the level that a log frame brought along.
/// The text format has no application log level.
#[must_use]
pub fn application_passes(format: LogFormat, threshold: Level, frame_level: Option<Level>, message: &str) -> bool {
    match format {
        LogFormat::Text => true,
        LogFormat::Json => frame_level.unwrap_or_else(|| application_level(message)) >= threshold,
    }
}

/// Unix milliseconds as `2022-10-12T00:00:15.064Z`.
#[must_use]
pub fn iso_time(time_ms: i64) -> String {
    names::iso_time(time_ms)
}

#[cfg(test)]
mod tests;
