//! Who a request says it is from, and whether its signature bears that out.
//!
//! The checks come in the service's order: form, access key (the caller's business, between [`Claim::of`] and
//! [`Claim::judge`]), scope, clock, signature.

use std::time::{Duration, SystemTime};

use super::{ALGORITHM, EMPTY_HASH, Head, Scope, SigningKey, canonical, parse_timestamp, string_to_sign, timestamp};

/// How far a caller's clock may be off.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// Longest life of a presigned request, in seconds: a week.
const MAX_EXPIRES: u64 = 604_800;

/// More signed headers than any client sends.
const MAX_SIGNED: usize = 128;

/// Headers with this beginning change what a request means, so they have to be signed.
const MEANINGFUL: &str = "x-amz-";

/// How a request carries its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// In the `Authorization` header.
    Header,
    /// In its query, for so many seconds.
    Presigned {
        /// `X-Amz-Expires`
        seconds: u64,
    },
}

/// The claim of a request, not proven yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub access_key_id: String,
    pub session_token: Option<String>,
    pub scope: Scope,
    /// `X-Amz-Date`, as given.
    pub moment: String,
    pub how: How,
    /// `X-Amz-Content-Sha256`: a hash, or what stands for one.
    pub content_hash: Option<String>,
    signed: Vec<String>,
    signature: String,
}

/// A request that is not, or not properly, signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error("Missing Authentication Token")]
    Missing,
    /// Complete as the service words it.
    #[error("{0}")]
    Incomplete(String),
}

/// A signature that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access \
         Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
    #[error("Credential should be scoped to a valid region, not '{0}'. ")]
    Region(String),
    #[error("Credential should be scoped to correct service: '{0}'. ")]
    Service(String),
    #[error("Signature expired: {0}")]
    Expired(String),
    #[error("Signature not yet current: {0}")]
    NotYet(String),
    #[error("{0}")]
    Other(String),
}

/// A signature that holds, and what it says of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Hex; the first link of the chain of signed chunks.
    pub signature: String,
    /// Date and time as signed.
    pub moment: String,
    pub scope: Scope,
}

impl Claim {
    /// Reads the claim of a request.
    ///
    /// # Errors
    /// There is none, or it is malformed.
    pub fn of(head: &Head<'_>) -> Result<Self, ClaimError> {
        if let Some(authorization) = head.header("authorization") {
            return Self::of_header(head, authorization);
        }
        match head.query {
            Some(query) if query.contains("X-Amz-Signature=") || query.contains("X-Amz-Algorithm=") => {
                Self::of_query(head, query)
            }
            _ => Err(ClaimError::Missing),
        }
    }

    fn of_header(head: &Head<'_>, authorization: &str) -> Result<Self, ClaimError> {
        let (algorithm, rest) = authorization.trim().split_once(' ').unwrap_or((authorization, ""));
        if algorithm != ALGORITHM {
            return Err(ClaimError::Incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}'.")));
        }
        let parameter = |name: &str| {
            rest.split(',').filter_map(|part| part.trim().split_once('=')).find(|(own, _)| *own == name).map(|(_, v)| v)
        };
        let moment = head.header("x-amz-date").or_else(|| head.header("date"));
        let (Some(credential), Some(signed), Some(signature), Some(moment)) =
            (parameter("Credential"), parameter("SignedHeaders"), parameter("Signature"), moment)
        else {
            let mut text = String::new();
            for name in ["Credential", "Signature", "SignedHeaders"] {
                if parameter(name).is_none() {
                    text.push_str(&format!("Authorization header requires '{name}' parameter. "));
                }
            }
            if moment.is_none() {
                text.push_str("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ");
            }
            return Err(ClaimError::Incomplete(text.trim_end().to_owned()));
        };
        let (access_key_id, scope) = credential_of(credential)?;
        Ok(Self {
            access_key_id,
            scope,
            session_token: head.header("x-amz-security-token").map(str::to_owned),
            moment: moment.trim().to_owned(),
            how: How::Header,
            content_hash: head.header("x-amz-content-sha256").map(str::to_owned),
            signed: names(signed)?,
            signature: signature.trim().to_owned(),
        })
    }

