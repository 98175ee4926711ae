//! Event source mappings. Their states move by time; [`tend`] has what has moved written down.

mod source;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_model::ApiError;
use control_plane::record::Timestamp;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

/// Until the next try when the store refused.
const RETRY: Duration = Duration::from_secs(5);

pub(super) async fn create(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let mapping = app.control_plane.draft_mapping(&input.decode()?, now())?;
    source::check(app, &mapping).await?;
    Ok(input.answer(&app.control_plane.create_event_source_mapping(mapping, now()).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_event_source_mapping(&input.decode()?, now())?))
}

pub(super) async fn update(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.update_event_source_mapping(&input.decode()?, now()).await?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.delete_event_source_mapping(&input.decode()?, now()).await?))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_event_source_mappings(&input.decode()?, now())?))
}

/// Settles mappings when their time has come, until the server stops.
pub(crate) async fn tend(app: Arc<App>) {
    let stopping = app.stopping();
    tokio::pin!(stopping);
    loop {
        let wait = match app.control_plane.settle_mappings(now()).await {
            Ok(due) => due.map(|due| Duration::from_millis(u64::try_from(due.0 - now().0).unwrap_or_default())),
            Err(error) => {
                tracing::error!(%error, "the states of event source mappings were not stored");
                Some(RETRY)
            }
        };
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = app.control_plane.mapping_changed() => {}
            () = &mut stopping => return,
        }
    }
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
