//! Temporary credentials of roles, kept nowhere: a session token is the session itself, sealed (AES-256-GCM) with a key
//! of this installation. Whoever has that key can open and make tokens; nobody else can.
//!
//! A token says which role, under which session name, until when, and with which secret. It belongs to one access key id,
//! which is authenticated with it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::keys::{NoRandomness, random_id, random_secret};
use crate::record::Timestamp;

/// First byte of a token: another form gets another number.
const VERSION: u8 = 1;

/// No token that was made here is longer, in characters.
const MAX_TOKEN: usize = 4_096;

/// A role in use.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// ARN of the role.
    pub role: String,
    /// The role's unique id (`AROA...`): a role made again under the same name is another one. Empty for the role of a
    /// function that IAM here does not know.
    pub role_id: String,
    /// `RoleSessionName`; of a function, its name.
    pub name: String,
    /// Milliseconds since 1970.
    pub expires: Timestamp,
    /// The secret access key.
    secret: String,
    /// A policy that narrows the session further, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("role", &self.role).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Session {
    /// `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`
    pub fn arn(&self) -> String {
        let mut parts = self.role.splitn(6, ':');
        let account = parts.nth(4).unwrap_or_default();
        format!("arn:aws:sts::{account}:assumed-role/{}/{}", self.role_name(), self.name)
    }

    /// The role's name, without its path.
    pub fn role_name(&self) -> &str {
        self.role.rsplit('/').next().unwrap_or_default()
    }

    /// What signatures are checked with.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

/// What the holder of a session signs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCredentials {
    /// `ASIA` and 16 capitals or digits.
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
    pub expires: Timestamp,
}

/// What a session is asked for.
#[derive(Debug, Clone, Copy)]
pub struct NewSession<'a> {
    /// ARN of the role.
    pub role: &'a str,
    /// See [`Session::role_id`].
    pub role_id: &'a str,
    /// See [`Session::name`].
    pub name: &'a str,
    /// See [`Session::policy`].
    pub policy: Option<&'a str>,
    /// How long it lasts.
    pub duration: Duration,
}

/// A token that opens no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("The security token included in the request is invalid.")]
    Invalid,
    #[error("The security token included in the request is expired")]
    Expired,
}

/// Makes and opens session tokens.
pub struct Sessions {
    key: LessSafeKey,
    links: hmac::Key,
    random: SystemRandom,
}

