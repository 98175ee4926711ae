//! The operations on managed policies.

use std::time::SystemTime;

use control_plane::record::Timestamp;
use control_plane::roles::{ManagedPolicy, NewPolicy};

use super::{Output, date, not_truncated, nothing, output, percent_encoded, tags, write_tags};
use crate::app::App;
use crate::query::{Form, QueryError, Xml};

/// Carries an operation on policies out; `None` for any other.
pub(super) async fn run(app: &App, action: &str, form: &Form) -> Option<Result<Output, QueryError>> {
    let known = matches!(
        action,
        "CreatePolicy"
            | "GetPolicy"
            | "ListPolicies"
            | "DeletePolicy"
            | "CreatePolicyVersion"
            | "GetPolicyVersion"
            | "ListPolicyVersions"
            | "DeletePolicyVersion"
            | "SetDefaultPolicyVersion"
            | "ListPolicyTags"
            | "ListEntitiesForPolicy"
    );
    if known { Some(operate(app, action, form).await) } else { None }
}

async fn operate(app: &App, action: &str, form: &Form) -> Result<Output, QueryError> {
    let roles = app.control_plane.roles();
    let field = |name: &'static str| form.get(name).ok_or_else(|| QueryError::missing(name));
    let now = Timestamp::from(SystemTime::now());
    if action == "CreatePolicy" {
        let new = NewPolicy {
            name: field("PolicyName")?.to_owned(),
            path: form.get("Path").map(str::to_owned),
            document: field("PolicyDocument")?.to_owned(),
            description: form.get("Description").map(str::to_owned),
            tags: tags(form)?,
        };
        let policy = roles.create_policy(new, now).await?;
        return Ok(output(move |xml| write_policy(xml, "Policy", &policy, 0)));
    }
    if action == "ListPolicies" {
        let prefix = form.get("PathPrefix").unwrap_or("/").to_owned();
        let own = form.get("Scope") != Some("AWS");
        let policies: Vec<_> =
            roles.policies().into_iter().filter(|policy| own && policy.path.starts_with(&prefix)).collect();
        let counted: Vec<_> = policies.into_iter().map(|policy| (roles.attachments(&policy.arn), policy)).collect();
        return Ok(output(move |xml| {
            xml.open("Policies");
            for (count, policy) in &counted {
                write_policy(xml, "member", policy, *count);
            }
            xml.close();
            not_truncated(xml);
        }));
    }
    let arn = field("PolicyArn")?;
    match action {
        "GetPolicy" => {
            let (policy, count) = (roles.policy(arn)?, roles.attachments(arn));
            Ok(output(move |xml| write_policy(xml, "Policy", &policy, count)))
        }
        "DeletePolicy" => Ok(nothing(roles.delete_policy(arn).await?)),
        "CreatePolicyVersion" => {
            let default = form.get("SetAsDefault") == Some("true");
            let number = roles.create_policy_version(arn, field("PolicyDocument")?, default, now).await?;
            Ok(output(move |xml| {
                xml.open("PolicyVersion");
                write_version(xml, number, default, now, None);
                xml.close();
            }))
        }
        "GetPolicyVersion" => {
            let (number, version) = roles.policy_version(arn, field("VersionId")?)?;
            let default = roles.policy(arn)?.default == number;
            Ok(output(move |xml| {
                xml.open("PolicyVersion");
                write_version(xml, number, default, version.created, Some(&version.document));
                xml.close();
            }))
        }
        "ListPolicyVersions" => {
            let policy = roles.policy(arn)?;
            Ok(output(move |xml| {
                xml.open("Versions");
                for (number, version) in policy.versions.iter().rev() {
                    xml.open("member");
                    write_version(xml, *number, *number == policy.default, version.created, None);
                    xml.close();
                }
                xml.close();
                not_truncated(xml);
            }))
        }
        "DeletePolicyVersion" => Ok(nothing(roles.delete_policy_version(arn, field("VersionId")?).await?)),
        "SetDefaultPolicyVersion" => {
            Ok(nothing(roles.set_default_policy_version(arn, field("VersionId")?, now).await?))
        }
        "ListPolicyTags" => {
            let policy = roles.policy(arn)?;
            Ok(output(move |xml| {
                write_tags(xml, &policy.tags);
                not_truncated(xml);
            }))
        }
        // ListEntitiesForPolicy
        _ => {
            roles.policy(arn)?;
            let attached: Vec<_> = roles.list("/").into_iter().filter(|role| role.attached.contains_key(arn)).collect();
            Ok(output(move |xml| {
                xml.open("PolicyRoles");
                for role in &attached {
                    xml.open("member");
                    xml.text("RoleName", &role.name);
                    xml.text("RoleId", &role.id);
                    xml.close();
                }
                xml.close();
                for nobody in ["PolicyGroups", "PolicyUsers"] {
                    xml.open(nobody);
                    xml.close();
                }
                not_truncated(xml);
            }))
        }
    }
}

fn write_policy(xml: &mut Xml, element: &str, policy: &ManagedPolicy, attachments: usize) {
    xml.open(element);
    xml.text("PolicyName", &policy.name);
    xml.text("PolicyId", &policy.id);
    xml.text("Arn", &policy.arn);
    xml.text("Path", &policy.path);
    xml.text("DefaultVersionId", &format!("v{}", policy.default));
    xml.text("AttachmentCount", &attachments.to_string());
    xml.text("PermissionsBoundaryUsageCount", "0");
    xml.text("IsAttachable", "true");
    if let Some(description) = &policy.description {
        xml.text("Description", description);
    }
    xml.text("CreateDate", &date(policy.created));
    xml.text("UpdateDate", &date(policy.updated));
    if !policy.tags.is_empty() {
        write_tags(xml, &policy.tags);
    }
    xml.close();
}

fn write_version(xml: &mut Xml, number: u32, default: bool, created: Timestamp, document: Option<&str>) {
    if let Some(document) = document {
        xml.text("Document", &percent_encoded(document));
    }
    xml.text("VersionId", &format!("v{number}"));
    xml.text("IsDefaultVersion", if default { "true" } else { "false" });
    xml.text("CreateDate", &date(created));
}
