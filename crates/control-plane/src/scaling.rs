//! Scaling settings of function versions on capacity providers: nothing can be set, and reads find nothing set. How many
//! environments there are follows from demand, provisioned and reserved concurrency.

use aws_model::{ApiError, types};

use crate::plane::ControlPlane;

impl ControlPlane {
    /// GetFunctionScalingConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function or the version.
    pub fn get_function_scaling_config(
        &self,
        request: &types::GetFunctionScalingConfigRequest,
    ) -> Result<types::GetFunctionScalingConfigResponse, ApiError> {
        let arn = self.scalable(request.function_name.as_deref(), request.qualifier.as_deref())?;
        Ok(types::GetFunctionScalingConfigResponse { function_arn: Some(arn), ..Default::default() })
    }

    /// PutFunctionScalingConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function or the version; else InvalidParameterValueException.
    pub fn put_function_scaling_config(
        &self,
        request: &types::PutFunctionScalingConfigRequest,
    ) -> Result<types::PutFunctionScalingConfigResponse, ApiError> {
        self.scalable(request.function_name.as_deref(), request.qualifier.as_deref())?;
        Err(ApiError::invalid_parameter_value(
            "FunctionScalingConfig is not supported by the capacity provider of this host. Use provisioned and reserved \
             concurrency for this function.",
        ))
    }

    /// The ARN of a version that is there.
    fn scalable(&self, name: Option<&str>, qualifier: Option<&str>) -> Result<String, ApiError> {
        let (function, target) = self.find(name, qualifier)?;
        match function.named(target.qualifier.as_ref()) {
            Some(_) => Ok(self.realm().arn_of(&target)),
            None => Err(self.not_found(&target)),
        }
    }
}
