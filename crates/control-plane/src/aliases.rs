//! Aliases: names for versions, and the choice between two versions by weight.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_model::arn::{FunctionRef, Qualifier};
use aws_model::{ApiError, ErrorType, MessageKey, types};

use crate::functions::revision_id;
use crate::page::page;
use crate::plane::{ControlPlane, version_id};
use crate::provisioned::Provision;
use crate::record::{Alias, Function, FunctionVersion, Scope, VersionId, Weight};

impl Function {
    /// The version that a qualifier names; of an alias with weights the main one.
    pub fn named(&self, qualifier: Option<&Qualifier>) -> Option<VersionId> {
        match qualifier {
            Some(Qualifier::Alias(name)) => self.attached.aliases.get(name).map(|alias| alias.version),
            _ => version_id(qualifier).filter(|id| self.version(*id).is_some()),
        }
    }

    /// What an invocation with this qualifier runs. `chance` (0 up to, but not including, 1) decides where an alias has
    /// weights.
    pub(crate) fn route(&self, qualifier: Option<&Qualifier>, chance: f64) -> Option<&Arc<FunctionVersion>> {
        let id = match qualifier {
            Some(Qualifier::Alias(name)) => self.attached.aliases.get(name)?.choose(chance),
            _ => version_id(qualifier)?,
        };
        self.serving(id)
    }
}

impl Alias {
    fn choose(&self, chance: f64) -> VersionId {
        match self.routing.first_key_value() {
            Some((number, weight)) if chance < weight.0 => VersionId::Number(*number),
            _ => self.version,
        }
    }

    /// Whether invocations of this alias may run the version.
    pub(crate) fn leads_to(&self, number: u64) -> bool {
        self.version == VersionId::Number(number) || self.routing.contains_key(&number)
    }
}

impl ControlPlane {
    /// CreateAlias.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function and its versions, ResourceConflictException for a name that is taken,
    /// InvalidParameterValueException for a routing that cannot be.
    pub async fn create_alias(
        &self,
        request: &types::CreateAliasRequest,
    ) -> Result<types::AliasConfiguration, ApiError> {
        let (target, name) = self.alias_target(request.function_name.as_deref(), request.name.as_deref())?;
        let version = request.function_version.as_deref().unwrap_or_default();
        let judge = |found: Option<&Function>| {
            let id = self.alias_version(found, &target, version)?;
            let function = found.ok_or_else(|| self.not_found(&target))?;
            if function.attached.aliases.contains_key(&name) {
                return Err(ApiError::resource_conflict(format!(
                    "Alias already exists: {}",
                    self.realm().arn_of(&target)
                )));
            }
            let weights = request.routing_config.as_ref().and_then(|config| config.additional_version_weights.as_ref());
            let routing = weights.map(|weights| self.routing(function, &target, weights)).transpose()?;
            let alias = Alias {
                version: id,
                description: request.description.clone().unwrap_or_default(),
                routing: routing.unwrap_or_default(),
                revision_id: revision_id(),
            };
            check_routing(function, &alias)?;
            let mut next = function.clone();
            next.attached.aliases.insert(name.clone(), alias);
            Ok(Some(next))
        };
        let after = self.mutate(&target.name, None, judge).await?.after;
        self.show_alias(after.as_deref(), &target, &name)
    }

