//! From a version record to what a worker needs to know, once per content and not once per invocation.
//!
//! Environments of one key are interchangeable, so a key must never be used for two contents: not after an update, and
//! not after a function was deleted and made again with the same name. Keys carry a number that grows with each new
//! content; they mean nothing beyond this process, and neither do the environments.

mod build;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use control_plane::record::{FunctionVersion, VersionId};
use worker::{EnvironmentSpec, VersionKey};

pub use build::PackagePath;
pub(crate) use build::{Builder, snapshot_name};

/// The specifications in use.
pub(crate) struct Specs<B = Builder> {
    build: B,
    generation: AtomicU64,
    known: RwLock<HashMap<String, HashMap<VersionId, Known>>>,
}

struct Known {
    version: Arc<FunctionVersion>,
    spec: Arc<EnvironmentSpec>,
}

/// A package that is not on this host.
#[derive(Debug, thiserror::Error)]
#[error("the code package of {0} is not kept in files on this host")]
pub(crate) struct NoPackage(pub(crate) String);

/// Says what a worker needs to know of a version.
pub(crate) trait Build {
    /// The specification with this key.
    fn build(&self, version: &FunctionVersion, key: VersionKey) -> Result<EnvironmentSpec, NoPackage>;
}

/// What [`Specs::get`] found.
pub(crate) struct Found {
    pub(crate) spec: Arc<EnvironmentSpec>,
    /// The key that the version had before its content changed: its environments are to be retired.
    pub(crate) superseded: Option<VersionKey>,
}

impl<B: Build> Specs<B> {
    pub(crate) fn new(build: B) -> Self {
        Self { build, generation: AtomicU64::new(1), known: RwLock::default() }
    }

    /// What builds them.
    pub(crate) fn builder(&self) -> &B {
        &self.build
    }

    /// The specification of a version. Only the first call for a content does more than a lookup.
    pub(crate) fn get(&self, version: &Arc<FunctionVersion>) -> Result<Found, NoPackage> {
        let current = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known
                .get(&version.function)
                .and_then(|versions| versions.get(&version.id))
                .and_then(|known| Arc::ptr_eq(&known.version, version).then(|| Arc::clone(&known.spec)))
        };
        match current {
            Some(spec) => Ok(Found { spec, superseded: None }),
            None => self.renew(version),
        }
    }

    fn renew(&self, version: &Arc<FunctionVersion>) -> Result<Found, NoPackage> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let versions = known.entry(version.function.clone()).or_default();
        let before = versions.get_mut(&version.id);
        if let Some(before) = &before
            && before.version.content > version.content
            && before.version.last_modified >= version.last_modified
        {
            // An invocation that looked the version up before an update and got here after it.
            return Ok(Found { spec: Arc::new(self.fresh(version)?), superseded: None });
        }
        if let Some(before) = before
            && same_content(&before.version, version)
        {
            before.version = Arc::clone(version);
            return Ok(Found { spec: Arc::clone(&before.spec), superseded: None });
        }
        let spec = Arc::new(self.fresh(version)?);
        let entry = Known { version: Arc::clone(version), spec: Arc::clone(&spec) };
        let superseded = versions.insert(version.id, entry).map(|old| old.spec.key.clone());
        Ok(Found { spec, superseded })
    }

    /// The specification of a version, if it was ever needed.
    pub(crate) fn peek(&self, function: &str, id: VersionId) -> Option<Arc<EnvironmentSpec>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&known.get(function)?.get(&id)?.spec))
    }

    /// A specification that nothing runs by: to prepare content that does not serve yet.
    pub(crate) fn draft(&self, version: &FunctionVersion) -> Result<Arc<EnvironmentSpec>, NoPackage> {
        self.fresh(version).map(Arc::new)
    }

    /// Forgets versions that were deleted (`None`: the whole function) and returns their keys.
    pub(crate) fn forget(&self, function: &str, id: Option<VersionId>) -> Vec<VersionKey> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let forgotten: Vec<Known> = match id {
            None => known.remove(function).into_iter().flat_map(HashMap::into_values).collect(),
            Some(id) => known.get_mut(function).and_then(|versions| versions.remove(&id)).into_iter().collect(),
        };
        forgotten.iter().map(|known| known.spec.key.clone()).collect()
    }

    /// A specification under a key that was never used.
    fn fresh(&self, version: &FunctionVersion) -> Result<EnvironmentSpec, NoPackage> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        self.build.build(version, VersionKey(format!("{}#{generation}", version.qualified_arn())))
    }
}

/// Whether environments of the one can serve the other: a record also changes with its state.
fn same_content(one: &FunctionVersion, other: &FunctionVersion) -> bool {
    one.content == other.content && one.code == other.code && one.settings == other.settings && one.arn == other.arn
}

#[cfg(test)]
mod tests;
