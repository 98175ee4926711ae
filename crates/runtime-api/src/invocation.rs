//! What goes into an environment and what comes out of it: invocations, outcomes, events, and the options of the server.

use bytes::Bytes;

/// One invocation, as the runtime receives it from `GET /runtime/invocation/next`.
///
/// Absent and empty values are left out of the response headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invocation {
    /// `Lambda-Runtime-Aws-Request-Id`; the runtime repeats it in the path of its answer.
    pub request_id: String,
    /// The event, passed on untouched.
    pub payload: Bytes,
    /// `Content-Type`; `application/json` where there is none.
    pub content_type: Option<String>,
    /// `Lambda-Runtime-Deadline-Ms`: when the function's timeout ends, in milliseconds since the Unix epoch.
    pub deadline_ms: u64,
    /// `Lambda-Runtime-Invoked-Function-Arn`, with the qualifier that the caller used.
    pub invoked_function_arn: String,
    /// `Lambda-Runtime-Trace-Id`: an `X-Amzn-Trace-Id` header value.
    pub trace_id: Option<String>,
    /// `Lambda-Runtime-Client-Context`: JSON, already decoded from the caller's base64.
    pub client_context: Option<String>,
    /// `Lambda-Runtime-Cognito-Identity`: JSON with `cognitoIdentityId` and `cognitoIdentityPoolId`.
    pub cognito_identity: Option<String>,
    /// `Lambda-Runtime-Aws-Tenant-Id`, for functions with tenant isolation.
    pub tenant_id: Option<String>,
}

/// What the runtime answered to an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `POST /runtime/invocation/{id}/response`, complete and within the limit.
    Response {
        /// The function's result.
        body: Bytes,
        /// `Content-Type` of the answer, where the runtime named one.
        content_type: Option<String>,
        /// True when the runtime asked for the streaming response mode; the body was gathered all the same.
        streaming: bool,
    },
    /// `POST /runtime/invocation/{id}/error`, or a streamed response that ended in error trailers.
    Error {
        /// `Runtime.X` or `Function.X`; anything else has become `Runtime.Unknown` or `Function.Unknown`.
        error_type: String,
        /// The error object, as the caller of the function shall see it.
        body: Bytes,
        /// X-Ray's error cause: JSON of at most 64 KiB.
        xray_cause: Option<Bytes>,
    },
    /// The answer was larger than [`Options::response_limit`]; the runtime was told so with a 413.
    ResponseTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer's body ended before its announced end.
    Truncated,
    /// `Lambda-Runtime-Function-Response-Mode` had another value than `streaming`.
    InvalidResponseMode,
}

/// What the owner of the environment learns, in order.
///
/// After [`crate::RuntimeApi::reset`] has returned no event of the old runtime is added any more: an owner that empties the
/// channel then sees only events of the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Every external extension that was announced has registered: the runtime may be started. Not sent where none was announced.
    ExtensionsRegistered,
    /// The runtime called `next` for the first time, and so have all extensions: the environment can take an invocation.
    InitDone,
    /// The runtime reported that it cannot start; it is expected to exit.
    InitError {
        /// Filtered as in [`Outcome::Error`].
        error_type: String,
        /// The error object.
        body: Bytes,
    },
    /// The runtime and all extensions have asked for the next invocation after the last one.
    Idle,
    /// An extension reported that it cannot start or go on; the environment is lost.
    ExtensionError {
        /// The extension's registered name.
        name: String,
        /// `Lambda-Extension-Function-Error-Type`, as the extension gave it.
        error_type: String,
        /// The error object, possibly empty.
        body: Bytes,
        /// Which of the two error calls it was.
        phase: ExtensionPhase,
    },
    /// The runtime called `restore/next`, and all extensions wait for their first event: this is the moment for the snapshot.
    /// Only in snapshot environments. A runtime without hooks calls `next` instead: [`Event::InitDone`] is the moment then.
    RestoreReady,
    /// The runtime can serve no more: it has come back from none of as many abandoned invocations as it serves at once.
    Stuck,
    /// A hook failed after the restore.
    RestoreError {
        /// Filtered as in [`Outcome::Error`].
        error_type: String,
        /// The error object.
        body: Bytes,
    },
}

/// Which call an extension reported its error with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtensionPhase {
    /// `POST /extension/init/error`; Lambda reports it as `Extension.InitError`.
    Init,
    /// `POST /extension/exit/error`; Lambda reports it as `Extension.ExitError`.
    Exit,
}

/// What an environment's server needs to know of its function, and its limits.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest answer to an invocation in bytes. Default: 6 MiB + 100, as on Lambda.
    pub response_limit: usize,
    /// Connections served at a time; further ones wait to be accepted. Each takes a descriptor of the server and up to 128 KiB.
    /// Default: 64, where a runtime and ten extensions with two connections each need 22.
    pub max_connections: usize,
    /// True where the environment will be snapshotted: `restore/next` and `restore/error` exist only there. Default: false.
    pub snapshot: bool,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`: what a caller of `GET /2021-04-23/credentials` has to show. The path does not
    /// exist where there is none. Default: none.
    pub credentials_token: Option<String>,
    /// Invocations that the runtime serves at once. With more than one, each waiting `next` gets one of its own, answers are
    /// told apart by their ids, no [`Event::Idle`] is sent, and extensions hear of the end alone. Default: 1.
    pub max_concurrency: usize,
    /// `functionName` in the answer to an extension's registration.
    pub function_name: String,
    /// `functionVersion` in the answer to an extension's registration. Default: `$LATEST`.
    pub function_version: String,
    /// `handler` in the answer to an extension's registration.
    pub handler: String,
    /// `accountId` in the answer to an extension that accepts this feature; left out where empty.
    pub account_id: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            response_limit: 6 * 1024 * 1024 + 100,
            max_connections: 64,
            snapshot: false,
            max_concurrency: 1,
            credentials_token: None,
            function_name: String::new(),
            function_version: "$LATEST".to_owned(),
            handler: String::new(),
            account_id: String::new(),
        }
    }
}

/// What `GET /2021-04-23/credentials` answers: an environment that is kept in a snapshot has none among its variables, where
/// they would grow old in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// `SecretAccessKey`.
    pub secret_access_key: String,
    /// `Token`.
    pub session_token: String,
    /// `Expiration`, as `2026-01-02T03:04:05Z`.
    pub expiration: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}
