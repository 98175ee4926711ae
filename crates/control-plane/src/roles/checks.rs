//! IAM's rules for what a request may say of a role.

use std::collections::BTreeMap;

use serde_json::Value;

use super::RoleError;
use crate::authorization::Document;

/// A role or policy name.
pub(super) fn name(field: &str, name: &str, longest: usize) -> Result<(), RoleError> {
    let mut broken = Vec::new();
    let at = |constraint: String| format!("Value '{name}' at '{field}' failed to satisfy constraint: {constraint}");
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@-_".contains(&byte);
    if name.is_empty() {
        broken.push(at("Member must have length greater than or equal to 1".to_owned()));
    } else if !name.bytes().all(allowed) {
        return Err(RoleError::Validation(format!(
            "The specified value for {field} is invalid. It must contain only alphanumeric characters and/or the \
             following: +=,.@_-"
        )));
    }
    if name.len() > longest {
        broken.push(at(format!("Member must have length less than or equal to {longest}")));
    }
    report(&broken)
}

pub(super) fn path(path: &str) -> Result<(), RoleError> {
    let printable = path.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    if path.starts_with('/') && path.ends_with('/') && printable && path.len() <= 512 {
        return Ok(());
    }
    Err(RoleError::Validation(
        "The specified value for path is invalid. It must begin and end with / and contain only alphanumeric \
         characters and/or / characters."
            .to_owned(),
    ))
}

pub(super) fn description(description: Option<&str>) -> Result<(), RoleError> {
    let long = description.filter(|text| text.chars().count() > 1_000).map(|text| {
        format!(
            "Value '{text}' at 'description' failed to satisfy constraint: Member must have length less than or equal \
             to 1000"
        )
    });
    report(&Vec::from_iter(long))
}

pub(super) fn session(seconds: u32) -> Result<(), RoleError> {
    let bound = match seconds {
        0..3_600 => "greater than or equal to 3600",
        3_600..=43_200 => return Ok(()),
        _ => "less than or equal to 43200",
    };
    report(&[format!(
        "Value '{seconds}' at 'maxSessionDuration' failed to satisfy constraint: Member must have value {bound}"
    )])
}

pub(super) fn tags(tags: &BTreeMap<String, String>) -> Result<(), RoleError> {
    if tags.len() > 50 {
        return Err(RoleError::Validation("The number of tags has reached the maximum limit.".to_owned()));
    }
    let length = |text: &str| text.chars().count();
    if tags.iter().any(|(key, value)| key.is_empty() || length(key) > 128 || length(value) > 256) {
        return Err(RoleError::Validation("Tag keys have 1 to 128 characters and tag values at most 256.".to_owned()));
    }
    Ok(())
}

/// The name in the ARN of a managed policy. Which policies AWS has is not known here: any well-formed ARN will do.
pub(super) fn policy_arn(arn: &str) -> Result<String, RoleError> {
    if arn.len() < 20 {
        return report(&[format!(
            "Value '{arn}' at 'policyArn' failed to satisfy constraint: Member must have length greater than or equal \
             to 20"
        )])
        .map(|()| String::new());
    }
    let invalid = || RoleError::Validation(format!("ARN {arn} is not valid."));
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [prefix, partition, service, region, account, resource] = parts[..] else { return Err(invalid()) };
    let owner = account == "aws" || (account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit()));
    if prefix != "arn" || !partition.starts_with("aws") || service != "iam" || !region.is_empty() || !owner {
        return Err(invalid());
    }
    let path = resource.strip_prefix("policy/").ok_or_else(invalid)?;
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(RoleError::NoSuchManagedPolicy(arn.to_owned())),
    }
}

/// A policy document that evaluation understands, and that says of nobody in particular.
pub(super) fn policy(text: &str) -> Result<(), RoleError> {
    understood(text)?;
    for statement in statements(text) {
        if statement.contains_key("Principal") || statement.contains_key("NotPrincipal") {
            return Err(RoleError::MalformedPolicy("Policy document should not specify a principal.".to_owned()));
        }
        if !statement.contains_key("Resource") && !statement.contains_key("NotResource") {
            return Err(RoleError::MalformedPolicy("Policy statement must contain resources.".to_owned()));
        }
    }
    Ok(())
}

/// A trust policy: every statement says who may assume the role, and names no resource.
pub(super) fn trust_policy(text: &str) -> Result<(), RoleError> {
    understood(text)?;
    for statement in statements(text) {
        if !statement.contains_key("Principal") && !statement.contains_key("NotPrincipal") {
            return Err(RoleError::MalformedPolicy("Missing required field Principal".to_owned()));
        }
        if statement.contains_key("Resource") || statement.contains_key("NotResource") {
            return Err(RoleError::MalformedPolicy("Has prohibited field Resource".to_owned()));
        }
    }
    Ok(())
}

fn understood(text: &str) -> Result<(), RoleError> {
    Document::parse(text).map(drop).map_err(|error| RoleError::MalformedPolicy(error.to_string()))
}

/// The statements of a document that is understood.
fn statements(text: &str) -> Vec<serde_json::Map<String, Value>> {
    let mut document: Value = serde_json::from_str(text).unwrap_or_default();
    let listed = match document.get_mut("Statement").map(Value::take) {
        Some(Value::Array(list)) => list,
        Some(single) => vec![single],
        None => vec![],
    };
    let object = |statement| match statement {
        Value::Object(statement) => Some(statement),
        _ => None,
    };
    listed.into_iter().filter_map(object).collect()
}

fn report(broken: &[String]) -> Result<(), RoleError> {
    if broken.is_empty() {
        return Ok(());
    }
    let plural = if broken.len() == 1 { "error" } else { "errors" };
    Err(RoleError::Validation(format!("{} validation {plural} detected: {}", broken.len(), broken.join("; "))))
}
