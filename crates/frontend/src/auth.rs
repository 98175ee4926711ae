//! Who a request is from: its signature is checked against the account's access keys and the sessions of roles.
//!
//! The order is the service's: form, access key or session, scope, clock, and last the signature, which needs the body
//! unless the request brings the body's hash. The body is read here and travels on decoded. What a caller may do is
//! asked by [`permit`], once the operation is known.

mod denial;
pub(crate) mod permit;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_model::arn::Realm;
use aws_model::sigv4::{Claim, Head, Scope, SigningKey, UNSIGNED_PAYLOAD, Verified, chunked, hash};
use bytes::Bytes;
use control_plane::keys::KeyRing;
use control_plane::record::Timestamp;
use control_plane::roles::Roles;
use control_plane::sessions::{Session, SessionError, Sessions};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Uri};

pub(crate) use denial::Denial;

use crate::body::{self, BodyError, RequestBody};
use crate::dispatch::MAX_SIDE_BODY;
use crate::{autoscaling, lambda, local};

/// Signing keys kept ready; with more, all are dropped and derived again as they are needed.
const MAX_SIGNING_KEYS: usize = 4_096;

/// Bodies larger than this are hashed and decoded on a thread where nobody waits, in bytes.
const SMALL: usize = 256 * 1024;

/// How much longer a body may be for being in pieces, in bytes: signatures of chunks of 8 KiB and trailers.
fn framing(limit: u64) -> u64 {
    limit / 64 + 4_096
}

/// How often deleted access keys are looked for.
const REFRESH: Duration = Duration::from_secs(1);

/// Who a request is from.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    /// The owner of the account.
    Root,
    /// A role in use.
    Session(Arc<Session>),
}

/// The authenticated caller of a request: in its extensions, where requests are authenticated at all.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) identity: Identity,
    /// The service that the signature is for.
    pub(crate) service: String,
}

impl Caller {
    /// Whether it is a role in use.
    pub(crate) fn is_session(&self) -> bool {
        matches!(self.identity, Identity::Session(_))
    }
}

/// The service that a request is for, as far as its head tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Lambda,
    Logs,
    Autoscaling,
    /// IAM or STS.
    Query,
}

impl Target {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        match (request.uri().path(), request.method()) {
            ("/", &Method::POST) => match request.headers().get("x-amz-target") {
                Some(target) if target.as_bytes().starts_with(autoscaling::TARGET_PREFIX.as_bytes()) => {
                    Self::Autoscaling
                }
                Some(_) => Self::Logs,
                None => Self::Query,
            },
            _ => Self::Lambda,
        }
    }
}

/// Checks signatures.
pub(crate) struct Auth {
    keys: KeyRing,
    signing: RwLock<HashMap<(String, Scope), Kept>>,
}

/// A signing key and the secret that it was derived from.
struct Kept {
    secret: String,
    key: SigningKey,
}

impl Auth {
    pub(crate) fn new(keys: KeyRing) -> Self {
        Self { keys, signing: RwLock::default() }
    }

    /// Notices deleted access keys for as long as it is polled.
    pub(crate) async fn refresh(&self) {
        let mut ticks = tokio::time::interval(REFRESH);
        loop {
            ticks.tick().await;
            self.keys.refresh();
        }
    }

    /// Checks a request's signature and reads its body.
    pub(crate) async fn authenticate(
        &self,
        realm: &Realm,
        roles: &Roles,
        sessions: &Sessions,
        request: Request<Incoming>,
    ) -> Result<Request<RequestBody>, Denial> {
        let (target, limit) = (Target::of(&request), limit(&request));
        let (mut parts, body) = request.into_parts();
        let checked = {
            let headers = headers(&parts.headers);
            let head = head(&parts.method, &parts.uri, &headers);
            match self.check_head(&head, target, realm, roles, sessions, SystemTime::now()) {
                Ok(checked) => checked,
                Err(denial) => {
                    // The connection stays usable for whoever signs better.
                    body::discard(RequestBody::Wire(body)).await;
                    return Err(denial);
                }
            }
        };
        let Checked { claim, identity, key, verified } = checked;
        let kind = claim.content_hash.as_deref().and_then(chunked::Kind::parse);
        let room = if kind.is_some() { limit + framing(limit) } else { limit };
        let body = match body::receive(body, room).await {
            Ok(body) => body,
            Err(BodyError::TooLarge { size }) => return Err(too_large(&parts.method, &parts.uri, size)),
            Err(BodyError::Broken(_)) => return Err(Denial::Broken),
        };
        let body = match (&claim.content_hash, kind, verified) {
            (_, Some(kind), Some(verified)) => {
                let length = parts.headers.get("x-amz-decoded-content-length");
                let length = length.map(|value| value.to_str().ok()?.parse().ok());
                let Some(length) = length.map_or(Some(None), |length| length.map(Some)) else {
                    return Err(Denial::Chunks(chunked::ChunkError::Length));
                };
                let decoded = off(body, move |body| chunked::decode(body, kind, length, &verified, &key)).await?;
                Bytes::from(decoded.map_err(Denial::Chunks)?)
            }
            (Some(given), ..) if given == UNSIGNED_PAYLOAD => body,
            (Some(given), ..) => {
                let (hashed, body) = hashed(body).await?;
                if !given.eq_ignore_ascii_case(&hashed) {
                    return Err(Denial::mismatch());
                }
                body
            }
            (None, ..) => {
                let (hashed, body) = hashed(body).await?;
                let headers = headers(&parts.headers);
                claim.verify(&head(&parts.method, &parts.uri, &headers), Some(&hashed), &key)?;
                body
            }
        };
        parts.extensions.insert(Caller { identity, service: claim.scope.service });
        Ok(Request::from_parts(parts, RequestBody::Read(body)))
    }

