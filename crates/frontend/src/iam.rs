//! Identity and Access Management, as far as tools need it to give a function a role. The rules are the control
//! plane's; here they meet the wire.

mod policies;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use control_plane::record::Timestamp;
use control_plane::roles::{NewRole, Role, RoleError};
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

use crate::app::App;
use crate::auth::{Caller, Identity};
use crate::query::{Form, IAM, QueryError, Xml, success};
use crate::reply::Reply;

/// API version of the requests.
pub(crate) const VERSION: &str = "2010-05-08";

impl From<RoleError> for QueryError {
    fn from(error: RoleError) -> Self {
        Self::new(error.status(), error.code(), error.to_string())
    }
}

/// What an operation answers with, within its result element; `None` where it returns nothing.
type Output = Option<Box<dyn FnOnce(&mut Xml) + Send>>;

fn output(write: impl FnOnce(&mut Xml) + Send + 'static) -> Output {
    Some(Box::new(write))
}

pub(crate) async fn dispatch(app: &App, caller: Option<&Caller>, action: &str, form: &Form, request_id: &str) -> Reply {
    let result = match policies::run(app, action, form).await {
        Some(result) => result,
        None => run(app, caller, action, form).await,
    };
    match result {
        Ok(result) => success(IAM, action, request_id, result),
        Err(error) => error.reply(IAM, request_id),
    }
}

async fn run(app: &App, caller: Option<&Caller>, action: &str, form: &Form) -> Result<Output, QueryError> {
    let roles = app.control_plane.roles();
    let field = |name: &'static str| form.get(name).ok_or_else(|| QueryError::missing(name));
    let role_name = || field("RoleName");
    match action {
        "CreateRole" => {
            let new = NewRole {
                name: role_name()?.to_owned(),
                path: form.get("Path").map(str::to_owned),
                trust_policy: field("AssumeRolePolicyDocument")?.to_owned(),
                description: form.get("Description").map(str::to_owned),
                max_session_secs: session(form)?,
                tags: tags(form)?,
            };
            let role = roles.create(new, Timestamp::from(SystemTime::now())).await?;
            Ok(output(move |xml| write_role(xml, "Role", &role, Shown::Whole)))
        }
        "GetRole" => {
            let role = roles.get(role_name()?)?;
            Ok(output(move |xml| write_role(xml, "Role", &role, Shown::Whole)))
        }
        "ListRoles" => {
            let listed = roles.list(form.get("PathPrefix").unwrap_or("/"));
            Ok(output(move |xml| {
                xml.open("Roles");
                for role in &listed {
                    write_role(xml, "member", role, Shown::Listed);
                }
                xml.close();
                not_truncated(xml);
            }))
        }
        "DeleteRole" => roles.delete(role_name()?).await.map(nothing).map_err(Into::into),
        "UpdateRole" => {
            roles.update(role_name()?, form.get("Description").map(str::to_owned), session(form)?).await?;
            Ok(output(|_| {}))
        }
        "UpdateAssumeRolePolicy" => {
            Ok(nothing(roles.update_trust_policy(role_name()?, field("PolicyDocument")?).await?))
        }
        "AttachRolePolicy" => Ok(nothing(roles.attach(role_name()?, field("PolicyArn")?).await?)),
        "DetachRolePolicy" => Ok(nothing(roles.detach(role_name()?, field("PolicyArn")?).await?)),
        "ListAttachedRolePolicies" => {
            let role = roles.get(role_name()?)?;
            Ok(output(move |xml| {
                xml.open("AttachedPolicies");
                for (arn, name) in &role.attached {
                    xml.open("member");
                    xml.text("PolicyName", name);
                    xml.text("PolicyArn", arn);
                    xml.close();
                }
                xml.close();
                not_truncated(xml);
            }))
        }
        "PutRolePolicy" => {
            Ok(nothing(roles.put_inline(role_name()?, field("PolicyName")?, field("PolicyDocument")?).await?))
        }
        "GetRolePolicy" => {
            let policy_name = field("PolicyName")?.to_owned();
            let role_name = roles.get(role_name()?)?.name.clone();
            let document = roles.get_inline(&role_name, &policy_name)?;
            Ok(output(move |xml| {
                xml.text("RoleName", &role_name);
                xml.text("PolicyName", &policy_name);
                xml.text("PolicyDocument", &percent_encoded(&document));
            }))
        }
        "DeleteRolePolicy" => Ok(nothing(roles.delete_inline(role_name()?, field("PolicyName")?).await?)),
        "ListRolePolicies" => {
            let role = roles.get(role_name()?)?;
            Ok(output(move |xml| {
                xml.open("PolicyNames");
                for name in role.inline.keys() {
                    xml.text("member", name);
                }
                xml.close();
                not_truncated(xml);
            }))
        }
        "TagRole" => Ok(nothing(roles.tag(role_name()?, tags(form)?).await?)),
        "UntagRole" => {
            let keys: Vec<String> = form.strings("TagKeys").into_iter().map(str::to_owned).collect();
            Ok(nothing(roles.untag(role_name()?, &keys).await?))
        }
        "ListRoleTags" => {
            let role = roles.get(role_name()?)?;
            Ok(output(move |xml| {
                write_tags(xml, &role.tags);
                not_truncated(xml);
            }))
        }
        // Roles of functions are never in a profile of a machine; deleting a role asks for them first.
        "ListInstanceProfilesForRole" => {
            roles.get(role_name()?)?;
            Ok(output(|xml| {
                xml.open("InstanceProfiles");
                xml.close();
                not_truncated(xml);
            }))
        }
        "GetUser" if matches!(caller, Some(Caller { identity: Identity::Session(_), .. })) => {
            let message = "Must specify userName when calling with non-User credentials";
            Err(QueryError::new(400, "ValidationError", message))
        }
        // There are no users: access keys are the account's own.
        "GetUser" => {
            let account = app.control_plane.realm().account.clone();
            Ok(output(move |xml| {
                xml.open("User");
                xml.text("Path", "/");
                xml.text("UserName", "root");
                xml.text("UserId", &account);
                xml.text("Arn", &format!("arn:aws:iam::{account}:root"));
                xml.text("CreateDate", &date(Timestamp(0)));
                xml.close();
            }))
        }
        _ => Err(QueryError::invalid_action(action, VERSION)),
    }
}

