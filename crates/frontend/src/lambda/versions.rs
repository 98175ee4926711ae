//! Publishing and listing versions.

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn publish(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.publish_version(&input.decode()?).await?))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_versions_by_function(&input.decode()?)?))
}
