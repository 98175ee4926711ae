//! What the rooms above tell a worker: what an environment is made of, and what one invocation carries.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use telemetry::lines::LogFormat;

/// Identity of a pool: environments of one key are interchangeable, those of two keys never are.
///
/// Made of the qualified function ARN and the revision of the code and configuration behind it, so that an update of
/// `$LATEST` gives a new key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionKey(pub String);

impl fmt::Display for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names the snapshot of a function version, now and after a restart: no other version ever has the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Letters, digits and `-`; at most 64.
    pub fn new(name: String) -> Self {
        Self(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A code archive: its content address and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeRef {
    /// SHA-256 of the archive, lower-case hex.
    pub digest: String,
    /// The zip archive on this host.
    pub path: PathBuf,
}

/// Everything needed to make an environment of one function version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentSpec {
    /// The pool that its environments belong to.
    pub key: VersionKey,
    /// Function name without version.
    pub function_name: String,
    /// `$LATEST` or a number.
    pub version: String,
    /// ARN without qualifier.
    pub function_arn: String,
    /// Twelve digits.
    pub account_id: String,
    /// Region name.
    pub region: String,
    /// ARN of the role that its credentials are for.
    pub role: String,
    /// Runtime name as given at create (`python3.12`).
    pub runtime: String,
    /// ARN that INIT_START reports for the runtime.
    pub runtime_version_arn: Option<String>,
    /// Handler as given at create.
    pub handler: String,
    /// The deployment package, mounted at `/var/task`.
    pub code: CodeRef,
    /// Layers in order, merged at `/opt`.
    pub layers: Vec<CodeRef>,
    /// The user's environment variables.
    pub environment: BTreeMap<String, String>,
    /// Memory in MB (MiB in fact, as Lambda counts); CPU follows from it.
    pub memory_mb: u32,
    /// Function timeout.
    pub timeout: Duration,
    /// Size of `/tmp` in MB.
    pub tmp_mb: u32,
    /// Invocations that one environment serves at once; see [`crate::Worker::concurrency`].
    pub max_concurrency: u32,
    /// Where and how logs go.
    pub logging: LogSettings,
    /// A version with SnapStart: the name of its snapshot, which its environments go on from where the backend has snapshots.
    pub snap_start: Option<SnapshotName>,
}

/// A function's logging configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Log group.
    pub group: String,
    /// True when the group is not `/aws/lambda/<name>`: stream names then carry the function's name.
    pub custom_group: bool,
    /// Text or JSON.
    pub format: LogFormat,
    /// `ApplicationLogLevel`, with JSON only.
    pub application_level: Option<String>,
    /// `SystemLogLevel`, with JSON only.
    pub system_level: Option<String>,
}

/// One invocation, on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvokeRequest {
    /// UUID; also what the caller reads in `x-amzn-RequestId`.
    pub request_id: String,
    /// The event, valid JSON.
    pub payload: Bytes,
    /// ARN as invoked, with its qualifier if there was one.
    pub invoked_function_arn: String,
    /// `X-Amzn-Trace-Id`.
    pub trace_id: Option<String>,
    /// Client context, decoded JSON.
    pub client_context: Option<String>,
    /// Whether the caller wants the last 4 KiB of the log.
    pub tail: bool,
}

/// One invocation, on its way out. A failed function is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvokeReply {
    /// What the function returned, or the error payload.
    pub payload: Bytes,
    /// Whether `X-Amz-Function-Error: Unhandled` applies.
    pub function_error: bool,
    /// The last 4 KiB of the log, when asked for; not yet in base64.
    pub log_tail: Option<Vec<u8>>,
}
