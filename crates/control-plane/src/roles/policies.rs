//! The account's own managed policies: documents with versions, which roles share.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::{RoleError, Roles, checks, unique_id};
use crate::authorization;
use crate::record::Timestamp;

pub(super) const TABLE: &str = "iam-policies";

/// Versions that a policy may have.
const MAX_VERSIONS: usize = 5;

/// A managed policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedPolicy {
    pub name: String,
    /// Begins and ends with a slash.
    pub path: String,
    /// `ANPA` and 17 capitals or digits.
    pub id: String,
    pub arn: String,
    pub description: Option<String>,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// The version in force.
    pub default: u32,
    /// Numbers are never used twice.
    pub next: u32,
    pub versions: BTreeMap<u32, Version>,
    pub tags: BTreeMap<String, String>,
}

/// One version of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// JSON as it was given.
    pub document: String,
    pub created: Timestamp,
}

impl ManagedPolicy {
    /// The document in force.
    pub fn document(&self) -> &str {
        self.versions.get(&self.default).map_or("", |version| &version.document)
    }

    /// One of AWS's own, as far as it is known here.
    fn of_aws(arn: &str) -> Option<Self> {
        let document = authorization::managed(arn)?;
        let (path, name) = arn.strip_prefix("arn:aws:iam::aws:policy")?.rsplit_once('/')?;
        Some(Self {
            name: name.to_owned(),
            path: format!("{path}/"),
            id: format!("ANPA{:A<17}", ""),
            arn: arn.to_owned(),
            description: None,
            created: Timestamp(0),
            updated: Timestamp(0),
            default: 1,
            next: 2,
            versions: BTreeMap::from([(1, Version { document, created: Timestamp(0) })]),
            tags: BTreeMap::new(),
        })
    }
}

/// What CreatePolicy takes.
#[derive(Debug, Clone, Default)]
pub struct NewPolicy {
    pub name: String,
    /// `/` when absent.
    pub path: Option<String>,
    pub document: String,
    pub description: Option<String>,
    pub tags: BTreeMap<String, String>,
}

impl Roles {
    /// CreatePolicy.
    ///
    /// # Errors
    /// A name that exists or is malformed, a document that is none.
    pub async fn create_policy(&self, new: NewPolicy, now: Timestamp) -> Result<Arc<ManagedPolicy>, RoleError> {
        checks::name("policyName", &new.name, 128)?;
        let path = new.path.unwrap_or_else(|| "/".to_owned());
        checks::path(&path)?;
        checks::policy(&new.document)?;
        checks::description(new.description.as_deref())?;
        checks::tags(&new.tags)?;
        let arn = format!("arn:aws:iam::{}:policy{path}{}", self.inner.account, new.name);
        let policy = ManagedPolicy {
            id: unique_id("ANPA"),
            arn: arn.clone(),
            path,
            description: new.description,
            created: now,
            updated: now,
            default: 1,
            next: 2,
            versions: BTreeMap::from([(1, Version { document: new.document, created: now })]),
            tags: new.tags,
            name: new.name,
        };
        self.change_policy(&arn, |_| {
            let same_name = |other: &ManagedPolicy| other.name.eq_ignore_ascii_case(&policy.name);
            match self.policies().iter().any(|other| same_name(other)) {
                true => Err(RoleError::PolicyExists(policy.name.clone())),
                false => Ok(Some(policy)),
            }
        })
        .await
        .and_then(|policy| policy.ok_or(RoleError::Store))
    }

