//! Why a call was refused: one enum, with the status, error type and text that AWS gives for each case.

use serde::Serialize;

/// A call that was not allowed. A refused step has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The runtime called in the wrong order.
    #[error("State transition from {from} to {to} failed for runtime. Error: State transition is not allowed")]
    RuntimeState {
        /// Name of the state that the runtime is in.
        from: &'static str,
        /// Name of the state that the call leads to.
        to: &'static str,
    },
    /// The answer names another invocation than the one in flight.
    #[error("Invalid request ID")]
    RequestId,
    /// `Lambda-Runtime-Function-Response-Mode` is neither absent nor `streaming`.
    #[error("Invalid function response mode")]
    ResponseMode,
    /// The body ended early.
    #[error("HTTP request detected as truncated")]
    Truncated,
    /// The body is larger than allowed.
    #[error("Exceeded maximum allowed payload size ({limit} bytes).")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The platform offered an invocation while another is under way. Never seen by a runtime.
    #[error("an invocation is already in flight")]
    Busy,
    /// The platform offered an invocation to an environment that is being shut down. Never seen by a runtime.
    #[error("the environment is shutting down")]
    ShuttingDown,
    /// The caller belongs to a runtime that was reset, or the server is closed: its connection is ended without an answer.
    #[error("the environment was reset")]
    Stale,
    /// The extension called in the wrong order.
    #[error(
        "State transition from {from} to {to} failed for extension {extension}. Error: State transition is not allowed"
    )]
    ExtensionState {
        /// Name of the state that the extension is in.
        from: &'static str,
        /// Name of the state that the call leads to.
        to: &'static str,
        /// Its identifier, or its name before it has one.
        extension: String,
    },
    /// No `Lambda-Extension-Name`.
    #[error("Empty extension name")]
    ExtensionName,
    /// A second internal extension with a name that is in use.
    #[error("Extension with this name already registered")]
    ExtensionNameTaken,
    /// The registration's body is not what it should be.
    #[error("{0}")]
    RequestFormat(String),
    /// An event that does not exist, or that an internal extension may not have.
    #[error("{event}: {reason}")]
    EventType {
        /// The event as the extension spelt it.
        event: String,
        /// Why it may not have it.
        reason: &'static str,
    },
    /// A registration after the init phase.
    #[error("Extension registration closed already")]
    RegistrationClosed,
    /// More extensions than Lambda allows.
    #[error("Extension limit ({limit}) reached")]
    TooManyExtensions {
        /// The limit, external and internal ones together.
        limit: usize,
    },
    /// No `Lambda-Extension-Identifier`.
    #[error("Missing Lambda-Extension-Identifier header")]
    IdentifierMissing,
    /// A `Lambda-Extension-Identifier` that is not a UUID.
    #[error("Invalid Lambda-Extension-Identifier")]
    IdentifierInvalid,
    /// A `Lambda-Extension-Identifier` that belongs to nobody; AWS names it in one call and not in the others.
    #[error("Unknown {0}")]
    IdentifierUnknown(String),
    /// No `Lambda-Extension-Function-Error-Type`.
    #[error("Lambda-Extension-Function-Error-Type not found")]
    ErrorTypeMissing,
    /// No such path.
    #[error("no such path, see the Lambda Runtime API and Extensions API for those that exist")]
    NotFound,
    /// The path exists with another method.
    #[error("this path takes {allow} only")]
    Method {
        /// The method that it takes.
        allow: &'static str,
    },
}

impl Refusal {
    /// The HTTP status that the caller gets.
    pub fn status(&self) -> u16 {
        match self {
            Self::RequestId | Self::ResponseMode | Self::Truncated => 400,
            Self::NotFound => 404,
            Self::Method { .. } => 405,
            Self::TooLarge { .. } => 413,
            Self::Busy | Self::ShuttingDown | Self::Stale => 500,
            Self::RuntimeState { .. }
            | Self::ExtensionState { .. }
            | Self::ExtensionName
            | Self::ExtensionNameTaken
            | Self::RequestFormat(_)
            | Self::EventType { .. }
            | Self::RegistrationClosed
            | Self::TooManyExtensions { .. }
            | Self::IdentifierMissing
            | Self::IdentifierInvalid
            | Self::IdentifierUnknown(_)
            | Self::ErrorTypeMissing => 403,
        }
    }

    /// The `errorType` of the answer's body.
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::RuntimeState { .. } => "InvalidStateTransition",
            Self::RequestId => "InvalidRequestID",
            Self::ResponseMode => "InvalidFunctionResponseMode",
            Self::Truncated => "TruncatedHTTPRequest",
            Self::TooLarge { .. } => "RequestEntityTooLarge",
            Self::Busy | Self::ShuttingDown | Self::Stale => "InternalServerError",
            Self::ExtensionState { .. } | Self::ExtensionNameTaken => "Extension.InvalidExtensionState",
            Self::ExtensionName => "Extension.InvalidExtensionName",
            Self::RequestFormat(_) => "InvalidRequestFormat",
            Self::EventType { .. } => "Extension.InvalidEventType",
            Self::RegistrationClosed => "Extension.RegistrationClosed",
            Self::TooManyExtensions { .. } => "Extension.TooManyExtensions",
            Self::IdentifierMissing => "Extension.MissingExtensionIdentifier",
            Self::IdentifierInvalid => "Extension.InvalidExtensionIdentifier",
            Self::IdentifierUnknown(_) => "Extension.UnknownExtensionIdentifier",
            Self::ErrorTypeMissing => "Extension.MissingHeader",
            Self::NotFound => "NotFound",
            Self::Method { .. } => "MethodNotAllowed",
        }
    }

    /// The answer's body: `{"errorMessage":…,"errorType":…}`.
    pub fn body(&self) -> Vec<u8> {
        error_body(&self.to_string(), self.error_type())
    }
}

/// The JSON object in which the Runtime API tells of an error.
pub(crate) fn error_body(message: &str, error_type: &str) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        error_message: &'a str,
        error_type: &'a str,
    }
    serde_json::to_vec(&Body { error_message: message, error_type }).expect("two strings always become JSON")
}
