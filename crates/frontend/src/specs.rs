//! From a version record to what a worker needs to know, once per content and not once per invocation.
//!
//! Environments of one key are interchangeable, so a key must never be used for two contents: not after an update, and
//! not after a function was deleted and made again with the same name. Keys carry a number that grows with each new
//! content; they mean nothing beyond this process, and neither do the environments.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_model::types::GetFunctionConfigurationRequest;
use control_plane::ControlPlane;
use control_plane::record::{FunctionVersion, LogFormat, VersionId};
use worker::{CodeRef, EnvironmentSpec, LogSettings, VersionKey};

/// Finds the zip archive of a version on this host; `None` when its bytes are not in a file here.
pub type PackagePath = Arc<dyn Fn(&FunctionVersion) -> Option<PathBuf> + Send + Sync>;

/// The specifications in use.
pub(crate) struct Specs {
    control_plane: ControlPlane,
    package_path: PackagePath,
    generation: AtomicU64,
    known: RwLock<HashMap<String, HashMap<VersionId, Known>>>,
}

struct Known {
    version: Arc<FunctionVersion>,
    spec: Arc<EnvironmentSpec>,
}

/// A version whose code is not on this host.
#[derive(Debug, thiserror::Error)]
#[error("the code package of {0} is not kept in files on this host")]
pub(crate) struct NoPackage(String);

/// What [`Specs::get`] found.
pub(crate) struct Found {
    pub(crate) spec: Arc<EnvironmentSpec>,
    /// The key that the version had before its content changed: its environments are to be retired.
    pub(crate) superseded: Option<VersionKey>,
}

impl Specs {
    pub(crate) fn new(control_plane: ControlPlane, package_path: PackagePath) -> Self {
        Self { control_plane, package_path, generation: AtomicU64::new(1), known: RwLock::default() }
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
            return Ok(Found { spec: Arc::new(self.build(version)?), superseded: None });
        }
        if let Some(before) = before
            && same_content(&before.version, version)
        {
            before.version = Arc::clone(version);
            return Ok(Found { spec: Arc::clone(&before.spec), superseded: None });
        }
        let spec = Arc::new(self.build(version)?);
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
        self.build(version).map(Arc::new)
    }

    /// The zip archive of a version.
    pub(crate) fn package(&self, version: &FunctionVersion) -> Result<PathBuf, NoPackage> {
        (self.package_path)(version).ok_or_else(|| NoPackage(version.qualified_arn()))
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

    fn build(&self, version: &FunctionVersion) -> Result<EnvironmentSpec, NoPackage> {
        let settings = &version.settings;
        let path = self.package(version)?;
        let realm = self.control_plane.realm();
        let (format, application_level, system_level) = match &settings.logging.format {
            LogFormat::Text => (worker::LogFormat::Text, None, None),
            LogFormat::Json { application_level, system_level } => {
                (worker::LogFormat::Json, Some(application_level.clone()), Some(system_level.clone()))
            }
        };
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        Ok(EnvironmentSpec {
            key: VersionKey(format!("{}#{generation}", version.qualified_arn())),
            function_name: version.function.clone(),
            version: version.id.to_string(),
            function_arn: version.arn.clone(),
            account_id: realm.account.clone(),
            region: realm.region.clone(),
            runtime: settings.runtime.clone(),
            runtime_version_arn: self.runtime_version_arn(version),
            handler: settings.handler.clone(),
            code: CodeRef { digest: version.code.digest.to_string(), path },
            layers: Vec::new(),
            environment: settings.environment.as_ref().map(|variables| variables.0.clone()).unwrap_or_default(),
            memory_mb: settings.memory_mib,
            timeout: Duration::from_secs(u64::from(settings.timeout_secs)),
            tmp_mb: settings.ephemeral_mib,
            logging: LogSettings {
                custom_group: settings.logging.group != format!("/aws/lambda/{}", version.function),
                group: settings.logging.group.clone(),
                format,
                application_level,
                system_level,
            },
        })
    }
}

impl Specs {
    /// The ARN that the API shows for the version's runtime, if it shows one for this content.
    fn runtime_version_arn(&self, version: &FunctionVersion) -> Option<String> {
        let request = GetFunctionConfigurationRequest {
            function_name: Some(version.function.clone()),
            qualifier: Some(version.id.to_string()),
        };
        let shown = self.control_plane.get_function_configuration(&request).ok()?;
        let same = shown.runtime.as_deref() == Some(version.settings.runtime.as_str());
        shown.runtime_version_config.filter(|_| same)?.runtime_version_arn
    }
}

/// Whether environments of the one can serve the other: a record also changes with its state.
fn same_content(one: &FunctionVersion, other: &FunctionVersion) -> bool {
    one.content == other.content && one.code == other.code && one.settings == other.settings && one.arn == other.arn
}
