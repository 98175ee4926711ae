//! Reserved concurrency, and the sums over the account that it shares with provisioned concurrency.

use aws_model::{ApiError, types};

use crate::plane::ControlPlane;
use crate::record::Function;
use crate::wire::int;

impl Function {
    /// Provisioned concurrency of all its versions and aliases together.
    pub fn provisioned_total(&self) -> u32 {
        self.attached.provisioned.values().fold(0, |sum, setting| sum.saturating_add(setting.requested))
    }

    /// Concurrent executions of the account that nobody else can have.
    fn committed(&self) -> u32 {
        self.attached.reserved.unwrap_or(0).max(self.provisioned_total())
    }
}

impl ControlPlane {
    /// PutFunctionConcurrency.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a version or an alias, for more than the account
    /// has left, and for less than what is provisioned.
    pub async fn put_function_concurrency(
        &self,
        request: &types::PutFunctionConcurrencyRequest,
    ) -> Result<types::Concurrency, ApiError> {
        let name = self.whole_function(request.function_name.as_deref())?;
        // The shape demands a number that is not negative.
        let reserved = request.reserved_concurrent_executions.unwrap_or_default().unsigned_abs();
        let _alone = self.inner.provisioning.lock().await;
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(|| self.absent(&name, Some("$LATEST")))?.clone();
            let provisioned = function.provisioned_total();
            self.check_unreserved(&function, reserved.max(provisioned), "ReservedConcurrentExecutions")?;
            if reserved < provisioned {
                // The spaces are AWS's.
                return Err(ApiError::invalid_parameter_value(format!(
                    " ReservedConcurrentExecutions  {reserved} should not be lower than function's total provisioned \
                     concurrency [{provisioned}]."
                )));
            }
            function.attached.reserved = Some(reserved);
            Ok(Some(function))
        };
        self.mutate(&name, None, judge).await?;
        Ok(types::Concurrency { reserved_concurrent_executions: Some(int(reserved)) })
    }

    /// GetFunctionConcurrency.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a version or an alias.
    pub fn get_function_concurrency(
        &self,
        request: &types::GetFunctionConcurrencyRequest,
    ) -> Result<types::GetFunctionConcurrencyResponse, ApiError> {
        let name = self.whole_function(request.function_name.as_deref())?;
        let function = self.function(&name).ok_or_else(|| self.absent(&name, None))?;
        let reserved = function.attached.reserved.map(int);
        Ok(types::GetFunctionConcurrencyResponse { reserved_concurrent_executions: reserved })
    }

    /// DeleteFunctionConcurrency. Deleting what is not there is no error.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a version or an alias.
    pub async fn delete_function_concurrency(
        &self,
        request: &types::DeleteFunctionConcurrencyRequest,
    ) -> Result<(), ApiError> {
        let name = self.whole_function(request.function_name.as_deref())?;
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(|| self.absent(&name, None))?.clone();
            function.attached.reserved = None;
            Ok(Some(function))
        };
        self.mutate(&name, None, judge).await?;
        Ok(())
    }

    /// What of the account's concurrency is left to functions that have none of their own.
    pub(crate) fn unreserved(&self) -> u32 {
        let kept =
            self.inner.read().values().fold(0_u32, |sum, stored| sum.saturating_add(stored.function.committed()));
        self.limits().concurrent_executions.saturating_sub(kept)
    }

    /// Refuses to take so much for a function that the others are left with too little. `member` is what the caller
    /// specified.
    pub(crate) fn check_unreserved(&self, function: &Function, committed: u32, member: &str) -> Result<(), ApiError> {
        let limits = self.limits();
        // A small account is left with all that it has.
        let minimum = limits.unreserved_minimum.min(limits.concurrent_executions);
        let more = committed.saturating_sub(function.committed());
        if more > 0 && u64::from(self.unreserved()) < u64::from(more) + u64::from(minimum) {
            return Err(beyond_account(format!(
                "Specified {member} for function decreases account's UnreservedConcurrentExecution below its minimum \
                 value of [{minimum}]."
            )));
        }
        Ok(())
    }

    /// The name in a request that concerns a function as a whole. Even `$LATEST` is a version.
    fn whole_function(&self, name: Option<&str>) -> Result<String, ApiError> {
        let target = self.target(name, None)?;
        if target.qualifier.is_some() {
            return Err(ApiError::invalid_parameter_value(
                "This operation is permitted on Lambda functions only. Aliases and versions do not support this \
                 operation. Please specify either a function name or an unqualified function ARN.",
            ));
        }
        if target.account != self.realm().account {
            return Err(self.not_found(&target));
        }
        Ok(target.name)
    }

    /// A put names the ARN of `$LATEST`, the others that of the function.
    fn absent(&self, name: &str, qualifier: Option<&str>) -> ApiError {
        ApiError::resource_not_found(format!("Function not found: {}", self.realm().function_arn(name, qualifier)))
    }
}

/// A limit of the account is in the way. Recorded without `Type`, unlike the function's own limits.
pub(crate) fn beyond_account(message: String) -> ApiError {
    ApiError::invalid_parameter_value(message).untyped()
}
