//! Publishing and listing versions.

use aws_model::{ApiError, types};

use crate::code;
use crate::functions::publish_latest;
use crate::page::page;
use crate::plane::ControlPlane;
use crate::record::{Function, State, UpdateStatus, VersionId};
use crate::settings::unsupported;
use crate::update::{Accepted, Work, WorkKind, check_idle, check_revision, last_published};
use crate::wire::{ArnForm, configuration, listed};

impl ControlPlane {
    /// PublishVersion: freezes `$LATEST`, or answers the last version when nothing has changed since. With SnapStart the
    /// version is Pending until its [`Work`] is reported complete.
    ///
    /// # Errors
    /// ResourceNotFoundException, PreconditionFailedException, InvalidParameterValueException for another CodeSha256,
    /// ResourceConflictException while the function is being prepared or cannot run.
    pub async fn publish_version(&self, request: &types::PublishVersionRequest) -> Result<Accepted, ApiError> {
        unsupported(request.publish_to.is_some(), "PublishTo")?;
        let target = self.unqualified(request.function_name.as_deref())?;
        let (function, _) = self.find(request.function_name.as_deref(), None)?;
        self.check_total_code(function.latest.code.unzipped_size)?;
        let judge = |found: Option<&Function>| {
            let function = found.ok_or_else(|| self.not_found(&target))?;
            check_revision(function, request.revision_id.as_deref())?;
            let current = code::sha256(&function.latest.code);
            if let Some(expected) = request.code_sha256.as_deref().filter(|expected| !expected.is_empty())
                && expected != current
            {
                return Err(ApiError::invalid_parameter_value(format!(
                    "CodeSHA256 ({expected}) is different from current CodeSHA256 in $LATEST ({current}). Please try \
                     again with the CodeSHA256 in $LATEST."
                )));
            }
            check_idle(function)?;
            check_usable(function)?;
            let mut next = function.clone();
            if last_published(function).is_none_or(|last| last.content != function.latest.content) {
                publish_latest(&mut next, request.description.as_deref());
            }
            Ok(Some(next))
        };
        let mutation = self.mutate(&target.name, None, judge).await?;
        match mutation.after.as_deref().and_then(last_published) {
            Some(version) => {
                let is_new = mutation.before.as_deref().is_none_or(|before| before.version(version.id).is_none());
                let work = Work { kind: WorkKind::Snapshot, version: version.clone() };
                Ok(Accepted {
                    configuration: configuration(self.realm(), version, ArnForm::Qualified),
                    work: Some(work).filter(|work| is_new && work.version.wants_snapshot()),
                })
            }
            None => Err(ApiError::service("The version was not published.")),
        }
    }

    /// ListVersionsByFunction: `$LATEST`, then the published versions in order.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_versions_by_function(
        &self,
        request: &types::ListVersionsByFunctionRequest,
    ) -> Result<types::ListVersionsByFunctionResponse, ApiError> {
        let (function, _) = self.find(request.function_name.as_deref(), None)?;
        let items = function.records().map(|version| {
            let number = if let VersionId::Number(number) = version.id { number } else { 0 };
            (format!("{number:020}"), version)
        });
        let (versions, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        Ok(types::ListVersionsByFunctionResponse {
            versions: Some(versions.into_iter().map(|version| listed(version, ArnForm::Qualified)).collect()),
            next_marker,
        })
    }
}

/// A version must be able to run what it freezes.
fn check_usable(function: &Function) -> Result<(), ApiError> {
    let failed = matches!(function.latest.state, State::Failed { .. })
        || matches!(function.latest.update, UpdateStatus::Failed { .. });
    if failed {
        return Err(ApiError::resource_conflict(
            "The operation cannot be performed at this time. The function is currently in the following state: Failed",
        ));
    }
    Ok(())
}
