//! What happens when a function invokes itself through other services: the setting.

use aws_model::{ApiError, types};

use crate::plane::ControlPlane;
use crate::record::{Function, RecursiveLoop};

impl ControlPlane {
    /// PutFunctionRecursionConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub async fn put_function_recursion_config(
        &self,
        request: &types::PutFunctionRecursionConfigRequest,
    ) -> Result<types::PutFunctionRecursionConfigResponse, ApiError> {
        let target = self.unqualified(request.function_name.as_deref())?;
        let ours = target.account == self.realm().account;
        // The shape allows two words.
        let setting = match request.recursive_loop.as_deref() {
            Some("Allow") => RecursiveLoop::Allow,
            _ => RecursiveLoop::Terminate,
        };
        let judge = |found: Option<&Function>| {
            let mut function = found.filter(|_| ours).ok_or_else(|| self.not_found(&target))?.clone();
            function.attached.recursion = setting;
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(types::PutFunctionRecursionConfigResponse { recursive_loop: Some(setting.name().to_owned()) })
    }

    /// GetFunctionRecursionConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_function_recursion_config(
        &self,
        request: &types::GetFunctionRecursionConfigRequest,
    ) -> Result<types::GetFunctionRecursionConfigResponse, ApiError> {
        let (function, _) = self.find(request.function_name.as_deref(), None)?;
        let recursive_loop = Some(function.attached.recursion.name().to_owned());
        Ok(types::GetFunctionRecursionConfigResponse { recursive_loop })
    }
}
