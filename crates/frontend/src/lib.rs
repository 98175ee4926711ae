//! HTTP: the Lambda API, invoke, and the side services that tools call (STS, IAM roles, CloudWatch Logs, Application Auto
//! Scaling).
//!
//! Owns the wire: requests are read, decided elsewhere ([`control_plane`] for what functions are, [`worker_manager`]
//! for who runs them) and answered as AWS answers. One listener serves every service, told apart by path and headers:
//!
//! | request | service |
//! |---|---|
//! | a path of the Lambda API | Lambda, REST and JSON |
//! | `POST /` with `X-Amz-Target: Logs_20140328.*` | CloudWatch Logs, JSON 1.1 |
//! | `POST /` with `X-Amz-Target: AnyScaleFrontendService.*` | Application Auto Scaling, JSON 1.1 |
//! | `POST /` with `Action=` and `Version=2010-05-08` | IAM, query protocol |
//! | `POST /` with `Action=` and `Version=2011-06-15` | STS, query protocol |
//! | `GET /metrics` | figures for Prometheus |
//! | `GET /_firelet/...` | what Firelet's own command line asks |
//!
//! Signatures are checked where the composition root hands over access keys; without, any credentials are good.

mod app;
mod auth;
mod autoscaling;
mod body;
mod dispatch;
mod figures;
mod iam;
mod lambda;
mod local;
mod logs;
mod objects;
mod provision;
mod query;
mod reply;
mod server;
mod snap_start;
mod specs;
mod sts;
mod upstream;

pub use objects::S3Objects;
pub use server::{Frontend, Options};
pub use specs::PackagePath;

/// The rooms that the frontend stands in front of.
pub struct Deps {
    /// What functions and roles are.
    pub control_plane: control_plane::ControlPlane,
    /// Who runs invocations.
    pub workers: worker_manager::WorkerManager,
    /// What functions logged.
    pub logs: telemetry::LogStore,
    /// What was counted.
    pub metrics: std::sync::Arc<telemetry::metrics::Metrics>,
    /// Where the zip archive of a version lies on this host: with blobs in files, the blob's path.
    pub package_path: PackagePath,
    /// The access keys that requests have to be signed with; `None` lets everybody do everything.
    pub keys: Option<control_plane::keys::KeyRing>,
    /// Makes and opens the session tokens of roles.
    pub sessions: std::sync::Arc<control_plane::sessions::Sessions>,
    /// Who calls services that are kept elsewhere.
    pub upstream: Option<aws_client::Client>,
    /// Who writes logs elsewhere too.
    pub log_writer: Option<aws_client::logs::Writer>,
}
