//! When versions get new releases of their runtime: the setting.

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn put(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.put_runtime_management_config(&input.decode()?).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_runtime_management_config(&input.decode()?)?))
}
