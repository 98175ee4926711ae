//! Reserved concurrency: the settings are the control plane's, their enforcement the worker manager's.

use aws_model::ApiError;
use aws_model::arn::NameParts;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn put(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let answer = app.control_plane.put_function_concurrency(&input.decode()?).await?;
    tell(app, input);
    Ok(input.answer(&answer))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    Ok(input.answer(&app.control_plane.get_function_concurrency(&input.decode()?)?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_function_concurrency(&input.decode()?).await?;
    tell(app, input);
    Ok(input.answer(&()))
}

/// A change of what the function of this request has for itself takes effect.
pub(super) fn tell(app: &App, input: &Input) {
    app.tell_concurrency(NameParts::parse(input.labels.get("FunctionName").unwrap_or_default()).name);
}
