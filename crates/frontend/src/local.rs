//! Firelet's own paths below `/_firelet/`: what its command line asks the server for.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use aws_model::ApiError;
use bytes::Bytes;
use control_plane::record::{FunctionVersion, VersionId};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use telemetry::logs::Followed;
use tokio::sync::mpsc;

use crate::app::App;
use crate::body::RequestBody;
use crate::figures;
use crate::reply::{self, Reply, ReplyBody, api_error};

/// Beginning of every path here. No Lambda path begins so.
pub(crate) const PREFIX: &str = "/_firelet/";

/// Where Prometheus looks. No Lambda path is so short.
pub(crate) const METRICS_PATH: &str = "/metrics";

/// Whether the server is there: answered to everybody.
pub(crate) const HEALTH: &str = "/_firelet/health";

const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const ZIP: HeaderValue = HeaderValue::from_static("application/zip");
const METRICS: HeaderValue = HeaderValue::from_static(telemetry::metrics::CONTENT_TYPE);

/// Lines that may wait for a client that reads slowly; after that its events wait in the follower, which drops.
const LINES_AHEAD: usize = 256;

/// An empty line this often tells a dead client from a quiet function.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Whether a path is answered here.
pub(crate) fn is_here(path: &str) -> bool {
    path == METRICS_PATH || path.starts_with(PREFIX)
}

pub(crate) async fn dispatch(app: &App, request: Request<RequestBody>) -> Reply {
    let path = request.uri().path();
    if let Some(refusal) = refusal_of_method(&request) {
        return refusal;
    }
    if path == METRICS_PATH {
        return metrics(app);
    }
    match path.strip_prefix(PREFIX).unwrap_or_default() {
        "health" => health(app),
        "functions" => functions(app),
        "environments" => environments(app),
        path if path.starts_with("code/") => code(app, &path["code/".len()..]).await,
        path if path.starts_with("layer/") => layer(app, &path["layer/".len()..]).await,
        "logs/follow" => {
            let query = request.uri().query().unwrap_or_default();
            let group =
                aws_model::query_pairs(query).find(|(key, _)| key == "group").map(|(_, value)| value.into_owned());
            match group.filter(|group| !group.is_empty()) {
                Some(group) => follow(app, &group),
                None => problem(StatusCode::BAD_REQUEST, "say which log group to follow: ?group=/aws/lambda/NAME"),
            }
        }
        _ => problem(
            StatusCode::NOT_FOUND,
            "no such path; /_firelet/ has health, functions, environments, code, layer and logs/follow",
        ),
    }
}

/// Nothing here changes anything.
fn refusal_of_method<B>(request: &Request<B>) -> Option<Reply> {
    let refusal = || problem(StatusCode::METHOD_NOT_ALLOWED, "this path answers GET only");
    (request.method() != Method::GET).then(refusal)
}

fn problem(status: StatusCode, message: &str) -> Reply {
    reply::json(status, &serde_json::json!({ "message": message }))
}

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    version: &'static str,
    region: &'a str,
    account: &'a str,
    functions: usize,
    concurrency: u32,
    uptime_secs: u64,
}

fn health(app: &App) -> Reply {
    let realm = app.control_plane.realm();
    reply::json(
        StatusCode::OK,
        &Health {
            status: "ok",
            version: env!("CARGO_PKG_VERSION"),
            region: &realm.region,
            account: &realm.account,
            functions: app.control_plane.function_count(),
            concurrency: app.workers.concurrency(),
            uptime_secs: app.started.elapsed().as_secs(),
        },
    )
}

/// One function, as `firelet functions` lists it.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    arn: &'a str,
    runtime: &'a str,
    handler: &'a str,
    memory_mb: u32,
    timeout_secs: u32,
    state: &'static str,
    log_group: &'a str,
    last_modified: String,
    versions: Vec<u64>,
}

fn functions(app: &App) -> Reply {
    let functions = app.control_plane.functions();
    let listed: Vec<Listed<'_>> = functions
        .iter()
        .map(|function| {
            let latest = &function.latest;
            Listed {
                name: &function.name,
                arn: &latest.arn,
                runtime: &latest.settings.runtime,
                handler: &latest.settings.handler,
                memory_mb: latest.settings.memory_mib,
                timeout_secs: latest.settings.timeout_secs,
                state: latest.state_name(),
                log_group: &latest.settings.logging.group,
                last_modified: latest.last_modified.to_string(),
                versions: function.versions.keys().copied().collect(),
            }
        })
        .collect();
    reply::json(StatusCode::OK, &serde_json::json!({ "functions": listed }))
}

