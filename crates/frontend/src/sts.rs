//! The Security Token Service, as far as tools need it to find out where they are.

use crate::app::App;
use crate::query::{QueryError, STS, Xml, success};
use crate::reply::Reply;

/// API version of the requests.
pub(crate) const VERSION: &str = "2011-06-15";

pub(crate) fn dispatch(app: &App, action: &str, request_id: &str) -> Reply {
    match action {
        // Credentials are not checked, so everybody is the account's root.
        "GetCallerIdentity" => {
            let account = &app.control_plane.realm().account;
            let write = |xml: &mut Xml| {
                xml.text("Arn", &format!("arn:aws:iam::{account}:root"));
                xml.text("UserId", account);
                xml.text("Account", account);
            };
            success(STS, action, request_id, Some(write))
        }
        _ => QueryError::invalid_action(action, VERSION).reply(STS, request_id),
    }
}
