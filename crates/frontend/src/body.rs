//! Reads request bodies up to a limit. Where requests are authenticated they were read before, to check their hash.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

/// A body over the limit is read on up to this size, so that a client which sends before it listens gets its answer
/// instead of a reset connection.
const MAX_DISCARDED: u64 = 128 * 1024 * 1024;

/// First allocation for a body of unknown or large size.
const FIRST_CAPACITY: usize = 64 * 1024;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is larger than allowed.
    #[error("the body has {size} bytes")]
    TooLarge {
        /// Its size, as far as it was announced or read.
        size: u64,
    },
    /// The connection broke.
    #[error("the body ended early")]
    Broken(#[source] hyper::Error),
}

/// The body of a request on its way to its handler.
pub(crate) enum RequestBody {
    /// Still to be read.
    Wire(Incoming),
    /// Read, checked and decoded.
    Read(Bytes),
}

/// The whole body, if it has at most `limit` bytes.
pub(crate) async fn read(body: RequestBody, limit: u64) -> Result<Bytes, BodyError> {
    match body {
        RequestBody::Wire(body) => receive(body, limit).await,
        RequestBody::Read(bytes) if bytes.len() as u64 > limit => Err(BodyError::TooLarge { size: bytes.len() as u64 }),
        RequestBody::Read(bytes) => Ok(bytes),
    }
}

/// The whole body from the wire, if it has at most `limit` bytes.
pub(crate) async fn receive(mut body: Incoming, limit: u64) -> Result<Bytes, BodyError> {
    let announced = body.size_hint().exact();
    if announced.is_some_and(|size| size > MAX_DISCARDED) {
        return Err(BodyError::TooLarge { size: announced.unwrap_or(u64::MAX) });
    }
    let mut size = 0;
    let mut whole = Bytes::new();
    let mut pieces = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else { continue };
        size += data.len() as u64;
        if size > MAX_DISCARDED {
            break;
        }
        if size > limit {
            continue;
        }
        if whole.is_empty() && pieces.is_empty() {
            whole = data;
            continue;
        }
        if pieces.is_empty() {
            let expected = announced.map_or(FIRST_CAPACITY, |size| usize::try_from(size.min(limit)).unwrap_or(0));
            pieces.reserve(expected);
            pieces.extend_from_slice(&whole);
        }
        pieces.extend_from_slice(&data);
    }
    if size > limit {
        return Err(BodyError::TooLarge { size });
    }
    Ok(if pieces.is_empty() { whole } else { pieces.freeze() })
}

/// Reads a body that nobody wants, so that the connection can serve the next request.
pub(crate) async fn discard(body: RequestBody) {
    if let Err(error) = read(body, 0).await {
        tracing::debug!(%error, "a body was discarded");
    }
}