    /// GetAlias.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_alias(&self, request: &types::GetAliasRequest) -> Result<types::AliasConfiguration, ApiError> {
        let (target, name) = self.alias_target(request.function_name.as_deref(), request.name.as_deref())?;
        let function = self.function_of(&target).ok_or_else(|| self.not_found(&bare(&target)))?;
        self.show_alias(Some(&function), &target, &name)
    }

    /// UpdateAlias: what the request does not name stays. Its revision changes even where nothing else does. Provisioned
    /// environments move with the alias.
    ///
    /// # Errors
    /// As [`Self::create_alias`]; PreconditionFailedException for another revision.
    pub async fn update_alias(
        &self,
        request: &types::UpdateAliasRequest,
    ) -> Result<(types::AliasConfiguration, Vec<Provision>), ApiError> {
        let (target, name) = self.alias_target(request.function_name.as_deref(), request.name.as_deref())?;
        let judge = |found: Option<&Function>| {
            let function = found.ok_or_else(|| self.not_found(&bare(&target)))?;
            let old = function.attached.aliases.get(&name).ok_or_else(|| {
                ApiError::resource_not_found(format!("Alias not found: {}", self.realm().arn_of(&target)))
            })?;
            if request.revision_id.as_deref().is_some_and(|given| !given.is_empty() && given != old.revision_id) {
                return Err(ApiError::precondition_failed(
                    "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API \
                     to retrieve the latest Revision Id",
                ));
            }
            let mut alias = Alias { revision_id: revision_id(), ..old.clone() };
            if let Some(version) = request.function_version.as_deref() {
                alias.version = self.alias_version(Some(function), &target, version)?;
            }
            if let Some(description) = &request.description {
                alias.description.clone_from(description);
            }
            if let Some(config) = &request.routing_config {
                let weights = config.additional_version_weights.as_ref();
                let routing = weights.map(|weights| self.routing(function, &target, weights)).transpose()?;
                alias.routing = routing.unwrap_or_default();
            }
            check_routing(function, &alias)?;
            if function.attached.provisioned.contains_key(&Scope::Alias(name.clone())) {
                function.check_provisioned_alias(&name, &alias)?;
            }
            let mut next = function.clone();
            next.attached.aliases.insert(name.clone(), alias);
            Ok(Some(next))
        };
        let mutation = self.mutate(&target.name, None, judge).await?;
        Ok((self.show_alias(mutation.after.as_deref(), &target, &name)?, mutation.provisions(None)))
    }

    /// ListAliases, in the order of their names; with `FunctionVersion` those alone whose main version it is.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_aliases(&self, request: &types::ListAliasesRequest) -> Result<types::ListAliasesResponse, ApiError> {
        let (function, target) = self.find(request.function_name.as_deref(), None)?;
        let version = request.function_version.as_deref();
        let wanted = |alias: &Alias| version.is_none_or(|version| alias.version.to_string() == version);
        let aliases = function.attached.aliases.iter().filter(|(_, alias)| wanted(alias));
        let items = aliases.map(|(name, alias)| (name.clone(), (name, alias)));
        let (aliases, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let arn = |name: &str| self.realm().function_arn(&target.name, Some(name));
        Ok(types::ListAliasesResponse {
            aliases: Some(aliases.into_iter().map(|(name, alias)| show(arn(name), name, alias)).collect()),
            next_marker,
        })
    }

    /// DeleteAlias, with everything that hangs on it. Deleting what is not there is no error.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function.
    pub async fn delete_alias(&self, request: &types::DeleteAliasRequest) -> Result<Vec<Provision>, ApiError> {
        let (target, name) = self.alias_target(request.function_name.as_deref(), request.name.as_deref())?;
        let judge = |found: Option<&Function>| {
            let mut function = found.ok_or_else(|| self.not_found(&bare(&target)))?.clone();
            if function.attached.aliases.remove(&name).is_some() {
                function.attached.forget(&Scope::Alias(name.clone()));
            }
            Ok(Some(function))
        };
        Ok(self.mutate(&target.name, None, judge).await?.provisions(None))
    }

    /// The function of a request with the alias as its qualifier, and the alias's name. A qualifier in the function's
    /// name has to be the same.
    fn alias_target(&self, function: Option<&str>, name: Option<&str>) -> Result<(FunctionRef, String), ApiError> {
        let target = self.target(function, name)?;
        // The shape demands a name, and one that is no number.
        let name = target.qualifier.as_ref().map(Qualifier::to_string).unwrap_or_default();
        if target.account != self.realm().account {
            return Err(self.not_found(&bare(&target)));
        }
        Ok((target, name))
    }

    /// The version that an alias shall stand for. Version and function are told absent in the same words.
    fn alias_version(
        &self,
        function: Option<&Function>,
        target: &FunctionRef,
        version: &str,
    ) -> Result<VersionId, ApiError> {
        let qualifier = Qualifier::parse(version);
        let id = version_id(Some(&qualifier)).filter(|id| function.is_some_and(|f| f.version(*id).is_some()));
        id.ok_or_else(|| self.not_found(&FunctionRef { qualifier: Some(qualifier), ..target.clone() }))
    }

    /// The weights of a request as they are kept.
    fn routing(
        &self,
        function: &Function,
        target: &FunctionRef,
        weights: &BTreeMap<String, f64>,
    ) -> Result<BTreeMap<u64, Weight>, ApiError> {
        if weights.len() > 1 {
            return Err(ApiError::invalid_parameter_value(
                "Number of items in AdditionalVersionWeights cannot be greater than 1",
            ));
        }
        let pairs =
            weights.iter().map(|(version, weight)| match self.alias_version(Some(function), target, version)? {
                VersionId::Number(number) => Ok((number, Weight(*weight))),
                // The shape has digits only.
                VersionId::Latest => Err(latest_with_weights()),
            });
        pairs.collect()
    }

    fn show_alias(
        &self,
        function: Option<&Function>,
        target: &FunctionRef,
        name: &str,
    ) -> Result<types::AliasConfiguration, ApiError> {
        let arn = self.realm().arn_of(target);
        match function.and_then(|function| function.attached.aliases.get(name)) {
            Some(alias) => Ok(show(arn, name, alias)),
            None => Err(ApiError::resource_not_found(format!("Cannot find alias arn: {arn}"))),
        }
    }

    /// The function of a reference, if it is there and this account's.
    pub(crate) fn function_of(&self, target: &FunctionRef) -> Option<Arc<Function>> {
        self.function(&target.name).filter(|_| target.account == self.realm().account)
    }
}

