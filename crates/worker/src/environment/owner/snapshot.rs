//! The snapshot's side of an environment: how one becomes a snapshot, and how one goes on from it.

use std::time::Instant;

use sandbox::SnapshotError;
use telemetry::lines::InitType;
use tokio::sync::oneshot;

use super::Owner;
use crate::environment::launch::Revived;
use crate::environment::root_name;
use crate::host::{StartError, chain};
use crate::lifecycle::{Event, Failure};
use crate::snapshots::{About, FunctionSnapshot, SnapshotFailure, Taken};

/// What has to be known of an environment that is kept in a snapshot, or comes out of one.
#[derive(Default)]
pub(super) struct Keeping {
    /// Whether the runtime waits in `restore/next`.
    pub(super) hooks: bool,
    /// Who waits for the snapshot.
    pub(super) reply: Option<oneshot::Sender<Taken>>,
    /// When the restore of one that comes out of a snapshot began.
    began: Option<Instant>,
    /// Whether it is initialized, or why not.
    outcome: Option<Result<(), Failure>>,
}

impl Keeping {
    /// Whether the environment is initialized to become a snapshot.
    pub(super) fn is_for_keeping(&self, initialization_type: InitType) -> bool {
        initialization_type == InitType::SnapStart && self.began.is_none()
    }

    /// Remembers how the initialization ended: the first word counts, what follows comes of it.
    pub(super) fn take_note_of(&mut self, event: &Event) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = match event {
            Event::InitDone => Some(Ok(())),
            Event::SpawnFailed(failure) | Event::InitError(failure) | Event::Exited(failure) => {
                Some(Err(failure.clone()))
            }
            Event::DeadlinePassed => Some(Err(Failure {
                error_type: "Sandbox.Timedout".to_owned(),
                posted: None,
                message: "the initialization took too long".to_owned(),
            })),
            _ => None,
        };
    }
}

impl Owner {
    /// Takes over the processes of a sandbox that goes on from a snapshot.
    pub(super) fn revive(&mut self, revived: Revived) -> Result<Event, StartError> {
        let Revived { began, hooks, processes } = revived;
        self.keeping.hooks = hooks;
        self.keeping.began = Some(began);
        for (extension, process) in processes {
            self.adopt(extension, process).map_err(|error| {
                StartError::Sandbox(format!("the output of a restored process cannot be read: {error}"))
            })?;
        }
        Ok(Event::Restore { began })
    }

    /// Lets the runtime run its hooks, with fresh credentials to be had.
    pub(super) fn start_restore(&mut self) {
        self.init_began = Instant::now();
        self.announce_restore(self.keeping.began.unwrap_or(self.init_began));
        let credentials = (self.presence.host.credentials)(&self.spec);
        self.launched.api.set_credentials(Some(credentials.into()));
        if self.keeping.hooks {
            self.launched.api.restore();
        } else {
            // It waits for its first invocation already.
            self.pending.push_back(Event::InitDone);
        }
    }

    /// The end of an environment that was initialized to be kept.
    pub(super) async fn become_snapshot(mut self, reply: oneshot::Sender<Taken>) {
        let taken = match self.keeping.outcome.take() {
            Some(Ok(())) if self.launched.uses_endpoint => self.keep().await,
            Some(Err(failure)) => {
                self.end().await;
                Err(SnapshotFailure::initialization(&failure))
            }
            Some(Ok(())) | None => {
                self.end().await;
                Err(SnapshotFailure::Kept("the environment was not initialized to be kept".to_owned()))
            }
        };
        // Nobody may wait any more; then it is dropped, and its memory with it.
        let _ = reply.send(taken);
    }

    async fn keep(mut self) -> Taken {
        let (runtime, extensions) = self.alive();
        let (runtime, extensions) = (runtime, extensions.to_vec());
        let host = self.presence.host.clone();
        let resolved = self.launched.resolved.clone();
        let root = root_name(&host, &resolved).await;
        if !host.backend.snapshots() {
            self.shut_down().await;
            self.end().await;
            return Ok(None);
        }
        let (Some(runtime), Ok(root)) = (runtime, root) else {
            self.end().await;
            return Err(SnapshotFailure::Kept("the runtime ended after its initialization".to_owned()));
        };
        // Whoever opened the snapshot should find no credentials in it that are of use.
        self.launched.api.set_credentials(None);
        self.launched.api.settled().await;
        self.capture.drain();
        let taken = self.launched.sandbox.snapshot().await;
        // After that: to close the runtime api would be heard inside before.
        self.launched.api.close();
        self.capture.detach_all();
        let snapshot = match taken {
            Ok(snapshot) => snapshot,
            Err(SnapshotError::Unfit(reason)) => {
                let (function, version) = (&self.spec.function_name, &self.spec.version);
                tracing::warn!(function, version, reason, "SnapStart: this version cannot be kept in a snapshot");
                return Ok(None);
            }
            Err(error) => return Err(SnapshotFailure::Kept(chain(&error))),
        };
        let hooks = self.keeping.hooks;
        // A machine keeps it together with the API that is asked with it.
        let token = self.launched.token.take().filter(|_| !host.backend.takes_images());
        let about = About::new(resolved.runtime_version.clone(), root, hooks, runtime, &extensions).with_token(token);
        Ok(Some(FunctionSnapshot { snapshot, about }))
    }

    async fn end(mut self) {
        self.capture.detach_all();
        self.launched.api.close();
        self.launched.sandbox.destroy().await;
    }
}
