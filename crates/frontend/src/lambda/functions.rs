//! Creating, reading, updating, listing and deleting functions.

use std::sync::Arc;
use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::Accepted;
use control_plane::record::{Timestamp, VersionId};

use super::{Input, concurrency};
use crate::app::App;
use crate::local;
use crate::reply::{self, Reply};

pub(super) async fn create(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let accepted = app.control_plane.create_function(&input.decode()?, now()).await?;
    Ok(accept(app, input, accepted))
}

pub(super) async fn update_code(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let accepted = app.control_plane.update_function_code(&input.decode()?, now()).await?;
    Ok(accept(app, input, accepted))
}

pub(super) async fn update_configuration(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let accepted = app.control_plane.update_function_configuration(&input.decode()?, now()).await?;
    Ok(accept(app, input, accepted))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let location = |version: &_| format!("{}{}", input.base(), app.link(&local::code_path(version)));
    Ok(input.answer(&app.control_plane.get_function(&input.decode()?, location)?))
}

pub(super) fn get_configuration(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_function_configuration(&input.decode()?)?))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_functions(&input.decode()?)?))
}

pub(super) async fn delete(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let deleted = app.control_plane.delete_function(&input.decode()?).await?;
    for version in &deleted.versions {
        // `$LATEST` goes only with the whole function.
        let id = Some(version.id).filter(|id| *id != VersionId::Latest);
        app.retire(&version.function, id);
        app.forget_snapshot(version);
        if id.is_none() {
            app.metrics.forget(&version.function);
        }
    }
    concurrency::tell(app, input);
    // The model lets the answer choose between 200, 202 and 204.
    let status = deleted.response.status_code.and_then(|code| u16::try_from(code).ok()).unwrap_or(204);
    Ok(reply::empty(status.try_into().unwrap_or(hyper::StatusCode::NO_CONTENT)))
}

/// Answers a change and starts what it needs to take effect.
pub(super) fn accept(app: &Arc<App>, input: &Input, accepted: Accepted) -> Reply {
    if let Some(work) = accepted.work {
        app.prepare(work);
    }
    input.answer(&accepted.configuration)
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
