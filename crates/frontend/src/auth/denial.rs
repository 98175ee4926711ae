//! Refusals of the front layer, in the words and forms of each protocol.

use aws_model::ApiError;
use aws_model::sigv4::chunked::ChunkError;
use aws_model::sigv4::{ClaimError, Refused};

use crate::auth::Target;
use crate::dispatch::MAX_SIDE_BODY;
use crate::logs::LogsError;
use crate::query::{self, QueryError};
use crate::reply::{Reply, api_error};

/// Why a request was not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denial {
    /// It is not signed.
    Missing,
    /// It is not signed as it should be.
    Incomplete(String),
    /// There is no such access key or session.
    UnknownKey,
    /// The session is over.
    Expired,
    /// The signature does not hold, in the service's words.
    Signature(String),
    /// The body is not what its encoding promises.
    Chunks(ChunkError),
    /// The body did not arrive.
    Broken,
    /// The body is larger than the operation takes; the operation's own answer.
    Api(Box<ApiError>),
    /// The body of IAM's, STS's or Logs's request is too large.
    SideTooLarge(u64),
    /// Authenticated, and not allowed; the whole message.
    Forbidden(String),
}

impl From<ClaimError> for Denial {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Missing => Self::Missing,
            ClaimError::Incomplete(message) => Self::Incomplete(message),
        }
    }
}

impl From<Refused> for Denial {
    fn from(refused: Refused) -> Self {
        Self::Signature(refused.to_string())
    }
}

/// A refusal in general terms: names and message.
struct Words {
    lambda: &'static str,
    /// The code of the query protocol, and its status.
    query: (&'static str, u16),
    message: String,
}

impl Denial {
    pub(crate) fn mismatch() -> Self {
        Refused::Mismatch.into()
    }

    fn words(&self) -> Words {
        let words = |lambda, query, message: &str| Words { lambda, query, message: message.to_owned() };
        match self {
            Self::Missing => words(
                "MissingAuthenticationTokenException",
                ("MissingAuthenticationToken", 403),
                "Missing Authentication Token",
            ),
            Self::Incomplete(message) => words("IncompleteSignatureException", ("IncompleteSignature", 400), message),
            Self::UnknownKey => words(
                "UnrecognizedClientException",
                ("InvalidClientTokenId", 403),
                "The security token included in the request is invalid.",
            ),
            Self::Expired => words(
                "ExpiredTokenException",
                ("ExpiredToken", 403),
                "The security token included in the request is expired",
            ),
            Self::Signature(message) => words("InvalidSignatureException", ("SignatureDoesNotMatch", 403), message),
            Self::Chunks(error) => {
                words("InvalidSignatureException", ("SignatureDoesNotMatch", 403), &error.to_string())
            }
            Self::Broken => words("SerializationException", ("ValidationError", 400), "The request ended early."),
            Self::SideTooLarge(size) => words(
                "InvalidParameterException",
                ("ValidationError", 413),
                &format!("the request has {size} bytes, this service takes {MAX_SIDE_BODY}"),
            ),
            Self::Api(error) => words(error.name, (error.name, error.status), &error.message),
            Self::Forbidden(message) => words("AccessDeniedException", ("AccessDenied", 403), message),
        }
    }

    /// The answer in the protocol of the service that was asked.
    pub(crate) fn reply(&self, target: Target, request_id: &str) -> Reply {
        let Words { lambda, query: (code, status), message } = self.words();
        match target {
            Target::Logs | Target::Autoscaling => LogsError::new(400, lambda, message).reply(),
            Target::Query => QueryError::new(status, code, message).reply(query::STS, request_id),
            Target::Lambda => api_error(&match self {
                Self::Missing => ApiError::missing_authentication_token(message),
                Self::UnknownKey => ApiError::unrecognized_client(message),
                Self::Expired => ApiError::expired_token(message),
                Self::Signature(_) | Self::Chunks(_) => ApiError::invalid_signature(message),
                Self::Forbidden(_) => ApiError::access_denied(message),
                Self::Api(error) => (**error).clone(),
                Self::Incomplete(_) | Self::Broken | Self::SideTooLarge(_) => ApiError::new(
                    if status == 413 { 413 } else { 403 },
                    lambda,
                    message,
                    aws_model::MessageKey::Lower,
                    None,
                ),
            }),
        }
    }
}
