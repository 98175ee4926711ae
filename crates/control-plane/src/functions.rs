//! Creating, reading, listing and deleting functions.

use std::sync::Arc;

use aws_model::arn::{FunctionRef, Qualifier};
use aws_model::{ApiError, types};
use uuid::Uuid;

use crate::aliases::check_unreferenced;
use crate::code::{self, Source, Taken};
use crate::objects::ObjectRef;
use crate::page::{PAGE, marker, page};
use crate::plane::ControlPlane;
use crate::record::{Attached, Function, FunctionVersion, Scope, State, Timestamp, UpdateStatus, VersionId};
use crate::settings;
use crate::update::{Accepted, Work, WorkKind};
use crate::wire::{ArnForm, configuration, int, listed};

/// Longest name of a function without ARN or qualifier; enforced at creation only.
const LONGEST_NAME: usize = 64;

/// What a deletion took away.
#[derive(Debug, Clone)]
pub struct Deleted {
    pub response: types::DeleteFunctionResponse,
    /// The versions that are gone; their environments may be retired.
    pub versions: Vec<Arc<FunctionVersion>>,
}

impl ControlPlane {
    /// CreateFunction: the function is Pending until its [`Work`] is reported complete.
    ///
    /// # Errors
    /// As AWS: the package and the settings are judged before the name is looked up.
    pub async fn create_function(
        &self,
        request: &types::CreateFunctionRequest,
        now: Timestamp,
    ) -> Result<Accepted, ApiError> {
        let target = self.unqualified(request.function_name.as_deref())?;
        if target.account != self.realm().account {
            return Err(ApiError::access_denied(format!(
                "Cross-account creation is not allowed: this server is account {}.",
                self.realm().account
            )));
        }
        let name = target.name;
        if name.len() > LONGEST_NAME {
            return Err(ApiError::invalid_parameter_value(format!(
                "1 validation error detected: Value '{name}' at 'functionName' failed to satisfy constraint: \
                 Member must have length less than or equal to {LONGEST_NAME}"
            )));
        }
        let realm = self.realm().clone();
        let settings = settings::of_create(self, &name, request)?;
        let source = request.code.as_ref().map(Source::of_create);
        let package = source.map_or_else(|| Err(code::missing()), |source| source.package())?;
        let exists = || ApiError::resource_conflict(format!("Function already exist: {name}"));
        if self.function(&name).is_some() {
            return Err(exists());
        }
        // Held until the function is there, so that what it follows is not deleted in between.
        let _signing = match &request.code_signing_config_arn {
            Some(_) => Some(self.inner.signing.lock().await),
            None => None,
        };
        let code_signing = self.signing_of_create(request.code_signing_config_arn.as_deref())?;
        let publish = request.publish == Some(true);
        let (Taken { code, reference }, guard) = self.store_code(&package).await?;
        let copies = if publish { 2 } else { 1 };
        let revision = revision_id();
        // The package may have taken long to come: under the guard, the layers are still there or they are not.
        let layers = self.layer_uses(request.layers.as_deref().unwrap_or_default());
        let fits = layers.and_then(|layers| self.check_unzipped(&code, &layers));
        let latest = FunctionVersion {
            function: name.clone(),
            id: VersionId::Latest,
            arn: realm.function_arn(&name, None),
            settings,
            code,
            reference,
            attempt: revision.clone(),
            revision_id: revision,
            content: 1,
            last_modified: now,
            state: State::Pending,
            update: UpdateStatus::None,
            optimized: false,
            scaling: None,
        };
        let fits = fits.and_then(|()| self.check_total_code(code.unzipped_size * copies));
        let created = match fits {
            Ok(()) => {
                let judge = |found: Option<&Function>| match found {
                    Some(_) => Err(exists()),
                    None => {
                        let mut function = Function {
                            name: name.clone(),
                            latest: Arc::new(latest),
                            previous: None,
                            versions: Default::default(),
                            next_version: 1,
                            attached: Attached {
                                tags: request.tags.clone().unwrap_or_default(),
                                code_signing,
                                ..Attached::default()
                            },
                        };
                        if publish {
                            publish_latest(&mut function, None);
                        }
                        Ok(Some(function))
                    }
                };
                self.mutate(&name, Some(guard), judge).await
            }
            Err(error) => {
                drop(guard);
                Err(error)
            }
        };
        match created.map(|mutation| mutation.after) {
            Ok(Some(function)) => {
                let shown = function.versions.values().next_back().unwrap_or(&function.latest);
                Ok(Accepted {
                    configuration: configuration(&realm, shown, ArnForm::Unqualified),
                    work: Some(Work::of(&function, WorkKind::Create)),
                })
            }
            Ok(None) => Err(ApiError::service("The function was not created.")),
            Err(error) => {
                self.collect_blobs([code.digest].into()).await;
                Err(error)
            }
        }
    }

