//! Signing a request in its `Authorization` header.

use std::time::SystemTime;

use super::{ALGORITHM, Credentials, Head, Scope, SigningKey, UNSIGNED_PAYLOAD, canonical, hash, string_to_sign};

/// Headers that intermediaries change or add: signing them would break the signature.
const UNSIGNABLE: [&str; 10] = [
    "authorization",
    "connection",
    "expect",
    "keep-alive",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-amzn-trace-id",
];

/// A request to sign.
#[derive(Debug, Clone, Copy)]
pub struct SigningRequest<'a> {
    /// As it will travel. The headers have to name the `host`, and none that [`sign`] adds.
    pub head: Head<'a>,
    pub payload: Payload<'a>,
    pub region: &'a str,
    /// Signing name: `lambda`, `s3`, `sts`.
    pub service: &'a str,
}

/// The body of a request to sign.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// All of it.
    Bytes(&'a [u8]),
    /// Its SHA-256, lower-case hex.
    Hash(&'a str),
    /// Not covered by the signature; S3 takes that over TLS.
    Unsigned,
}

/// The headers to add to a request: `x-amz-date`, `authorization`, `x-amz-security-token` with temporary credentials, and
/// `x-amz-content-sha256` where S3 or an unsigned payload asks for it.
pub fn sign(request: &SigningRequest<'_>, credentials: &Credentials, now: SystemTime) -> Vec<(&'static str, String)> {
    let moment = super::timestamp(now);
    let scope = Scope {
        date: moment[..8.min(moment.len())].to_owned(),
        region: request.region.to_owned(),
        service: request.service.to_owned(),
    };
    let payload_hash = match request.payload {
        Payload::Bytes(bytes) => hash(bytes),
        Payload::Hash(hash) => hash.to_owned(),
        Payload::Unsigned => UNSIGNED_PAYLOAD.to_owned(),
    };
    let mut added = vec![("x-amz-date", moment.clone())];
    if let Some(token) = &credentials.session_token {
        added.push(("x-amz-security-token", token.clone()));
    }
    if request.service == "s3" || matches!(request.payload, Payload::Unsigned) {
        added.push(("x-amz-content-sha256", payload_hash.clone()));
    }
    let names: Vec<String> = request.head.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let mut signed: Vec<&str> = names.iter().map(String::as_str).chain(added.iter().map(|(name, _)| *name)).collect();
    signed.retain(|name| !UNSIGNABLE.contains(name));
    signed.sort_unstable();
    signed.dedup();
    let mut headers = request.head.headers.to_vec();
    headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
    let head = Head { headers: &headers, ..request.head };
    let canonical = canonical::request(&head, request.service, &signed, &payload_hash);
    let key = SigningKey::derive(&credentials.secret_access_key, &scope);
    let signature = key.signature(&string_to_sign(&moment, &scope, &canonical));
    let authorization = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
        credentials.access_key_id,
        signed.join(";"),
    );
    added.push(("authorization", authorization));
    added
}
