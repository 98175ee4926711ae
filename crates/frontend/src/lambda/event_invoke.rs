//! The settings of asynchronous invocations.

use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::record::Timestamp;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn put(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.put_function_event_invoke_config(&input.decode()?, now()).await?))
}

pub(super) async fn update(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.update_function_event_invoke_config(&input.decode()?, now()).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_function_event_invoke_config(&input.decode()?)?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_function_event_invoke_config(&input.decode()?).await?;
    Ok(input.answer(&()))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_function_event_invoke_configs(&input.decode()?)?))
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
