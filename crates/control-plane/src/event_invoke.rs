//! How asynchronous invocations are retried and where their outcome goes: the settings, one for each qualifier.

use aws_model::arn::{FunctionRef, NameParts};
use aws_model::{ApiError, types};

use crate::page::page;
use crate::plane::ControlPlane;
use crate::record::{EventInvoke, Function, Scope, Timestamp};
use crate::scoped;

/// What put and update have in common.
struct Change<'a> {
    maximum_age: Option<i32>,
    retries: Option<i32>,
    destinations: Option<&'a types::DestinationConfig>,
}

impl ControlPlane {
    /// PutFunctionEventInvokeConfig: replaces what was there.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a request that says nothing and for destinations
    /// that are none.
    pub async fn put_function_event_invoke_config(
        &self,
        request: &types::PutFunctionEventInvokeConfigRequest,
        now: Timestamp,
    ) -> Result<types::FunctionEventInvokeConfig, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let change = Change {
            maximum_age: request.maximum_event_age_in_seconds,
            retries: request.maximum_retry_attempts,
            destinations: request.destination_config.as_ref(),
        };
        let fresh = EventInvoke { maximum_age: None, retries: None, on_success: None, on_failure: None, modified: now };
        self.change_event_invoke(&target, &change, now, |_| Ok(fresh)).await
    }

    /// UpdateFunctionEventInvokeConfig: what the request does not name stays.
    ///
    /// # Errors
    /// As [`Self::put_function_event_invoke_config`], and ResourceNotFoundException where there is nothing to change.
    pub async fn update_function_event_invoke_config(
        &self,
        request: &types::UpdateFunctionEventInvokeConfigRequest,
        now: Timestamp,
    ) -> Result<types::FunctionEventInvokeConfig, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let change = Change {
            maximum_age: request.maximum_event_age_in_seconds,
            retries: request.maximum_retry_attempts,
            destinations: request.destination_config.as_ref(),
        };
        let known = |found: Option<&EventInvoke>| found.cloned().ok_or_else(|| self.no_config(&target));
        self.change_event_invoke(&target, &change, now, known).await
    }

    /// GetFunctionEventInvokeConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException, in the same words for the function as for its setting.
    pub fn get_function_event_invoke_config(
        &self,
        request: &types::GetFunctionEventInvokeConfigRequest,
    ) -> Result<types::FunctionEventInvokeConfig, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        let function = self.function_of(&target).ok_or_else(|| self.no_config(&target))?;
        let config = function.attached.event_invoke.get(&scope).ok_or_else(|| self.no_config(&target))?;
        Ok(self.show_event_invoke(&function.name, &scope, config))
    }

    /// DeleteFunctionEventInvokeConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException, in the same words for the function as for its setting.
    pub async fn delete_function_event_invoke_config(
        &self,
        request: &types::DeleteFunctionEventInvokeConfigRequest,
    ) -> Result<(), ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        let ours = target.account == self.realm().account;
        let judge = |found: Option<&Function>| {
            let mut function = found.filter(|_| ours).ok_or_else(|| self.no_config(&target))?.clone();
            function.attached.event_invoke.remove(&scope).ok_or_else(|| self.no_config(&target))?;
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(())
    }

    /// ListFunctionEventInvokeConfigs: that of `$LATEST`, then those of versions and of aliases.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_function_event_invoke_configs(
        &self,
        request: &types::ListFunctionEventInvokeConfigsRequest,
    ) -> Result<types::ListFunctionEventInvokeConfigsResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), None)?;
        let function = self.function_of(&target).ok_or_else(no_function)?;
        let configs = function.attached.event_invoke.iter();
        let items = configs.map(|(scope, config)| (scoped::list_key(scope), (scope, config)));
        let (configs, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let shown = configs.into_iter().map(|(scope, config)| self.show_event_invoke(&function.name, scope, config));
        Ok(types::ListFunctionEventInvokeConfigsResponse {
            function_event_invoke_configs: Some(shown.collect()),
            next_marker,
        })
    }

    async fn change_event_invoke(
        &self,
        target: &FunctionRef,
        change: &Change<'_>,
        now: Timestamp,
        base: impl FnOnce(Option<&EventInvoke>) -> Result<EventInvoke, ApiError>,
    ) -> Result<types::FunctionEventInvokeConfig, ApiError> {
        if change.maximum_age.is_none() && change.retries.is_none() && change.destinations.is_none() {
            return Err(ApiError::invalid_parameter_value(
                "You must specify at least one of error handling or destination setting.",
            ));
        }
        let scope = Scope::of(target.qualifier.as_ref());
        let ours = target.account == self.realm().account;
        let judge = |found: Option<&Function>| {
            let found = found.filter(|function| ours && scoped::has(function, &scope)).ok_or_else(no_function)?;
            let mut config = base(found.attached.event_invoke.get(&scope))?;
            if let Some(destinations) = change.destinations {
                self.check_destinations(&target.name, destinations)?;
                let (success, failure) = named(destinations);
                // One that is given empty takes away what was there.
                if destinations.on_success.is_some() {
                    config.on_success = success.map(str::to_owned);
                }
                if destinations.on_failure.is_some() {
                    config.on_failure = failure.map(str::to_owned);
                }
            }
            config.maximum_age = change.maximum_age.or(config.maximum_age);
            config.retries = change.retries.or(config.retries);
            config.modified = now;
            let mut function = found.clone();
            function.attached.event_invoke.insert(scope.clone(), config);
            Ok(Some(function))
        };
        let after = self.mutate(&target.name, None, judge).await?.after;
        let config = after.as_ref().and_then(|function| function.attached.event_invoke.get(&scope));
        let config = config.ok_or_else(|| self.no_config(target))?;
        Ok(self.show_event_invoke(&target.name, &scope, config))
    }

    /// Queues, topics, buses and buckets are not looked up: they belong to other services.
    fn check_destinations(&self, name: &str, destinations: &types::DestinationConfig) -> Result<(), ApiError> {
        let (success, failure) = named(destinations);
        let mut known = true;
        for (arn, services) in
            [(failure, &["sqs", "sns", "events", "s3"][..]), (success, &["sqs", "sns", "events"][..])]
        {
            let Some(arn) = arn else { continue };
            match arn.split(':').nth(2) {
                Some("lambda") => self.check_function_destination(name, arn)?,
                service => known &= service.is_some_and(|service| services.contains(&service)),
            }
        }
        if known {
            return Ok(());
        }
        let part = |class: &str, arn: Option<&str>| match arn {
            Some(arn) => format!("{class}(destination={arn})"),
            None => "null".to_owned(),
        };
        Err(ApiError::invalid_parameter_value(format!(
            "The provided destination config DestinationConfig(onSuccess={}, onFailure={}) is invalid.",
            part("OnSuccess", success),
            part("OnFailure", failure)
        )))
    }

    fn check_function_destination(&self, name: &str, arn: &str) -> Result<(), ApiError> {
        let parts = NameParts::parse(arn);
        let here =
            parts.region == Some(self.realm().region.as_str()) && parts.account == Some(self.realm().account.as_str());
        if here && parts.name == name {
            return Err(ApiError::invalid_parameter_value(
                "You can't specify the function as a destination for itself.",
            ));
        }
        if !here || self.function(parts.name).is_none() {
            return Err(ApiError::invalid_parameter_value(format!("The destination ARN {arn} is invalid.")));
        }
        Ok(())
    }

    fn no_config(&self, target: &FunctionRef) -> ApiError {
        let arn = scoped::qualified_arn(self.realm(), &target.name, &Scope::of(target.qualifier.as_ref()));
        ApiError::resource_not_found(format!("The function {arn} doesn't have an EventInvokeConfig"))
    }

    fn show_event_invoke(&self, name: &str, scope: &Scope, config: &EventInvoke) -> types::FunctionEventInvokeConfig {
        types::FunctionEventInvokeConfig {
            last_modified: Some(seconds(config.modified)),
            function_arn: Some(scoped::qualified_arn(self.realm(), name, scope)),
            maximum_retry_attempts: config.retries,
            maximum_event_age_in_seconds: config.maximum_age,
            // Both are shown, empty where nothing is set.
            destination_config: Some(types::DestinationConfig {
                on_success: Some(types::OnSuccess { destination: config.on_success.clone() }),
                on_failure: Some(types::OnFailure { destination: config.on_failure.clone() }),
            }),
        }
    }
}

fn no_function() -> ApiError {
    ApiError::resource_not_found("The function doesn't exist.")
}

/// The ARNs for successes and for failures.
fn named(destinations: &types::DestinationConfig) -> (Option<&str>, Option<&str>) {
    let success = destinations.on_success.as_ref().and_then(|on| on.destination.as_deref());
    let failure = destinations.on_failure.as_ref().and_then(|on| on.destination.as_deref());
    (success.filter(|arn| !arn.is_empty()), failure.filter(|arn| !arn.is_empty()))
}

/// Seconds since the epoch, to the millisecond.
fn seconds(moment: Timestamp) -> f64 {
    moment.0 as f64 / 1_000.0
}
