//! The answers, header by header.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use uuid::Uuid;

use crate::refusal::error_body;
use crate::{Credentials, ExtensionEvent, Invocation, Options, Refusal};

type Answer = Response<Full<Bytes>>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// 200 with nothing in it.
pub(crate) fn empty() -> Answer {
    Response::new(Full::default())
}

/// 200 with a word.
pub(crate) fn text(word: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(word));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// What the endpoint of credentials is answered with, in the form that AWS's SDKs read.
pub(crate) fn credentials(credentials: &Credentials) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Wire<'a> {
        access_key_id: &'a str,
        secret_access_key: &'a str,
        token: &'a str,
        expiration: &'a str,
    }
    let wire = Wire {
        access_key_id: &credentials.access_key_id,
        secret_access_key: &credentials.secret_access_key,
        token: &credentials.session_token,
        expiration: &credentials.expiration,
    };
    json(StatusCode::OK, serde_json::to_vec(&wire).expect("four strings always become JSON").into())
}

/// 404 in plain text: the token is wrong, or there are no credentials now.
pub(crate) fn no_credentials() -> Answer {
    let mut answer = text("cannot get credentials");
    *answer.status_mut() = StatusCode::NOT_FOUND;
    answer
}

/// 202 `{"status":"OK"}`.
pub(crate) fn accepted() -> Answer {
    json(StatusCode::ACCEPTED, Bytes::from_static(b"{\"status\":\"OK\"}"))
}

/// 202 with an error object: the API exists but is switched off.
pub(crate) fn not_supported(message: &str, error_type: &str) -> Answer {
    json(StatusCode::ACCEPTED, error_body(message, error_type).into())
}

/// A refusal, with its status and error object.
pub(crate) fn refusal(refusal: &Refusal) -> Answer {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = json(status, refusal.body().into());
    if let Refusal::Method { allow } = refusal {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    answer
}

/// What `next` is answered with.
pub(crate) fn invocation(invocation: &Invocation) -> Answer {
    let mut answer = Response::new(Full::new(invocation.payload.clone()));
    let headers = answer.headers_mut();
    headers.reserve(9);
    let content_type = invocation.content_type.as_deref().filter(|value| !value.is_empty());
    headers.insert(CONTENT_TYPE, content_type.map_or(JSON, value));
    let mut set = |name: &'static str, text: &str| {
        if !text.is_empty() {
            headers.insert(HeaderName::from_static(name), value(text));
        }
    };
    set("lambda-runtime-aws-request-id", &invocation.request_id);
    set("lambda-runtime-deadline-ms", &invocation.deadline_ms.to_string());
    set("lambda-runtime-invoked-function-arn", &invocation.invoked_function_arn);
    set("lambda-runtime-trace-id", invocation.trace_id.as_deref().unwrap_or_default());
    set("lambda-runtime-client-context", invocation.client_context.as_deref().unwrap_or_default());
    set("lambda-runtime-cognito-identity", invocation.cognito_identity.as_deref().unwrap_or_default());
    set("lambda-runtime-aws-tenant-id", invocation.tenant_id.as_deref().unwrap_or_default());
    answer
}

/// A header value. A line break inside (the client context may be pretty-printed JSON) becomes a blank, as on AWS; so does
/// any other control character, none of which a header can carry.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text)
        .or_else(|_| HeaderValue::from_bytes(text.as_bytes()))
        .or_else(|_| HeaderValue::from_str(&text.replace(|character: char| character.is_ascii_control(), " ")))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What `event/next` is answered with.
pub(crate) fn event(event: &ExtensionEvent) -> Answer {
    #[derive(Serialize)]
    #[serde(tag = "eventType", rename_all = "UPPERCASE", rename_all_fields = "camelCase")]
    enum Wire<'a> {
        Invoke {
            deadline_ms: u64,
            request_id: &'a str,
            invoked_function_arn: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            tracing: Option<Tracing<'a>>,
        },
        Shutdown {
            deadline_ms: u64,
            shutdown_reason: &'a str,
        },
    }
    #[derive(Serialize)]
    struct Tracing<'a> {
        r#type: &'a str,
        value: &'a str,
    }
    let wire = match event {
        ExtensionEvent::Invoke(invocation) => Wire::Invoke {
            deadline_ms: invocation.deadline_ms,
            request_id: &invocation.request_id,
            invoked_function_arn: &invocation.invoked_function_arn,
            tracing: invocation
                .trace_id
                .as_deref()
                .filter(|value| !value.is_empty())
                .map(|value| Tracing { r#type: "X-Amzn-Trace-Id", value }),
        },
        ExtensionEvent::Shutdown { reason, deadline_ms } => {
            Wire::Shutdown { deadline_ms: *deadline_ms, shutdown_reason: reason.as_str() }
        }
    };
    let mut answer = json(StatusCode::OK, to_json(&wire));
    answer
        .headers_mut()
        .insert(HeaderName::from_static("lambda-extension-event-identifier"), value(&Uuid::new_v4().to_string()));
    answer
}

/// What a registration is answered with.
pub(crate) fn registered(id: Uuid, options: &Options, with_account: bool) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Registered<'a> {
        function_name: &'a str,
        function_version: &'a str,
        handler: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        account_id: Option<&'a str>,
    }
    let body = Registered {
        function_name: &options.function_name,
        function_version: &options.function_version,
        handler: &options.handler,
        account_id: (with_account && !options.account_id.is_empty()).then_some(options.account_id.as_str()),
    };
    let mut answer = json(StatusCode::OK, to_json(&body));
    answer.headers_mut().insert(HeaderName::from_static("lambda-extension-identifier"), value(&id.to_string()));
    answer
}

fn to_json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("structs of strings and numbers always become JSON").into()
}

fn json(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}
