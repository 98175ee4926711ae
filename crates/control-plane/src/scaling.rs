//! Scaling settings of function versions on capacity providers: how many environments a version has at least, and how many
//! at most. Where nothing is set, that follows from demand.
//!
//! A setting is part of its version's record and goes with it. Both numbers at 0 deactivate the version.

use std::sync::Arc;

use aws_model::arn::{FunctionRef, Qualifier};
use aws_model::{ApiError, types};

use crate::functions::revision_id;
use crate::plane::ControlPlane;
use crate::provisioned::LiveConcurrency;
use crate::record::{Function, FunctionVersion, Scaling, Scope, VersionId};
use crate::wire::int;

impl Scaling {
    fn shown(self) -> types::FunctionScalingConfig {
        types::FunctionScalingConfig {
            min_execution_environments: Some(int(self.least)),
            max_execution_environments: Some(int(self.most)),
        }
    }
}

impl ControlPlane {
    /// GetFunctionScalingConfig. What is requested is applied when the environments are there.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function or the version.
    pub fn get_function_scaling_config(
        &self,
        request: &types::GetFunctionScalingConfigRequest,
        live: impl Fn(&FunctionVersion) -> LiveConcurrency,
    ) -> Result<types::GetFunctionScalingConfigResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let found = self.function(&target.name);
        let version = self.scalable(found.as_deref(), &target)?;
        let (applied, requested) = match version.scaling {
            None => (None, None),
            Some(scaling) if live(version).allocated >= scaling.least => (Some(scaling.shown()), None),
            // The upper bound holds at once.
            Some(scaling) => {
                let so_far = types::FunctionScalingConfig { min_execution_environments: None, ..scaling.shown() };
                (Some(so_far), Some(scaling.shown()))
            }
        };
        Ok(types::GetFunctionScalingConfigResponse {
            function_arn: Some(self.realm().arn_of(&target)),
            applied_function_scaling_config: applied,
            requested_function_scaling_config: requested,
        })
    }

    /// PutFunctionScalingConfig: without numbers, what was set is taken away. Answers also the version as it is now.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function or the version; InvalidParameterValueException for a function without
    /// a capacity provider and for numbers that do not fit each other; ResourceConflictException for a version with
    /// provisioned concurrency.
    pub async fn put_function_scaling_config(
        &self,
        request: &types::PutFunctionScalingConfigRequest,
    ) -> Result<(types::PutFunctionScalingConfigResponse, Arc<FunctionVersion>), ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        self.scalable(self.function(&target.name).as_deref(), &target)?;
        let scaling = asked_for(request.function_scaling_config.as_ref())?;
        let judge = |found: Option<&Function>| {
            let version = self.scalable(found, &target)?;
            if version.settings.capacity.is_none() {
                return Err(ApiError::invalid_parameter_value(
                    "FunctionScalingConfig is supported for functions with a capacity provider only. Set \
                     CapacityProviderConfig and publish a version.",
                ));
            }
            let VersionId::Number(number) = version.id else { return Err(self.not_found(&target)) };
            let Some(mut next) = found.cloned() else { return Err(self.not_found(&target)) };
            if next.is_provisioned_beside(number, &Scope::Function) {
                return Err(ApiError::resource_conflict(
                    "FunctionScalingConfig is not supported for function versions with Provisioned Concurrency.",
                ));
            }
            if let Some(version) = next.versions.get_mut(&number).filter(|version| version.scaling != scaling) {
                let version = Arc::make_mut(version);
                version.scaling = scaling;
                version.revision_id = revision_id();
            }
            Ok(Some(next))
        };
        let after = self.mutate(&target.name, None, judge).await?.after;
        let version = Arc::clone(self.scalable(after.as_deref(), &target)?);
        let function_state = Some(version.state_name().to_owned());
        Ok((types::PutFunctionScalingConfigResponse { function_state }, version))
    }

    /// How many environments a version may have at once, where that is set.
    pub fn most_environments(&self, version: &FunctionVersion) -> Option<u32> {
        let function = self.function(&version.function)?;
        Some(function.version(version.id)?.scaling?.most)
    }

    /// The published version that is named, if it is there.
    fn scalable<'a>(
        &self,
        found: Option<&'a Function>,
        target: &FunctionRef,
    ) -> Result<&'a Arc<FunctionVersion>, ApiError> {
        let ours = found.filter(|_| target.account == self.realm().account);
        let version = match target.qualifier {
            Some(Qualifier::Version(number)) => ours.and_then(|function| function.versions.get(&number)),
            // Nothing is published to `$LATEST.PUBLISHED` here; the shape refuses anything else.
            None | Some(Qualifier::Latest | Qualifier::LatestPublished | Qualifier::Alias(_)) => None,
        };
        version.ok_or_else(|| self.not_found(target))
    }
}

/// The words are ours.
fn asked_for(config: Option<&types::FunctionScalingConfig>) -> Result<Option<Scaling>, ApiError> {
    let numbers = config.map(|config| (config.min_execution_environments, config.max_execution_environments));
    match numbers {
        None | Some((None, None)) => Ok(None),
        // The shape has their bounds.
        Some((Some(least), Some(most))) if least <= most => {
            Ok(Some(Scaling { least: least.unsigned_abs(), most: most.unsigned_abs() }))
        }
        Some((Some(least), Some(most))) => Err(ApiError::invalid_parameter_value(format!(
            "MinExecutionEnvironments ({least}) must not be greater than MaxExecutionEnvironments ({most})."
        ))),
        Some((Some(_), None) | (None, Some(_))) => Err(ApiError::invalid_parameter_value(
            "MinExecutionEnvironments and MaxExecutionEnvironments must be given together.",
        )),
    }
}
