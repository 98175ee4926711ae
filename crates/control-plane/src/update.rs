//! Changes of `$LATEST`, and the reports that end the time in which they are prepared.

use std::sync::Arc;

use aws_model::{ApiError, types};

use crate::code::{Source, Taken};
use crate::functions::{publish_latest, revision_id};
use crate::plane::ControlPlane;
use crate::record::{Function, FunctionVersion, State, Timestamp, UpdateStatus, VersionId};
use crate::settings::{self, unsupported};
use crate::wire::{ArnForm, configuration};

/// A change that was taken in.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The answer.
    pub configuration: types::FunctionConfiguration,
    /// What has to happen before the change takes effect; `None` when nothing was changed.
    pub work: Option<Work>,
}

/// Something to prepare on a host: the code of `version`, or its snapshot. Ends with [`ControlPlane::complete`], or with
/// [`ControlPlane::complete_snapshot`].
#[derive(Debug, Clone)]
pub struct Work {
    /// Why.
    pub kind: WorkKind,
    /// `$LATEST` as it shall be, or the version that waits for its snapshot.
    pub version: Arc<FunctionVersion>,
}

/// What a [`Work`] belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    Create,
    Update,
    /// The code is there; an environment has to be initialized and kept.
    Snapshot,
}

/// Why a function could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: FailureCode,
    /// What the caller reads in `StateReason` or `LastUpdateStatusReason`.
    pub reason: String,
}

/// The reason codes of the API that preparing can end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCode {
    InvalidZipFile,
    InvalidRuntime,
    InvalidConfiguration,
    InternalError,
    /// No host has room for an environment.
    InsufficientCapacity,
    /// What a function did wrong while it was initialized for a snapshot.
    Init(InitFailure),
}

/// The kinds of failed initializations that the API tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitFailure {
    Timeout,
    Runtime,
    Extension,
    EntryPoint,
    WorkingDirectory,
    TooManyExtensions,
    OutOfMemory,
    Other,
}

impl FailureCode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InvalidZipFile => "InvalidZipFileException",
            Self::InvalidRuntime => "InvalidRuntime",
            Self::InvalidConfiguration => "InvalidConfiguration",
            Self::InternalError => "InternalError",
            Self::InsufficientCapacity => "InsufficientCapacity",
            Self::Init(InitFailure::Timeout) => "FunctionError.InitTimeout",
            Self::Init(InitFailure::Runtime) => "FunctionError.RuntimeInitError",
            Self::Init(InitFailure::Extension) => "FunctionError.ExtensionInitError",
            Self::Init(InitFailure::EntryPoint) => "FunctionError.InvalidEntryPoint",
            Self::Init(InitFailure::WorkingDirectory) => "FunctionError.InvalidWorkingDirectory",
            Self::Init(InitFailure::TooManyExtensions) => "FunctionError.TooManyExtensions",
            Self::Init(InitFailure::OutOfMemory) => "FunctionError.InitResourceExhausted",
            Self::Init(InitFailure::Other) => "FunctionError",
        }
    }
}

impl Work {
    pub(crate) fn of(function: &Function, kind: WorkKind) -> Self {
        Self { kind, version: Arc::clone(&function.latest) }
    }
}

