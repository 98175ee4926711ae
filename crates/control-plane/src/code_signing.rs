//! Code signing configurations, and the functions that follow one.
//!
//! A package that AWS Signer has signed can only be told from others with AWS's own certificates, which this server
//! does not have. Every package counts as unsigned, so that a configuration that enforces signatures refuses all code.

use std::fmt::Write;
use std::sync::Arc;

use aws_model::{ApiError, MessageKey, types};
use uuid::Uuid;

use crate::page::page;
use crate::plane::ControlPlane;
use crate::record::{CodeSigning, Function, SigningPolicy, Timestamp};
use crate::settings::check_tags;

impl ControlPlane {
    /// CreateCodeSigningConfig.
    ///
    /// # Errors
    /// InvalidParameterValueException for more than fifty tags.
    pub async fn create_code_signing_config(
        &self,
        request: &types::CreateCodeSigningConfigRequest,
        now: Timestamp,
    ) -> Result<types::CreateCodeSigningConfigResponse, ApiError> {
        let tags = request.tags.clone().unwrap_or_default();
        check_tags(Some(&tags))?;
        let config = CodeSigning {
            description: request.description.clone().unwrap_or_default(),
            publishers: publishers(request.allowed_publishers.as_ref()).unwrap_or_default(),
            policy: policy(request.code_signing_policies.as_ref()).unwrap_or(SigningPolicy::Warn),
            modified: now,
            tags,
        };
        let id = new_id();
        let shown = self.show_code_signing(&id, &config);
        self.inner.code_signing.mutate(&id, (), |_| Ok(Some(config))).await?;
        Ok(types::CreateCodeSigningConfigResponse { code_signing_config: Some(shown) })
    }

