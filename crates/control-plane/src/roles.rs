//! IAM roles, as far as tools need them to deploy a function, and the policies of the account that hang on them. What
//! they allow is decided in [`crate::authorization`].
//!
//! The rules are IAM's; the query protocol that speaks them is the frontend's.

mod checks;
mod policies;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use store::{Expect, Metadata, Write};
use uuid::Uuid;

use crate::authorization::{self, Document};
use crate::record::Timestamp;
use crate::shelf::Shelf;
use crate::tables::{self, OpenError, ROLES};

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub name: String,
    /// Begins and ends with a slash.
    pub path: String,
    /// `AROA` and 17 capitals or digits.
    pub id: String,
    pub arn: String,
    pub created: Timestamp,
    /// The trust policy, JSON as it was given.
    pub trust_policy: String,
    pub description: Option<String>,
    /// Seconds.
    pub max_session_secs: u32,
    pub tags: BTreeMap<String, String>,
    /// Names of the attached managed policies by their ARNs.
    pub attached: BTreeMap<String, String>,
    /// Inline policies by name, JSON as it was given.
    pub inline: BTreeMap<String, String>,
}

pub use policies::{ManagedPolicy, NewPolicy};

/// What CreateRole takes.
#[derive(Debug, Clone, Default)]
pub struct NewRole {
    pub name: String,
    /// `/` when absent.
    pub path: Option<String>,
    pub trust_policy: String,
    pub description: Option<String>,
    /// Seconds, 3,600 when absent.
    pub max_session_secs: Option<u32>,
    pub tags: BTreeMap<String, String>,
}

/// IAM's refusals. [`RoleError::code`] and [`RoleError::status`] are what the wire carries besides the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    #[error("Role with name {0} already exists.")]
    AlreadyExists(String),
    #[error("The role with name {0} cannot be found.")]
    NoSuchRole(String),
    #[error("Policy {0} was not found.")]
    NotAttached(String),
    #[error("The role policy with name {0} cannot be found.")]
    NoSuchInlinePolicy(String),
    #[error("Policy {0} does not exist or is not attachable.")]
    NoSuchManagedPolicy(String),
    #[error("Policy {0} does not exist.")]
    NoSuchPolicy(String),
    #[error("Policy {0} version {1} does not exist or is not attachable.")]
    NoSuchVersion(String, String),
    #[error("A policy called {0} already exists. Duplicate names are not allowed.")]
    PolicyExists(String),
    #[error("Cannot delete a policy attached to entities.")]
    PolicyInUse,
    #[error(
        "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The \
         default version is deleted with the policy."
    )]
    PolicyVersions,
    #[error("Cannot delete the default version of a policy.")]
    DefaultVersion,
    #[error(
        "A managed policy can have up to 5 versions. Before you create a new version, you must delete an existing version."
    )]
    TooManyVersions,
    #[error("Cannot delete entity, must detach all policies first.")]
    PoliciesAttached,
    #[error("Cannot delete entity, must delete policies first.")]
    InlinePolicies,
    #[error("{0}")]
    MalformedPolicy(String),
    #[error("{0}")]
    Validation(String),
    #[error("The change could not be stored.")]
    Store,
}

impl RoleError {
    /// The error code of the query protocol.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AlreadyExists(_) | Self::PolicyExists(_) => "EntityAlreadyExists",
            Self::NoSuchPolicy(_) | Self::NoSuchVersion(..) => "NoSuchEntity",
            Self::TooManyVersions => "LimitExceeded",
            Self::NoSuchRole(_) | Self::NotAttached(_) | Self::NoSuchInlinePolicy(_) | Self::NoSuchManagedPolicy(_) => {
                "NoSuchEntity"
            }
            Self::PoliciesAttached
            | Self::InlinePolicies
            | Self::PolicyInUse
            | Self::PolicyVersions
            | Self::DefaultVersion => "DeleteConflict",
            Self::MalformedPolicy(_) => "MalformedPolicyDocument",
            Self::Validation(_) => "ValidationError",
            Self::Store => "ServiceFailure",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoSuchPolicy(_) | Self::NoSuchVersion(..) => 404,
            Self::PolicyExists(_)
            | Self::PolicyInUse
            | Self::PolicyVersions
            | Self::DefaultVersion
            | Self::TooManyVersions => 409,
            Self::AlreadyExists(_) | Self::PoliciesAttached | Self::InlinePolicies => 409,
            Self::NoSuchRole(_) | Self::NotAttached(_) | Self::NoSuchInlinePolicy(_) | Self::NoSuchManagedPolicy(_) => {
                404
            }
            Self::MalformedPolicy(_) | Self::Validation(_) => 400,
            Self::Store => 500,
        }
    }
}

