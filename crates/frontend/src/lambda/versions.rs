//! Publishing and listing versions.

use std::sync::Arc;

use aws_model::ApiError;

use super::Input;
use super::functions::accept;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn publish(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let accepted = app.control_plane.publish_version(&input.decode()?).await?;
    Ok(accept(app, input, accepted))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_versions_by_function(&input.decode()?)?))
}
