//! Durable executions. No function here can have any yet: reads answer as on an account without them.

use aws_model::{ApiError, types};

use crate::plane::ControlPlane;

impl ControlPlane {
    /// ListDurableExecutionsByFunction.
    ///
    /// # Errors
    /// ResourceNotFoundException for an absent function.
    pub fn list_durable_executions_by_function(
        &self,
        request: &types::ListDurableExecutionsByFunctionRequest,
    ) -> Result<types::ListDurableExecutionsByFunctionResponse, ApiError> {
        self.find(request.function_name.as_deref(), request.qualifier.as_deref())?;
        Ok(types::ListDurableExecutionsByFunctionResponse { durable_executions: Some(Vec::new()), next_marker: None })
    }

    /// What every operation on one execution answers.
    pub fn absent_durable_execution(&self, arn: Option<&str>) -> ApiError {
        ApiError::resource_not_found(format!("Durable execution not found: {}", arn.unwrap_or_default()))
    }
}
