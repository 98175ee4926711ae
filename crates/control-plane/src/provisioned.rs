//! Provisioned concurrency: the settings and their rules. How many environments there really are is asked of whoever
//! runs them, through [`LiveConcurrency`].
//!
//! A setting belongs to a version or to an alias; environments belong to versions. What an alias is given goes to its
//! version, or by weight to both, and moves when the alias does. No version has environments of two settings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_model::arn::{FunctionRef, Qualifier};
use aws_model::{ApiError, types};

use crate::concurrency::beyond_account;
use crate::page::page;
use crate::plane::{ControlPlane, Mutation};
use crate::record::{Alias, Function, FunctionVersion, ProvisionedSetting, Scope, Timestamp, VersionId};
use crate::wire::int;

/// What is really there for a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveConcurrency {
    /// Initialized environments.
    pub allocated: u32,
    /// Those of them that are free.
    pub available: u32,
    /// Why those that are missing are not being made, if that is so.
    pub failed: Option<ProvisionFailure>,
}

/// What went wrong with provisioned environments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvisionFailure {
    /// The function could not be initialized.
    Initialization,
    /// There is no room for them.
    Capacity,
}

impl ProvisionFailure {
    /// As `StatusReason` has it. The first is recorded; the second is the API's `InsufficientCapacity` in that spelling.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Initialization => "FUNCTION_ERROR_INIT_FAILURE",
            Self::Capacity => "INSUFFICIENT_CAPACITY",
        }
    }
}

/// Environments that shall be kept ready: what a restart or a change leaves to carry out.
#[derive(Debug, Clone)]
pub struct Provision {
    pub version: Arc<FunctionVersion>,
    /// 0 where nothing is to be kept any more.
    pub count: u32,
}

impl Alias {
    /// How many of `requested` environments each version gets.
    fn shares(&self, requested: u32) -> Vec<(u64, u32)> {
        let VersionId::Number(main) = self.version else { return Vec::new() };
        match self.routing.first_key_value() {
            Some((other, weight)) => {
                // At most `requested`, as the weight is at most 1.
                let share = (f64::from(requested) * weight.0).round() as u32;
                vec![(main, requested.saturating_sub(share)), (*other, share)]
            }
            None => vec![(main, requested)],
        }
    }
}

impl Function {
    /// How many environments of each version a setting asks for.
    fn shares(&self, scope: &Scope, requested: u32) -> Vec<(u64, u32)> {
        match scope {
            Scope::Version(number) => vec![(*number, requested)],
            Scope::Alias(name) => self.attached.aliases.get(name).map_or_else(Vec::new, |a| a.shares(requested)),
            Scope::Function => Vec::new(),
        }
    }

    /// How many environments of each version are to be kept ready, by provisioned concurrency or by a scaling
    /// configuration.
    fn provisions(&self) -> BTreeMap<u64, u32> {
        let scaled = self.versions.iter().filter_map(|(number, version)| Some((*number, version.scaling?.least)));
        let mut counts: BTreeMap<u64, u32> = scaled.collect();
        for (scope, setting) in &self.attached.provisioned {
            for (number, count) in self.shares(scope, setting.requested) {
                *counts.entry(number).or_default() += count;
            }
        }
        counts
    }

