//! Bodies of content encoding `aws-chunked`: pieces with a length each, which may carry signatures of their own and may
//! be followed by trailing headers.
//!
//! `LENGTH[;chunk-signature=HEX]\r\n DATA \r\n` ... `0[;chunk-signature=HEX]\r\n [trailers] \r\n`, lengths in hex. Each
//! signature covers its data and the signature before, beginning with that of the request.

use super::{EMPTY_HASH, SigningKey, Verified, hash};

/// The ways in which a body may be in pieces, as `X-Amz-Content-Sha256` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD`
    Signed,
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER`
    SignedTrailer,
    /// `STREAMING-UNSIGNED-PAYLOAD-TRAILER`
    UnsignedTrailer,
}

/// A body that is not what its encoding promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("the chunks are malformed")]
    Malformed,
    #[error("the signature of a chunk does not match")]
    Signature,
    #[error("the chunks do not add up to x-amz-decoded-content-length")]
    Length,
}

impl Kind {
    /// Reads `X-Amz-Content-Sha256`; `None` for a hash and for `UNSIGNED-PAYLOAD`.
    pub fn parse(content_hash: &str) -> Option<Self> {
        match content_hash {
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Some(Self::Signed),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Some(Self::SignedTrailer),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Some(Self::UnsignedTrailer),
            _ => None,
        }
    }
}

/// The data of a body in pieces, after every signature in it was checked. `decoded_length` is
/// `X-Amz-Decoded-Content-Length`. Checksums in trailers are signed or not, but never computed here.
///
/// # Errors
/// See [`ChunkError`].
pub fn decode(
    body: &[u8],
    kind: Kind,
    decoded_length: Option<u64>,
    seed: &Verified,
    key: &SigningKey,
) -> Result<Vec<u8>, ChunkError> {
    let mut rest = body;
    let mut data = Vec::with_capacity(body.len());
    let mut chain = Chain { seed, key, last: seed.signature.clone() };
    loop {
        let (size, signature) = header(line(&mut rest)?)?;
        let (piece, after) = rest.split_at_checked(size).ok_or(ChunkError::Malformed)?;
        rest = after;
        match (kind, signature) {
            (Kind::UnsignedTrailer, None) => {}
            (Kind::Signed | Kind::SignedTrailer, Some(signature)) => chain.chunk(piece, signature)?,
            (Kind::UnsignedTrailer, Some(_)) | (Kind::Signed | Kind::SignedTrailer, None) => {
                return Err(ChunkError::Signature);
            }
        }
        if size == 0 {
            break;
        }
        data.extend_from_slice(piece);
        rest = rest.strip_prefix(b"\r\n").ok_or(ChunkError::Malformed)?;
    }
    match kind {
        Kind::Signed => {
            // Some clients leave the last line break out.
            if !matches!(rest, b"" | b"\r\n") {
                return Err(ChunkError::Malformed);
            }
        }
        Kind::SignedTrailer => trailers(rest, Some(&mut chain))?,
        Kind::UnsignedTrailer => trailers(rest, None)?,
    }
    match decoded_length {
        Some(length) if length != data.len() as u64 => Err(ChunkError::Length),
        _ => Ok(data),
    }
}

struct Chain<'a> {
    seed: &'a Verified,
    key: &'a SigningKey,
    last: String,
}

impl Chain<'_> {
    fn chunk(&mut self, data: &[u8], signature: &str) -> Result<(), ChunkError> {
        self.link("AWS4-HMAC-SHA256-PAYLOAD", &format!("{EMPTY_HASH}\n{}", hash(data)), signature)
    }

    fn link(&mut self, algorithm: &str, hashes: &str, signature: &str) -> Result<(), ChunkError> {
        let text = format!("{algorithm}\n{}\n{}\n{}\n{hashes}", self.seed.moment, self.seed.scope, self.last);
        if !self.key.holds(&text, signature) {
            return Err(ChunkError::Signature);
        }
        signature.clone_into(&mut self.last);
        Ok(())
    }
}

/// Trailing headers, up to an empty line or the end.
fn trailers(mut rest: &[u8], chain: Option<&mut Chain<'_>>) -> Result<(), ChunkError> {
    let mut text = String::new();
    let mut signature = None;
    while !rest.is_empty() {
        let line = line(&mut rest)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(ChunkError::Malformed)?;
        match name.trim().to_ascii_lowercase().as_str() {
            "x-amz-trailer-signature" => signature = Some(value.trim()),
            name => text.push_str(&format!("{name}:{}\n", value.trim())),
        }
    }
    if !rest.is_empty() {
        return Err(ChunkError::Malformed);
    }
    match chain {
        None => Ok(()),
        Some(chain) => {
            let signature = signature.ok_or(ChunkError::Signature)?;
            chain.link("AWS4-HMAC-SHA256-TRAILER", &hash(text.as_bytes()), signature)
        }
    }
}

/// Takes a line off the front, without its end.
fn line<'a>(rest: &mut &'a [u8]) -> Result<&'a str, ChunkError> {
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or(ChunkError::Malformed)?;
    let line = &rest[..end];
    *rest = &rest[end + 1..];
    let line = std::str::from_utf8(line).map_err(|_| ChunkError::Malformed)?;
    Ok(line.strip_suffix('\r').unwrap_or(line))
}

/// `LENGTH[;chunk-signature=HEX]`
fn header(line: &str) -> Result<(usize, Option<&str>), ChunkError> {
    let (size, extension) = match line.split_once(';') {
        Some((size, extension)) => (size, Some(extension)),
        None => (line, None),
    };
    let digits = (1..=8).contains(&size.len()) && size.bytes().all(|byte| byte.is_ascii_hexdigit());
    let size = usize::from_str_radix(size, 16).ok().filter(|_| digits).ok_or(ChunkError::Malformed)?;
    let signature = extension.map(|text| text.strip_prefix("chunk-signature=").ok_or(ChunkError::Malformed));
    Ok((size, signature.transpose()?))
}
