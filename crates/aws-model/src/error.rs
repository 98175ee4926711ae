//! The errors of the API and how they look on the wire.
//!
//! One constructor for each modelled exception is generated; the ones here come from the layers in front of the model
//! and have no shape in it. Whether the text travels as `message` or `Message` is a property of each exception.

use serde_json::{Map, Value};

use crate::generated::operations::Operation;

/// Who is at fault, as the body's `Type` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// The caller.
    User,
    /// The service.
    Service,
}

/// The key under which the body carries the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKey {
    /// `message`
    Lower,
    /// `Message`
    Upper,
}

/// An error answer of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Name of the exception, for the header `x-amzn-ErrorType`.
    pub name: &'static str,
    /// What the caller reads.
    pub message: String,
    /// Absent for errors that stand outside the model.
    pub kind: Option<ErrorType>,
    /// Further members of the body, such as `Reason`.
    pub extra: Vec<(&'static str, String)>,
    /// Seconds for the header `Retry-After`.
    pub retry_after: Option<u32>,
    key: MessageKey,
}

/// An error as HTTP: status, headers, JSON body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl ApiError {
    /// An error with everything said; the named constructors are the usual way.
    pub fn new(
        status: u16,
        name: &'static str,
        message: impl Into<String>,
        key: MessageKey,
        kind: Option<ErrorType>,
    ) -> Self {
        Self { status, name, message: message.into(), kind, extra: Vec::new(), retry_after: None, key }
    }

    /// Adds a member to the body.
    #[must_use]
    pub fn with(mut self, member: &'static str, value: impl Into<String>) -> Self {
        self.extra.push((member, value.into()));
        self
    }

    /// Adds `Retry-After`, in seconds.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Takes the body's `Type` away: some errors were recorded without.
    #[must_use]
    pub fn untyped(mut self) -> Self {
        self.kind = None;
        self
    }

    /// A shape constraint was broken. `message` is complete: "1 validation error detected: ...".
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(400, "ValidationException", message, MessageKey::Lower, None)
    }

    /// The request could not be read into its shape.
    pub fn serialization(message: impl Into<String>) -> Self {
        Self::new(400, "SerializationException", message, MessageKey::Upper, None)
    }

    /// The body is larger than the operation takes.
    pub fn request_entity_too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLargeException", message, MessageKey::Lower, None)
    }

    /// The caller may not do this.
    pub fn access_denied(message: impl Into<String>) -> Self {
        Self::new(403, "AccessDeniedException", message, MessageKey::Upper, None)
    }

    /// The credentials are unknown.
    pub fn unrecognized_client(message: impl Into<String>) -> Self {
        Self::new(403, "UnrecognizedClientException", message, MessageKey::Lower, None)
    }

    /// The signature is wrong.
    pub fn invalid_signature(message: impl Into<String>) -> Self {
        Self::new(403, "InvalidSignatureException", message, MessageKey::Lower, None)
    }

    /// The request is not signed.
    pub fn missing_authentication_token(message: impl Into<String>) -> Self {
        Self::new(403, "MissingAuthenticationTokenException", message, MessageKey::Lower, None)
    }

    /// The session of the credentials has ended.
    pub fn expired_token(message: impl Into<String>) -> Self {
        Self::new(403, "ExpiredTokenException", message, MessageKey::Lower, None)
    }

    /// The request line is none of the service's.
    pub fn unknown_operation() -> Self {
        Self::new(404, "UnknownOperationException", "Unknown operation.", MessageKey::Lower, None)
    }

    /// The operation exists in Lambda and not here. 501: clients do not retry it.
    pub fn not_implemented(operation: Operation) -> Self {
        let message = format!("{operation} is not implemented yet in this version of Firelet.");
        Self::new(501, "NotImplementedException", message, MessageKey::Lower, Some(ErrorType::Service))
    }

    /// The error as HTTP. The request id header is the caller's to add.
    pub fn render(&self) -> Rendered {
        let mut body = Map::new();
        for (member, value) in &self.extra {
            body.insert((*member).to_owned(), Value::String(value.clone()));
        }
        if let Some(kind) = self.kind {
            let kind = match kind {
                ErrorType::User => "User",
                ErrorType::Service => "Service",
            };
            body.insert("Type".to_owned(), kind.into());
        }
        let key = match self.key {
            MessageKey::Lower => "message",
            MessageKey::Upper => "Message",
        };
        body.insert(key.to_owned(), Value::String(self.message.clone()));
        let mut headers =
            vec![("content-type", "application/json".to_owned()), ("x-amzn-ErrorType", self.name.to_owned())];
        if let Some(seconds) = self.retry_after {
            headers.push(("retry-after", seconds.to_string()));
        }
        Rendered { status: self.status, headers, body: Value::Object(body).to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_recorded_forms() {
        let not_found = ApiError::resource_not_found("Function not found: x").render();
        assert_eq!(not_found.status, 404);
        assert_eq!(not_found.body, r#"{"Message":"Function not found: x","Type":"User"}"#);
        assert!(not_found.headers.contains(&("x-amzn-ErrorType", "ResourceNotFoundException".to_owned())));

        let throttled = ApiError::too_many_requests("Rate Exceeded.")
            .with("Reason", "ReservedFunctionConcurrentInvocationLimitExceeded")
            .with_retry_after(1)
            .render();
        assert_eq!(throttled.status, 429);
        let expected = r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#;
        assert_eq!(throttled.body, expected);
        assert!(throttled.headers.contains(&("retry-after", "1".to_owned())));

        assert_eq!(ApiError::validation("m").render().body, r#"{"message":"m"}"#);
        assert_eq!(ApiError::service("m").render().body, r#"{"Message":"m","Type":"Service"}"#);
        let large = ApiError::request_entity_too_large("m").render();
        assert_eq!((large.status, large.body.as_str()), (413, r#"{"message":"m"}"#));
    }
}