    /// GetCodeSigningConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_code_signing_config(
        &self,
        request: &types::GetCodeSigningConfigRequest,
    ) -> Result<types::GetCodeSigningConfigResponse, ApiError> {
        let (id, config) = self.found(request.code_signing_config_arn.as_deref())?;
        Ok(types::GetCodeSigningConfigResponse { code_signing_config: Some(self.show_code_signing(&id, &config)) })
    }

    /// UpdateCodeSigningConfig: what the request does not name stays.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub async fn update_code_signing_config(
        &self,
        request: &types::UpdateCodeSigningConfigRequest,
        now: Timestamp,
    ) -> Result<types::UpdateCodeSigningConfigResponse, ApiError> {
        let arn = request.code_signing_config_arn.as_deref().unwrap_or_default();
        let id = self.code_signing_id(arn).ok_or_else(|| absent(arn))?;
        let judge = |found: Option<&CodeSigning>| {
            let mut config = found.cloned().ok_or_else(|| absent(arn))?;
            if let Some(description) = &request.description {
                config.description.clone_from(description);
            }
            if let Some(publishers) = publishers(request.allowed_publishers.as_ref()) {
                config.publishers = publishers;
            }
            if let Some(policy) = policy(request.code_signing_policies.as_ref()) {
                config.policy = policy;
            }
            config.modified = now;
            Ok(Some(config))
        };
        let after = self.inner.code_signing.mutate(&id, (), judge).await?.after.ok_or_else(|| absent(arn))?;
        let shown = self.show_code_signing(&id, &after);
        Ok(types::UpdateCodeSigningConfigResponse { code_signing_config: Some(shown) })
    }

    /// DeleteCodeSigningConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException; ResourceConflictException while functions follow it.
    pub async fn delete_code_signing_config(
        &self,
        request: &types::DeleteCodeSigningConfigRequest,
    ) -> Result<(), ApiError> {
        let arn = request.code_signing_config_arn.as_deref().unwrap_or_default();
        let id = self.code_signing_id(arn).ok_or_else(|| absent(arn))?;
        let _alone = self.inner.signing.lock().await;
        let judge = |found: Option<&CodeSigning>| {
            found.ok_or_else(|| absent(arn))?;
            match self.followers(&id).first() {
                Some(function) => Err(ApiError::resource_conflict(format!(
                    "The code signing configuration {arn} is in use by function {}. Remove it from its functions first.",
                    function.name
                ))),
                None => Ok(None),
            }
        };
        self.inner.code_signing.mutate(&id, (), judge).await?;
        Ok(())
    }

    /// ListCodeSigningConfigs.
    ///
    /// # Errors
    /// InvalidParameterValueException for a marker that is none.
    pub fn list_code_signing_configs(
        &self,
        request: &types::ListCodeSigningConfigsRequest,
    ) -> Result<types::ListCodeSigningConfigsResponse, ApiError> {
        let all = self.inner.code_signing.all().into_iter().map(|(id, config)| (id.clone(), (id, config)));
        let (configs, next_marker) = page(all, request.marker.as_deref(), request.max_items)?;
        let shown = configs.iter().map(|(id, config)| self.show_code_signing(id, config)).collect();
        Ok(types::ListCodeSigningConfigsResponse { next_marker, code_signing_configs: Some(shown) })
    }

    /// ListFunctionsByCodeSigningConfig, in the order of their names.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_functions_by_code_signing_config(
        &self,
        request: &types::ListFunctionsByCodeSigningConfigRequest,
    ) -> Result<types::ListFunctionsByCodeSigningConfigResponse, ApiError> {
        let (id, _) = self.found(request.code_signing_config_arn.as_deref())?;
        let items = self.followers(&id).into_iter().map(|function| (function.name.clone(), function));
        let (functions, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let arns = functions.into_iter().map(|function| function.latest.arn.clone()).collect();
        Ok(types::ListFunctionsByCodeSigningConfigResponse { next_marker, function_arns: Some(arns) })
    }

    /// PutFunctionCodeSigningConfig. The code that is there stays; what comes next is judged.
    ///
    /// # Errors
    /// CodeSigningConfigNotFoundException, then ResourceNotFoundException.
    pub async fn put_function_code_signing_config(
        &self,
        request: &types::PutFunctionCodeSigningConfigRequest,
    ) -> Result<types::PutFunctionCodeSigningConfigResponse, ApiError> {
        let target = self.unqualified(request.function_name.as_deref())?;
        let arn = request.code_signing_config_arn.as_deref().unwrap_or_default();
        let _alone = self.inner.signing.lock().await;
        let (id, _) = self.attachable(arn)?;
        let ours = target.account == self.realm().account;
        let judge = |found: Option<&Function>| {
            let mut function = found.filter(|_| ours).ok_or_else(|| self.not_found(&target))?.clone();
            function.attached.code_signing = Some(id.clone());
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(types::PutFunctionCodeSigningConfigResponse {
            code_signing_config_arn: Some(self.code_signing_arn(&id)),
            function_name: Some(target.name),
        })
    }

    /// GetFunctionCodeSigningConfig; empty where the function follows none.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_function_code_signing_config(
        &self,
        request: &types::GetFunctionCodeSigningConfigRequest,
    ) -> Result<types::GetFunctionCodeSigningConfigResponse, ApiError> {
        let target = self.unqualified(request.function_name.as_deref())?;
        let function = self.function_of(&target).ok_or_else(|| self.not_found(&target))?;
        let arn = function.attached.code_signing.as_ref().map(|id| self.code_signing_arn(id));
        let function_name = arn.as_ref().map(|_| function.name.clone());
        Ok(types::GetFunctionCodeSigningConfigResponse { code_signing_config_arn: arn, function_name })
    }

    /// DeleteFunctionCodeSigningConfig. Taking away what is not there is no error.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub async fn delete_function_code_signing_config(
        &self,
        request: &types::DeleteFunctionCodeSigningConfigRequest,
    ) -> Result<(), ApiError> {
        let target = self.unqualified(request.function_name.as_deref())?;
        let ours = target.account == self.realm().account;
        let judge = |found: Option<&Function>| {
            let mut function = found.filter(|_| ours).ok_or_else(|| self.not_found(&target))?.clone();
            function.attached.code_signing = None;
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(())
    }

    /// The id of the configuration that a new function shall follow, if it takes code without a signature.
    pub(crate) fn signing_of_create(&self, arn: Option<&str>) -> Result<Option<String>, ApiError> {
        let Some(arn) = arn else { return Ok(None) };
        let (id, config) = self.attachable(arn)?;
        judge_unsigned(&config, arn)?;
        Ok(Some(id))
    }

    /// Refuses code for a function whose configuration enforces signatures.
    pub(crate) fn check_signature(&self, function: &Function) -> Result<(), ApiError> {
        let Some(id) = &function.attached.code_signing else { return Ok(()) };
        match self.inner.code_signing.get(id) {
            Some(config) => judge_unsigned(&config, &function.latest.arn),
            None => Ok(()),
        }
    }

    /// A configuration by its id; `arn` is for the error alone.
    pub(crate) fn code_signing(&self, id: &str, arn: &str) -> Result<Arc<CodeSigning>, ApiError> {
        self.inner.code_signing.get(id).ok_or_else(|| absent(arn))
    }

    /// The id in the ARN of a configuration of this account and region.
    pub(crate) fn code_signing_id(&self, arn: &str) -> Option<String> {
        let id = arn.rsplit(':').next()?;
        Some(id.to_owned()).filter(|id| self.code_signing_arn(id) == arn)
    }

    fn code_signing_arn(&self, id: &str) -> String {
        let realm = self.realm();
        format!("arn:aws:lambda:{}:{}:code-signing-config:{id}", realm.region, realm.account)
    }

    fn found(&self, arn: Option<&str>) -> Result<(String, Arc<CodeSigning>), ApiError> {
        let arn = arn.unwrap_or_default();
        let id = self.code_signing_id(arn).ok_or_else(|| absent(arn))?;
        let config = self.code_signing(&id, arn)?;
        Ok((id, config))
    }

    fn attachable(&self, arn: &str) -> Result<(String, Arc<CodeSigning>), ApiError> {
        self.found(Some(arn)).map_err(|_| {
            ApiError::code_signing_config_not_found(format!(
                "The code signing configuration cannot be found. Check that the provided configuration is not deleted: \
                 {arn}."
            ))
        })
    }

    fn followers(&self, id: &str) -> Vec<Arc<Function>> {
        let follows = |function: &Arc<Function>| function.attached.code_signing.as_deref() == Some(id);
        self.functions().into_iter().filter(follows).collect()
    }

    fn show_code_signing(&self, id: &str, config: &CodeSigning) -> types::CodeSigningConfig {
        types::CodeSigningConfig {
            code_signing_config_id: Some(id.to_owned()),
            code_signing_config_arn: Some(self.code_signing_arn(id)),
            description: Some(config.description.clone()),
            allowed_publishers: Some(types::AllowedPublishers {
                signing_profile_version_arns: Some(config.publishers.clone()),
            }),
            code_signing_policies: Some(types::CodeSigningPolicies {
                untrusted_artifact_on_deployment: Some(config.policy.name().to_owned()),
            }),
            last_modified: Some(config.modified.to_string()),
        }
    }
}

