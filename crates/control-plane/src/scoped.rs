//! What belongs to a qualifier of a function: whether the qualifier exists, and the revision that its changes move on.

use std::sync::Arc;

use aws_model::ApiError;
use aws_model::arn::{FunctionRef, Qualifier};

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
