//! Durable executions: none exist, so reads and stops find nothing, and what would carry one on is refused.

use aws_model::ApiError;
use aws_model::types::{
    GetDurableExecutionHistoryRequest, GetDurableExecutionRequest, GetDurableExecutionStateRequest,
    StopDurableExecutionRequest,
};

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.list_durable_executions_by_function(&input.decode()?)?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let request: GetDurableExecutionRequest = input.decode()?;
    Err(app.control_plane.absent_durable_execution(request.durable_execution_arn.as_deref()))
}

pub(super) fn history(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let request: GetDurableExecutionHistoryRequest = input.decode()?;
    Err(app.control_plane.absent_durable_execution(request.durable_execution_arn.as_deref()))
}

pub(super) fn state(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let request: GetDurableExecutionStateRequest = input.decode()?;
    Err(app.control_plane.absent_durable_execution(request.durable_execution_arn.as_deref()))
}

pub(super) fn stop(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let request: StopDurableExecutionRequest = input.decode()?;
    Err(app.control_plane.absent_durable_execution(request.durable_execution_arn.as_deref()))
}
