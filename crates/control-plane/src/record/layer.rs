//! What is kept of a layer: every version that was not deleted, in one document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::Digest;

use super::{Code, Timestamp};
use crate::objects::ObjectRef;
use crate::policy::Policy;

/// A published version of a layer. Only its policy ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerVersion {
    pub description: String,
    /// Absent is not the same as empty: the API shows the difference.
    pub runtimes: Option<Vec<String>>,
    /// As [`Self::runtimes`].
    pub architectures: Option<Vec<String>>,
    pub license: Option<String>,
    pub code: Code,
    /// The object in S3 that the caller wants to be used where it lies; `code` is a copy of it.
    #[serde(default)]
    pub reference: Option<ObjectRef>,
    pub created: Timestamp,
    /// Absent where no permission was ever given or the last one was taken back.
    pub policy: Option<Policy>,
}

/// A layer. Stays when its last version goes, because its numbers are never handed out twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub next_version: u64,
    pub versions: BTreeMap<u64, LayerVersion>,
}

impl Layer {
    /// A layer without versions.
    pub fn new() -> Self {
        Self { next_version: 1, versions: BTreeMap::new() }
    }

    /// Every package that the layer needs.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.versions.values().map(|version| version.code.digest)
    }
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}
