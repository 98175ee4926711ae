//! The messages of the Runtime API's owner, and what stands in headers and bodies.

use bytes::Bytes;
use runtime_api::{
    Credentials, Event, ExtensionInfo, ExtensionPhase, Extensions, Invocation, Options, Outcome, ShutdownReason,
};
use serde::{Deserialize, Serialize};

/// Room for what comes beside the answer's body in bytes: X-Ray's cause (64 KiB).
pub(super) const SLACK: usize = 1 << 20;
/// Largest body in bytes where the answer's limit is not known to be higher: Lambda's 6 MiB, and the slack.
pub(super) const MAX_BODY: usize = (6 << 20) + SLACK;

/// Largest body of a message of the guest's, in bytes.
pub(super) fn max_body(options: &Options) -> usize {
    MAX_BODY.max(options.response_limit.saturating_add(SLACK))
}

/// From the owner. What is not said here is as in [`runtime_api::RuntimeApi`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Start to serve. First of all, or [`Command::Attach`] is.
    Open(#[serde(with = "OptionsForm")] Options),
    /// Go on with the API that is there.
    Attach,
    /// The payload is the body.
    Invoke {
        /// Names it in what comes of it.
        number: u64,
        #[serde(with = "InvocationForm")]
        invocation: Invocation,
    },
    Abandon,
    /// Ends the invocation with this number alone.
    AbandonOne {
        number: u64,
    },
    Reset,
    Expect(Vec<String>),
    Shutdown {
        #[serde(with = "ReasonForm")]
        reason: ShutdownReason,
        deadline_ms: u64,
    },
    /// The runtime may leave `restore/next`.
    Restore,
    /// What the endpoint of credentials gives from now on.
    Credentials(Option<CredentialsForm>),
    Close,
}

/// From the guest, together with the number of commands that it had taken.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// Commands other than `Invoke` were taken.
    Taken,
    /// To `Attach`: what the owner has to know of the past.
    Attached { registration_closed: bool, shutting_down: bool },
    /// There is no API to attach to, or it does not know what it was told.
    Refused,
    /// An invocation is answered.
    Outcome { number: u64, outcome: OutcomeForm },
    /// An invocation will never be answered.
    Dropped { number: u64 },
    /// Something happened.
    Event(EventForm),
    /// The extensions as they are now; the body is an [`ExtensionsForm`].
    Extensions,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Options")]
struct OptionsForm {
    response_limit: usize,
    max_connections: usize,
    snapshot: bool,
    max_concurrency: usize,
    credentials_token: Option<String>,
    function_name: String,
    function_version: String,
    handler: String,
    account_id: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Invocation")]
struct InvocationForm {
    request_id: String,
    #[serde(skip)]
    payload: Bytes,
    content_type: Option<String>,
    deadline_ms: u64,
    invoked_function_arn: String,
    trace_id: Option<String>,
    client_context: Option<String>,
    cognito_identity: Option<String>,
    tenant_id: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ShutdownReason", rename_all = "snake_case")]
enum ReasonForm {
    Spindown,
    Timeout,
    Failure,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ExtensionPhase", rename_all = "snake_case")]
enum PhaseForm {
    Init,
    Exit,
}

/// [`Credentials`].
#[derive(Serialize, Deserialize)]
pub(super) struct CredentialsForm {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: String,
}

impl std::fmt::Debug for CredentialsForm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CredentialsForm").finish_non_exhaustive()
    }
}

impl From<Credentials> for CredentialsForm {
    fn from(credentials: Credentials) -> Self {
        let Credentials { access_key_id, secret_access_key, session_token, expiration } = credentials;
        Self { access_key_id, secret_access_key, session_token, expiration }
    }
}

impl From<CredentialsForm> for Credentials {
    fn from(form: CredentialsForm) -> Self {
        let CredentialsForm { access_key_id, secret_access_key, session_token, expiration } = form;
        Self { access_key_id, secret_access_key, session_token, expiration }
    }
}

/// An [`Outcome`] without its bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutcomeForm {
    Response {
        content_type: Option<String>,
        streaming: bool,
    },
    Error {
        error_type: String,
        /// How many of the body's bytes, at its end, are X-Ray's cause.
        cause: Option<usize>,
    },
    ResponseTooLarge {
        limit: usize,
    },
    Truncated,
    InvalidResponseMode,
}

