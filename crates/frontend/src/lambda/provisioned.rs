//! Provisioned concurrency: the settings are the control plane's, the environments the worker manager's.

use std::sync::Arc;
use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::record::Timestamp;

use super::{Input, concurrency};
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn put(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let now = Timestamp::from(SystemTime::now());
    let (response, provisions) = app.control_plane.put_provisioned_concurrency_config(&input.decode()?, now).await?;
    concurrency::tell(app, input);
    app.provision_all(&provisions);
    Ok(input.answer(&response))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let live = |version: &_| app.live(version);
    Ok(input.answer(&app.control_plane.get_provisioned_concurrency_config(&input.decode()?, live)?))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let live = |version: &_| app.live(version);
    Ok(input.answer(&app.control_plane.list_provisioned_concurrency_configs(&input.decode()?, live)?))
}

pub(super) async fn delete(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    let provisions = app.control_plane.delete_provisioned_concurrency_config(&input.decode()?).await?;
    concurrency::tell(app, input);
    app.provision_all(&provisions);
    Ok(input.answer(&()))
}
