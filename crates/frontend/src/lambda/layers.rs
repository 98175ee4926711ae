//! Layers: publishing, reading, listing and deleting versions, and their policies.

use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::record::Timestamp;

use super::Input;
use crate::app::App;
use crate::local;
use crate::reply::Reply;

pub(super) async fn publish(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let now = Timestamp::from(SystemTime::now());
    Ok(input.answer(&app.control_plane.publish_layer_version(&input.decode()?, now, location(app, input)).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_layer_version(&input.decode()?, location(app, input))?))
}

pub(super) fn get_by_arn(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_layer_version_by_arn(&input.decode()?, location(app, input))?))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_layers(&input.decode()?)?))
}

pub(super) fn list_versions(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_layer_versions(&input.decode()?)?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_layer_version(&input.decode()?).await?;
    Ok(input.answer(&()))
}

pub(super) async fn add_permission(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.add_layer_version_permission(&input.decode()?).await?))
}

pub(super) async fn remove_permission(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.remove_layer_version_permission(&input.decode()?).await?;
    Ok(input.answer(&()))
}

pub(super) fn get_policy(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_layer_version_policy(&input.decode()?)?))
}

/// Where the caller can fetch the package of a layer version.
fn location<'a>(app: &'a App, input: &Input) -> impl Fn(&str, u64) -> String + use<'a> {
    let base = input.base();
    move |name, version| format!("{base}{}", app.link(&local::layer_path(name, version)))
}