    /// All that can be said before the body is there; with the body's hash in the head, that is everything.
    fn check_head(
        &self,
        head: &Head<'_>,
        target: Target,
        realm: &Realm,
        roles: &Roles,
        sessions: &Sessions,
        now: SystemTime,
    ) -> Result<Checked, Denial> {
        let claim = Claim::of(head)?;
        let (identity, secret) = match &claim.session_token {
            None => {
                let key = self.keys.get(&claim.access_key_id).ok_or(Denial::UnknownKey)?;
                (Identity::Root, key.secret.clone())
            }
            Some(token) => {
                let session = open(sessions, roles, &claim.access_key_id, token, now)?;
                let secret = session.secret().to_owned();
                (Identity::Session(Arc::new(session)), secret)
            }
        };
        // IAM is one for the whole world, and so is the older endpoint of STS.
        let (service, region) = match (target, claim.scope.service.as_str(), claim.scope.region.as_str()) {
            (Target::Query, "iam", "us-east-1") => ("iam", "us-east-1"),
            (Target::Query, "iam", _) => ("iam", realm.region.as_str()),
            (Target::Query, _, "us-east-1") => ("sts", "us-east-1"),
            (Target::Query, ..) => ("sts", realm.region.as_str()),
            (Target::Logs, ..) => ("logs", realm.region.as_str()),
            (Target::Autoscaling, ..) => (autoscaling::SERVICE, realm.region.as_str()),
            (Target::Lambda, ..) => ("lambda", realm.region.as_str()),
        };
        claim.judge(head, region, service, now)?;
        let key = self.signing_key(&claim.access_key_id, &secret, &claim.scope);
        let verified = match claim.wants_body_hash() {
            true => None,
            false => Some(claim.verify(head, None, &key)?),
        };
        Ok(Checked { claim, identity, key, verified })
    }

    /// The derived key, from the table or for it.
    fn signing_key(&self, id: &str, secret: &str, scope: &Scope) -> SigningKey {
        let place = (id.to_owned(), scope.clone());
        if let Some(kept) = self.signing.read().unwrap_or_else(PoisonError::into_inner).get(&place)
            && kept.secret == secret
        {
            return kept.key.clone();
        }
        let key = SigningKey::derive(secret, scope);
        let mut signing = self.signing.write().unwrap_or_else(PoisonError::into_inner);
        if signing.len() >= MAX_SIGNING_KEYS {
            signing.clear();
        }
        signing.insert(place, Kept { secret: secret.to_owned(), key: key.clone() });
        key
    }
}

/// A head that is in order.
struct Checked {
    claim: Claim,
    identity: Identity,
    key: SigningKey,
    /// Absent while the body's hash is needed for it.
    verified: Option<Verified>,
}

/// The session of a token, if its role is still there.
pub(crate) fn open(
    sessions: &Sessions,
    roles: &Roles,
    access_key_id: &str,
    token: &str,
    now: SystemTime,
) -> Result<Session, Denial> {
    let session = sessions.open(access_key_id, token, Timestamp::from(now)).map_err(|error| match error {
        SessionError::Invalid => Denial::UnknownKey,
        SessionError::Expired => Denial::Expired,
    })?;
    let role = roles.get(session.role_name());
    if !session.role_id.is_empty() && !role.is_ok_and(|role| role.id == session.role_id) {
        return Err(Denial::UnknownKey);
    }
    Ok(session)
}

/// The values of a request's headers, as far as they are text.
fn headers(map: &HeaderMap) -> Vec<(&str, &str)> {
    map.iter().filter_map(|(name, value)| Some((name.as_str(), std::str::from_utf8(value.as_bytes()).ok()?))).collect()
}

fn head<'a>(method: &'a Method, uri: &'a Uri, headers: &'a [(&'a str, &'a str)]) -> Head<'a> {
    Head { method: method.as_str(), path: uri.path(), query: uri.query(), headers }
}

/// Largest body that the request may have, in bytes.
fn limit(request: &Request<Incoming>) -> u64 {
    match Target::of(request) {
        Target::Logs | Target::Autoscaling | Target::Query => MAX_SIDE_BODY,
        Target::Lambda if local::is_here(request.uri().path()) => 0,
        Target::Lambda => {
            let uri = request.uri();
            let routed = aws_model::route(request.method().as_str(), uri.path(), uri.query());
            routed.map_or(0, |routed| lambda::body_limit(routed.operation))
        }
    }
}

/// The answer to a body that is larger than its operation takes.
fn too_large(method: &Method, uri: &Uri, size: u64) -> Denial {
    match aws_model::route(method.as_str(), uri.path(), uri.query()) {
        Ok(routed) => Denial::Api(Box::new(lambda::too_large(routed.operation, size))),
        Err(error) if uri.path() != "/" => Denial::Api(Box::new(error.into())),
        Err(_) => Denial::SideTooLarge(size),
    }
}

async fn hashed(body: Bytes) -> Result<(String, Bytes), Denial> {
    let hashed = off(body.clone(), hash).await?;
    Ok((hashed, body))
}

/// Does something with a body: here if it is small, elsewhere if it takes long.
async fn off<T: Send + 'static>(body: Bytes, work: impl FnOnce(&[u8]) -> T + Send + 'static) -> Result<T, Denial> {
    if body.len() <= SMALL {
        return Ok(work(&body));
    }
    tokio::task::spawn_blocking(move || work(&body)).await.map_err(|_| Denial::Broken)
}

#[cfg(test)]
mod tests;
