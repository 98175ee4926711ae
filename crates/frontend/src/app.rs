//! What every request handler has at hand, and the work that goes on after an answer was sent.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_model::ApiError;
use control_plane::record::{Code, FunctionVersion, Timestamp, VersionId};
use control_plane::sessions::Sessions;
use control_plane::{ControlPlane, Failure, FailureCode, LiveConcurrency, ProvisionFailure, Work, WorkKind};
use telemetry::LogStore;
use telemetry::metrics::Metrics;
use tokio::sync::watch;
use worker::EnvironmentSpec;
use worker_manager::{Concurrency, WorkerManager};

use crate::Deps;
use crate::auth::Auth;
use crate::specs::{Builder, Specs};

/// How long a link to a package can be followed where requests are authenticated.
const LINK_LIFE: Duration = Duration::from_secs(10 * 60);

/// The rooms behind the frontend.
pub(crate) struct App {
    pub(crate) control_plane: ControlPlane,
    pub(crate) workers: WorkerManager,
    pub(crate) logs: LogStore,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
    /// Absent where requests are not authenticated.
    pub(crate) auth: Option<Auth>,
    pub(crate) sessions: Arc<Sessions>,
    /// Who calls services that are kept elsewhere.
    pub(crate) upstream: Option<aws_client::Client>,
    /// Who writes logs elsewhere too.
    pub(crate) log_writer: Option<aws_client::logs::Writer>,
    pub(crate) specs: Specs,
    /// Held while the workers are told of a concurrency setting, so that the last word is the newest.
    pub(crate) telling: Mutex<()>,
    pub(crate) completed: watch::Sender<()>,
    stopping: watch::Sender<bool>,
}

impl App {
    pub(crate) fn new(deps: Deps) -> Self {
        let Deps { control_plane, workers, logs, metrics, package_path, keys, sessions, upstream, log_writer } = deps;
        let specs = Specs::new(Builder::new(control_plane.clone(), package_path));
        Self {
            control_plane,
            workers,
            logs,
            metrics,
            started: Instant::now(),
            auth: keys.map(Auth::new),
            sessions,
            upstream,
            log_writer,
            specs,
            telling: Mutex::new(()),
            completed: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
        }
    }

    /// A path of Firelet's own as a link that can be followed without credentials for a while.
    pub(crate) fn link(&self, path: &str) -> String {
        if self.auth.is_none() {
            return path.to_owned();
        }
        let until = Timestamp::from(SystemTime::now() + LINK_LIFE);
        format!("{path}?until={}&stamp={}", until.0, self.sessions.stamp(path, until))
    }

    /// Whether a request follows such a link.
    pub(crate) fn is_linked(&self, path: &str, query: &str) -> bool {
        let value = |name: &str| aws_model::query_pairs(query).find(|(key, _)| key == name).map(|(_, value)| value);
        let (Some(until), Some(stamp)) = (value("until").and_then(|text| text.parse().ok()), value("stamp")) else {
            return false;
        };
        self.sessions.is_stamped(path, Timestamp(until), &stamp, Timestamp::from(SystemTime::now()))
    }