/// Refuses to delete a version that aliases stand for.
pub(crate) fn check_unreferenced(function: &Function, number: u64) -> Result<(), ApiError> {
    let aliases = function.attached.aliases.iter();
    let names: Vec<&str> = aliases.filter(|(_, alias)| alias.leads_to(number)).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(ApiError::resource_conflict(format!(
        "Unable to delete version because the following aliases reference it: [{}]",
        names.join(", ")
    )))
}

/// Whether one alias may lead to both of its versions.
fn check_routing(function: &Function, alias: &Alias) -> Result<(), ApiError> {
    let Some(number) = alias.routing.keys().next().copied() else { return Ok(()) };
    if alias.version == VersionId::Number(number) {
        return Err(ApiError::invalid_parameter_value(format!(
            "Invalid function version {number}. Function version {number} is already included in routing configuration."
        )));
    }
    if alias.version == VersionId::Latest {
        return Err(latest_with_weights());
    }
    let settings = |id| function.version(id).map(|version| &version.settings);
    let (Some(one), Some(other)) = (settings(alias.version), settings(VersionId::Number(number))) else {
        return Ok(());
    };
    if one.role != other.role {
        return Err(ApiError::invalid_parameter_value(
            "Specified versions must be associated with the same execution role",
        ));
    }
    if one.dead_letter_arn != other.dead_letter_arn {
        return Err(ApiError::invalid_parameter_value(
            "Specified versions must be associated with the same dead letter configuration",
        ));
    }
    Ok(())
}

/// Recorded without `Type`, unlike its neighbours.
fn latest_with_weights() -> ApiError {
    let text = "$LATEST is not supported for an alias pointing to more than 1 version";
    ApiError::new(400, "InvalidParameterValueException", text, MessageKey::Lower, None::<ErrorType>)
}

fn bare(target: &FunctionRef) -> FunctionRef {
    FunctionRef { qualifier: None, ..target.clone() }
}

fn show(arn: String, name: &str, alias: &Alias) -> types::AliasConfiguration {
    let weights = alias.routing.iter().map(|(number, weight)| (number.to_string(), weight.0)).collect();
    types::AliasConfiguration {
        alias_arn: Some(arn),
        name: Some(name.to_owned()),
        function_version: Some(alias.version.to_string()),
        description: Some(alias.description.clone()),
        routing_config: (!alias.routing.is_empty())
            .then_some(types::AliasRoutingConfiguration { additional_version_weights: Some(weights) }),
        revision_id: Some(alias.revision_id.clone()),
    }
}
