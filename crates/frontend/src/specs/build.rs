//! What a record says to a worker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_model::types::GetFunctionConfigurationRequest;
use control_plane::ControlPlane;
use control_plane::record::{Code, FunctionVersion, LogFormat, VersionId};
use worker::{CodeRef, EnvironmentSpec, LogSettings, SnapshotName, VersionKey};

use super::{Build, NoPackage};

/// Finds a zip archive on this host; `None` when its bytes are not in a file here.
pub type PackagePath = Arc<dyn Fn(&Code) -> Option<PathBuf> + Send + Sync>;

/// Builds specifications from records.
pub(crate) struct Builder {
    control_plane: ControlPlane,
    package_path: PackagePath,
}

impl Builder {
    pub(crate) fn new(control_plane: ControlPlane, package_path: PackagePath) -> Self {
        Self { control_plane, package_path }
    }

    /// The zip archive of what has this ARN.
    pub(crate) fn package(&self, code: &Code, arn: &str) -> Result<PathBuf, NoPackage> {
        (self.package_path)(code).ok_or_else(|| NoPackage(arn.to_owned()))
    }

    fn code(&self, code: &Code, arn: &str) -> Result<CodeRef, NoPackage> {
        Ok(CodeRef { digest: code.digest.to_string(), path: self.package(code, arn)? })
    }

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

/// The name of a version's snapshot: made of what no other version has, of this function or of one that is made again under
/// its name. `$LATEST` has none, nor have versions from before there were such names.
pub(crate) fn snapshot_name(version: &FunctionVersion) -> Option<SnapshotName> {
    let VersionId::Number(number) = version.id else { return None };
    let named = version.settings.snap_start && !version.attempt.is_empty();
    named.then(|| SnapshotName::new(format!("{}-{number}", version.attempt)))
}

impl Build for Builder {
    fn build(&self, version: &FunctionVersion, key: VersionKey) -> Result<EnvironmentSpec, NoPackage> {
        let settings = &version.settings;
        let realm = self.control_plane.realm();
        let (format, application_level, system_level) = match &settings.logging.format {
            LogFormat::Text => (worker::LogFormat::Text, None, None),
            LogFormat::Json { application_level, system_level } => {
                (worker::LogFormat::Json, Some(application_level.clone()), Some(system_level.clone()))
            }
        };
        let layers = settings.layers.iter().map(|layer| self.code(&layer.code, &layer.arn));
        Ok(EnvironmentSpec {
            key,
            function_name: version.function.clone(),
            version: version.id.to_string(),
            function_arn: version.arn.clone(),
            account_id: realm.account.clone(),
            region: realm.region.clone(),
            role: settings.role.clone(),
            runtime: settings.runtime.clone(),
            runtime_version_arn: self.runtime_version_arn(version),
            handler: settings.handler.clone(),
            code: self.code(&version.code, &version.qualified_arn())?,
            layers: layers.collect::<Result<_, _>>()?,
            environment: settings.environment.as_ref().map(|variables| variables.0.clone()).unwrap_or_default(),
            memory_mb: settings.memory_mib,
            timeout: Duration::from_secs(u64::from(settings.timeout_secs)),
            tmp_mb: settings.ephemeral_mib,
            max_concurrency: settings.max_concurrency(),
            logging: LogSettings {
                custom_group: settings.logging.group != format!("/aws/lambda/{}", version.function),
                group: settings.logging.group.clone(),
                format,
                application_level,
                system_level,
            },
            snap_start: snapshot_name(version),
        })
    }
}
