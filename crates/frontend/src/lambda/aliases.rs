//! Aliases.

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn create(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.create_alias(&input.decode()?).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_alias(&input.decode()?)?))
}

pub(super) async fn update(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.update_alias(&input.decode()?).await?))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_aliases(&input.decode()?)?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_alias(&input.decode()?).await?;
    Ok(input.answer(&()))
}