    /// What a setting asks for, 0 where there is none, and what is there of it.
    pub(crate) fn provisioned_of(
        &self,
        scope: &Scope,
        live: impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> (u32, LiveConcurrency) {
        match self.attached.provisioned.get(scope) {
            Some(setting) => (setting.requested, sum(self, scope, *setting, live)),
            None => (0, LiveConcurrency::default()),
        }
    }

    /// Whether a version has environments of another setting than that of `scope`.
    pub(crate) fn is_provisioned_beside(&self, number: u64, scope: &Scope) -> bool {
        let others = self.attached.provisioned.iter().filter(|(other, _)| *other != scope);
        others
            .flat_map(|(other, setting)| self.shares(other, setting.requested))
            .any(|(provisioned, _)| provisioned == number)
    }

    /// Refuses a version whose environments come out of snapshots, and one whose number of environments is set otherwise.
    /// The words are ours.
    fn check_may_be_provisioned(&self, number: u64) -> Result<(), ApiError> {
        let Some(version) = self.versions.get(&number) else { return Ok(()) };
        let refused = |why: &str| {
            Err(ApiError::invalid_parameter_value(format!("Provisioned Concurrency is not supported for {why}.")))
        };
        if version.settings.snap_start {
            return refused("SnapStart enabled functions");
        }
        if version.scaling.is_some() {
            return refused("function versions with a FunctionScalingConfig");
        }
        Ok(())
    }

    /// Refuses an alias whose environments would be on a version that has others, or on `$LATEST`.
    pub(crate) fn check_provisioned_alias(&self, name: &str, alias: &Alias) -> Result<(), ApiError> {
        if alias.version == VersionId::Latest {
            return Err(unpublished());
        }
        let scope = Scope::Alias(name.to_owned());
        alias.shares(0).into_iter().try_for_each(|(number, _)| self.check_may_be_provisioned(number))?;
        if alias.shares(0).into_iter().any(|(number, _)| self.is_provisioned_beside(number, &scope)) {
            return Err(ApiError::resource_conflict(
                "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version",
            ));
        }
        Ok(())
    }
}

impl Mutation {
    /// The versions whose number of environments has changed, and those of `scope`, for which all begins anew.
    pub(crate) fn provisions(&self, scope: Option<&Scope>) -> Vec<Provision> {
        let Some(after) = &self.after else { return Vec::new() };
        let wanted = after.provisions();
        let had = self.before.as_ref().map(|before| before.provisions()).unwrap_or_default();
        let anew = scope.map(|scope| after.shares(scope, 0)).unwrap_or_default();
        let is_anew = |number: u64| anew.iter().any(|(other, _)| *other == number);
        let numbers: BTreeSet<u64> = wanted.keys().chain(had.keys()).copied().collect();
        let changed = numbers.into_iter().filter(|number| wanted.get(number) != had.get(number) || is_anew(*number));
        changed.filter_map(|number| provision(after, number, &wanted)).collect()
    }
}

impl ControlPlane {
    /// PutProvisionedConcurrencyConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for `$LATEST` and for more than the function or the
    /// account has left; ResourceConflictException for a version that another setting provides for.
    pub async fn put_provisioned_concurrency_config(
        &self,
        request: &types::PutProvisionedConcurrencyConfigRequest,
        now: Timestamp,
    ) -> Result<(types::PutProvisionedConcurrencyConfigResponse, Vec<Provision>), ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        if matches!(target.qualifier, None | Some(Qualifier::Latest)) {
            return Err(unpublished());
        }
        // The shape demands at least 1.
        let requested = request.provisioned_concurrent_executions.unwrap_or_default().unsigned_abs();
        let setting = ProvisionedSetting { requested, last_modified: now };
        let scope = Scope::of(target.qualifier.as_ref());
        let _alone = self.inner.provisioning.lock().await;
        let judge = |found: Option<&Function>| {
            let mut function = self.provisionable(found, &target)?.clone();
            let old = function.attached.provisioned.get(&scope).map_or(0, |setting| setting.requested);
            let total = (function.provisioned_total() - old).saturating_add(requested);
            self.check_provisioned(&function, total)?;
            match &scope {
                Scope::Alias(name) => {
                    let alias = function.attached.aliases.get(name);
                    alias.map_or(Ok(()), |alias| function.check_provisioned_alias(name, alias))?;
                }
                Scope::Version(number) if function.is_provisioned_beside(*number, &scope) => {
                    return Err(ApiError::resource_conflict("Version is pointed by a Provisioned Concurrency alias"));
                }
                Scope::Version(number) => function.check_may_be_provisioned(*number)?,
                Scope::Function => {}
            }
            function.attached.provisioned.insert(scope.clone(), setting);
            Ok(Some(function))
        };
        let mutation = self.mutate(&target.name, None, judge).await?;
        let shown = show(setting, LiveConcurrency::default());
        let response = types::PutProvisionedConcurrencyConfigResponse {
            requested_provisioned_concurrent_executions: shown.requested_provisioned_concurrent_executions,
            available_provisioned_concurrent_executions: shown.available_provisioned_concurrent_executions,
            allocated_provisioned_concurrent_executions: shown.allocated_provisioned_concurrent_executions,
            status: Some("IN_PROGRESS".to_owned()),
            status_reason: None,
            last_modified: shown.last_modified,
        };
        Ok((response, mutation.provisions(Some(&scope))))
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
        let target = self.qualified(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let found = self.function_of(&target);
        let function = self.provisionable(found.as_deref(), &target)?;
        let scope = Scope::of(target.qualifier.as_ref());
        let setting = function.attached.provisioned.get(&scope).ok_or_else(|| {
            ApiError::provisioned_concurrency_config_not_found(
                "No Provisioned Concurrency Config found for this function",
            )
        })?;
        Ok(show(*setting, sum(function, &scope, *setting, live)))
    }

