//! Whether a caller may do something: IAM's evaluation of identity policies, session policies and resource policies.
//!
//! An explicit deny anywhere wins. Else one allow suffices, of the caller's own policies or of the resource's, where the
//! resource's names the caller, and a session policy has to allow as well. Everything is denied that nothing allows.
//! The owner of the account (root) may do everything. What cannot be understood is refused when a policy is stored; a
//! stored policy that is not understood denies everything.

mod condition;
mod document;
mod managed;
mod pattern;

use std::collections::BTreeMap;

use serde_json::Value;

pub use document::{Document, Effect, Malformed};
pub use managed::managed;

use crate::plane::ControlPlane;
use crate::policy::Policy;
use crate::roles::Role;
use crate::sessions::Session;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// The owner of the account.
    Root,
    /// A role in use.
    Session(&'a Session),
    /// A service of AWS's, such as `s3.amazonaws.com`.
    Service(&'a str),
    /// Nobody known, as the callers of public function URLs.
    Anonymous,
}

/// Condition keys, in lower case, with their values.
pub type Context = BTreeMap<String, Vec<String>>;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Access<'a> {
    pub who: Who<'a>,
    /// `lambda:InvokeFunction`
    pub action: &'a str,
    /// An ARN, or `*` for what has none.
    pub resource: &'a str,
    /// What conditions are judged by; [`ControlPlane::authorize`] adds what it knows of the caller.
    pub context: Context,
}

/// An access that is not allowed; displays as AWS words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("User: {user} is not authorized to perform: {action} on resource: {resource} {reason}")]
pub struct Denied {
    user: String,
    action: String,
    resource: String,
    reason: String,
}

/// The kinds of policies, as messages name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Identity,
    Session,
    Resource,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity-based",
            Self::Session => "session",
            Self::Resource => "resource-based",
        }
    }
}

/// The outcome of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Denied(Kind),
    NotAllowed(Kind),
}

/// The policies that bear on one access.
struct Policies<'a> {
    identity: &'a [Document],
    session: Option<&'a Document>,
    resource: Option<&'a Document>,
}

impl ControlPlane {
    /// Whether an access is allowed. `resource` is the policy of the resource itself, if it has one.
    ///
    /// # Errors
    /// It is not, and why.
    pub fn authorize(&self, access: &Access<'_>, resource: Option<&Policy>) -> Result<(), Denied> {
        let session = match access.who {
            Who::Root => return Ok(()),
            Who::Session(session) => Some(session),
            Who::Service(_) | Who::Anonymous => None,
        };
        let role = session.and_then(|session| self.role_of(session));
        let identity = role.as_ref().map(|role| self.roles().documents(role)).unwrap_or_default();
        let narrowing = session.and_then(|session| session.policy.as_deref()).map(Document::parse_or_deny);
        let resource = resource.map(|policy| Document::parse_or_deny(&policy.document()));
        let mut access = access.clone();
        self.describe(&mut access, session);
        let policies = Policies { identity: &identity, session: narrowing.as_ref(), resource: resource.as_ref() };
        let reason = match evaluate(&access, &policies) {
            Verdict::Allowed => return Ok(()),
            Verdict::Denied(kind) => format!("with an explicit deny in {} {} policy", article(kind), kind.name()),
            Verdict::NotAllowed(kind) => {
                format!("because no {} policy allows the {} action", kind.name(), access.action)
            }
        };
        let user = match access.who {
            Who::Session(session) => session.arn(),
            Who::Service(name) => name.to_owned(),
            Who::Root | Who::Anonymous => "anonymous".to_owned(),
        };
        Err(Denied { user, action: access.action.to_owned(), resource: access.resource.to_owned(), reason })
    }

    /// Whether a role's trust policy lets someone in; with an explicit deny or without an allow it does not.
    pub fn trusts(&self, role: &Role, who: Who<'_>) -> bool {
        let document = Document::parse_or_deny(&role.trust_policy);
        let mut access = Access { who, action: "sts:AssumeRole", resource: &role.arn, context: Context::new() };
        let session = match who {
            Who::Session(session) => Some(session),
            Who::Root | Who::Service(_) | Who::Anonymous => None,
        };
        self.describe(&mut access, session);
        let account = &self.realm().account;
        match document.effect(&access, Some(account)) {
            Some(Effect::Allow) => true,
            // An account that is trusted decides itself who of it may assume the role.
            Some(Effect::AllowAccount) => match who {
                Who::Root => true,
                Who::Session(_) => self.authorize(&access, None).is_ok(),
                Who::Service(_) | Who::Anonymous => false,
            },
            Some(Effect::Deny) | None => false,
        }
    }

    /// The role of a session, if it is the one that the session began with.
    fn role_of(&self, session: &Session) -> Option<std::sync::Arc<Role>> {
        let role = self.roles().get(session.role_name()).ok()?;
        (role.arn == session.role && (session.role_id.is_empty() || role.id == session.role_id)).then_some(role)
    }

    /// Adds what conditions can ask of every request.
    fn describe(&self, access: &mut Access<'_>, session: Option<&Session>) {
        let realm = self.realm();
        let mut set = |key: &str, value: &str| {
            access.context.entry(key.to_owned()).or_insert_with(|| vec![value.to_owned()]);
        };
        set("aws:requestedregion", &realm.region);
        set("aws:securetransport", "false");
        let now = std::time::SystemTime::now();
        let seconds = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        set("aws:epochtime", &seconds.to_string());
        set("aws:currenttime", &seconds.to_string());
        if let Some(session) = session {
            set("aws:principalarn", &session.role);
            set("aws:principalaccount", &realm.account);
            set("aws:principaltype", "AssumedRole");
            set("aws:userid", &format!("{}:{}", session.role_id, session.name));
        }
    }
}

fn article(kind: Kind) -> &'static str {
    match kind {
        Kind::Identity => "an",
        Kind::Session | Kind::Resource => "a",
    }
}

fn evaluate(access: &Access<'_>, policies: &Policies<'_>) -> Verdict {
    let own = |document: &Document| document.effect(access, None);
    let account = match access.who {
        Who::Session(session) => session.role.split(':').nth(4),
        Who::Root | Who::Service(_) | Who::Anonymous => None,
    };
    let identity: Vec<_> = policies.identity.iter().filter_map(own).collect();
    let session = policies.session.map(own);
    let resource = policies.resource.and_then(|document| document.effect(access, account));
    if identity.contains(&Effect::Deny) {
        return Verdict::Denied(Kind::Identity);
    }
    if session == Some(Some(Effect::Deny)) {
        return Verdict::Denied(Kind::Session);
    }
    if resource == Some(Effect::Deny) {
        return Verdict::Denied(Kind::Resource);
    }
    let by_resource = resource == Some(Effect::Allow);
    match access.who {
        Who::Root => Verdict::Allowed,
        Who::Service(_) | Who::Anonymous if by_resource => Verdict::Allowed,
        Who::Service(_) | Who::Anonymous => Verdict::NotAllowed(Kind::Resource),
        Who::Session(_) if session == Some(None) => Verdict::NotAllowed(Kind::Session),
        Who::Session(_) if by_resource || identity.contains(&Effect::Allow) => Verdict::Allowed,
        Who::Session(_) => Verdict::NotAllowed(Kind::Identity),
    }
}

/// A value of JSON that may be one text or a list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    }
}

#[cfg(test)]
mod tests;