/// The roles of the account. Cheap to clone.
#[derive(Clone)]
pub struct Roles {
    inner: Arc<Inner>,
}

struct Inner {
    metadata: Arc<dyn Metadata>,
    account: String,
    /// Lower-case name to role: IAM's names differ in more than case.
    roles: RwLock<BTreeMap<String, Arc<Role>>>,
    writer: Arc<tokio::sync::Mutex<()>>,
    /// The account's own policies, by ARN. Changed under `writer` only.
    policies: Shelf<ManagedPolicy>,
    /// What roles are allowed, understood, with the role as it was; emptied when a policy changes.
    understood: RwLock<HashMap<String, (Arc<Role>, Documents)>>,
}

/// The identity policies of a role.
pub(crate) type Documents = Arc<[Document]>;

impl Roles {
    pub(crate) async fn open(metadata: Arc<dyn Metadata>, account: String) -> Result<Self, OpenError> {
        let mut roles = BTreeMap::new();
        for (key, entry) in tables::load_table(metadata.as_ref(), ROLES).await? {
            let role: Role = tables::decode(ROLES, &key, &entry)?;
            roles.insert(key, Arc::new(role));
        }
        let policies = Shelf::open(Arc::clone(&metadata), policies::TABLE).await?;
        let inner = Inner {
            metadata,
            account,
            roles: RwLock::new(roles),
            writer: Arc::default(),
            policies,
            understood: RwLock::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The identity policies of a role: inline ones and attached ones.
    pub(crate) fn documents(&self, role: &Arc<Role>) -> Documents {
        let understood = self.inner.understood.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, documents)) = understood.get(&role.name)
            && Arc::ptr_eq(known, role)
        {
            return Arc::clone(documents);
        }
        drop(understood);
        // Locked before the policies are read: one that changes meanwhile empties the table afterwards.
        let mut understood = self.inner.understood.write().unwrap_or_else(PoisonError::into_inner);
        let inline = role.inline.values().cloned();
        let attached = role.attached.keys().filter_map(|arn| {
            let own = || self.inner.policies.get(arn).map(|policy| policy.document().to_owned());
            authorization::managed(arn).or_else(own)
        });
        let documents: Documents = inline.chain(attached).map(|text| Document::parse_or_deny(&text)).collect();
        understood.insert(role.name.clone(), (Arc::clone(role), Arc::clone(&documents)));
        documents
    }

    /// CreateRole.
    ///
    /// # Errors
    /// A name that exists or is malformed, a trust policy that is none.
    pub async fn create(&self, new: NewRole, now: Timestamp) -> Result<Arc<Role>, RoleError> {
        checks::name("roleName", &new.name, 64)?;
        let path = new.path.unwrap_or_else(|| "/".to_owned());
        checks::path(&path)?;
        checks::trust_policy(&new.trust_policy)?;
        checks::description(new.description.as_deref())?;
        let max_session_secs = new.max_session_secs.unwrap_or(3_600);
        checks::session(max_session_secs)?;
        checks::tags(&new.tags)?;
        let role = Role {
            id: role_id(),
            arn: format!("arn:aws:iam::{}:role{path}{}", self.inner.account, new.name),
            path,
            created: now,
            trust_policy: new.trust_policy,
            description: new.description,
            max_session_secs,
            tags: new.tags,
            attached: BTreeMap::new(),
            inline: BTreeMap::new(),
            name: new.name.clone(),
        };
        let stored = self
            .mutate(&new.name, move |found| match found {
                Some(existing) => Err(RoleError::AlreadyExists(existing.name.clone())),
                None => Ok(Some(role)),
            })
            .await?;
        stored.ok_or(RoleError::Store)
    }