    /// Resolves when the server begins to stop: what has no end of its own ends then.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move {
            // An error means that the server is gone already.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        }
    }

    /// Begins to stop.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Changes whenever a create or an update was completed.
    pub(crate) fn completions(&self) -> watch::Receiver<()> {
        self.completed.subscribe()
    }

    /// What the workers need to know of a version. Environments of the content before it are retired.
    pub(crate) fn spec(&self, version: &Arc<FunctionVersion>) -> Result<Arc<EnvironmentSpec>, ApiError> {
        let found = self.specs.get(version).map_err(|error| {
            tracing::error!(%error, "a version cannot be run");
            ApiError::service(error.to_string())
        })?;
        if let Some(key) = found.superseded {
            self.workers.retire(&key);
        }
        Ok(found.spec)
    }

    /// Retires the environments of what was deleted: a version, or (`None`) the whole function.
    pub(crate) fn retire(&self, function: &str, id: Option<VersionId>) {
        for key in self.specs.forget(function, id) {
            self.workers.retire(&key);
        }
    }

    /// The zip archive, on this host, of what has this ARN.
    pub(crate) fn package(&self, code: &Code, arn: &str) -> Result<PathBuf, ApiError> {
        self.specs.builder().package(code, arn).map_err(|error| ApiError::service(error.to_string()))
    }

    /// What is really there of a version's provisioned concurrency.
    pub(crate) fn live(&self, version: &FunctionVersion) -> LiveConcurrency {
        let Some(spec) = self.specs.peek(&version.function, version.id) else { return LiveConcurrency::default() };
        let status = self.workers.provisioned(&spec.key);
        let failed = status.failed.map(|failure| match failure {
            worker_manager::ProvisionFailure::Initialization => ProvisionFailure::Initialization,
            worker_manager::ProvisionFailure::NoRoom => ProvisionFailure::Capacity,
        });
        LiveConcurrency { allocated: status.allocated, available: status.available, failed }
    }

    /// Tells the workers how much of the account's concurrency belongs to a function, if it is there.
    pub(crate) fn tell_concurrency(&self, function: &str) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let concurrency = match self.control_plane.function(function) {
            Some(found) => match found.attached.reserved {
                Some(reserved) => Concurrency::Reserved(reserved),
                None => Concurrency::Shared { kept: found.provisioned_total() },
            },
            None => Concurrency::default(),
        };
        self.workers.set_concurrency(function, concurrency);
    }

    /// Takes up what a restart left behind.
    pub(crate) fn resume(self: &Arc<Self>) {
        for function in self.control_plane.functions() {
            self.tell_concurrency(&function.name);
        }
        tokio::spawn(crate::lambda::mappings::tend(Arc::clone(self)));
        for work in self.control_plane.pending_work() {
            self.prepare(work);
        }
        self.provision_all(&self.control_plane.provisions());
        tokio::spawn(Arc::clone(self).resume_snapshots());
        tokio::spawn(crate::autoscaling::drive(Arc::clone(self)));
    }

    /// Prepares the code of a new or updated function in the background, or the snapshot of a version, then lets it take effect.
    pub(crate) fn prepare(self: &Arc<Self>, work: Work) {
        let app = Arc::clone(self);
        if work.kind == WorkKind::Snapshot {
            tokio::spawn(app.prepare_snapshot(work));
            return;
        }
        tokio::spawn(async move {
            let outcome = app.try_prepare(&work.version).await;
            if let Err(failure) = &outcome {
                tracing::warn!(function = work.version.qualified_arn(), reason = failure.reason, "cannot be run");
            }
            match app.control_plane.complete(&work, outcome).await {
                Ok(Some(function)) => {
                    // Environments of the content before are retired now, not at the next invocation.
                    if let Some(serving) = function.serving(VersionId::Latest)
                        && app.specs.peek(&function.name, VersionId::Latest).is_some()
                        && let Err(error) = app.spec(serving)
                    {
                        tracing::error!(function = function.name, %error, "an updated function cannot be run");
                    }
                    // What was published with it: any other version that waits is being worked on already.
                    let of_this = |next: &Work| next.version.attempt == work.version.attempt;
                    Work::snapshots_of(&function).into_iter().filter(of_this).for_each(|next| app.prepare(next));
                }
                Ok(None) => {}
                Err(error) => tracing::error!(function = work.version.function, %error, "a change was not completed"),
            }
            app.completed.send_replace(());
        });
    }

    async fn try_prepare(&self, version: &FunctionVersion) -> Result<(), Failure> {
        let internal = |reason: String| Failure { code: FailureCode::InternalError, reason };
        let spec = self.specs.draft(version).map_err(|error| internal(error.to_string()))?;
        self.workers.prepare(&spec).await.map_err(|reason| Failure { code: FailureCode::InvalidZipFile, reason })
    }
}
