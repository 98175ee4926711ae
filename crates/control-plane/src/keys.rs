//! Access keys of the account's owner: who has one may do everything.
//!
//! A signature is checked with the secret itself, so it cannot be kept as a hash. Where keys are kept is the composition
//! root's business; here they are looked up, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::record::Timestamp;

/// IAM's alphabet of ids.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A long-lived access key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// `AKIA` and 16 capitals or digits.
    pub id: String,
    /// 40 characters.
    pub secret: String,
    pub created: Timestamp,
    /// What its owner says it is for.
    pub description: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The system gives no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

impl AccessKey {
    /// A new key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate(description: &str, now: Timestamp) -> Result<Self, NoRandomness> {
        Ok(Self {
            id: format!("AKIA{}", random_id::<16>()?),
            secret: random_secret()?,
            created: now,
            description: description.to_owned(),
        })
    }
}

/// Reads the keys anew from where they are kept; `None` when nothing changed there since the last time.
pub type Reload = Box<dyn Fn() -> Option<Vec<AccessKey>> + Send + Sync>;

/// The keys in force. Cheap to clone; every clone is the same one.
#[derive(Clone)]
pub struct KeyRing {
    inner: Arc<Inner>,
}

struct Inner {
    keys: RwLock<BTreeMap<String, Arc<AccessKey>>>,
    reload: Reload,
}

impl KeyRing {
    /// A ring that is filled by its first [`KeyRing::refresh`], which happens here.
    pub fn new(reload: Reload) -> Self {
        let ring = Self { inner: Arc::new(Inner { keys: RwLock::default(), reload }) };
        ring.refresh();
        ring
    }

    /// Takes over what changed where the keys are kept.
    pub fn refresh(&self) {
        if let Some(keys) = (self.inner.reload)() {
            let keys = keys.into_iter().map(|key| (key.id.clone(), Arc::new(key))).collect();
            *self.inner.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
    }

    /// The key with this id. One that is not known is looked for where the keys are kept: it may be new.
    pub fn get(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.known(id).or_else(|| {
            self.refresh();
            self.known(id)
        })
    }

    fn known(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.inner.keys.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none, and so nobody gets in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// So many characters of IAM's alphabet.
pub(crate) fn random_id<const N: usize>() -> Result<String, NoRandomness> {
    let mut random = [0; N];
    SystemRandom::new().fill(&mut random).map_err(|_| NoRandomness)?;
    Ok(random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

/// 40 characters of base64.
pub(crate) fn random_secret() -> Result<String, NoRandomness> {
    let mut random = [0; 30];
    SystemRandom::new().fill(&mut random).map_err(|_| NoRandomness)?;
    Ok(STANDARD.encode(random))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn keys_have_the_form_of_iams() {
        let (one, two) =
            (AccessKey::generate("a", Timestamp(1)).unwrap(), AccessKey::generate("a", Timestamp(1)).unwrap());
        assert!(one.id.starts_with("AKIA") && one.id.len() == 20 && one.secret.len() == 40);
        assert!(one.id != two.id && one.secret != two.secret);
        assert!(!format!("{one:?}").contains(&one.secret));
    }

    #[test]
    fn a_new_key_is_found_at_once_and_a_deleted_one_goes_with_the_next_refresh() {
        let kept: Arc<Mutex<Option<Vec<AccessKey>>>> = Arc::default();
        let source = Arc::clone(&kept);
        let ring = KeyRing::new(Box::new(move || source.lock().unwrap().take()));
        assert!(ring.is_empty());
        let key = AccessKey::generate("", Timestamp(1)).unwrap();
        assert_eq!(ring.get(&key.id), None);
        *kept.lock().unwrap() = Some(vec![key.clone()]);
        assert_eq!(ring.get(&key.id).as_deref(), Some(&key));
        *kept.lock().unwrap() = Some(vec![]);
        ring.refresh();
        assert_eq!(ring.get(&key.id), None);
    }
}
