//! What happens when a function invokes itself through other services: the setting.

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn put(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.put_function_recursion_config(&input.decode()?).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_function_recursion_config(&input.decode()?)?))
}