    /// GetRole.
    ///
    /// # Errors
    /// There is no such role.
    pub fn get(&self, name: &str) -> Result<Arc<Role>, RoleError> {
        self.find(name).ok_or_else(|| RoleError::NoSuchRole(name.to_owned()))
    }

    /// ListRoles: those below a path, by name.
    pub fn list(&self, path_prefix: &str) -> Vec<Arc<Role>> {
        let roles = self.inner.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.values().filter(|role| role.path.starts_with(path_prefix)).cloned().collect()
    }

    /// DeleteRole.
    ///
    /// # Errors
    /// There is no such role, or policies hang on it.
    pub async fn delete(&self, name: &str) -> Result<(), RoleError> {
        let given = name.to_owned();
        self.mutate(name, move |found| match found {
            None => Err(RoleError::NoSuchRole(given)),
            Some(role) if !role.attached.is_empty() => Err(RoleError::PoliciesAttached),
            Some(role) if !role.inline.is_empty() => Err(RoleError::InlinePolicies),
            Some(_) => Ok(None),
        })
        .await?;
        Ok(())
    }

    /// UpdateAssumeRolePolicy.
    ///
    /// # Errors
    /// There is no such role, or the policy is none.
    pub async fn update_trust_policy(&self, name: &str, policy: &str) -> Result<(), RoleError> {
        checks::trust_policy(policy)?;
        let policy = policy.to_owned();
        self.change(name, move |role| {
            role.trust_policy = policy;
            Ok(())
        })
        .await
    }

    /// UpdateRole; what is `None` stays.
    ///
    /// # Errors
    /// There is no such role, or a value is out of bounds.
    pub async fn update(
        &self,
        name: &str,
        description: Option<String>,
        max_session_secs: Option<u32>,
    ) -> Result<(), RoleError> {
        checks::description(description.as_deref())?;
        max_session_secs.map_or(Ok(()), checks::session)?;
        self.change(name, move |role| {
            role.description = description.or(role.description.take());
            role.max_session_secs = max_session_secs.unwrap_or(role.max_session_secs);
            Ok(())
        })
        .await
    }

    /// AttachRolePolicy. Attaching twice is no error.
    ///
    /// # Errors
    /// There is no such role, or the ARN is no policy's.
    pub async fn attach(&self, name: &str, policy_arn: &str) -> Result<(), RoleError> {
        let policy_name = checks::policy_arn(policy_arn)?;
        let arn = policy_arn.to_owned();
        let policies = self.inner.policies.clone();
        self.change(name, move |role| {
            if !arn.contains("::aws:policy/") && policies.get(&arn).is_none() {
                return Err(RoleError::NoSuchManagedPolicy(arn));
            }
            role.attached.insert(arn, policy_name);
            Ok(())
        })
        .await
    }

    /// DetachRolePolicy.
    ///
    /// # Errors
    /// There is no such role, or the policy is not attached to it.
    pub async fn detach(&self, name: &str, policy_arn: &str) -> Result<(), RoleError> {
        let arn = policy_arn.to_owned();
        self.change(name, move |role| match role.attached.remove(&arn) {
            Some(_) => Ok(()),
            None => Err(RoleError::NotAttached(arn)),
        })
        .await
    }

    /// PutRolePolicy: makes or replaces an inline policy.
    ///
    /// # Errors
    /// There is no such role, the name or the policy is malformed.
    pub async fn put_inline(&self, name: &str, policy_name: &str, policy: &str) -> Result<(), RoleError> {
        checks::name("policyName", policy_name, 128)?;
        checks::policy(policy)?;
        let (policy_name, policy) = (policy_name.to_owned(), policy.to_owned());
        self.change(name, move |role| {
            role.inline.insert(policy_name, policy);
            Ok(())
        })
        .await
    }

    /// GetRolePolicy: the JSON of an inline policy.
    ///
    /// # Errors
    /// There is no such role or policy.
    pub fn get_inline(&self, name: &str, policy_name: &str) -> Result<String, RoleError> {
        let role = self.get(name)?;
        role.inline.get(policy_name).cloned().ok_or_else(|| RoleError::NoSuchInlinePolicy(policy_name.to_owned()))
    }

