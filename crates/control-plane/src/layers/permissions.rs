//! Who else may use a layer version: its resource policy.

use std::collections::BTreeMap;

use aws_model::{ApiError, types};
use serde_json::{Value, json};

use super::Target;
use crate::functions::revision_id;
use crate::plane::ControlPlane;
use crate::policy::{Policy, Statement};
use crate::record::{Layer, LayerVersion};

impl ControlPlane {
    /// AddLayerVersionPermission.
    ///
    /// # Errors
    /// ResourceNotFoundException, ResourceConflictException for a statement id in use, PreconditionFailedException,
    /// PolicyLengthExceededException.
    pub async fn add_layer_version_permission(
        &self,
        request: &types::AddLayerVersionPermissionRequest,
    ) -> Result<types::AddLayerVersionPermissionResponse, ApiError> {
        let action = "AddLayerVersionPermission";
        let target = self.layer_target(request.layer_name.as_deref(), request.version_number, action)?;
        let statement = Statement {
            sid: request.statement_id.clone().unwrap_or_default(),
            effect: "Allow".to_owned(),
            principal: principal(request.principal.as_deref().unwrap_or_default()),
            action: request.action.clone().unwrap_or_default(),
            resource: self.realm().layer_version_arn(&target.name, target.version),
            condition: organization(request.organization_id.as_deref()),
        };
        let text = serde_json::to_string(&statement).map_err(|error| ApiError::service(error.to_string()))?;
        let policy = self
            .change_policy(&target, |policy| {
                let mut policy = policy.cloned().unwrap_or_default();
                policy.add(statement)?;
                check_revision(&policy, request.revision_id.as_deref())?;
                policy.revision_id = revision_id();
                Ok(Some(policy))
            })
            .await?;
        Ok(types::AddLayerVersionPermissionResponse {
            statement: Some(text),
            revision_id: policy.map(|policy| policy.revision_id),
        })
    }

    /// RemoveLayerVersionPermission.
    ///
    /// # Errors
    /// ResourceNotFoundException, PreconditionFailedException.
    pub async fn remove_layer_version_permission(
        &self,
        request: &types::RemoveLayerVersionPermissionRequest,
    ) -> Result<(), ApiError> {
        let action = "RemoveLayerVersionPermission";
        let target = self.layer_target(request.layer_name.as_deref(), request.version_number, action)?;
        let sid = request.statement_id.as_deref().unwrap_or_default();
        self.change_policy(&target, |policy| {
            let mut policy = policy.ok_or_else(no_policy)?.clone();
            check_revision(&policy, request.revision_id.as_deref())?;
            policy.remove(sid)?;
            policy.revision_id = revision_id();
            Ok(Some(policy).filter(|policy| !policy.statements.is_empty()))
        })
        .await?;
        Ok(())
    }

    /// GetLayerVersionPolicy.
    ///
    /// # Errors
    /// ResourceNotFoundException where there is no such version or no policy.
    pub fn get_layer_version_policy(
        &self,
        request: &types::GetLayerVersionPolicyRequest,
    ) -> Result<types::GetLayerVersionPolicyResponse, ApiError> {
        let action = "GetLayerVersionPolicy";
        let target = self.layer_target(request.layer_name.as_deref(), request.version_number, action)?;
        let layer = self.inner.layers.get(&target.name);
        let version = self.present(&target, layer.as_deref())?;
        let policy = version.policy.as_ref().ok_or_else(no_policy)?;
        Ok(types::GetLayerVersionPolicyResponse {
            policy: Some(policy.document()),
            revision_id: Some(policy.revision_id.clone()),
        })
    }

    /// Changes the policy of a version; answers what it is then.
    async fn change_policy(
        &self,
        target: &Target,
        change: impl FnOnce(Option<&Policy>) -> Result<Option<Policy>, ApiError>,
    ) -> Result<Option<Policy>, ApiError> {
        let judge = |found: Option<&Layer>| {
            let policy = change(self.present(target, found)?.policy.as_ref())?;
            let mut layer = found.cloned();
            let version = layer.as_mut().and_then(|layer| layer.versions.get_mut(&target.version));
            if let Some(version) = version {
                version.policy = policy;
            }
            Ok(layer)
        };
        let after = self.inner.layers.mutate(&target.name, (), judge).await?.after;
        Ok(after.and_then(|layer| layer.versions.get(&target.version)?.policy.clone()))
    }

    /// These operations name the version that is not there; reads of the version itself do not.
    fn present<'a>(&self, target: &Target, layer: Option<&'a Layer>) -> Result<&'a LayerVersion, ApiError> {
        layer.and_then(|layer| layer.versions.get(&target.version)).ok_or_else(|| {
            let arn = self.realm().layer_version_arn(&target.name, target.version);
            ApiError::resource_not_found(format!("Layer version {arn} does not exist."))
        })
    }
}

/// `*`, an account's number or the ARN of an account's root; the shape allows nothing else.
fn principal(given: &str) -> Value {
    match given {
        "*" => json!("*"),
        arn if arn.starts_with("arn:") => json!({ "AWS": arn }),
        account => json!({ "AWS": format!("arn:aws:iam::{account}:root") }),
    }
}

fn organization(id: Option<&str>) -> BTreeMap<String, BTreeMap<String, String>> {
    let condition = |id: &str| {
        let key = BTreeMap::from([("aws:PrincipalOrgID".to_owned(), id.to_owned())]);
        BTreeMap::from([("StringEquals".to_owned(), key)])
    };
    id.map(condition).unwrap_or_default()
}

fn check_revision(policy: &Policy, expected: Option<&str>) -> Result<(), ApiError> {
    if expected.is_some_and(|expected| !expected.is_empty() && expected != policy.revision_id) {
        return Err(ApiError::precondition_failed(
            "The Revision Id provided does not match the latest Revision Id. Call the GetLayerPolicy API to retrieve \
             the latest Revision Id",
        ));
    }
    Ok(())
}

fn no_policy() -> ApiError {
    ApiError::resource_not_found("No policy is associated with the given resource.")
}
