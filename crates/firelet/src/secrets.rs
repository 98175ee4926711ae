//! The secrets of an installation, in `auth/` of the data directory, readable for their owner only: access keys
//! (`keys.json`) and the key that sessions are sealed with (`session.key`).
//!
//! Files, so that `firelet keys` works whether a server runs or not, and needs no key itself: whoever may read the data
//! directory owns the account anyway.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, bail};
use control_plane::keys::{AccessKey, KeyRing};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Access keys that one installation may have: more are a mistake of a script.
const MAX_KEYS: usize = 1_000;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    keys: Vec<AccessKey>,
}

/// The directory of the secrets.
#[derive(Debug, Clone)]
pub struct Secrets {
    dir: PathBuf,
}

impl Secrets {
    /// Makes the directory if it is not there.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let dir = data_dir.join("auth");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("could not make {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn keys_path(&self) -> PathBuf {
        self.dir.join("keys.json")
    }

    /// The access keys.
    pub fn keys(&self) -> anyhow::Result<Vec<AccessKey>> {
        let path = self.keys_path();
        let Some(text) = read_private(&path)? else { return Ok(vec![]) };
        let file: KeyFile =
            serde_json::from_slice(&text).with_context(|| format!("{} is not a list of keys", path.display()))?;
        Ok(file.keys)
    }

    /// Changes the access keys; two commands at once change them one after the other.
    pub fn change_keys<T>(&self, change: impl FnOnce(&mut Vec<AccessKey>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let lock = File::open(&self.dir).with_context(|| format!("could not open {}", self.dir.display()))?;
        flock(&lock, FlockOperation::LockExclusive).context("could not lock the access keys")?;
        let mut keys = self.keys()?;
        let result = change(&mut keys)?;
        if keys.len() > MAX_KEYS {
            bail!("there are {MAX_KEYS} access keys already; delete some with `firelet keys delete`");
        }
        self.write("keys.json", &serde_json::to_vec_pretty(&KeyFile { keys }).context("keys are no JSON")?)?;
        Ok(result)
    }

    /// The access keys for a server, which notices when they change.
    pub fn ring(&self) -> anyhow::Result<KeyRing> {
        // What cannot be read now is the operator's to mend before the server starts.
        self.keys()?;
        let secrets = self.clone();
        let seen = Mutex::new(None);
        Ok(KeyRing::new(Box::new(move || {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let now = identity(&secrets.keys_path());
            if *seen == Some(now) {
                return None;
            }
            match secrets.keys() {
                Ok(keys) => {
                    *seen = Some(now);
                    Some(keys)
                }
                Err(error) => {
                    tracing::error!("the access keys stay as they were: {error:#}");
                    *seen = Some(now);
                    None
                }
            }
        })))
    }

    /// The key of session tokens, made at the first start.
    pub fn session_key(&self) -> anyhow::Result<[u8; 32]> {
        let path = self.dir.join("session.key");
        let key = match read_private(&path)? {
            Some(key) => key,
            None => {
                let mut key = vec![0; 32];
                File::open("/dev/urandom")
                    .and_then(|mut random| random.read_exact(&mut key))
                    .context("no randomness")?;
                self.write("session.key", &key)?;
                key
            }
        };
        <[u8; 32]>::try_from(key).map_err(|_| {
            anyhow::anyhow!(
                "{} must have 32 bytes; delete it to get a new one, which ends all sessions",
                path.display()
            )
        })
    }

    /// Replaces a file as a whole.
    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.dir.join(name);
        let context = || format!("could not write {}", path.display());
        let fresh = self.dir.join(format!("{name}.new"));
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(context),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).with_context(context)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).with_context(context)?;
        std::fs::rename(&fresh, &path).with_context(context)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).with_context(context)
    }
}

/// What changes when the file is replaced or written.
fn identity(path: &Path) -> Option<(u64, u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.size(), metadata.modified().ok()?))
}

/// A file that nobody else may read; `None` where there is none.
fn read_private(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let context = || format!("could not read {}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(context),
    };
    let mode = file.metadata().with_context(context)?.mode();
    if mode & 0o077 != 0 {
        bail!("{} can be read by others than its owner; `chmod 600` it", path.display());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(context)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use control_plane::record::Timestamp;

    use super::*;

    fn add(secrets: &Secrets) -> AccessKey {
        let key = AccessKey::generate("test", Timestamp(1)).unwrap();
        let kept = key.clone();
        secrets
            .change_keys(move |keys| {
                keys.push(kept);
                Ok(())
            })
            .unwrap();
        key
    }

    #[test]
    fn keys_are_kept_in_a_file_that_only_its_owner_reads() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(dir.path()).unwrap();
        assert!(secrets.keys().unwrap().is_empty());
        let ring = secrets.ring().unwrap();
        let (one, two) = (add(&secrets), add(&secrets));
        assert_eq!(secrets.keys().unwrap(), [one.clone(), two.clone()]);
        assert_eq!(ring.get(&two.id).as_deref(), Some(&two));
        let path = dir.path().join("auth/keys.json");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        secrets
            .change_keys(|keys| {
                keys.retain(|key| key.id != one.id);
                Ok(())
            })
            .unwrap();
        ring.refresh();
        assert_eq!(ring.get(&one.id), None);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = secrets.keys().unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_key_of_sessions_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(dir.path()).unwrap();
        let key = secrets.session_key().unwrap();
        assert_eq!(Secrets::open(dir.path()).unwrap().session_key().unwrap(), key);
        assert_ne!(key, [0; 32]);
        std::fs::write(dir.path().join("auth/session.key"), "short").unwrap();
        assert!(secrets.session_key().is_err());
    }
}