    /// DeleteRolePolicy.
    ///
    /// # Errors
    /// There is no such role or policy.
    pub async fn delete_inline(&self, name: &str, policy_name: &str) -> Result<(), RoleError> {
        let policy_name = policy_name.to_owned();
        self.change(name, move |role| match role.inline.remove(&policy_name) {
            Some(_) => Ok(()),
            None => Err(RoleError::NoSuchInlinePolicy(policy_name)),
        })
        .await
    }

    /// TagRole: adds and replaces.
    ///
    /// # Errors
    /// There is no such role, or the tags break IAM's limits.
    pub async fn tag(&self, name: &str, tags: BTreeMap<String, String>) -> Result<(), RoleError> {
        self.change(name, move |role| {
            role.tags.extend(tags);
            checks::tags(&role.tags)
        })
        .await
    }

    /// UntagRole. Tags that are not there are no error.
    ///
    /// # Errors
    /// There is no such role.
    pub async fn untag(&self, name: &str, keys: &[String]) -> Result<(), RoleError> {
        let keys = keys.to_vec();
        self.change(name, move |role| {
            role.tags.retain(|key, _| !keys.contains(key));
            Ok(())
        })
        .await
    }

    fn find(&self, name: &str) -> Option<Arc<Role>> {
        let roles = self.inner.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.get(&key(name)).cloned()
    }

    async fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut Role) -> Result<(), RoleError>,
    ) -> Result<(), RoleError> {
        let given = name.to_owned();
        self.mutate(name, |found| {
            let mut role = found.cloned().ok_or(RoleError::NoSuchRole(given))?;
            change(&mut role)?;
            Ok(Some(role))
        })
        .await?;
        Ok(())
    }

    /// Judges, stores, and only then shows a change; the storing goes on when the caller leaves.
    async fn mutate(
        &self,
        name: &str,
        judge: impl FnOnce(Option<&Role>) -> Result<Option<Role>, RoleError>,
    ) -> Result<Option<Arc<Role>>, RoleError> {
        let lock = Arc::clone(&self.inner.writer).lock_owned().await;
        let found = self.find(name);
        let new = judge(found.as_deref())?.map(Arc::new);
        if found == new {
            return Ok(new);
        }
        let inner = Arc::clone(&self.inner);
        let (key, after) = (key(name), new.clone());
        let commit = tokio::spawn(async move {
            let outcome = inner.commit(key, new).await;
            drop(lock);
            outcome
        });
        commit.await.map_err(|_| RoleError::Store)??;
        Ok(after)
    }
}

impl Inner {
    async fn commit(&self, key: String, new: Option<Arc<Role>>) -> Result<(), RoleError> {
        let write = match &new {
            Some(role) => Write::put(ROLES, &key, role.as_ref(), Expect::Any).map_err(|_| RoleError::Store)?,
            None => Write::delete(ROLES, &key, Expect::Any),
        };
        if let Err(error) = self.metadata.commit(vec![write]).await {
            tracing::error!(role = key, %error, "a change of a role was not stored");
            return Err(RoleError::Store);
        }
        let mut roles = self.roles.write().unwrap_or_else(PoisonError::into_inner);
        match new {
            Some(role) => drop(roles.insert(key, role)),
            None => drop(roles.remove(&key)),
        }
        drop(roles);
        // Roles that went leave nothing behind here.
        self.understood.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}

/// IAM treats names that differ only in case as the same.
fn key(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// `AROA` and 17 characters of IAM's alphabet, out of 122 random bits.
fn role_id() -> String {
    unique_id("AROA")
}

/// An id of IAM's: four letters that tell the kind, and 17 characters.
fn unique_id(kind: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut random = Uuid::new_v4().as_u128();
    let mut id = String::from(kind);
    for _ in 0..17 {
        id.push(char::from(ALPHABET[(random % 32) as usize]));
        random /= 32;
    }
    id
}

#[cfg(test)]
mod tests;
