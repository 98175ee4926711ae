//! Tags of resources.

use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::record::Timestamp;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn tag(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.tag_resource(&input.decode()?, now()).await?;
    Ok(input.answer(&()))
}

pub(super) async fn untag(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.untag_resource(&input.decode()?, now()).await?;
    Ok(input.answer(&()))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_tags(&input.decode()?, now())?))
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