impl ControlPlane {
    /// UpdateFunctionCode. Until its work is complete, invocations run what was there before.
    ///
    /// # Errors
    /// As AWS; PreconditionFailedException and ResourceConflictException leave everything as it was.
    pub async fn update_function_code(
        &self,
        request: &types::UpdateFunctionCodeRequest,
        now: Timestamp,
    ) -> Result<Accepted, ApiError> {
        unsupported(request.publish_to.is_some(), "PublishTo")?;
        let target = self.unqualified(request.function_name.as_deref())?;
        let (function, _) = self.find(request.function_name.as_deref(), None)?;
        check_revision(&function, request.revision_id.as_deref())?;
        self.check_signature(&function)?;
        let package = Source::of_update(request).package()?;
        let dry_run = request.dry_run == Some(true);
        let publish = request.publish == Some(true);
        let (Taken { code, reference }, guard) = if dry_run {
            (self.inspect(&package).await?, None)
        } else {
            let (taken, guard) = self.store_code(&package).await?;
            (taken, Some(guard))
        };
        let architecture = settings::architecture(request.architectures.as_deref());
        let change = |latest: &FunctionVersion| {
            let mut next = latest.clone();
            next.code = code;
            next.reference = reference;
            next.settings.architecture = architecture.unwrap_or(latest.settings.architecture);
            next.settings.source_kms_key_arn = settings::key(request.source_kms_key_arn.as_deref());
            self.check_unzipped(&next.code, &next.settings.layers)?;
            Ok(next)
        };
        if dry_run {
            check_idle(&function)?;
            let next = changed(&function, now, change)?;
            let configuration = configuration(self.realm(), &next.latest, ArnForm::Unqualified);
            return Ok(Accepted { configuration, work: None });
        }
        let fits = self.check_total_code(if publish { code.unzipped_size } else { 0 });
        let outcome = match fits {
            Ok(()) => {
                let judge = |found: Option<&Function>| {
                    let function = found.ok_or_else(|| self.not_found(&target))?;
                    check_revision(function, request.revision_id.as_deref())?;
                    check_idle(function)?;
                    let mut next = changed(function, now, change)?;
                    if publish && last_published(&next).is_none_or(|last| last.content != next.latest.content) {
                        publish_pending(&mut next);
                    }
                    Ok(Some(next))
                };
                self.mutate(&target.name, guard, judge).await
            }
            Err(error) => {
                drop(guard);
                Err(error)
            }
        };
        // The old package is still in use; the new one is not if the change was refused.
        let Some(function) = outcome.map(|mutation| mutation.after).transpose() else {
            return Err(ApiError::service("The function was not updated."));
        };
        match function {
            Ok(function) => {
                let published = last_published(&function).filter(|_| publish);
                let (shown, form) = match published {
                    Some(version) => (version, ArnForm::Qualified),
                    None => (&function.latest, ArnForm::Unqualified),
                };
                Ok(Accepted {
                    configuration: configuration(self.realm(), shown, form),
                    work: Some(Work::of(&function, WorkKind::Update)),
                })
            }
            Err(error) => {
                self.collect_blobs([code.digest].into()).await;
                Err(error)
            }
        }
    }

    /// UpdateFunctionConfiguration. Until its work is complete, invocations run what was there before.
    ///
    /// # Errors
    /// As AWS; PreconditionFailedException and ResourceConflictException leave everything as it was.
    pub async fn update_function_configuration(
        &self,
        request: &types::UpdateFunctionConfigurationRequest,
        now: Timestamp,
    ) -> Result<Accepted, ApiError> {
        let target = self.unqualified(request.function_name.as_deref())?;
        if target.account != self.realm().account {
            return Err(self.not_found(&target));
        }
        let guard = self.keep_blobs().await;
        let judge = |found: Option<&Function>| {
            let function = found.ok_or_else(|| self.not_found(&target))?;
            check_revision(function, request.revision_id.as_deref())?;
            if request.layers.as_ref().is_some_and(|layers| !layers.is_empty()) {
                self.check_signature(function)?;
            }
            // Judged first: a request that is wrong in itself is answered so, even while an update is in progress.
            let settings = settings::of_update(self, &function.latest.settings, request)?;
            self.check_unzipped(&function.latest.code, &settings.layers)?;
            check_idle(function)?;
            changed(function, now, |latest| Ok(FunctionVersion { settings, ..latest.clone() })).map(Some)
        };
        let Some(function) = self.mutate(&target.name, Some(guard), judge).await?.after else {
            return Err(ApiError::service("The function was not updated."));
        };
        Ok(Accepted {
            configuration: configuration(self.realm(), &function.latest, ArnForm::Unqualified),
            work: Some(Work::of(&function, WorkKind::Update)),
        })
    }

    /// Reports how a [`Work`] ended. A report on something that was deleted or replaced since changes nothing.
    ///
    /// Answers the function as it is now, if it is there.
    ///
    /// # Errors
    /// The change could not be stored; [`Self::pending_work`] will name the work again.
    pub async fn complete(&self, work: &Work, outcome: Result<(), Failure>) -> Result<Option<Arc<Function>>, ApiError> {
        let judge = |found: Option<&Function>| {
            Ok(found.map(|function| {
                let due = is_pending(&function.latest) && function.latest.attempt == work.version.attempt;
                if due { completed(function, &outcome) } else { function.clone() }
            }))
        };
        let mutation = self.mutate(&work.version.function, None, judge).await?;
        self.collect_blobs(mutation.released()).await;
        Ok(mutation.after)
    }

    /// Work that was taken in and not reported: what a restart has to take up again.
    pub fn pending_work(&self) -> Vec<Work> {
        let functions = self.functions();
        let pending = functions.iter().filter(|function| is_pending(&function.latest));
        let snapshots = functions.iter().flat_map(|function| Work::snapshots_of(function));
        pending
            .map(|function| {
                let kind = match function.latest.update {
                    UpdateStatus::None => WorkKind::Create,
                    UpdateStatus::InProgress | UpdateStatus::Successful | UpdateStatus::Failed { .. } => {
                        WorkKind::Update
                    }
                };
                Work::of(function, kind)
            })
            .chain(snapshots)
            .collect()
    }
}

