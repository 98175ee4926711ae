//! A code signing configuration: whose signatures the packages of its functions shall carry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A code signing configuration. Stands on its own; functions name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeSigning {
    pub description: String,
    /// ARNs of signing profile versions.
    pub publishers: Vec<String>,
    pub policy: SigningPolicy,
    pub modified: Timestamp,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// What happens to a package without a trusted signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SigningPolicy {
    /// It is taken, with a warning in the log.
    Warn,
    /// It is refused.
    Enforce,
}

impl SigningPolicy {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warn => "Warn",
            Self::Enforce => "Enforce",
        }
    }
}
