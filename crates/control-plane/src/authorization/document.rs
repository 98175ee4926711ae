//! A policy document, understood: statements and whether they apply to an access.

use serde_json::{Map, Value};

use super::condition::Condition;
use super::{Access, Who, pattern, texts};

/// What a policy says to an access that it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It allows the caller's account, which decides by its own policies.
    AllowAccount,
    Allow,
    Deny,
}

/// A document that IAM would not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("This policy contains invalid Json")]
    Json,
    #[error("Syntax errors in policy.")]
    Syntax,
    #[error("Missing required field {0}")]
    Missing(&'static str),
    #[error("Policy document must be version 2012-10-17 or greater.")]
    Version,
    #[error("Invalid Condition type : {0}.")]
    Operator(String),
}

/// A policy document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    allow: bool,
    principals: Option<Listed<Principal>>,
    actions: Listed<String>,
    /// `None` in trust policies: whatever the policy hangs on.
    resources: Option<Listed<String>>,
    conditions: Vec<Condition>,
}

/// What is listed, or everything but that.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed<T> {
    items: Vec<T>,
    not: bool,
}

impl<T> Listed<T> {
    fn has(&self, fits: impl Fn(&T) -> bool) -> bool {
        self.items.iter().any(fits) != self.not
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Principal {
    Everybody,
    /// An account by its number, an ARN, or a unique id.
    Aws(String),
    Service(String),
    /// Of a kind that nobody here is.
    Other,
}

/// How a principal fits a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    No,
    Account,
    Caller,
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// It is none, in IAM's words.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let Ok(Value::Object(document)) = serde_json::from_str(text) else { return Err(Malformed::Json) };
        match document.get("Version") {
            None => {}
            Some(Value::String(version)) if version == "2012-10-17" || version == "2008-10-17" => {}
            Some(_) => return Err(Malformed::Version),
        }
        let statements = match document.get("Statement") {
            Some(Value::Array(list)) => list.iter().map(Statement::parse).collect::<Result<_, _>>()?,
            Some(single @ Value::Object(_)) => vec![Statement::parse(single)?],
            Some(_) => return Err(Malformed::Syntax),
            None => return Err(Malformed::Missing("Statement")),
        };
        Ok(Self { statements })
    }

    /// Reads a document that was stored before; one that is not understood denies everything.
    pub fn parse_or_deny(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|error| {
            tracing::warn!(%error, "a stored policy is not understood and denies everything");
            let everything = || Listed { items: vec![], not: true };
            let deny = Statement {
                allow: false,
                principals: None,
                actions: everything(),
                resources: None,
                conditions: vec![],
            };
            Self { statements: vec![deny] }
        })
    }

    /// What the document says to an access; `None` when no statement applies. `account` is the caller's, if the document
    /// is that of a resource or a trust policy.
    pub(super) fn effect(&self, access: &Access<'_>, account: Option<&str>) -> Option<Effect> {
        self.statements.iter().filter_map(|statement| statement.effect(access, account)).max()
    }
}

impl Statement {
    fn parse(value: &Value) -> Result<Self, Malformed> {
        let statement = value.as_object().ok_or(Malformed::Syntax)?;
        let allow = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            Some(_) => return Err(Malformed::Syntax),
            None => return Err(Malformed::Missing("Effect")),
        };
        Ok(Self {
            allow,
            principals: principals(statement)?,
            actions: listed(statement, "Action", "NotAction")?.ok_or(Malformed::Missing("Action"))?,
            resources: listed(statement, "Resource", "NotResource")?,
            conditions: match statement.get("Condition") {
                None => vec![],
                Some(Value::Object(conditions)) => Condition::parse_all(conditions)?,
                Some(_) => return Err(Malformed::Syntax),
            },
        })
    }

    fn effect(&self, access: &Access<'_>, account: Option<&str>) -> Option<Effect> {
        let fit = match &self.principals {
            None => Fit::Caller,
            Some(Listed { items, not: false }) => {
                items.iter().map(|item| item.fit(access.who, account)).max_by_key(|fit| *fit as u8).unwrap_or(Fit::No)
            }
            Some(listed) => match listed.has(|item| item.fit(access.who, account) != Fit::No) {
                true => Fit::Caller,
                false => Fit::No,
            },
        };
        let applies = fit != Fit::No
            && self.actions.has(|action| pattern::fits_any_case(action, access.action))
            && self.resources.as_ref().is_none_or(|listed| {
                listed.has(|resource| pattern::fits_arn(resource, access.resource, &access.context))
            })
            && self.conditions.iter().all(|condition| condition.holds(&access.context));
        match (applies, self.allow, fit) {
            (false, ..) => None,
            (true, false, _) => Some(Effect::Deny),
            (true, true, Fit::Account) => Some(Effect::AllowAccount),
            (true, true, _) => Some(Effect::Allow),
        }
    }
}

impl Principal {
    fn fit(&self, who: Who<'_>, account: Option<&str>) -> Fit {
        match (self, who) {
            (Self::Everybody, _) => Fit::Caller,
            (Self::Service(name), Who::Service(caller)) if name == caller => Fit::Caller,
            (Self::Aws(name), Who::Session(session))
                if *name == session.role || *name == session.arn() || *name == session.role_id =>
            {
                Fit::Caller
            }
            (Self::Aws(name), Who::Session(_) | Who::Root) if account.is_some_and(|own| is_account(name, own)) => {
                Fit::Account
            }
            (Self::Aws(_) | Self::Service(_) | Self::Other, _) => Fit::No,
        }
    }
}

/// `000000000000` or `arn:aws:iam::000000000000:root`
fn is_account(name: &str, account: &str) -> bool {
    name == account
        || name.strip_suffix(":root").and_then(|arn| arn.rsplit_once("::")).is_some_and(|(_, given)| given == account)
}

fn listed(statement: &Map<String, Value>, name: &str, not_name: &str) -> Result<Option<Listed<String>>, Malformed> {
    let (value, not) = match (statement.get(name), statement.get(not_name)) {
        (None, None) => return Ok(None),
        (Some(value), None) => (value, false),
        (None, Some(value)) => (value, true),
        (Some(_), Some(_)) => return Err(Malformed::Syntax),
    };
    let items = texts(value).ok_or(Malformed::Syntax)?;
    Ok(Some(Listed { items, not }))
}

fn principals(statement: &Map<String, Value>) -> Result<Option<Listed<Principal>>, Malformed> {
    let (value, not) = match (statement.get("Principal"), statement.get("NotPrincipal")) {
        (None, None) => return Ok(None),
        (Some(value), None) => (value, false),
        (None, Some(value)) => (value, true),
        (Some(_), Some(_)) => return Err(Malformed::Syntax),
    };
    let items = match value {
        Value::String(text) if text == "*" => vec![Principal::Everybody],
        Value::Object(kinds) => {
            let mut items = Vec::new();
            for (kind, names) in kinds {
                items.extend(texts(names).ok_or(Malformed::Syntax)?.into_iter().map(|name| match kind.as_str() {
                    "AWS" if name == "*" => Principal::Everybody,
                    "AWS" => Principal::Aws(name),
                    "Service" => Principal::Service(name),
                    _ => Principal::Other,
                }));
            }
            items
        }
        _ => return Err(Malformed::Syntax),
    };
    Ok(Some(Listed { items, not }))
}
