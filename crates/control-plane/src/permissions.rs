//! Permissions: the resource policies of functions, one for each qualifier.

use std::collections::BTreeMap;

use aws_model::arn::Qualifier;
use aws_model::{ApiError, types};
use serde_json::{Value, json};

use crate::plane::ControlPlane;
use crate::policy::Statement;
use crate::record::{Function, Scope};
use crate::scoped;

impl ControlPlane {
    /// AddPermission: one more statement in the policy of a function, version or alias.
    ///
    /// # Errors
    /// As AWS; among them ResourceConflictException for a statement id that is taken, PreconditionFailedException for
    /// another revision, and PolicyLengthExceededException.
    pub async fn add_permission(
        &self,
        request: &types::AddPermissionRequest,
    ) -> Result<types::AddPermissionResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        if target.qualifier == Some(Qualifier::Latest) {
            return Err(ApiError::invalid_parameter_value("We currently do not support adding policies for $LATEST."));
        }
        if target.account != self.realm().account {
            return Err(self.not_found(&target));
        }
        let resource = self.realm().arn_of(&target);
        let mut shown = None;
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(|| self.not_found(&target))?.clone();
            let scope = self.scope(&function, &target)?;
            check_revision(&function, &scope, request.revision_id.as_deref())?;
            let statement = statement(request, resource)?;
            let mut policy = function.attached.policies.remove(&scope).unwrap_or_default();
            policy.add(statement.clone())?;
            policy.revision_id = scoped::renew(&mut function, &scope);
            function.attached.policies.insert(scope, policy);
            shown = serde_json::to_string(&statement).ok();
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(types::AddPermissionResponse { statement: shown })
    }

    /// RemovePermission: a policy without statements is none.
    ///
    /// # Errors
    /// ResourceNotFoundException for what is not there, PreconditionFailedException for another revision.
    pub async fn remove_permission(&self, request: &types::RemovePermissionRequest) -> Result<(), ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let sid = request.statement_id.as_deref().unwrap_or_default();
        let absent = || {
            let arn = self.realm().function_arn(&target.name, None);
            ApiError::resource_not_found(format!("No policy found for: {arn}"))
        };
        if target.account != self.realm().account {
            return Err(absent());
        }
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(absent)?.clone();
            let scope = self.scope(&function, &target)?;
            let mut policy = function.attached.policies.remove(&scope).ok_or_else(|| {
                ApiError::resource_not_found("No policy is associated with the given resource.".to_owned())
            })?;
            policy.remove(sid)?;
            check_revision(&function, &scope, request.revision_id.as_deref())?;
            policy.revision_id = scoped::renew(&mut function, &scope);
            if !policy.statements.is_empty() {
                function.attached.policies.insert(scope, policy);
            }
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(())
    }

    /// GetPolicy.
    ///
    /// # Errors
    /// ResourceNotFoundException for what is not there.
    pub fn get_policy(&self, request: &types::GetPolicyRequest) -> Result<types::GetPolicyResponse, ApiError> {
        let (function, target) = self.find(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        let policy = function
            .attached
            .policies
            .get(&scope)
            .ok_or_else(|| ApiError::resource_not_found("The resource you requested does not exist."))?;
        Ok(types::GetPolicyResponse {
            policy: Some(policy.document()),
            // One revision guards the policy and what it belongs to.
            revision_id: scoped::revision(&function, &scope).map(str::to_owned),
        })
    }
}

fn check_revision(function: &Function, scope: &Scope, expected: Option<&str>) -> Result<(), ApiError> {
    let current = scoped::revision(function, scope);
    if expected.is_some_and(|expected| !expected.is_empty() && Some(expected) != current) {
        return Err(ApiError::precondition_failed(
            "The Revision Id provided does not match the latest Revision Id. Call the GetPolicy API to retrieve the \
             latest Revision Id",
        ));
    }
    Ok(())
}

/// The statement that a request asks for.
fn statement(request: &types::AddPermissionRequest, resource: String) -> Result<Statement, ApiError> {
    let action = request.action.clone().unwrap_or_default();
    if request.function_url_auth_type.is_some() && action != "lambda:InvokeFunctionUrl" {
        return Err(ApiError::invalid_parameter_value(
            "FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action",
        ));
    }
    Ok(Statement {
        sid: request.statement_id.clone().unwrap_or_default(),
        effect: "Allow".to_owned(),
        principal: principal(request.principal.as_deref().unwrap_or_default())?,
        action,
        resource,
        condition: condition(request),
    })
}

fn condition(request: &types::AddPermissionRequest) -> BTreeMap<String, BTreeMap<String, String>> {
    let via_url = request.invoked_via_function_url.filter(|only| *only).map(|only| only.to_string());
    let conditions = [
        ("StringEquals", "AWS:SourceAccount", &request.source_account),
        ("StringEquals", "lambda:FunctionUrlAuthType", &request.function_url_auth_type),
        ("StringEquals", "lambda:EventSourceToken", &request.event_source_token),
        ("StringEquals", "aws:PrincipalOrgID", &request.principal_org_id),
        ("ArnLike", "AWS:SourceArn", &request.source_arn),
        ("Bool", "lambda:InvokedViaFunctionUrl", &via_url),
    ];
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (operator, key, value) in conditions {
        if let Some(value) = value {
            all.entry(operator.to_owned()).or_default().insert(key.to_owned(), value.clone());
        }
    }
    all
}

/// A principal as a policy names it: everyone, a service, an account, a role or a user.
pub(crate) fn principal(given: &str) -> Result<Value, ApiError> {
    if given == "*" {
        return Ok(json!("*"));
    }
    if is_service(given) {
        return Ok(json!({ "Service": given }));
    }
    if given.len() == 12 && given.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(json!({ "AWS": format!("arn:aws:iam::{given}:root") }));
    }
    let mut parts = given.split(':');
    let arn = parts.next() == Some("arn")
        && parts.next().is_some_and(|partition| partition.starts_with("aws"))
        && matches!(parts.next(), Some("iam" | "sts"));
    if arn {
        return Ok(json!({ "AWS": given }));
    }
    Err(ApiError::invalid_parameter_value(
        "The provided principal was invalid. Please check the principal and try again.",
    ))
}

/// Services are hosts of AWS, and a few (Alexa's) of Amazon.
fn is_service(given: &str) -> bool {
    [".amazonaws.com", ".amazonaws.com.cn", ".amazon.com"].iter().any(|suffix| {
        given.strip_suffix(suffix).is_some_and(|name| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        })
    })
}