/// Recorded without `Type`.
pub(crate) fn absent(arn: &str) -> ApiError {
    let text = format!("The Lambda code signing configuration {arn} can not be found.");
    ApiError::new(404, "ResourceNotFoundException", text, MessageKey::Upper, None)
}

fn judge_unsigned(config: &CodeSigning, resource: &str) -> Result<(), ApiError> {
    match config.policy {
        SigningPolicy::Warn => {
            tracing::warn!(resource, "code without a trusted signature was taken: its code signing policy is Warn");
            Ok(())
        }
        SigningPolicy::Enforce => Err(ApiError::code_verification_failed(
            "Lambda cannot deploy the function. The function or layer might be signed using a signature that the \
             client is not configured to accept. Check the provided signature for unsigned.",
        )),
    }
}

/// `csc-` and 17 hexadecimal digits.
fn new_id() -> String {
    let mut id = "csc-0".to_owned();
    for byte in &Uuid::new_v4().as_bytes()[8..] {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

fn publishers(request: Option<&types::AllowedPublishers>) -> Option<Vec<String>> {
    request.map(|allowed| allowed.signing_profile_version_arns.clone().unwrap_or_default())
}

/// The shape allows two words.
fn policy(request: Option<&types::CodeSigningPolicies>) -> Option<SigningPolicy> {
    match request?.untrusted_artifact_on_deployment.as_deref()? {
        "Enforce" => Some(SigningPolicy::Enforce),
        _ => Some(SigningPolicy::Warn),
    }
}