impl OutcomeForm {
    /// Header and body.
    pub(super) fn split(outcome: Outcome) -> (Self, Bytes) {
        match outcome {
            Outcome::Response { body, content_type, streaming } => (Self::Response { content_type, streaming }, body),
            Outcome::Error { error_type, body, xray_cause } => {
                let cause = xray_cause.as_ref().map(Bytes::len);
                let body = match xray_cause {
                    Some(cause) => [body, cause].concat().into(),
                    None => body,
                };
                (Self::Error { error_type, cause }, body)
            }
            Outcome::ResponseTooLarge { limit } => (Self::ResponseTooLarge { limit }, Bytes::new()),
            Outcome::Truncated => (Self::Truncated, Bytes::new()),
            Outcome::InvalidResponseMode => (Self::InvalidResponseMode, Bytes::new()),
        }
    }

    /// None if the two do not fit.
    pub(super) fn join(self, mut body: Bytes) -> Option<Outcome> {
        Some(match self {
            Self::Response { content_type, streaming } => Outcome::Response { body, content_type, streaming },
            Self::Error { error_type, cause } => {
                let xray_cause = match cause {
                    Some(length) => Some(body.split_off(body.len().checked_sub(length)?)),
                    None => None,
                };
                Outcome::Error { error_type, body, xray_cause }
            }
            Self::ResponseTooLarge { limit } => Outcome::ResponseTooLarge { limit },
            Self::Truncated => Outcome::Truncated,
            Self::InvalidResponseMode => Outcome::InvalidResponseMode,
        })
    }
}

/// An [`Event`] without its bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EventForm {
    ExtensionsRegistered,
    InitDone,
    InitError {
        error_type: String,
    },
    Idle,
    ExtensionError {
        name: String,
        error_type: String,
        #[serde(with = "PhaseForm")]
        phase: ExtensionPhase,
    },
    RestoreReady,
    Stuck,
    RestoreError {
        error_type: String,
    },
}

impl EventForm {
    /// Header and body.
    pub(super) fn split(event: Event) -> (Self, Bytes) {
        match event {
            Event::ExtensionsRegistered => (Self::ExtensionsRegistered, Bytes::new()),
            Event::InitDone => (Self::InitDone, Bytes::new()),
            Event::InitError { error_type, body } => (Self::InitError { error_type }, body),
            Event::Idle => (Self::Idle, Bytes::new()),
            Event::ExtensionError { name, error_type, body, phase } => {
                (Self::ExtensionError { name, error_type, phase }, body)
            }
            Event::RestoreReady => (Self::RestoreReady, Bytes::new()),
            Event::Stuck => (Self::Stuck, Bytes::new()),
            Event::RestoreError { error_type, body } => (Self::RestoreError { error_type }, body),
        }
    }

    pub(super) fn join(self, body: Bytes) -> Event {
        match self {
            Self::ExtensionsRegistered => Event::ExtensionsRegistered,
            Self::InitDone => Event::InitDone,
            Self::InitError { error_type } => Event::InitError { error_type, body },
            Self::Idle => Event::Idle,
            Self::ExtensionError { name, error_type, phase } => Event::ExtensionError { name, error_type, body, phase },
            Self::RestoreReady => Event::RestoreReady,
            Self::Stuck => Event::Stuck,
            Self::RestoreError { error_type } => Event::RestoreError { error_type, body },
        }
    }
}

/// [`Extensions`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExtensionsForm {
    external: Vec<InfoForm>,
    internal: Vec<InfoForm>,
}

#[derive(Debug, Serialize, Deserialize)]
struct InfoForm {
    name: String,
    state: String,
    invoke: bool,
    shutdown: bool,
    error_type: Option<String>,
}

/// The states that an extension can have; the host shows them in logs, so no other word of a guest's gets through.
const STATES: [&str; 6] = ["Started", "Registered", "Ready", "Running", "InitError", "ExitError"];

impl ExtensionsForm {
    pub(super) fn new(extensions: Extensions) -> Self {
        let of = |list: Vec<ExtensionInfo>| list.into_iter().map(InfoForm::from).collect();
        Self { external: of(extensions.external), internal: of(extensions.internal) }
    }

    /// None if one is in a state that does not exist.
    pub(super) fn known(self) -> Option<Extensions> {
        let of = |list: Vec<InfoForm>| list.into_iter().map(InfoForm::known).collect::<Option<Vec<_>>>();
        Some(Extensions { external: of(self.external)?, internal: of(self.internal)? })
    }
}

impl From<ExtensionInfo> for InfoForm {
    fn from(info: ExtensionInfo) -> Self {
        let ExtensionInfo { name, state, invoke, shutdown, error_type } = info;
        Self { name, state: state.to_owned(), invoke, shutdown, error_type }
    }
}

impl InfoForm {
    fn known(self) -> Option<ExtensionInfo> {
        let state = STATES.into_iter().find(|state| *state == self.state)?;
        let Self { name, invoke, shutdown, error_type, .. } = self;
        Some(ExtensionInfo { name, state, invoke, shutdown, error_type })
    }
}