    /// GetPolicy: the account's own, and those of AWS's that are known here.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn policy(&self, arn: &str) -> Result<Arc<ManagedPolicy>, RoleError> {
        checks::policy_arn(arn)?;
        let own = self.inner.policies.get(arn);
        own.or_else(|| ManagedPolicy::of_aws(arn).map(Arc::new)).ok_or_else(|| RoleError::NoSuchPolicy(arn.to_owned()))
    }

    /// ListPolicies: the account's own.
    pub fn policies(&self) -> Vec<Arc<ManagedPolicy>> {
        self.inner.policies.all().into_iter().map(|(_, policy)| policy).collect()
    }

    /// How many roles a policy is attached to.
    pub fn attachments(&self, arn: &str) -> usize {
        let roles = self.inner.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.values().filter(|role| role.attached.contains_key(arn)).count()
    }

    /// CreatePolicyVersion: the number of the new version.
    ///
    /// # Errors
    /// There is no such policy, it has too many versions, or the document is none.
    pub async fn create_policy_version(
        &self,
        arn: &str,
        document: &str,
        make_default: bool,
        now: Timestamp,
    ) -> Result<u32, RoleError> {
        checks::policy(document)?;
        let mut number = 0;
        self.change_policy(arn, |found| {
            let mut policy = found.cloned().ok_or_else(|| RoleError::NoSuchPolicy(arn.to_owned()))?;
            if policy.versions.len() >= MAX_VERSIONS {
                return Err(RoleError::TooManyVersions);
            }
            number = policy.next;
            policy.next = policy.next.saturating_add(1);
            policy.versions.insert(number, Version { document: document.to_owned(), created: now });
            policy.updated = now;
            if make_default {
                policy.default = number;
            }
            Ok(Some(policy))
        })
        .await?;
        Ok(number)
    }

    /// SetDefaultPolicyVersion (`v2`).
    ///
    /// # Errors
    /// There is no such policy or version.
    pub async fn set_default_policy_version(&self, arn: &str, version: &str, now: Timestamp) -> Result<(), RoleError> {
        self.change_policy(arn, |found| {
            let mut policy = found.cloned().ok_or_else(|| RoleError::NoSuchPolicy(arn.to_owned()))?;
            policy.default = numbered(&policy, version)?;
            policy.updated = now;
            Ok(Some(policy))
        })
        .await?;
        Ok(())
    }

    /// DeletePolicyVersion (`v2`).
    ///
    /// # Errors
    /// There is no such policy or version, or it is the one in force.
    pub async fn delete_policy_version(&self, arn: &str, version: &str) -> Result<(), RoleError> {
        self.change_policy(arn, |found| {
            let mut policy = found.cloned().ok_or_else(|| RoleError::NoSuchPolicy(arn.to_owned()))?;
            let number = numbered(&policy, version)?;
            if number == policy.default {
                return Err(RoleError::DefaultVersion);
            }
            policy.versions.remove(&number);
            Ok(Some(policy))
        })
        .await?;
        Ok(())
    }

    /// GetPolicyVersion (`v2`): its number and itself.
    ///
    /// # Errors
    /// There is no such policy or version.
    pub fn policy_version(&self, arn: &str, version: &str) -> Result<(u32, Version), RoleError> {
        let policy = self.policy(arn)?;
        let number = numbered(&policy, version)?;
        let version = policy.versions.get(&number).cloned();
        version.map(|version| (number, version)).ok_or_else(|| RoleError::NoSuchPolicy(arn.to_owned()))
    }

    /// DeletePolicy.
    ///
    /// # Errors
    /// There is no such policy, roles have it, or it has versions beside the one in force.
    pub async fn delete_policy(&self, arn: &str) -> Result<(), RoleError> {
        self.change_policy(arn, |found| match found {
            None => Err(RoleError::NoSuchPolicy(arn.to_owned())),
            Some(_) if self.attachments(arn) > 0 => Err(RoleError::PolicyInUse),
            Some(policy) if policy.versions.len() > 1 => Err(RoleError::PolicyVersions),
            Some(_) => Ok(None),
        })
        .await?;
        Ok(())
    }

    /// Changes a policy while no role changes, and has every role's policies understood anew.
    async fn change_policy(
        &self,
        arn: &str,
        judge: impl FnOnce(Option<&ManagedPolicy>) -> Result<Option<ManagedPolicy>, RoleError>,
    ) -> Result<Option<Arc<ManagedPolicy>>, RoleError> {
        let lock = Arc::clone(&self.inner.writer).lock_owned().await;
        let after = judge(self.inner.policies.get(arn).as_deref())?;
        let changed = self.inner.policies.mutate(arn, lock, |_| Ok(after)).await;
        self.inner.understood.write().unwrap_or_else(PoisonError::into_inner).clear();
        changed.map(|change| change.after).map_err(|_| RoleError::Store)
    }
}

/// The number of a version (`v2`) that the policy has.
fn numbered(policy: &ManagedPolicy, version: &str) -> Result<u32, RoleError> {
    let number = version.strip_prefix('v').and_then(|number| number.parse().ok());
    number
        .filter(|number| policy.versions.contains_key(number))
        .ok_or_else(|| RoleError::NoSuchVersion(policy.arn.clone(), version.to_owned()))
}