/// The output of an operation that returns nothing.
fn nothing((): ()) -> Output {
    None
}

fn not_truncated(xml: &mut Xml) {
    xml.text("IsTruncated", "false");
}

fn session(form: &Form) -> Result<Option<u32>, QueryError> {
    let Some(text) = form.get("MaxSessionDuration") else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        QueryError::new(400, "MalformedInput", format!("MaxSessionDuration must be a number of seconds, not {text}"))
    })
}

fn tags(form: &Form) -> Result<BTreeMap<String, String>, QueryError> {
    let mut tags = BTreeMap::new();
    for [key, value] in form.members("Tags", ["Key", "Value"]) {
        let key = key.ok_or_else(|| QueryError::missing("Tags.member.Key"))?;
        tags.insert(key.to_owned(), value.unwrap_or_default().to_owned());
    }
    Ok(tags)
}

/// Lists leave some members out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Whole,
    Listed,
}

fn write_role(xml: &mut Xml, element: &str, role: &Role, shown: Shown) {
    xml.open(element);
    xml.text("Path", &role.path);
    xml.text("RoleName", &role.name);
    xml.text("RoleId", &role.id);
    xml.text("Arn", &role.arn);
    xml.text("CreateDate", &date(role.created));
    xml.text("AssumeRolePolicyDocument", &percent_encoded(&role.trust_policy));
    if let Some(description) = &role.description {
        xml.text("Description", description);
    }
    xml.text("MaxSessionDuration", &role.max_session_secs.to_string());
    if shown == Shown::Whole {
        if !role.tags.is_empty() {
            write_tags(xml, &role.tags);
        }
        xml.open("RoleLastUsed");
        xml.close();
    }
    xml.close();
}

fn write_tags(xml: &mut Xml, tags: &BTreeMap<String, String>) {
    xml.open("Tags");
    for (key, value) in tags {
        xml.open("member");
        xml.text("Key", key);
        xml.text("Value", value);
        xml.close();
    }
    xml.close();
}

/// `2026-01-02T03:04:05Z`
pub(crate) fn date(moment: Timestamp) -> String {
    const FORM: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    let moment = OffsetDateTime::from_unix_timestamp(moment.0 / 1_000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(FORM).unwrap_or_default()
}

/// Policy documents travel percent-encoded (RFC 3986) within the XML.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_percent_encoded_and_dates_have_no_fraction() {
        assert_eq!(percent_encoded("{\"é\": 1}"), "%7B%22%C3%A9%22%3A%201%7D");
        assert_eq!(date(Timestamp(1_709_210_096_789)), "2024-02-29T12:34:56Z");
    }
}
