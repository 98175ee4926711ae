//! The resource policies of functions.

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn add(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.add_permission(&input.decode()?).await?))
}

pub(super) async fn remove(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.remove_permission(&input.decode()?).await?;
    Ok(input.answer(&()))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_policy(&input.decode()?)?))
}
