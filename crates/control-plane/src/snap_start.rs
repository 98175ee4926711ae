//! Versions that wait for their snapshots: which those are, and the reports that end their waiting.

use std::sync::Arc;

use aws_model::ApiError;

use crate::functions::revision_id;
use crate::plane::ControlPlane;
use crate::record::{Function, FunctionVersion, State, UpdateStatus, VersionId};
use crate::update::{Failure, Work, WorkKind, is_pending};

impl Work {
    /// The snapshots that a function's versions wait for, their code being there.
    pub fn snapshots_of(function: &Function) -> Vec<Self> {
        let preparing =
            |version: &FunctionVersion| is_pending(&function.latest) && function.latest.attempt == version.attempt;
        let waiting = function.versions.values().filter(|version| version.wants_snapshot() && !preparing(version));
        waiting.map(|version| Self { kind: WorkKind::Snapshot, version: Arc::clone(version) }).collect()
    }
}

impl ControlPlane {
    /// Reports how a [`WorkKind::Snapshot`] ended: whether there is a snapshot now, or why the version cannot be initialized.
    ///
    /// Answers whether the version is there; of one that is not, no snapshot is to be kept.
    ///
    /// # Errors
    /// The change could not be stored; [`Self::pending_work`] will name the work again.
    pub async fn complete_snapshot(&self, work: &Work, outcome: Result<bool, Failure>) -> Result<bool, ApiError> {
        self.change_version(&work.version, |version| {
            if !version.wants_snapshot() {
                return;
            }
            version.revision_id = revision_id();
            match &outcome {
                Ok(optimized) => {
                    version.state = State::Active;
                    version.update = UpdateStatus::Successful;
                    version.optimized = *optimized;
                }
                Err(failure) => {
                    let (code, reason) = (failure.code.name().to_owned(), failure.reason.clone());
                    version.state = State::Failed { code: code.clone(), reason: reason.clone() };
                    version.update = UpdateStatus::Failed { code, reason };
                }
            }
        })
        .await
    }

    /// Says whether an active version has a snapshot now: another server may run it than the one that published it.
    ///
    /// # Errors
    /// The change could not be stored.
    pub async fn set_optimized(&self, version: &FunctionVersion, optimized: bool) -> Result<bool, ApiError> {
        self.change_version(version, |version| version.optimized = optimized && version.state == State::Active).await
    }

    /// Changes a published version that is still the one that is meant; false where it is not.
    async fn change_version(
        &self,
        meant: &FunctionVersion,
        change: impl FnOnce(&mut FunctionVersion),
    ) -> Result<bool, ApiError> {
        let VersionId::Number(number) = meant.id else { return Ok(false) };
        let judge = |found: Option<&Function>| {
            Ok(found.map(|function| {
                let mut next = function.clone();
                let version = next.versions.get_mut(&number).filter(|version| version.attempt == meant.attempt);
                if let Some(version) = version {
                    change(Arc::make_mut(version));
                }
                next
            }))
        };
        let after = self.mutate(&meant.function, None, judge).await?.after;
        let there = after.as_ref().and_then(|function| function.versions.get(&number));
        Ok(there.is_some_and(|version| version.attempt == meant.attempt))
    }
}
