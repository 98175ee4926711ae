//! The account's limits and use.

use aws_model::ApiError;
use aws_model::types::GetAccountSettingsRequest;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) fn settings(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let _: GetAccountSettingsRequest = input.decode()?;
    Ok(input.answer(&app.control_plane.get_account_settings()))
}
