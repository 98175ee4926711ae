//! Tags: of functions, code signing configurations and event source mappings, told apart by their ARNs.

use std::collections::BTreeMap;

use aws_model::arn::FunctionRef;
use aws_model::{ApiError, types};

use crate::code_signing;
use crate::mappings::Mapping;
use crate::plane::ControlPlane;
use crate::record::{CodeSigning, Function, Scope, Timestamp};
use crate::scoped;
use crate::settings::check_tags;

/// A resource that can have tags.
enum Tagged {
    Function(FunctionRef),
    /// The id of a code signing configuration.
    CodeSigning(String),
    /// The id of an event source mapping.
    Mapping(String),
}

impl ControlPlane {
    /// TagResource: adds tags, and gives those that are there new values.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for aliases, versions and more than fifty tags.
    pub async fn tag_resource(&self, request: &types::TagResourceRequest, now: Timestamp) -> Result<(), ApiError> {
        let more = request.tags.clone().unwrap_or_default();
        if more.is_empty() {
            return Err(ApiError::invalid_parameter_value("An error occurred and the request cannot be processed."));
        }
        let change = |tags: &mut BTreeMap<String, String>| {
            tags.extend(more);
            check_tags(Some(tags))
        };
        self.change_tags(request.resource.as_deref().unwrap_or_default(), now, change).await
    }

    /// UntagResource. Taking away what is not there is no error.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for aliases and versions.
    pub async fn untag_resource(&self, request: &types::UntagResourceRequest, now: Timestamp) -> Result<(), ApiError> {
        let keys = request.tag_keys.clone().unwrap_or_default();
        let change = |tags: &mut BTreeMap<String, String>| {
            tags.retain(|key, _| !keys.contains(key));
            Ok(())
        };
        self.change_tags(request.resource.as_deref().unwrap_or_default(), now, change).await
    }

    /// ListTags.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for aliases and versions.
    pub fn list_tags(
        &self,
        request: &types::ListTagsRequest,
        now: Timestamp,
    ) -> Result<types::ListTagsResponse, ApiError> {
        let arn = request.resource.as_deref().unwrap_or_default();
        let tags = match self.tagged(arn)? {
            Tagged::Function(target) => {
                self.function_of(&target).ok_or_else(|| self.not_found(&target))?.attached.tags.clone()
            }
            Tagged::CodeSigning(id) => self.code_signing(&id, arn)?.tags.clone(),
            Tagged::Mapping(id) => {
                there(self.inner.mappings.shelf.get(&id).as_deref(), now).ok_or_else(|| no_mapping(arn))?.tags.clone()
            }
        };
        Ok(types::ListTagsResponse { tags: Some(tags) })
    }

    async fn change_tags(
        &self,
        arn: &str,
        now: Timestamp,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        match self.tagged(arn)? {
            Tagged::Function(target) => {
                let ours = target.account == self.realm().account;
                let judge = |found: Option<&Function>| {
                    let mut function = found.filter(|_| ours).ok_or_else(|| self.not_found(&target))?.clone();
                    change(&mut function.attached.tags)?;
                    scoped::renew(&mut function, &Scope::Function);
                    Ok(Some(function))
                };
                self.mutate(&target.name, None, judge).await?;
            }
            Tagged::CodeSigning(id) => {
                let judge = |found: Option<&CodeSigning>| {
                    let mut config = found.cloned().ok_or_else(|| code_signing::absent(arn))?;
                    change(&mut config.tags)?;
                    Ok(Some(config))
                };
                self.inner.code_signing.mutate(&id, (), judge).await?;
            }
            Tagged::Mapping(id) => {
                let judge = |found: Option<&Mapping>| {
                    let mut mapping = there(found, now).ok_or_else(|| no_mapping(arn))?.clone();
                    change(&mut mapping.tags)?;
                    Ok(Some(mapping))
                };
                self.inner.mappings.shelf.mutate(&id, (), judge).await?;
            }
        }
        Ok(())
    }

    /// What an ARN names. The shape has checked its form.
    fn tagged(&self, arn: &str) -> Result<Tagged, ApiError> {
        // arn:PARTITION:lambda:REGION:ACCOUNT:KIND:NAME
        let mut parts = arn.splitn(7, ':').skip(5);
        match (parts.next(), parts.next()) {
            (Some("function"), Some(_)) => {
                let target = self.target(Some(arn), None)?;
                if target.qualifier.is_some() {
                    return Err(ApiError::invalid_parameter_value(
                        "Tags on function aliases and versions are not supported. Please specify a function ARN.",
                    ));
                }
                Ok(Tagged::Function(target))
            }
            (Some("code-signing-config"), Some(_)) => {
                Ok(Tagged::CodeSigning(self.code_signing_id(arn).ok_or_else(|| code_signing::absent(arn))?))
            }
            (Some("event-source-mapping"), Some(_)) => {
                let id = arn.rsplit(':').next().unwrap_or_default();
                let realm = self.realm();
                let ours = format!("arn:aws:lambda:{}:{}:event-source-mapping:{id}", realm.region, realm.account);
                if arn == ours { Ok(Tagged::Mapping(id.to_owned())) } else { Err(no_mapping(arn)) }
            }
            // Capacity providers and network connectors: there are none.
            _ => Err(ApiError::resource_not_found("The resource you requested does not exist.")),
        }
    }
}

/// A mapping, unless its deletion has ended.
fn there(found: Option<&Mapping>, now: Timestamp) -> Option<&Mapping> {
    found.filter(|mapping| mapping.phase.step(now).is_some())
}

fn no_mapping(arn: &str) -> ApiError {
    ApiError::resource_not_found(format!("Event source mapping not found: {arn}"))
}
