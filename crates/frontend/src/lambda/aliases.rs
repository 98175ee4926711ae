//! Aliases.

use std::sync::Arc;

use aws_model::ApiError;

use super::{Input, concurrency};
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn create(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.create_alias(&input.decode()?).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_alias(&input.decode()?)?))
}

pub(super) async fn update(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let (answer, provisions) = app.control_plane.update_alias(&input.decode()?).await?;
    app.provision_all(&provisions);
    Ok(input.answer(&answer))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_aliases(&input.decode()?)?))
}

pub(super) async fn delete(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let provisions = app.control_plane.delete_alias(&input.decode()?).await?;
    concurrency::tell(app, input);
    app.provision_all(&provisions);
    Ok(input.answer(&()))
}
