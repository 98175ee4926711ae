//! AWS Signature Version 4: signing requests, and checking the signatures of others.
//!
//! Both sides are made of the same canonical request, as the IAM user guide ("Create a signed AWS API request") describes
//! it. Time is an argument. What is signed: method, path, query, the headers named and the hash of the body.
//!
//! A server takes a [`Claim`] out of a request, finds the secret of its access key, derives (and keeps) the day's
//! [`SigningKey`] and calls [`Claim::verify`]; [`chunked`] decodes and checks bodies that are signed piece by piece.
//! A client calls [`sign`].

mod canonical;
pub mod chunked;
mod claim;
mod sign;

use std::time::SystemTime;

use ring::{digest, hmac};
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

pub use claim::{Claim, ClaimError, How, Refused, Verified};
pub use sign::{Payload, SigningRequest, sign};

/// The only algorithm there is here. Asymmetric signatures (`AWS4-ECDSA-P256-SHA256`) are not.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// SHA-256 of nothing, hex.
pub const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Stands for the hash of a body that is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// `20260102T030405Z`
const BASIC: &[FormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// What a caller signs with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AKIA...`, or `ASIA...` with a session token.
    pub access_key_id: String,
    pub secret_access_key: String,
    /// Of temporary credentials.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// The head of a request, as it travels.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub method: &'a str,
    /// Percent-encoded.
    pub path: &'a str,
    /// Percent-encoded, without the question mark.
    pub query: Option<&'a str>,
    /// Names in any case, values of the same name in their order.
    pub headers: &'a [(&'a str, &'a str)],
}

impl<'a> Head<'a> {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// Where and when a signature holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// `20260102`
    pub date: String,
    pub region: String,
    pub service: String,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// The key that a secret gives for one day, region and service. Four hashes are spent on it, so it is worth keeping.
#[derive(Clone)]
pub struct SigningKey(hmac::Key);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SigningKey")
    }
}

impl SigningKey {
    /// Derives it.
    pub fn derive(secret_access_key: &str, scope: &Scope) -> Self {
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let mut derived = key(format!("AWS4{secret_access_key}").as_bytes());
        for part in [&scope.date, &scope.region, &scope.service, "aws4_request"] {
            derived = key(hmac::sign(&derived, part.as_bytes()).as_ref());
        }
        Self(derived)
    }

    /// The signature of a string to sign, hex.
    fn signature(&self, text: &str) -> String {
        hex(hmac::sign(&self.0, text.as_bytes()).as_ref())
    }

    /// Whether `signature` (hex) is that of `text`; takes as long for any wrong one.
    fn holds(&self, text: &str, signature: &str) -> bool {
        unhex(signature).is_some_and(|tag| hmac::verify(&self.0, text.as_bytes(), &tag).is_ok())
    }
}

/// SHA-256 in lower-case hex.
pub fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// A moment as `X-Amz-Date` has it: `20260102T030405Z`.
pub fn timestamp(moment: SystemTime) -> String {
    // Every moment between the years 0 and 9999 can be written.
    OffsetDateTime::from(moment).format(BASIC).unwrap_or_default()
}

fn parse_timestamp(text: &str) -> Option<SystemTime> {
    let moment = time::PrimitiveDateTime::parse(text, BASIC).ok()?;
    Some(moment.assume_utc().into())
}

fn string_to_sign(moment: &str, scope: &Scope, canonical_request: &str) -> String {
    format!("{ALGORITHM}\n{moment}\n{scope}\n{}", hash(canonical_request.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; 32];
    if !rest.is_empty() || pairs.len() != bytes.len() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