    fn of_query(head: &Head<'_>, query: &str) -> Result<Self, ClaimError> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(name, _)| name.to_ascii_lowercase().starts_with(MEANINGFUL))
            .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(&canonical::decoded(value)).into_owned()))
            .collect();
        let find = |wanted: &str| {
            pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
        };
        let parameter = |name: &str| {
            find(name)
                .ok_or_else(|| ClaimError::Incomplete(format!("AWS query-string parameters must include '{name}'.")))
        };
        let algorithm = parameter("X-Amz-Algorithm")?;
        if algorithm != ALGORITHM {
            return Err(ClaimError::Incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}'.")));
        }
        let (access_key_id, scope) = credential_of(parameter("X-Amz-Credential")?)?;
        let seconds = match parameter("X-Amz-Expires")?.parse() {
            Ok(seconds @ 1..=MAX_EXPIRES) => seconds,
            _ => {
                return Err(ClaimError::Incomplete(format!(
                    "X-Amz-Expires must be a number of seconds from 1 to {MAX_EXPIRES}"
                )));
            }
        };
        Ok(Self {
            access_key_id,
            scope,
            session_token: find("X-Amz-Security-Token").or(head.header("x-amz-security-token")).map(str::to_owned),
            moment: parameter("X-Amz-Date")?.to_owned(),
            how: How::Presigned { seconds },
            content_hash: head.header("x-amz-content-sha256").or(find("X-Amz-Content-Sha256")).map(str::to_owned),
            signed: names(parameter("X-Amz-SignedHeaders")?)?,
            signature: parameter("X-Amz-Signature")?.to_owned(),
        })
    }

    /// Checks everything that needs no key: scope, clock, and that what matters is signed.
    ///
    /// # Errors
    /// The request is refused, in the service's words.
    pub fn judge(&self, head: &Head<'_>, region: &str, service: &str, now: SystemTime) -> Result<(), Refused> {
        if self.scope.service != service {
            return Err(Refused::Service(service.to_owned()));
        }
        if self.scope.region != region {
            return Err(Refused::Region(self.scope.region.clone()));
        }
        let Some(signed_at) = parse_timestamp(&self.moment) else {
            return Err(Refused::Other(format!(
                "Date must be in ISO-8601 'basic format'. Got '{}'. See http://en.wikipedia.org/wiki/ISO_8601",
                self.moment
            )));
        };
        if !self.moment.starts_with(&self.scope.date) {
            return Err(Refused::Other(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != \
                 '{}', from '{}'.",
                self.scope.date,
                self.moment.get(..8).unwrap_or_default(),
                self.moment
            )));
        }
        self.judge_clock(signed_at, now)?;
        if !self.signed.iter().any(|name| name == "host") {
            return Err(Refused::Other(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.".into(),
            ));
        }
        let unsigned = head.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).find(|name| {
            name.starts_with(MEANINGFUL) && name != "x-amz-cf-id" && !self.signed.iter().any(|signed| signed == name)
        });
        match unsigned {
            Some(name) => Err(Refused::Other(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization."))),
            None => Ok(()),
        }
    }

    fn judge_clock(&self, signed_at: SystemTime, now: SystemTime) -> Result<(), Refused> {
        if let Ok(ahead) = signed_at.duration_since(now)
            && ahead > SKEW
        {
            let (latest, now) = (timestamp(now + SKEW), timestamp(now));
            return Err(Refused::NotYet(format!("{} is still later than {latest} ({now} + 5 min.)", self.moment)));
        }
        let age = now.duration_since(signed_at).unwrap_or_default();
        match self.how {
            How::Header if age > SKEW => {
                let (earliest, now) = (timestamp(now.checked_sub(SKEW).unwrap_or(now)), timestamp(now));
                Err(Refused::Expired(format!("{} is now earlier than {earliest} ({now} - 5 min.)", self.moment)))
            }
            How::Presigned { seconds } if age > Duration::from_secs(seconds) => {
                let end = timestamp(signed_at + Duration::from_secs(seconds));
                Err(Refused::Expired(format!("{} is now earlier than {} ({end})", end, timestamp(now))))
            }
            How::Header | How::Presigned { .. } => Ok(()),
        }
    }

    /// Whether the body has to be hashed for [`Claim::verify`]: nothing stands in its place.
    pub fn wants_body_hash(&self) -> bool {
        self.content_hash.is_none()
    }

    /// Checks the signature. `body_hash` is the SHA-256 of the body in hex; where the request brings a hash of its own
    /// (or something in its place), that one is signed and has to be compared with the body apart.
    ///
    /// # Errors
    /// [`Refused::Mismatch`]
    pub fn verify(&self, head: &Head<'_>, body_hash: Option<&str>, key: &SigningKey) -> Result<Verified, Refused> {
        let payload_hash = self.content_hash.as_deref().or(body_hash).unwrap_or(EMPTY_HASH);
        let signed: Vec<&str> = self.signed.iter().map(String::as_str).collect();
        let canonical = canonical::request(head, &self.scope.service, &signed, payload_hash);
        if !key.holds(&string_to_sign(&self.moment, &self.scope, &canonical), &self.signature) {
            return Err(Refused::Mismatch);
        }
        Ok(Verified {
            signature: self.signature.to_ascii_lowercase(),
            moment: self.moment.clone(),
            scope: self.scope.clone(),
        })
    }
}

/// `AKID/20260102/us-east-1/lambda/aws4_request`
fn credential_of(text: &str) -> Result<(String, Scope), ClaimError> {
    let parts: Vec<&str> = text.trim().split('/').collect();
    match parts[..] {
        [access_key_id, date, region, service, "aws4_request"]
            if !access_key_id.is_empty() && date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            let scope = Scope { date: date.to_owned(), region: region.to_owned(), service: service.to_owned() };
            Ok((access_key_id.to_owned(), scope))
        }
        _ => Err(ClaimError::Incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. \
             keyid/date/region/service/aws4_request"
                .to_owned(),
        )),
    }
}

/// The names of signed headers, which have to come in lower case and sorted.
fn names(text: &str) -> Result<Vec<String>, ClaimError> {
    let names: Vec<String> = text.trim().split(';').map(str::to_owned).collect();
    let sorted = names.windows(2).all(|pair| pair[0] < pair[1]);
    let lower = names.iter().all(|name| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
    if sorted && lower && names.len() <= MAX_SIGNED {
        return Ok(names);
    }
    Err(ClaimError::Incomplete(
        "SignedHeaders must be a list of different lower-case header names in alphabetical order, separated by \
         semicolons."
            .to_owned(),
    ))
}
