//! Side services that others keep: where IAM, STS or Logs has an endpoint, requests for it are passed on there, and what
//! comes back is the answer.
//!
//! Firelet signs anew with its own credentials; where it has none, the caller's signature goes on with the host that it
//! covers. A request that has been passed on says so, and is never passed on twice.

use aws_client::{Call, Client, Identity, Service};
use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;

use crate::logs::LogsError;
use crate::query::{self, QueryError};
use crate::reply::{self, Reply};

/// On every request that Firelet passes on.
const FORWARDED: HeaderName = HeaderName::from_static("x-firelet-forwarded");

/// Longest answer that is passed back, in bytes.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// Headers of one connection, not of the request or the answer.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];

/// What a signature put there.
const OF_THE_SIGNATURE: [HeaderName; 5] = [
    header::HOST,
    header::AUTHORIZATION,
    HeaderName::from_static("x-amz-date"),
    HeaderName::from_static("x-amz-security-token"),
    HeaderName::from_static("x-amz-content-sha256"),
];

/// Passes a request on, if its service is kept elsewhere; `None` if it is kept here.
pub(crate) async fn forward(
    client: Option<&Client>,
    service: Service,
    head: &Parts,
    body: &Bytes,
    request_id: &str,
) -> Option<Reply> {
    let client = client.filter(|client| client.endpoints().get(service).is_some())?;
    if head.headers.contains_key(FORWARDED) {
        let message = format!("The endpoint of {service} leads back to this server; set it to another one.");
        return Some(problem(service, 508, message, request_id));
    }
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let (identity, headers) = if client.has_credentials() {
        (Identity::Own, without(&head.headers, &OF_THE_SIGNATURE))
    } else {
        (Identity::Signed, head.headers.clone())
    };
    let mut headers = without(&headers, &OF_THE_CONNECTION);
    headers.insert(FORWARDED, HeaderValue::from_static("1"));
    let call = Call {
        service,
        method: head.method.clone(),
        path,
        headers,
        body: body.clone(),
        identity,
        limit: LONGEST_ANSWER,
        // The caller tries again as it sees fit.
        attempts: 1,
    };
    Some(match client.send(&call).await {
        Ok(answer) => {
            let mut reply = reply::empty(answer.status);
            *reply.body_mut() = reply::ReplyBody::Whole(answer.body);
            *reply.headers_mut() = without(&answer.headers, &OF_THE_CONNECTION);
            reply
        }
        Err(error) => {
            tracing::warn!(error = error.chain(), %service, "a request could not be passed on");
            problem(service, 503, format!("{}.", error.chain()), request_id)
        }
    })
}

fn without(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut rest = headers.clone();
    for name in names {
        rest.remove(name);
    }
    rest
}

/// An error in the form of the service's protocol.
fn problem(service: Service, status: u16, message: String, request_id: &str) -> Reply {
    match service {
        Service::Logs => LogsError::new(status, "ServiceUnavailableException", message).reply(),
        Service::Sts => QueryError::new(status, "ServiceUnavailable", message).reply(query::STS, request_id),
        _ => QueryError::new(status, "ServiceUnavailable", message).reply(query::IAM, request_id),
    }
}
