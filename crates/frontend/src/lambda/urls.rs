//! The configuration of function URLs. Their addresses are below the name by which the caller reached this server.

use std::net::IpAddr;
use std::time::SystemTime;

use aws_model::ApiError;
use control_plane::record::Timestamp;
use hyper::header::{HOST, HeaderMap};
use hyper::http::uri::Authority;

use super::Input;
use crate::app::App;
use crate::reply::Reply;

pub(super) async fn create(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let address = address(app, &input.headers);
    Ok(input.answer(&app.control_plane.create_function_url_config(&input.decode()?, now(), address).await?))
}

pub(super) fn get(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let address = address(app, &input.headers);
    Ok(input.answer(&app.control_plane.get_function_url_config(&input.decode()?, address)?))
}

pub(super) async fn update(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let address = address(app, &input.headers);
    Ok(input.answer(&app.control_plane.update_function_url_config(&input.decode()?, now(), address).await?))
}

pub(super) async fn delete(app: &App, input: &Input) -> Result<Reply, ApiError> {
    app.control_plane.delete_function_url_config(&input.decode()?).await?;
    Ok(input.answer(&()))
}

pub(super) fn list(app: &App, input: &Input) -> Result<Reply, ApiError> {
    let address = address(app, &input.headers);
    Ok(input.answer(&app.control_plane.list_function_url_configs(&input.decode()?, address)?))
}

/// From the id of a URL to the URL.
fn address(app: &App, headers: &HeaderMap) -> impl Fn(&str) -> String + use<> {
    let base = base(headers.get(HOST).and_then(|host| host.to_str().ok()));
    let region = app.control_plane.realm().region.clone();
    move |id: &str| format!("http://{id}.lambda-url.{region}.{base}/")
}

/// The name, with the port, below which the hosts of URLs are. An address has no names below it, `localhost` has.
fn base(host: Option<&str>) -> String {
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return "localhost".to_owned();
    };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let name = if address { "localhost" } else { name };
    match authority.port_u16() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    }
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::base;

    #[test]
    fn urls_are_below_the_name_that_the_caller_used() {
        for (host, expected) in [
            (Some("127.0.0.1:9000"), "localhost:9000"),
            (Some("[::1]:9000"), "localhost:9000"),
            (Some("localhost:9000"), "localhost:9000"),
            (Some("lambda.example.com"), "lambda.example.com"),
            (Some("lambda.example.com:8080"), "lambda.example.com:8080"),
            (Some("no host/at all"), "localhost"),
            (None, "localhost"),
        ] {
            assert_eq!(base(host), expected, "{host:?}");
        }
    }
}
