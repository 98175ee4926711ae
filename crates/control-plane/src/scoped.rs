//! What belongs to a qualifier of a function: whether the qualifier exists, and the revision that its changes move on.

use std::sync::Arc;

use aws_model::ApiError;
use aws_model::arn::{FunctionRef, Qualifier, Realm};

use crate::functions::revision_id;
use crate::plane::ControlPlane;
use crate::record::{Function, Scope};

impl ControlPlane {
    /// The scope that a request's qualifier stands for on a function that is there.
    ///
    /// # Errors
    /// ResourceNotFoundException for an alias or a version that is not there, each in its own words.
    pub(crate) fn scope(&self, function: &Function, target: &FunctionRef) -> Result<Scope, ApiError> {
        let scope = Scope::of(target.qualifier.as_ref());
        if has(function, &scope) {
            return Ok(scope);
        }
        Err(match &target.qualifier {
            Some(Qualifier::Alias(name)) if is_alias_name(name) => {
                ApiError::resource_not_found(format!("Cannot find alias arn: {}", self.realm().arn_of(target)))
            }
            _ => self.not_found(target),
        })
    }
}

/// Whether a function has what a scope names.
pub(crate) fn has(function: &Function, scope: &Scope) -> bool {
    match scope {
        Scope::Function => true,
        Scope::Version(number) => function.versions.contains_key(number),
        Scope::Alias(name) => function.attached.aliases.contains_key(name),
    }
}

/// A qualifier may hold a `$`, the name of an alias may not.
fn is_alias_name(name: &str) -> bool {
    !name.contains('$')
}

/// The revision of the version or alias that a scope names.
pub(crate) fn revision<'a>(function: &'a Function, scope: &Scope) -> Option<&'a str> {
    match scope {
        Scope::Function => Some(&function.latest.revision_id),
        Scope::Version(number) => function.versions.get(number).map(|version| version.revision_id.as_str()),
        Scope::Alias(name) => function.attached.aliases.get(name).map(|alias| alias.revision_id.as_str()),
    }
}

/// Gives the version or alias that a scope names a new revision, and answers it.
pub(crate) fn renew(function: &mut Function, scope: &Scope) -> String {
    let revision = revision_id();
    let version = match scope {
        Scope::Function => Some(&mut function.latest),
        Scope::Version(number) => function.versions.get_mut(number),
        Scope::Alias(name) => {
            if let Some(alias) = function.attached.aliases.get_mut(name) {
                alias.revision_id.clone_from(&revision);
            }
            None
        }
    };
    if let Some(version) = version {
        Arc::make_mut(version).revision_id.clone_from(&revision);
    }
    revision
}

/// The ARN of a scope, with `$LATEST` for the function itself.
pub(crate) fn qualified_arn(realm: &Realm, name: &str, scope: &Scope) -> String {
    realm.function_arn(name, Some(&scope.to_string()))
}

/// The ARN of a scope, without a qualifier for the function itself.
pub(crate) fn arn(realm: &Realm, name: &str, scope: &Scope) -> String {
    match scope {
        Scope::Function => realm.function_arn(name, None),
        Scope::Version(_) | Scope::Alias(_) => qualified_arn(realm, name, scope),
    }
}

/// The key of a scope in lists: the function itself, then its versions in order, then its aliases.
pub(crate) fn list_key(scope: &Scope) -> String {
    match scope {
        Scope::Function => "0".to_owned(),
        Scope::Version(number) => format!("1{number:020}"),
        Scope::Alias(name) => format!("2{name}"),
    }
}