    /// ListProvisionedConcurrencyConfigs: of versions, then of aliases.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_provisioned_concurrency_configs(
        &self,
        request: &types::ListProvisionedConcurrencyConfigsRequest,
        live: impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> Result<types::ListProvisionedConcurrencyConfigsResponse, ApiError> {
        let (function, _) = self.find(request.function_name.as_deref(), None)?;
        let items = function.attached.provisioned.iter().map(|(scope, setting)| {
            // No name of an alias has digits only, so all of them come after all of the numbers.
            let key = if let Scope::Version(number) = scope { format!("0 {number:020}") } else { format!("1 {scope}") };
            (key, (scope, *setting))
        });
        let (settings, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let configs = settings.into_iter().map(|(scope, setting)| {
            let shown = show(setting, sum(&function, scope, setting, &live));
            types::ProvisionedConcurrencyConfigListItem {
                function_arn: Some(self.realm().function_arn(&function.name, Some(&scope.to_string()))),
                requested_provisioned_concurrent_executions: shown.requested_provisioned_concurrent_executions,
                available_provisioned_concurrent_executions: shown.available_provisioned_concurrent_executions,
                allocated_provisioned_concurrent_executions: shown.allocated_provisioned_concurrent_executions,
                status: shown.status,
                status_reason: shown.status_reason,
                last_modified: shown.last_modified,
            }
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
    ) -> Result<Vec<Provision>, ApiError> {
        let target = self.qualified(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let judge = |found: Option<&Function>| {
            let mut function = self.provisionable(found, &target)?.clone();
            function.attached.provisioned.remove(&Scope::of(target.qualifier.as_ref()));
            Ok(Some(function))
        };
        Ok(self.mutate(&target.name, None, judge).await?.provisions(None))
    }

    /// How many environments of a version are to be kept ready now.
    pub fn provisioned_count(&self, version: &FunctionVersion) -> u32 {
        let VersionId::Number(number) = version.id else { return 0 };
        let function = self.function(&version.function);
        function.and_then(|function| function.provisions().get(&number).copied()).unwrap_or_default()
    }

    /// All environments that are to be kept ready: what has to be carried out after a restart.
    pub fn provisions(&self) -> Vec<Provision> {
        let functions = self.functions();
        let provisions = functions.iter().flat_map(|function| {
            let wanted = function.provisions();
            wanted.keys().filter_map(|number| provision(function, *number, &wanted)).collect::<Vec<_>>()
        });
        provisions.collect()
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
                    return Err(beyond_account(format!(
                        "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency \
                         [{unreserved}]."
                    )));
                }
                self.check_unreserved(function, total, "ConcurrentExecutions")
            }
        }
    }

    /// The reference of a request, which has to name a version or an alias.
    fn qualified(&self, name: Option<&str>, qualifier: Option<&str>) -> Result<FunctionRef, ApiError> {
        let target = self.target(name, qualifier)?;
        if matches!(target.qualifier, None | Some(Qualifier::Latest)) {
            return Err(ApiError::invalid_parameter_value(
                "The function resource provided must be an alias or a published version.",
            ));
        }
        Ok(target)
    }

    /// The function, if it has the version or the alias that the reference names.
    fn provisionable<'a>(&self, found: Option<&'a Function>, target: &FunctionRef) -> Result<&'a Function, ApiError> {
        let ours = found.filter(|_| target.account == self.realm().account);
        ours.filter(|function| function.named(target.qualifier.as_ref()).is_some()).ok_or_else(|| {
            match target.qualifier {
                Some(Qualifier::Alias(_)) => {
                    ApiError::resource_not_found(format!("Cannot find alias arn: {}", self.realm().arn_of(target)))
                }
                _ => self.not_found(target),
            }
        })
    }
}

fn unpublished() -> ApiError {
    ApiError::invalid_parameter_value(
        "Provisioned Concurrency Configs cannot be applied to unpublished function versions.",
    )
}

fn provision(function: &Function, number: u64, wanted: &BTreeMap<u64, u32>) -> Option<Provision> {
    let version = Arc::clone(function.versions.get(&number)?);
    Some(Provision { version, count: wanted.get(&number).copied().unwrap_or_default() })
}

/// What is there of a setting, over the versions that its environments are of.
fn sum(
    function: &Function,
    scope: &Scope,
    setting: ProvisionedSetting,
    live: impl Fn(&FunctionVersion) -> LiveConcurrency,
) -> LiveConcurrency {
    let shares = function.shares(scope, setting.requested).into_iter();
    let versions = shares.filter_map(|(number, _)| function.versions.get(&number));
    versions.map(|version| live(version)).fold(LiveConcurrency::default(), |sum, one| LiveConcurrency {
        allocated: sum.allocated + one.allocated,
        available: sum.available + one.available,
        failed: sum.failed.or(one.failed),
    })
}

fn show(setting: ProvisionedSetting, live: LiveConcurrency) -> types::GetProvisionedConcurrencyConfigResponse {
    let (status, reason) = if let Some(failure) = live.failed {
        ("FAILED", Some(failure.reason().to_owned()))
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
        last_modified: Some(seconds(setting.last_modified)),
    }
}

/// Unlike elsewhere in the API, without milliseconds: `2026-01-02T03:04:05+0000`.
fn seconds(moment: Timestamp) -> String {
    let text = moment.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}+0000"),
        None => text,
    }
}