pub(crate) fn is_pending(version: &FunctionVersion) -> bool {
    version.state == State::Pending || version.update == UpdateStatus::InProgress
}

/// The function with a changed `$LATEST` whose work is not done yet.
fn changed(
    function: &Function,
    now: Timestamp,
    change: impl FnOnce(&FunctionVersion) -> Result<FunctionVersion, ApiError>,
) -> Result<Function, ApiError> {
    let old = &function.latest;
    let mut latest = change(old)?;
    if latest.settings != old.settings || latest.code != old.code || latest.reference != old.reference {
        latest.content = old.content + 1;
    }
    latest.revision_id = revision_id();
    latest.attempt.clone_from(&latest.revision_id);
    latest.last_modified = now;
    latest.update = UpdateStatus::InProgress;
    let previous = match (&old.state, &old.update) {
        // It never ran: there is nothing to fall back to.
        (State::Pending | State::Failed { .. }, _) => {
            latest.state = State::Pending;
            None
        }
        // The update before failed: what ran before that is still what runs.
        (State::Active, UpdateStatus::Failed { .. }) => function.previous.clone(),
        (State::Active, UpdateStatus::None | UpdateStatus::InProgress | UpdateStatus::Successful) => {
            Some(Arc::clone(old))
        }
    };
    Ok(Function { latest: Arc::new(latest), previous, ..function.clone() })
}

/// The function after its work has ended.
fn completed(function: &Function, outcome: &Result<(), Failure>) -> Function {
    let mut next = function.clone();
    let mut latest = function.latest.as_ref().clone();
    latest.revision_id = revision_id();
    let settle = |version: &mut FunctionVersion| match outcome {
        Ok(()) => {
            version.state = State::Active;
            version.update = UpdateStatus::Successful;
        }
        Err(failure) => {
            let (code, reason) = (failure.code.name().to_owned(), failure.reason.clone());
            if version.state == State::Pending {
                version.state = State::Failed { code: code.clone(), reason: reason.clone() };
            }
            version.update = UpdateStatus::Failed { code, reason };
        }
    };
    settle(&mut latest);
    if outcome.is_ok() {
        next.previous = None;
    }
    next.latest = Arc::new(latest);
    // What was published with it; others may wait for snapshots of what was there before.
    let waits = |version: &FunctionVersion| {
        version.state == State::Pending
            && version.attempt == function.latest.attempt
            && !(outcome.is_ok() && version.wants_snapshot())
    };
    for version in next.versions.values_mut().filter(|version| waits(version)) {
        let mut settled = version.as_ref().clone();
        settle(&mut settled);
        settled.revision_id = revision_id();
        *version = Arc::new(settled);
    }
    next
}

/// Publishes a `$LATEST` whose work is not done: the version waits for the same work.
fn publish_pending(function: &mut Function) {
    let version = publish_latest(function, None);
    let mut pending = version.as_ref().clone();
    pending.state = State::Pending;
    pending.update = UpdateStatus::None;
    if let VersionId::Number(number) = pending.id {
        function.versions.insert(number, Arc::new(pending));
    }
}

/// The version with the highest number that still exists.
pub(crate) fn last_published(function: &Function) -> Option<&Arc<FunctionVersion>> {
    function.versions.values().next_back()
}

/// Refuses a change for callers that have seen an older state than the one there is.
pub(crate) fn check_revision(function: &Function, expected: Option<&str>) -> Result<(), ApiError> {
    if expected.is_some_and(|expected| !expected.is_empty() && expected != function.latest.revision_id) {
        return Err(ApiError::precondition_failed(
            "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to \
             retrieve the latest Revision Id",
        ));
    }
    Ok(())
}

/// Refuses a change while another one is being prepared.
pub(crate) fn check_idle(function: &Function) -> Result<(), ApiError> {
    let latest = &function.latest;
    match (&latest.state, &latest.update) {
        (_, UpdateStatus::InProgress) => Err(ApiError::resource_conflict(format!(
            "The operation cannot be performed at this time. An update is in progress for resource: {}",
            latest.arn
        ))),
        (State::Pending, _) => Err(ApiError::resource_conflict(
            "The operation cannot be performed at this time. The function is currently in the following state: Pending",
        )),
        (State::Active | State::Failed { .. }, _) => Ok(()),
    }
}
