//! Scaling settings of function versions on capacity providers.

use std::sync::Arc;

use aws_model::ApiError;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let live = |version: &_| app.live(version);
    Ok(input.answer(&app.control_plane.get_function_scaling_config(&input.decode()?, live)?))
}

pub(super) async fn put(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let (response, version) = app.control_plane.put_function_scaling_config(&input.decode()?).await?;
    app.provision(&version);
    Ok(input.answer(&response))
}