    /// GetFunction. `location` makes the URL under which the code of a version can be fetched.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_function(
        &self,
        request: &types::GetFunctionRequest,
        location: impl FnOnce(&FunctionVersion) -> String,
    ) -> Result<types::GetFunctionResponse, ApiError> {
        let (function, version, arn) =
            self.find_version(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let reserved = function.attached.reserved.map(int);
        Ok(types::GetFunctionResponse {
            configuration: Some(self.shown_as(&version, arn)),
            code: Some(types::FunctionCodeLocation {
                repository_type: Some("S3".to_owned()),
                location: Some(location(&version)),
                source_kms_key_arn: version.settings.source_kms_key_arn.clone(),
                resolved_s3_object: version.reference.as_ref().map(ObjectRef::resolved),
                ..types::FunctionCodeLocation::default()
            }),
            tags: Some(function.attached.tags.clone()).filter(|tags| !tags.is_empty()),
            tags_error: None,
            concurrency: reserved.map(|reserved| types::Concurrency { reserved_concurrent_executions: Some(reserved) }),
        })
    }

    /// GetFunctionConfiguration.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_function_configuration(
        &self,
        request: &types::GetFunctionConfigurationRequest,
    ) -> Result<types::FunctionConfiguration, ApiError> {
        let (_, version, arn) = self.find_version(request.function_name.as_deref(), request.qualifier.as_deref())?;
        Ok(self.shown_as(&version, arn))
    }

    /// ListFunctions, with every version under `FunctionVersion=ALL`.
    ///
    /// # Errors
    /// InvalidParameterValueException for a marker that is none.
    pub fn list_functions(
        &self,
        request: &types::ListFunctionsRequest,
    ) -> Result<types::ListFunctionsResponse, ApiError> {
        let all = request.function_version.as_deref() == Some("ALL");
        let after = marker(request.marker.as_deref())?;
        let from = after.as_deref().and_then(|key| key.split(' ').next()).unwrap_or_default();
        // Each gives an item at least, but for the first, and one more item shows that there is a next page.
        let functions = self.functions_from(from, PAGE + 2);
        let items = functions.iter().flat_map(|function| {
            let records = function.records().take(if all { usize::MAX } else { 1 });
            records.map(|version| {
                // A space sorts before every letter of a name, so versions stay with their function.
                let number = if let VersionId::Number(number) = version.id { number } else { 0 };
                (format!("{} {number:020}", version.function), version)
            })
        });
        let form = if all { ArnForm::Qualified } else { ArnForm::Unqualified };
        let (versions, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        Ok(types::ListFunctionsResponse {
            functions: Some(versions.into_iter().map(|version| listed(version, form)).collect()),
            next_marker,
        })
    }

    /// DeleteFunction: the function with everything of it, or one published version.
    ///
    /// # Errors
    /// ResourceNotFoundException for the function; InvalidParameterValueException for `$LATEST` and for aliases;
    /// ResourceConflictException for a version that aliases lead to.
    pub async fn delete_function(&self, request: &types::DeleteFunctionRequest) -> Result<Deleted, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let number = match &target.qualifier {
            None => None,
            Some(Qualifier::Version(number)) => Some(*number),
            Some(Qualifier::Latest) => {
                return Err(ApiError::invalid_parameter_value(
                    "$LATEST version cannot be deleted without deleting the function.",
                ));
            }
            Some(Qualifier::Alias(_) | Qualifier::LatestPublished) => {
                return Err(ApiError::invalid_parameter_value("Deletion of aliases is not currently supported."));
            }
        };
        let absent = || self.not_found(&FunctionRef { qualifier: None, ..target.clone() });
        if target.account != self.realm().account {
            return Err(absent());
        }
        let judge = |found: Option<&Function>| {
            let function = found.ok_or_else(absent)?;
            let Some(number) = number else { return Ok(None) };
            let mut function = function.clone();
            check_unreferenced(&function, number)?;
            // A version that is not there is as good as deleted.
            function.versions.remove(&number);
            function.attached.forget(&Scope::Version(number));
            Ok(Some(function))
        };
        let mutation = self.mutate(&target.name, None, judge).await?;
        self.collect_blobs(mutation.released()).await;
        let before = mutation.before.iter().flat_map(|function| function.records().chain(&function.previous));
        let gone = |version: &&Arc<FunctionVersion>| match &mutation.after {
            Some(function) => function.version(version.id).is_none(),
            None => true,
        };
        Ok(Deleted {
            response: types::DeleteFunctionResponse { status_code: Some(204) },
            versions: before.filter(gone).cloned().collect(),
        })
    }

    /// The record that a management read names, and the ARN by which it was asked for.
    fn find_version(
        &self,
        name: Option<&str>,
        qualifier: Option<&str>,
    ) -> Result<(Arc<Function>, Arc<FunctionVersion>, String), ApiError> {
        let (function, target) = self.find(name, qualifier)?;
        let version = function.named(target.qualifier.as_ref()).and_then(|id| function.version(id)).cloned();
        let version = version.ok_or_else(|| self.not_found(&target))?;
        Ok((function, version, self.realm().arn_of(&target)))
    }

    fn shown_as(&self, version: &FunctionVersion, arn: String) -> types::FunctionConfiguration {
        let shown = configuration(self.realm(), version, ArnForm::Unqualified);
        types::FunctionConfiguration { function_arn: Some(arn), ..shown }
    }
}

/// Freezes `$LATEST` as the next version, in its state, or Pending where a snapshot has to be made; `$LATEST` gets another
/// revision.
pub(crate) fn publish_latest(function: &mut Function, description: Option<&str>) -> Arc<FunctionVersion> {
    let number = function.next_version;
    let mut version = FunctionVersion {
        id: VersionId::Number(number),
        revision_id: revision_id(),
        ..function.latest.as_ref().clone()
    };
    if version.settings.snap_start && version.state == State::Active {
        version.state = State::Pending;
    }
    if let Some(description) = description {
        version.settings.description = description.to_owned();
    }
    let version = Arc::new(version);
    function.versions.insert(number, Arc::clone(&version));
    function.next_version = number + 1;
    Arc::make_mut(&mut function.latest).revision_id = revision_id();
    version
}

pub(crate) fn revision_id() -> String {
    Uuid::new_v4().to_string()
}
