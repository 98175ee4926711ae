//! Scaling settings of function versions on capacity providers.

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_function_scaling_config(&input.decode()?)?))
}

pub(super) fn put(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.put_function_scaling_config(&input.decode()?)?))
}
