//! Provisioned concurrency: the settings and their rules. How many environments there really are is asked of whoever
//! runs them, through [`LiveConcurrency`].

use std::sync::Arc;

use aws_model::arn::{FunctionRef, Qualifier};
use aws_model::{ApiError, types};

use crate::page::page;
use crate::plane::{ControlPlane, version_id};
use crate::record::{Function, FunctionVersion, ProvisionedSetting, Scope, Timestamp, VersionId};
use crate::wire::int;

/// What is really there for a setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveConcurrency {
    /// Initialized environments.
    pub allocated: u32,
    /// Those of them that are free.
    pub available: u32,
    /// Initialization failed and is not tried any more.
    pub failed: bool,
}

/// Environments that shall be kept ready: what a restart, a put or a delete leaves to carry out.
#[derive(Debug, Clone)]
pub struct Provision {
    pub version: Arc<FunctionVersion>,
    /// 0 after a delete.
    pub count: u32,
}

impl ControlPlane {
    /// PutProvisionedConcurrencyConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for `$LATEST` and for more than the account has left.
    pub async fn put_provisioned_concurrency_config(
        &self,
        request: &types::PutProvisionedConcurrencyConfigRequest,
        now: Timestamp,
    ) -> Result<(types::PutProvisionedConcurrencyConfigResponse, Provision), ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        if matches!(target.qualifier, None | Some(Qualifier::Latest)) {
            return Err(ApiError::invalid_parameter_value(
                "Provisioned Concurrency Configs cannot be applied to unpublished function versions.",
            ));
        }
        let (number, version) = self.published(&target)?;
        // The shape demands at least 1.
        let requested = request.provisioned_concurrent_executions.unwrap_or_default().unsigned_abs();
        let _alone = self.inner.provisioning.lock().await;
        let setting = ProvisionedSetting { requested, last_modified: now };
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(|| self.not_found(&target))?.clone();
            if !function.versions.contains_key(&number) {
                return Err(self.not_found(&target));
            }
            let scope = Scope::Version(number);
            let old = function.attached.provisioned.get(&scope).map_or(0, |setting| setting.requested);
            let total = (function.provisioned_total() - old).saturating_add(requested);
            self.check_provisioned(&function, total)?;
            function.attached.provisioned.insert(Scope::Version(number), setting);
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        let shown = show(setting, LiveConcurrency::default());
        let response = types::PutProvisionedConcurrencyConfigResponse {
            requested_provisioned_concurrent_executions: shown.requested_provisioned_concurrent_executions,
            available_provisioned_concurrent_executions: shown.available_provisioned_concurrent_executions,
            allocated_provisioned_concurrent_executions: shown.allocated_provisioned_concurrent_executions,
            status: Some("IN_PROGRESS".to_owned()),
            status_reason: None,
            last_modified: shown.last_modified,
        };
        Ok((response, Provision { version, count: requested }))
    }

    /// GetProvisionedConcurrencyConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException, ProvisionedConcurrencyConfigNotFoundException, and
    /// InvalidParameterValueException for `$LATEST`.
    pub fn get_provisioned_concurrency_config(
        &self,
        request: &types::GetProvisionedConcurrencyConfigRequest,
        live: impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> Result<types::GetProvisionedConcurrencyConfigResponse, ApiError> {
        let target = self.provisionable(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let (number, version) = self.published(&target)?;
        let function = self.function(&target.name).ok_or_else(|| self.not_found(&target))?;
        let setting = function.attached.provisioned.get(&Scope::Version(number)).ok_or_else(|| {
            ApiError::provisioned_concurrency_config_not_found(
                "No Provisioned Concurrency Config found for this function",
            )
        })?;
        Ok(show(*setting, live(&version)))
    }

    /// ListProvisionedConcurrencyConfigs.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_provisioned_concurrency_configs(
        &self,
        request: &types::ListProvisionedConcurrencyConfigsRequest,
        live: impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> Result<types::ListProvisionedConcurrencyConfigsResponse, ApiError> {
        let (function, _) = self.find(request.function_name.as_deref(), None)?;
        let items = provisioned(&function).map(|(number, setting)| (format!("{number:020}"), (number, setting)));
        let (settings, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let configs = settings.into_iter().filter_map(|(number, setting)| {
            let version = function.version(VersionId::Number(number))?;
            let shown = show(setting, live(version));
            Some(types::ProvisionedConcurrencyConfigListItem {
                function_arn: Some(version.qualified_arn()),
                requested_provisioned_concurrent_executions: shown.requested_provisioned_concurrent_executions,
                available_provisioned_concurrent_executions: shown.available_provisioned_concurrent_executions,
                allocated_provisioned_concurrent_executions: shown.allocated_provisioned_concurrent_executions,
                status: shown.status,
                status_reason: shown.status_reason,
                last_modified: shown.last_modified,
            })
        });
        Ok(types::ListProvisionedConcurrencyConfigsResponse {
            provisioned_concurrency_configs: Some(configs.collect()),
            next_marker,
        })
    }

    /// DeleteProvisionedConcurrencyConfig. Deleting what is not there is no error.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for `$LATEST`.
    pub async fn delete_provisioned_concurrency_config(
        &self,
        request: &types::DeleteProvisionedConcurrencyConfigRequest,
    ) -> Result<Provision, ApiError> {
        let target = self.provisionable(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let (number, version) = self.published(&target)?;
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(|| self.not_found(&target))?.clone();
            function.attached.provisioned.remove(&Scope::Version(number));
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(Provision { version, count: 0 })
    }

    /// Every setting there is: what has to be carried out after a restart.
    pub fn provisions(&self) -> Vec<Provision> {
        self.settings().map(|(version, setting)| Provision { version, count: setting.requested }).collect()
    }

    fn settings(&self) -> impl Iterator<Item = (Arc<FunctionVersion>, ProvisionedSetting)> {
        self.functions().into_iter().flat_map(|function| {
            let pairs = provisioned(&function);
            let versions =
                pairs.filter_map(|(number, setting)| Some((Arc::clone(function.versions.get(&number)?), setting)));
            versions.collect::<Vec<_>>()
        })
    }

    /// Whether a function may have this much provisioned concurrency in all.
    fn check_provisioned(&self, function: &Function, total: u32) -> Result<(), ApiError> {
        match function.attached.reserved {
            Some(reserved) if total > reserved => Err(ApiError::invalid_parameter_value(
                "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for \
                 function",
            )),
            Some(_) => Ok(()),
            None => {
                let unreserved = self.unreserved().saturating_add(function.provisioned_total());
                if total > unreserved {
                    return Err(ApiError::invalid_parameter_value(format!(
                        "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency \
                         [{unreserved}]."
                    )));
                }
                self.check_unreserved(function, total, "ConcurrentExecutions")
            }
        }
    }

    fn provisionable(&self, name: Option<&str>, qualifier: Option<&str>) -> Result<FunctionRef, ApiError> {
        let target = self.target(name, qualifier)?;
        if matches!(target.qualifier, None | Some(Qualifier::Latest)) {
            return Err(ApiError::invalid_parameter_value(
                "The function resource provided must be an alias or a published version.",
            ));
        }
        Ok(target)
    }

    /// The published version that a reference names.
    fn published(&self, target: &FunctionRef) -> Result<(u64, Arc<FunctionVersion>), ApiError> {
        let bare = FunctionRef { qualifier: None, ..target.clone() };
        let function = self.function(&target.name).filter(|_| target.account == self.realm().account);
        let function = function.ok_or_else(|| self.not_found(&bare))?;
        match version_id(target.qualifier.as_ref()) {
            Some(VersionId::Number(number)) => {
                let version = function.versions.get(&number).ok_or_else(|| self.not_found(target))?;
                Ok((number, Arc::clone(version)))
            }
            Some(VersionId::Latest) | None => {
                Err(ApiError::resource_not_found(format!("Cannot find alias arn: {}", self.realm().arn_of(target))))
            }
        }
    }
}

fn provisioned(function: &Function) -> impl Iterator<Item = (u64, ProvisionedSetting)> {
    function.attached.provisioned.iter().filter_map(|(scope, setting)| match scope {
        Scope::Version(number) => Some((*number, *setting)),
        Scope::Function | Scope::Alias(_) => None,
    })
}

fn show(setting: ProvisionedSetting, live: LiveConcurrency) -> types::GetProvisionedConcurrencyConfigResponse {
    let (status, reason) = if live.failed {
        ("FAILED", Some("FUNCTION_ERROR_INIT_FAILURE".to_owned()))
    } else if live.allocated >= setting.requested {
        ("READY", None)
    } else {
        ("IN_PROGRESS", None)
    };
    types::GetProvisionedConcurrencyConfigResponse {
        requested_provisioned_concurrent_executions: Some(int(setting.requested)),
        available_provisioned_concurrent_executions: Some(int(live.available)),
        allocated_provisioned_concurrent_executions: Some(int(live.allocated)),
        status: Some(status.to_owned()),
        status_reason: reason,
        last_modified: Some(setting.last_modified.to_string()),
    }
}
