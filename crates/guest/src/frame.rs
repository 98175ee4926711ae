//! Frames: how messages with an optional body are put on a byte stream.
//!
//! ```text
//!   u32 LE  length of the header, at most MAX_HEADER
//!   u32 LE  length of the body, at most the limit that the reader gives
//!   header  JSON
//!   body    bytes as they are
//! ```
//!
//! A reader trusts no length further than its limits, and takes memory as bytes arrive, not as they are announced.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest header in bytes: a command line, an environment (4 KiB of it the user's) and client contexts fit.
pub const MAX_HEADER: usize = 1 << 20;
/// The two lengths.
const PREFIX: usize = 8;
/// Room that is made for what comes next, in bytes: most frames fit.
const ROOM: usize = 16 << 10;

/// A frame could not be made: its header is larger than [`MAX_HEADER`], or its body than 4 GiB.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Too large.
    #[error("a header of {header} bytes and a body of {body} bytes do not fit a frame, send less")]
    TooLarge {
        /// Bytes of the header.
        header: usize,
        /// Bytes of the body.
        body: usize,
    },
    /// The message has no form in JSON.
    #[error("the message has no form in JSON")]
    Json(#[source] serde_json::Error),
}

impl From<EncodeError> for io::Error {
    fn from(error: EncodeError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Why nothing more can be read from a stream of frames.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream ended between two frames.
    #[error("the stream has ended")]
    Ended,
    /// The stream failed, or ended inside a frame.
    #[error("the stream of frames broke")]
    Broken(#[source] io::Error),
    /// The other side announces more than it may.
    #[error("a frame of {header} and {body} bytes was announced, more than is allowed")]
    TooLarge {
        /// Announced bytes of the header.
        header: usize,
        /// Announced bytes of the body.
        body: usize,
    },
    /// The header is not a message.
    #[error("a header is not a message of this protocol")]
    Malformed(#[source] serde_json::Error),
}

/// Prefix and header of a frame whose body of `body` bytes is written after it.
pub fn head<T: Serialize>(message: &T, body: usize) -> Result<Bytes, EncodeError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&[0; PREFIX]);
    serde_json::to_writer(&mut bytes, message).map_err(EncodeError::Json)?;
    let header = bytes.len() - PREFIX;
    let too_large = EncodeError::TooLarge { header, body };
    let (Ok(short), Ok(long)) = (u32::try_from(header), u32::try_from(body)) else { return Err(too_large) };
    if header > MAX_HEADER {
        return Err(too_large);
    }
    bytes[..4].copy_from_slice(&short.to_le_bytes());
    bytes[4..PREFIX].copy_from_slice(&long.to_le_bytes());
    Ok(bytes.into())
}

/// Writes one frame and flushes.
pub async fn write<W, T>(stream: &mut W, message: &T, body: &[u8]) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
    T: Serialize,
{
    let head = head(message, body.len())?;
    let mut both = Buf::chain(&head[..], body);
    while both.has_remaining() {
        if stream.write_buf(&mut both).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    stream.flush().await
}

/// Reads frames one by one, and keeps what has arrived of the next.
#[derive(Debug)]
pub struct Reader<R> {
    stream: R,
    max_body: usize,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Frames of `stream` with bodies of at most `max_body` bytes.
    pub fn new(stream: R, max_body: usize) -> Self {
        Self { stream, max_body, buffer: BytesMut::new() }
    }

    /// The next frame. Nothing is lost if the future is dropped.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<(T, Bytes), ReadError> {
        loop {
            let missing = match self.take()? {
                Ok((header, body)) => {
                    return Ok((serde_json::from_slice(&header).map_err(ReadError::Malformed)?, body));
                }
                Err(missing) => missing,
            };
            // Twice what has come already, so that a large body is copied a few times at most and a lie costs little.
            self.buffer.reserve(missing.min(self.buffer.len()).max(ROOM));
            if self.stream.read_buf(&mut self.buffer).await.map_err(ReadError::Broken)? == 0 {
                return Err(match self.buffer.is_empty() {
                    true => ReadError::Ended,
                    false => ReadError::Broken(io::ErrorKind::UnexpectedEof.into()),
                });
            }
        }
    }

    /// Header and body of the next frame, or how many bytes are missing.
    fn take(&mut self) -> Result<Result<(Bytes, Bytes), usize>, ReadError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(Err(PREFIX - self.buffer.len()));
        };
        let length =
            |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
        let (header, body) = (length(0), length(4));
        if header > MAX_HEADER || body > self.max_body {
            return Err(ReadError::TooLarge { header, body });
        }
        // Cannot overflow: both are bounded.
        let missing = (header + body).saturating_sub(rest.len());
        if missing > 0 {
            return Ok(Err(missing));
        }
        self.buffer.advance(PREFIX);
        let header = self.buffer.split_to(header).freeze();
        let body = self.buffer.split_to(body).freeze();
        Ok(Ok((header, body)))
    }
}

#[cfg(test)]
mod tests;