/// Path of [`code`] for a version, for `Code.Location`.
pub(crate) fn code_path(version: &FunctionVersion) -> String {
    format!("{PREFIX}code/{}/{}", version.function, version.id)
}

/// The zip archive of a version: `code/NAME/VERSION`.
async fn code(app: &App, path: &str) -> Reply {
    let (name, version) = path.split_once('/').unwrap_or((path, "$LATEST"));
    let package = app.control_plane.function(name).and_then(|function| {
        let id = match version {
            "$LATEST" => VersionId::Latest,
            number => VersionId::Number(number.parse().ok()?),
        };
        let version = function.version(id)?;
        Some(app.package(&version.code, &version.qualified_arn()))
    });
    archive(package, "no such function version").await
}

/// Path of [`layer`] for a layer version, for `Content.Location`.
pub(crate) fn layer_path(name: &str, version: u64) -> String {
    format!("{PREFIX}layer/{name}/{version}")
}

/// The zip archive of a layer version: `layer/NAME/VERSION`.
async fn layer(app: &App, path: &str) -> Reply {
    let package = path.split_once('/').and_then(|(name, version)| {
        let code = app.control_plane.layer_code(name, version.parse().ok()?)?;
        Some(app.package(&code, path))
    });
    archive(package, "no such layer version").await
}

async fn archive(package: Option<Result<PathBuf, ApiError>>, absent: &str) -> Reply {
    match package {
        None => problem(StatusCode::NOT_FOUND, absent),
        Some(Err(error)) => api_error(&error),
        Some(Ok(path)) => match tokio::fs::read(&path).await {
            Ok(archive) => reply::reply(StatusCode::OK, ZIP, archive),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot read a code package");
                problem(StatusCode::INTERNAL_SERVER_ERROR, "the code package could not be read")
            }
        },
    }
}

/// The live environments, and where the time of the latest cold starts went.
fn environments(app: &App) -> Reply {
    let worker = app.workers.worker();
    let body = serde_json::json!({ "environments": worker.environments(), "cold_starts": worker.cold_starts() });
    reply::json(StatusCode::OK, &body)
}

/// What is answered where only figures are to be had.
pub(crate) fn only_metrics<B>(app: &App, request: &Request<B>) -> Reply {
    if request.uri().path() != METRICS_PATH {
        return problem(StatusCode::NOT_FOUND, "only /metrics is answered at this address");
    }
    refusal_of_method(request).unwrap_or_else(|| metrics(app))
}

/// What Prometheus reads.
fn metrics(app: &App) -> Reply {
    reply::reply(StatusCode::OK, METRICS, app.metrics.text(figures::now(app)))
}

/// One line of the stream of events.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Event { timestamp: i64, stream: &'a str, message: &'a str },
    Missed { missed: u64 },
}

/// Sends the events of a log group, from now on, one JSON object a line, until the client goes away.
fn follow(app: &App, group: &str) -> Reply {
    let mut events = app.logs.follow(group);
    let stopping = app.stopping();
    let (lines, body) = mpsc::channel(LINES_AHEAD);
    tokio::spawn(async move {
        let mut stopping = pin!(stopping);
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(HEARTBEAT, events.next()) => next,
                () = &mut stopping => return,
            };
            let line = match next {
                Err(_) => Bytes::from_static(b"\n"),
                Ok(None) => return,
                Ok(Some(followed)) => line(&followed),
            };
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
    let mut reply: Response<ReplyBody> = Response::new(ReplyBody::Stream(body));
    reply.headers_mut().insert(hyper::header::CONTENT_TYPE, NDJSON);
    reply
}

fn line(followed: &Followed) -> Bytes {
    let line = match followed {
        Followed::Event { stream, event } => {
            Line::Event { timestamp: event.timestamp_ms, stream, message: &event.message }
        }
        Followed::Missed(missed) => Line::Missed { missed: *missed },
    };
    // Writing strings and numbers to memory cannot fail.
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}
