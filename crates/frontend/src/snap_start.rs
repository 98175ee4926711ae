//! Snapshots of versions with SnapStart: made when a version is published, looked after when a server starts, and forgotten
//! with their versions.

use std::sync::Arc;

use control_plane::record::{FunctionVersion, State, VersionId};
use control_plane::{Failure, FailureCode, InitFailure, Work};
use worker::SnapshotFailure;

use crate::app::App;
use crate::specs::snapshot_name;

impl App {
    /// Initializes a version and keeps it, which may take minutes; then it is active, or has failed.
    pub(crate) async fn prepare_snapshot(self: Arc<Self>, work: Work) {
        let version = &work.version;
        let outcome = tokio::select! {
            outcome = self.take_snapshot(version) => outcome,
            // The version is pending as before, and the next server takes it up again.
            () = self.stopping() => return,
        };
        let outcome = match outcome {
            Ok(kept) => Ok(kept),
            // Deleted; nobody is to be told.
            Err(SnapshotFailure::Forgotten) => return,
            Err(failure) => {
                tracing::warn!(function = version.qualified_arn(), %failure, "has no snapshot");
                Err(Failure { code: code(&failure), reason: failure.to_string() })
            }
        };
        match self.control_plane.complete_snapshot(&work, outcome).await {
            Ok(true) => {}
            Ok(false) => self.forget_snapshot(version),
            Err(error) => tracing::error!(function = version.qualified_arn(), %error, "a version was not completed"),
        }
        self.completed.send_replace(());
    }

    async fn take_snapshot(&self, version: &FunctionVersion) -> Result<bool, SnapshotFailure> {
        let spec = self.specs.draft(version).map_err(|error| SnapshotFailure::Kept(error.to_string()))?;
        let kept = self.workers.worker().take_snapshot(&spec).await?;
        if !kept {
            tracing::warn!(
                function = version.qualified_arn(),
                "SnapStart: this version could be initialized, and will be at each cold start: there is no snapshot of it. With \
                 --isolation microvm its environments go on from one"
            );
        }
        Ok(kept)
    }

    async fn can_be_kept(&self, version: &FunctionVersion) -> bool {
        match self.specs.draft(version) {
            Ok(spec) => self.workers.worker().can_be_kept(&spec).await,
            Err(_) => false,
        }
    }

    /// Forgets the snapshot of a version that is no more.
    pub(crate) fn forget_snapshot(self: &Arc<Self>, version: &FunctionVersion) {
        if let Some(name) = snapshot_name(version) {
            let app = Arc::clone(self);
            tokio::spawn(async move { app.workers.worker().forget_snapshot(&name).await });
        }
    }

    /// At start: deletes snapshots of versions that are no more, makes those again that are missing, and says of each
    /// version whether this server has a snapshot of it.
    pub(crate) async fn resume_snapshots(self: Arc<Self>) {
        let functions = self.control_plane.functions();
        let versions = functions.iter().flat_map(|function| function.versions.values());
        let named: Vec<_> =
            versions.filter_map(|version| Some((snapshot_name(version)?, Arc::clone(version)))).collect();
        let specs: Vec<_> = named.iter().filter_map(|(_, version)| self.specs.draft(version).ok()).collect();
        let kept = self.workers.worker().retain_snapshots(&specs).await;
        let active = named.into_iter().filter(|(_, version)| version.state == State::Active);
        for (name, version) in active {
            let optimized = if kept.contains(&name) {
                true
            } else if self.can_be_kept(&version).await {
                tokio::select! {
                    taken = self.take_snapshot(&version) => taken.unwrap_or_else(|failure| {
                        tracing::warn!(function = version.qualified_arn(), %failure, "its snapshot could not be made again");
                        false
                    }),
                    () = self.stopping() => return,
                }
            } else {
                false
            };
            if optimized != version.optimized
                && let Err(error) = self.control_plane.set_optimized(&version, optimized).await
            {
                tracing::error!(function = version.qualified_arn(), %error, "a version's status was not stored");
            }
        }
    }

    /// Whether a version waits for nothing but its snapshot.
    pub(crate) fn waits_for_snapshot(&self, version: &FunctionVersion) -> bool {
        let waits = version.settings.snap_start && version.id != VersionId::Latest && version.state == State::Pending;
        waits
            && self
                .control_plane
                .function(&version.function)
                .is_some_and(|function| Work::snapshots_of(&function).iter().any(|work| work.version.id == version.id))
    }
}

/// How the API names it.
fn code(failure: &SnapshotFailure) -> FailureCode {
    let SnapshotFailure::Initialization { error_type, .. } = failure else {
        return match failure {
            SnapshotFailure::Start(worker::StartError::Runtime(_)) => FailureCode::InvalidRuntime,
            SnapshotFailure::Start(worker::StartError::Code(_)) => FailureCode::InvalidZipFile,
            SnapshotFailure::Start(worker::StartError::NoRoom(_)) => FailureCode::InsufficientCapacity,
            _ => FailureCode::InternalError,
        };
    };
    FailureCode::Init(match error_type.as_str() {
        "Sandbox.Timedout" => InitFailure::Timeout,
        "Runtime.InvalidEntrypoint" => InitFailure::EntryPoint,
        "Runtime.InvalidWorkingDir" => InitFailure::WorkingDirectory,
        "Runtime.OutOfMemory" => InitFailure::OutOfMemory,
        other if other.starts_with("Extension.") => InitFailure::Extension,
        other if other.starts_with("Runtime.") => InitFailure::Runtime,
        _ => InitFailure::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_initializations_have_the_codes_of_the_api() {
        let of = |error_type: &str| {
            code(&SnapshotFailure::Initialization { error_type: error_type.to_owned(), message: String::new() })
        };
        assert_eq!(of("Sandbox.Timedout"), FailureCode::Init(InitFailure::Timeout));
        assert_eq!(of("Runtime.ExitError"), FailureCode::Init(InitFailure::Runtime));
        assert_eq!(of("Runtime.BeforeCheckpointError"), FailureCode::Init(InitFailure::Runtime));
        assert_eq!(of("Extension.Crash"), FailureCode::Init(InitFailure::Extension));
        assert_eq!(of("Runtime.InvalidEntrypoint"), FailureCode::Init(InitFailure::EntryPoint));
        assert_eq!(of("Oops"), FailureCode::Init(InitFailure::Other));
        assert_eq!(code(&SnapshotFailure::Kept("no room".to_owned())), FailureCode::InternalError);
        let absent = SnapshotFailure::Start(worker::StartError::Runtime("no such runtime".to_owned()));
        assert_eq!(code(&absent), FailureCode::InvalidRuntime);
        let full = SnapshotFailure::Start(worker::StartError::NoRoom("no room".to_owned()));
        assert_eq!(code(&full), FailureCode::InsufficientCapacity);
    }
}