impl Sessions {
    /// With the installation's key.
    ///
    /// # Panics
    /// Never: the key has the length that the algorithm wants.
    pub fn new(key: &[u8; 32]) -> Self {
        let links = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"links");
        let key = UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes");
        Self {
            key: LessSafeKey::new(key),
            links: hmac::Key::new(hmac::HMAC_SHA256, links.as_ref()),
            random: SystemRandom::new(),
        }
    }

    /// What lets whoever has it follow a link to `path` until then.
    pub fn stamp(&self, path: &str, until: Timestamp) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.links, format!("{}\n{path}", until.0).as_bytes()))
    }

    /// Whether a link to `path` was made by [`Sessions::stamp`] and still holds.
    pub fn is_stamped(&self, path: &str, until: Timestamp, stamp: &str, now: Timestamp) -> bool {
        let Ok(stamp) = URL_SAFE_NO_PAD.decode(stamp) else { return false };
        now < until && hmac::verify(&self.links, format!("{}\n{path}", until.0).as_bytes(), &stamp).is_ok()
    }

    /// Begins a session.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn issue(&self, new: &NewSession<'_>, now: Timestamp) -> Result<SessionCredentials, NoRandomness> {
        let millis = i64::try_from(new.duration.as_millis()).unwrap_or(i64::MAX);
        let session = Session {
            role: new.role.to_owned(),
            role_id: new.role_id.to_owned(),
            name: new.name.to_owned(),
            expires: Timestamp(now.0.saturating_add(millis)),
            secret: random_secret()?,
            policy: new.policy.map(str::to_owned),
        };
        let access_key_id = format!("ASIA{}", random_id::<16>()?);
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| NoRandomness)?;
        // Structures of text and numbers always serialize.
        let mut sealed = serde_json::to_vec(&session).unwrap_or_default();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(access_key_id.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| NoRandomness)?;
        let token = [&[VERSION], &nonce[..], &sealed].concat();
        Ok(SessionCredentials {
            access_key_id,
            secret_access_key: session.secret,
            session_token: URL_SAFE_NO_PAD.encode(token),
            expires: session.expires,
        })
    }

    /// The session of a token.
    ///
    /// # Errors
    /// The token was not made here for this access key id, or its time is over.
    pub fn open(&self, access_key_id: &str, token: &str, now: Timestamp) -> Result<Session, SessionError> {
        if token.len() > MAX_TOKEN {
            return Err(SessionError::Invalid);
        }
        let token = URL_SAFE_NO_PAD.decode(token).map_err(|_| SessionError::Invalid)?;
        let sealed = token.strip_prefix(&[VERSION]).ok_or(SessionError::Invalid)?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(SessionError::Invalid)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SessionError::Invalid)?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(access_key_id.as_bytes()), &mut sealed);
        let session: Session =
            opened.ok().and_then(|opened| serde_json::from_slice(opened).ok()).ok_or(SessionError::Invalid)?;
        if session.expires <= now { Err(SessionError::Expired) } else { Ok(session) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: NewSession<'_> = NewSession {
        role: "arn:aws:iam::000000000000:role/service/r",
        role_id: "AROA",
        name: "me",
        policy: None,
        duration: Duration::from_secs(900),
    };

    #[test]
    fn a_token_opens_its_session_until_it_ends() {
        let sessions = Sessions::new(&[7; 32]);
        let given = sessions.issue(&NEW, Timestamp(1_000)).unwrap();
        assert!(given.access_key_id.starts_with("ASIA") && given.access_key_id.len() == 20);
        let open = |now| sessions.open(&given.access_key_id, &given.session_token, Timestamp(now));
        let session = open(900_999).unwrap();
        assert_eq!(session.secret(), given.secret_access_key);
        assert_eq!(session.arn(), "arn:aws:sts::000000000000:assumed-role/r/me");
        assert_eq!(open(901_000), Err(SessionError::Expired));
    }

    #[test]
    fn a_stamp_holds_for_its_path_and_its_time() {
        let sessions = Sessions::new(&[7; 32]);
        let stamp = sessions.stamp("/a", Timestamp(10));
        assert!(sessions.is_stamped("/a", Timestamp(10), &stamp, Timestamp(9)));
        assert!(!sessions.is_stamped("/a", Timestamp(10), &stamp, Timestamp(10)));
        assert!(!sessions.is_stamped("/b", Timestamp(10), &stamp, Timestamp(9)));
        assert!(!sessions.is_stamped("/a", Timestamp(11), &stamp, Timestamp(9)));
        assert!(!sessions.is_stamped("/a", Timestamp(10), "x", Timestamp(9)));
    }

    #[test]
    fn another_key_another_id_and_any_change_make_it_invalid() {
        let sessions = Sessions::new(&[7; 32]);
        let given = sessions.issue(&NEW, Timestamp(0)).unwrap();
        let (id, token) = (&given.access_key_id, &given.session_token);
        assert_eq!(Sessions::new(&[8; 32]).open(id, token, Timestamp(0)), Err(SessionError::Invalid));
        assert_eq!(sessions.open("ASIAOTHER", token, Timestamp(0)), Err(SessionError::Invalid));
        for index in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(sessions.open(id, &changed, Timestamp(0)), Err(SessionError::Invalid), "{index}");
        }
        for junk in ["", "AQ", "not base64!", &"A".repeat(5_000)] {
            assert_eq!(sessions.open(id, junk, Timestamp(0)), Err(SessionError::Invalid));
        }
    }
}
