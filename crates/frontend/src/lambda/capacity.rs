//! Capacity providers: the one that is this host.

use aws_model::ApiError;
use aws_model::types::{DeleteCapacityProviderRequest, UpdateCapacityProviderRequest};

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_capacity_providers(&input.decode()?)))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_capacity_provider(&input.decode()?)?))
}

pub(super) fn update(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let request: UpdateCapacityProviderRequest = input.decode()?;
    Err(app.control_plane.keep_capacity_provider(request.capacity_provider_name.as_deref()))
}

pub(super) fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let request: DeleteCapacityProviderRequest = input.decode()?;
    Err(app.control_plane.keep_capacity_provider(request.capacity_provider_name.as_deref()))
}

pub(super) fn versions(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_function_versions_by_capacity_provider(&input.decode()?)?))
}
