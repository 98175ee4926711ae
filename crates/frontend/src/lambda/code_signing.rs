//! Code signing configurations, and the functions that follow one.

use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::record::Timestamp;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn create(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.create_code_signing_config(&input.decode()?, now()).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_code_signing_config(&input.decode()?)?))
}

pub(super) async fn update(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.update_code_signing_config(&input.decode()?, now()).await?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_code_signing_config(&input.decode()?).await?;
    Ok(input.answer(&()))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_code_signing_configs(&input.decode()?)?))
}

pub(super) fn functions(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_functions_by_code_signing_config(&input.decode()?)?))
}

pub(super) async fn put_for_function(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.put_function_code_signing_config(&input.decode()?).await?))
}

pub(super) fn get_for_function(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_function_code_signing_config(&input.decode()?)?))
}

pub(super) async fn delete_for_function(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_function_code_signing_config(&input.decode()?).await?;
    Ok(input.answer(&()))
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
