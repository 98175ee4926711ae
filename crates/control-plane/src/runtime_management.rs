//! When versions get new releases of their runtime: the setting. Runtimes here are the host's, so that each runtime has
//! one release, whatever the setting is.

use aws_model::arn::Qualifier;
use aws_model::{ApiError, types};

use crate::plane::ControlPlane;
use crate::record::{Function, RuntimeUpdate, Scope, VersionId};
use crate::runtime;

impl ControlPlane {
    /// PutRuntimeManagementConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for an alias, for `Manual` without a release or with
    /// one that is not there, and for a release without `Manual`.
    pub async fn put_runtime_management_config(
        &self,
        request: &types::PutRuntimeManagementConfigRequest,
    ) -> Result<types::PutRuntimeManagementConfigResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        check_qualifier(target.qualifier.as_ref())?;
        let setting = setting(request)?;
        let scope = Scope::of(target.qualifier.as_ref());
        let ours = target.account == self.realm().account;
        let judge = |found: Option<&Function>| {
            let mut function = found.filter(|_| ours).ok_or_else(|| self.not_found(&target))?.clone();
            let version = function.version(id(&scope)).ok_or_else(|| self.not_found(&target))?;
            if let RuntimeUpdate::Manual { version: wanted } = &setting {
                let there = runtime::version_arn(&self.realm().region, &version.settings.runtime);
                if *wanted != there {
                    return Err(ApiError::invalid_parameter_value(format!(
                        "The runtime version {wanted} is not available. This server has {there}."
                    )));
                }
            }
            function.attached.runtime_updates.insert(scope.clone(), setting.clone());
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        let (update_runtime_on, runtime_version_arn) = show(&setting);
        Ok(types::PutRuntimeManagementConfigResponse {
            update_runtime_on,
            function_arn: Some(self.realm().arn_of(&target)),
            runtime_version_arn,
        })
    }

    /// GetRuntimeManagementConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for an alias.
    pub fn get_runtime_management_config(
        &self,
        request: &types::GetRuntimeManagementConfigRequest,
    ) -> Result<types::GetRuntimeManagementConfigResponse, ApiError> {
        let (function, target) = self.find(request.function_name.as_deref(), request.qualifier.as_deref())?;
        check_qualifier(target.qualifier.as_ref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        function.version(id(&scope)).ok_or_else(|| self.not_found(&target))?;
        let setting = function.attached.runtime_updates.get(&scope).cloned().unwrap_or_default();
        let (update_runtime_on, runtime_version_arn) = show(&setting);
        Ok(types::GetRuntimeManagementConfigResponse {
            update_runtime_on,
            runtime_version_arn,
            function_arn: Some(self.realm().arn_of(&target)),
        })
    }
}

fn check_qualifier(qualifier: Option<&Qualifier>) -> Result<(), ApiError> {
    match qualifier {
        None | Some(Qualifier::Latest | Qualifier::Version(_)) => Ok(()),
        Some(Qualifier::Alias(_) | Qualifier::LatestPublished) => Err(ApiError::invalid_parameter_value(
            "Runtime management configurations belong to $LATEST or a published version. Please specify a version.",
        )),
    }
}

fn id(scope: &Scope) -> VersionId {
    match scope {
        Scope::Version(number) => VersionId::Number(*number),
        Scope::Function | Scope::Alias(_) => VersionId::Latest,
    }
}

fn setting(request: &types::PutRuntimeManagementConfigRequest) -> Result<RuntimeUpdate, ApiError> {
    // The shape allows three words.
    let mode = request.update_runtime_on.as_deref();
    match (mode, &request.runtime_version_arn) {
        (Some("Manual"), Some(version)) => Ok(RuntimeUpdate::Manual { version: version.clone() }),
        (Some("Manual"), None) => {
            Err(ApiError::invalid_parameter_value("RuntimeVersionArn is required when UpdateRuntimeOn is Manual."))
        }
        (_, Some(_)) => Err(ApiError::invalid_parameter_value(
            "RuntimeVersionArn can only be specified when UpdateRuntimeOn is Manual.",
        )),
        (Some("FunctionUpdate"), None) => Ok(RuntimeUpdate::FunctionUpdate),
        (_, None) => Ok(RuntimeUpdate::Auto),
    }
}

/// `UpdateRuntimeOn` and `RuntimeVersionArn`.
fn show(setting: &RuntimeUpdate) -> (Option<String>, Option<String>) {
    let (mode, version) = match setting {
        RuntimeUpdate::Auto => ("Auto", None),
        RuntimeUpdate::FunctionUpdate => ("FunctionUpdate", None),
        RuntimeUpdate::Manual { version } => ("Manual", Some(version.clone())),
    };
    (Some(mode.to_owned()), version)
}
