//! The Security Token Service: who the caller is, and sessions of roles.

use std::time::{Duration, SystemTime};

use control_plane::authorization::Who;
use control_plane::record::Timestamp;
use control_plane::sessions::NewSession;

use crate::app::App;
use crate::auth::{Caller, Identity, permit};
use crate::iam::date;
use crate::query::{Form, QueryError, STS, Xml, success};
use crate::reply::Reply;

/// API version of the requests.
pub(crate) const VERSION: &str = "2011-06-15";

/// Shortest session, in seconds.
const SHORTEST: u32 = 900;

/// Usual session, in seconds; also the longest one of who is in a session already.
const USUAL: u32 = 3_600;

/// Longest session policy, in characters.
const MAX_POLICY: usize = 2_048;

pub(crate) fn dispatch(app: &App, caller: Option<&Caller>, action: &str, form: &Form, request_id: &str) -> Reply {
    match action {
        "GetCallerIdentity" => {
            let account = &app.control_plane.realm().account;
            let (arn, id) = match caller.map(|caller| &caller.identity) {
                // Where nobody is asked for credentials, everybody is the account's owner.
                None | Some(Identity::Root) => (format!("arn:aws:iam::{account}:root"), account.clone()),
                Some(Identity::Session(session)) => (session.arn(), format!("{}:{}", session.role_id, session.name)),
            };
            let write = |xml: &mut Xml| {
                xml.text("Arn", &arn);
                xml.text("UserId", &id);
                xml.text("Account", account);
            };
            success(STS, action, request_id, Some(write))
        }
        "AssumeRole" => match assume(app, caller, form) {
            Ok(write) => success(STS, action, request_id, Some(write)),
            Err(error) => error.reply(STS, request_id),
        },
        _ => QueryError::invalid_action(action, VERSION).reply(STS, request_id),
    }
}

fn invalid(message: String) -> QueryError {
    QueryError::new(400, "ValidationError", message)
}

fn assume(app: &App, caller: Option<&Caller>, form: &Form) -> Result<impl FnOnce(&mut Xml) + use<>, QueryError> {
    let field = |name: &'static str| form.get(name).ok_or_else(|| QueryError::missing(name));
    let (arn, name) = (field("RoleArn")?, field("RoleSessionName")?);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if !(2..=64).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(invalid(format!(
            "1 validation error detected: Value '{name}' at 'roleSessionName' failed to satisfy constraint: Member must \
             satisfy regular expression pattern: [\\w+=,.@-]*"
        )));
    }
    let policy = form.get("Policy");
    if let Some(policy) = policy {
        if policy.len() > MAX_POLICY {
            return Err(QueryError::new(
                400,
                "PackedPolicyTooLarge",
                "Packed policy consumes more than 100% of allotted space.",
            ));
        }
        control_plane::authorization::Document::parse(policy)
            .map_err(|error| QueryError::new(400, "MalformedPolicyDocument", error.to_string()))?;
    }
    let who = caller.map_or(Who::Root, |caller| caller.identity.who());
    let account = &app.control_plane.realm().account;
    let denied = || {
        let user = match who {
            Who::Session(session) => session.arn(),
            Who::Root | Who::Service(_) | Who::Anonymous => format!("arn:aws:iam::{account}:root"),
        };
        QueryError::new(
            403,
            "AccessDenied",
            format!("User: {user} is not authorized to perform: sts:AssumeRole on resource: {arn}"),
        )
    };
    // A role that is not there and one that does not trust the caller look the same from outside.
    let role = permit::role(app, arn).filter(|role| app.control_plane.trusts(role, who)).ok_or_else(denied)?;
    let longest = match who {
        Who::Session(_) => USUAL,
        Who::Root | Who::Service(_) | Who::Anonymous => role.max_session_secs,
    };
    let seconds = match form.get("DurationSeconds").map(str::parse) {
        None => USUAL,
        Some(Ok(seconds)) if (SHORTEST..=longest).contains(&seconds) => seconds,
        Some(Ok(seconds)) if seconds > longest => {
            return Err(invalid(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.".to_owned(),
            ));
        }
        Some(_) => {
            return Err(invalid(format!(
                "1 validation error detected: Value '{}' at 'durationSeconds' failed to satisfy constraint: Member must \
                 have value greater than or equal to {SHORTEST}",
                form.get("DurationSeconds").unwrap_or_default()
            )));
        }
    };
    let duration = Duration::from_secs(u64::from(seconds));
    let new = NewSession { role: &role.arn, role_id: &role.id, name, policy, duration };
    let given = app
        .sessions
        .issue(&new, Timestamp::from(SystemTime::now()))
        .map_err(|error| QueryError::new(500, "ServiceFailure", error.to_string()))?;
    let user = format!("arn:aws:sts::{account}:assumed-role/{}/{name}", role.name);
    let id = format!("{}:{name}", role.id);
    let used = policy.map(|policy| policy.len() * 100 / MAX_POLICY);
    Ok(move |xml: &mut Xml| {
        xml.open("AssumedRoleUser");
        xml.text("AssumedRoleId", &id);
        xml.text("Arn", &user);
        xml.close();
        xml.open("Credentials");
        xml.text("AccessKeyId", &given.access_key_id);
        xml.text("SecretAccessKey", &given.secret_access_key);
        xml.text("SessionToken", &given.session_token);
        xml.text("Expiration", &date(given.expires));
        xml.close();
        if let Some(used) = used {
            xml.text("PackedPolicySize", &used.to_string());
        }
    })
}
