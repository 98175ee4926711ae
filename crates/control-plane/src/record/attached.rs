//! What hangs on a function beside its versions: tags, aliases, policies, concurrency and the other settings that no
//! version freezes. Each group of operations owns one member.

use std::collections::BTreeMap;

use aws_model::arn::Qualifier;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{EventInvoke, RecursiveLoop, RuntimeUpdate, Timestamp, UrlConfig, VersionId};
use crate::policy::Policy;

/// What of a function a setting belongs to. As a key of a document: `$LATEST`, `3`, `live`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The function as a whole; with settings of a qualifier, `$LATEST`.
    Function,
    Version(u64),
    Alias(String),
}

impl Scope {
    /// What a request's qualifier stands for; whether that exists is another question.
    pub fn of(qualifier: Option<&Qualifier>) -> Self {
        match qualifier {
            None | Some(Qualifier::Latest) => Self::Function,
            Some(Qualifier::Version(number)) => Self::Version(*number),
            Some(Qualifier::Alias(name)) => Self::Alias(name.clone()),
            // No function here has capacity providers, so nothing has this name.
            Some(Qualifier::LatestPublished) => Self::Alias(Qualifier::LatestPublished.to_string()),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Function => formatter.write_str("$LATEST"),
            Self::Version(number) => write!(formatter, "{number}"),
            Self::Alias(name) => formatter.write_str(name),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self::of(Some(&Qualifier::parse(&text))))
    }
}

/// A provisioned-concurrency setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionedSetting {
    pub requested: u32,
    pub last_modified: Timestamp,
}

/// The share of an alias's invocations that a version gets: 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weight(pub f64);

// The shape allows numbers from 0 to 1 only.
impl Eq for Weight {}

/// A name for a version, or for two with weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    pub version: VersionId,
    pub description: String,
    /// A version besides, and its share.
    #[serde(with = "by_number")]
    pub routing: BTreeMap<u64, Weight>,
    pub revision_id: String,
}

/// Maps by version number. This struct is flattened into its function's document, and what is flattened reads the keys of
/// maps as strings and as nothing else.
mod by_number {
    use super::*;

    pub fn serialize<S: Serializer>(map: &BTreeMap<u64, Weight>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(number, value)| (number.to_string(), value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u64, Weight>, D::Error> {
        let texts = BTreeMap::<String, Weight>::deserialize(deserializer)?;
        let numbers = texts.into_iter().map(|(text, value)| Ok((text.parse()?, value)));
        numbers.collect::<Result<_, std::num::ParseIntError>>().map_err(serde::de::Error::custom)
    }
}

/// All that hangs on a function. What a document lacks is as on a new function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    pub tags: BTreeMap<String, String>,
    pub aliases: BTreeMap<String, Alias>,
    pub policies: BTreeMap<Scope, Policy>,
    pub provisioned: BTreeMap<Scope, ProvisionedSetting>,
    /// Concurrent executions that are kept for this function and that it cannot exceed.
    pub reserved: Option<u32>,
    /// Of the function and of its aliases.
    pub urls: BTreeMap<Scope, UrlConfig>,
    pub event_invoke: BTreeMap<Scope, EventInvoke>,
    pub recursion: RecursiveLoop,
    /// Of `$LATEST` and of versions.
    pub runtime_updates: BTreeMap<Scope, RuntimeUpdate>,
    /// The id of the code signing configuration that the function follows.
    pub code_signing: Option<String>,
}

impl Attached {
    /// Takes away what belongs to a scope that is gone.
    pub(crate) fn forget(&mut self, scope: &Scope) {
        self.policies.remove(scope);
        self.urls.remove(scope);
        self.event_invoke.remove(scope);
        self.runtime_updates.remove(scope);
        self.provisioned.remove(scope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_keys_of_documents() {
        let scopes = [Scope::Function, Scope::Version(3), Scope::Alias("live".to_owned())];
        let map: BTreeMap<Scope, u32> = scopes.into_iter().zip(1..).collect();
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(text, r#"{"$LATEST":1,"3":2,"live":3}"#);
        assert_eq!(serde_json::from_str::<BTreeMap<Scope, u32>>(&text).unwrap(), map);
    }
}
