//! Reading request bodies: up to a limit into memory, or away.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};

/// What became of a body.
#[derive(Debug)]
pub(crate) enum Gathered {
    /// All of it.
    Complete {
        body: Bytes,
        /// The trailers of a chunked body.
        trailers: Option<HeaderMap>,
    },
    /// It is larger than the limit, by its announced length or by what came; the rest has not been read.
    TooLarge,
    /// The connection failed, or the chunks made no sense, before the end.
    Broken,
}

/// Reads a body of at most `limit` bytes. A body that arrives in one piece is not copied.
pub(crate) async fn gather(body: &mut Incoming, limit: usize) -> Gathered {
    let announced = body.size_hint();
    if announced.lower() > limit as u64 {
        return Gathered::TooLarge;
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Gathered::Broken };
        match frame.into_data() {
            Ok(data) => {
                if first.len().max(rest.len()) + data.len() > limit {
                    return Gathered::TooLarge;
                }
                if first.is_empty() && rest.is_empty() {
                    first = data;
                    continue;
                }
                if rest.is_empty() {
                    let length = announced.exact().map_or(0, |length| length as usize);
                    rest.reserve(length.max(first.len() + data.len()));
                    rest.extend_from_slice(&first);
                    first = Bytes::new();
                }
                rest.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Gathered::Complete { body: if rest.is_empty() { first } else { rest.freeze() }, trailers }
}

/// Reads and forgets what is left of a body, up to `limit` bytes; what is then still left ends the connection.
pub(crate) async fn discard(body: &mut Incoming, limit: usize) {
    let mut left = limit;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
