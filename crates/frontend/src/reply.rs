//! What the server answers with: bodies, request ids, and the error answers of no particular service.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_model::ApiError;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

/// An answer on its way out.
pub(crate) type Reply = Response<ReplyBody>;

/// `x-amzn-RequestId`: on every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a caller reads of a bug.
pub(crate) const INTERNAL_ERROR: &str = "An internal error occurred. The server's log has the details.";

/// The body of an answer.
pub(crate) enum ReplyBody {
    /// All of it, sent at once.
    Whole(Bytes),
    /// Pieces as they come; ends when the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(std::mem::take(bytes)),
            Self::Stream(pieces) => match pieces.poll_recv(context) {
                Poll::Ready(piece) => piece,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer with a body of this type.
pub(crate) fn reply(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Whole(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ReplyBody::Whole(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

/// A value as a JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => reply(status, JSON, body),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as json");
            api_error(&ApiError::service(INTERNAL_ERROR))
        }
    }
}

/// An error of the Lambda API.
pub(crate) fn api_error(error: &ApiError) -> Reply {
    let rendered = error.render();
    let status = StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = reply(status, JSON, rendered.body);
    for (name, value) in rendered.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            reply.headers_mut().insert(name, value);
        }
    }
    reply
}

/// A new request id: a random UUID, as Lambda's are.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
