//! The HTTP side: accepts connections, finds the call that a request means, feeds the machine and writes the answer.
//!
//! Clients are hostile. Connections, header sizes and bodies are limited; no timeout is set, because a client that is
//! slow or idle may be a frozen one, and harms only its own environment. A connection that ends while its call waits
//! takes the call back, so that nothing is handed to nobody.

mod body;
mod reply;
mod route;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, TRAILER};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use uuid::Uuid;

use self::body::Gathered;
use self::route::Route;
use crate::api::{Reply, Shared};
use crate::machine::{CallId, Input};
use crate::refusal::error_body;
use crate::{ExtensionPhase, Outcome, Refusal, report};

/// Largest request head in bytes, and so the largest read buffer of a connection: X-Ray's cause alone may take 64 KiB.
const MAX_HEAD: usize = 128 * 1024;
/// Largest body of an error report that is not an answer to an invocation, and of a registration, in bytes.
const SMALL_BODY: usize = 256 * 1024;
/// How much of a refused body is read and thrown away before the connection is ended, in bytes. A client that writes its
/// whole request before it reads would otherwise see a broken pipe instead of the refusal.
const DISCARD: usize = 64 * 1024 * 1024;

type Answer = Response<Full<Bytes>>;

/// Serves until the API is closed; then every connection ends.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.stop.notified() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < shared.options.max_connections => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, shared.clone()));
                }
                Err(error) => {
                    // The host may be out of descriptors, which passes; without the pause this loop would spin until then.
                    tracing::warn!(%error, "cannot accept a connection to the runtime api");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            },
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let generation = shared.generation();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY on a runtime api connection");
    }
    let service = service_fn(|request| {
        let caller = Caller { shared: shared.clone(), generation };
        async move { caller.answer(request).await }
    });
    let served = http1::Builder::new()
        .header_read_timeout(None)
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a runtime api connection ended early");
    }
}

/// The connection is to be ended without an answer: its runtime was reset, or the server is closing.
#[derive(Debug, thiserror::Error)]
#[error("the environment was reset")]
struct HungUp;

/// The connection that a request came on.
struct Caller {
    shared: Arc<Shared>,
    generation: u64,
}

/// A call that has entered the machine. Dropped before `settle`, it is reported as lost.
struct Pending<'a> {
    caller: &'a Caller,
    call: CallId,
    settled: bool,
}

impl Pending<'_> {
    fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.caller.shared.call_lost(self.caller.generation, self.call);
        }
    }
}

impl Caller {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, HungUp> {
        let (head, mut body) = request.into_parts();
        let answer = match self.dispatch(&head, &mut body).await {
            Ok(answer) => answer,
            Err(Refusal::Stale) => return Err(HungUp),
            Err(refusal) => {
                tracing::debug!(method = %head.method, path = head.uri.path(), %refusal, "refused a runtime api call");
                body::discard(&mut body, DISCARD).await;
                self.shared.slow_idle_talk().await;
                reply::refusal(&refusal)
            }
        };
        Ok(answer)
    }

    async fn dispatch(&self, head: &Parts, body: &mut Incoming) -> Result<Answer, Refusal> {
        match route::route(&head.method, head.uri.path())? {
            Route::Ping => {
                self.shared.slow_idle_talk().await;
                Ok(reply::text("pong"))
            }
            Route::Next => self.wait(|call| Input::Next { call }).await,
            Route::Response(request_id) => self.response(request_id, head, body).await,
            Route::Error(request_id) => self.error(request_id, head, body).await,
            Route::InitError => {
                self.init_error(head, body, |error_type, body| Input::InitError { error_type, body }).await
            }
            Route::RestoreNext => self.wait(|call| Input::RestoreNext { call }).await,
            Route::RestoreError => {
                self.init_error(head, body, |error_type, body| Input::RestoreError { error_type, body }).await
            }
            Route::Credentials => {
                self.shared.slow_idle_talk().await;
                let shown = header(&head.headers, "authorization");
                Ok(self.shared.credentials(shown)?.as_ref().map_or_else(reply::no_credentials, reply::credentials))
            }
            Route::Register => self.register(head, body).await,
            Route::EventNext => {
                let id = identifier(&head.headers)?;
                self.wait(|call| Input::EventNext { call, id }).await
            }
            Route::ExtensionError(phase) => self.extension_error(phase, head, body).await,
            Route::Telemetry => {
                self.shared.slow_idle_talk().await;
                Ok(reply::not_supported("Telemetry API is not supported", "Telemetry.NotSupported"))
            }
            Route::Logs => {
                self.shared.slow_idle_talk().await;
                Ok(reply::not_supported("Logs API is not supported", "Logs.NotSupported"))
            }
        }
    }

    /// A call that is answered when there is something to answer it with.
    async fn wait(&self, input: impl FnOnce(CallId) -> Input) -> Result<Answer, Refusal> {
        let call = self.shared.new_call();
        let receiver = self.shared.park(self.generation, call, input(call))?;
        let pending = Pending { caller: self, call, settled: false };
        let answer = match receiver.await {
            Ok(Reply::Invocation(invocation)) => reply::invocation(&invocation),
            Ok(Reply::Restored) => reply::empty(),
            Ok(Reply::Event(event)) => reply::event(&event),
            Err(_) => return Err(Refusal::Stale),
        };
        pending.settle();
        Ok(answer)
    }

    async fn response(&self, request_id: &str, head: &Parts, body: &mut Incoming) -> Result<Answer, Refusal> {
        let call = self.shared.new_call();
        self.shared.step(self.generation, Input::ResponseBegins { call, request_id: request_id.to_owned() })?;
        let pending = Pending { caller: self, call, settled: false };
        let streaming = match header(&head.headers, "lambda-runtime-function-response-mode") {
            "" => false,
            "streaming" => true,
            _ => {
                self.finish(pending, Outcome::InvalidResponseMode)?;
                return Err(Refusal::ResponseMode);
            }
        };
        let limit = self.shared.options.response_limit;
        match body::gather(body, limit).await {
            Gathered::Complete { body, trailers } => {
                let failure = if streaming { streamed_failure(&head.headers, trailers.as_ref(), &body) } else { None };
                let outcome = match failure {
                    Some((error_type, body)) => Outcome::Error { error_type, body, xray_cause: None },
                    None => Outcome::Response { body, content_type: content_type(&head.headers), streaming },
                };
                self.finish(pending, outcome)?;
                Ok(reply::accepted())
            }
            gathered => self.unusable(pending, &gathered, limit),
        }
    }

    async fn error(&self, request_id: &str, head: &Parts, body: &mut Incoming) -> Result<Answer, Refusal> {
        let call = self.shared.new_call();
        self.shared.step(self.generation, Input::ErrorBegins { call, request_id: request_id.to_owned() })?;
        let pending = Pending { caller: self, call, settled: false };
        let limit = self.shared.options.response_limit;
        match body::gather(body, limit).await {
            Gathered::Complete { body, .. } => {
                let combined = content_type(&head.headers)
                    .is_some_and(|value| value.eq_ignore_ascii_case("application/vnd.aws.lambda.error.cause+json"));
                let (body, xray_cause) = if combined {
                    report::split_error_and_cause(&body)
                } else {
                    let cause = head.headers.get("lambda-runtime-function-xray-error-cause");
                    (body, cause.and_then(|cause| report::xray_cause(cause.as_bytes())))
                };
                self.finish(pending, Outcome::Error { error_type: error_type(&head.headers), body, xray_cause })?;
                Ok(reply::accepted())
            }
            gathered => self.unusable(pending, &gathered, limit),
        }
    }

    /// An answer whose body is of no use. The outcome goes out at once, before the rest of the body is thrown away.
    fn unusable(&self, pending: Pending<'_>, gathered: &Gathered, limit: usize) -> Result<Answer, Refusal> {
        match gathered {
            Gathered::TooLarge => {
                self.finish(pending, Outcome::ResponseTooLarge { limit })?;
                Err(Refusal::TooLarge { limit })
            }
            Gathered::Broken | Gathered::Complete { .. } => {
                self.finish(pending, Outcome::Truncated)?;
                Err(Refusal::Truncated)
            }
        }
    }

    fn finish(&self, pending: Pending<'_>, outcome: Outcome) -> Result<(), Refusal> {
        let call = pending.call;
        pending.settle();
        self.shared.step(self.generation, Input::AnswerEnds { call, outcome })
    }

    async fn init_error(
        &self,
        head: &Parts,
        body: &mut Incoming,
        input: impl FnOnce(String, Bytes) -> Input,
    ) -> Result<Answer, Refusal> {
        let error_type = error_type(&head.headers);
        match self.small_body(body).await {
            Ok(body) => {
                self.shared.step(self.generation, input(error_type, body))?;
                Ok(reply::accepted())
            }
            // The report counts even if its text cannot be kept.
            Err(refusal @ Refusal::TooLarge { .. }) => {
                let body = error_body(&refusal.to_string(), &error_type);
                self.shared.step(self.generation, input(error_type, body.into()))?;
                Err(refusal)
            }
            Err(refusal) => Err(refusal),
        }
    }

    async fn register(&self, head: &Parts, body: &mut Incoming) -> Result<Answer, Refusal> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Registration {
            events: Option<Vec<String>>,
            configuration_keys: Option<Vec<String>>,
        }
        let name = header(&head.headers, "lambda-extension-name").to_owned();
        if name.is_empty() {
            return Err(Refusal::ExtensionName);
        }
        let body = self.small_body(body).await?;
        let registration: Registration =
            serde_json::from_slice(&body).map_err(|error| Refusal::RequestFormat(error.to_string()))?;
        if registration.configuration_keys.is_some_and(|keys| !keys.is_empty()) {
            let message = "configurationKeys are deprecated; use environment variables instead";
            return Err(Refusal::RequestFormat(message.to_owned()));
        }
        let id = Uuid::new_v4();
        let events = registration.events.unwrap_or_default();
        self.shared.step(self.generation, Input::Register { name, id, events })?;
        let account = header(&head.headers, "lambda-extension-accept-feature")
            .split(',')
            .any(|feature| feature.trim() == "accountId");
        Ok(reply::registered(id, &self.shared.options, account))
    }

    async fn extension_error(
        &self,
        phase: ExtensionPhase,
        head: &Parts,
        body: &mut Incoming,
    ) -> Result<Answer, Refusal> {
        let id = identifier(&head.headers)?;
        let error_type = header(&head.headers, "lambda-extension-function-error-type").to_owned();
        if error_type.is_empty() {
            return Err(Refusal::ErrorTypeMissing);
        }
        let body = self.small_body(body).await?;
        self.shared.step(self.generation, Input::ExtensionFailed { id, error_type, body, phase })?;
        Ok(reply::accepted())
    }

    async fn small_body(&self, body: &mut Incoming) -> Result<Bytes, Refusal> {
        // The semaphore is never closed; if it were, the server would be.
        let _permit = self.shared.small_bodies.acquire().await.map_err(|_| Refusal::Stale)?;
        match body::gather(body, SMALL_BODY).await {
            Gathered::Complete { body, .. } => Ok(body),
            Gathered::TooLarge => Err(Refusal::TooLarge { limit: SMALL_BODY }),
            Gathered::Broken => Err(Refusal::Truncated),
        }
    }
}

/// A header's value; empty where there is none or where it is not text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = header(headers, "content-type");
    (!value.is_empty()).then(|| value.to_owned())
}

fn error_type(headers: &HeaderMap) -> String {
    report::filter_error_type(header(headers, report::ERROR_TYPE))
}

fn identifier(headers: &HeaderMap) -> Result<Uuid, Refusal> {
    match headers.get("lambda-extension-identifier") {
        None => Err(Refusal::IdentifierMissing),
        Some(value) if value.is_empty() => Err(Refusal::IdentifierMissing),
        Some(value) => Uuid::try_parse_ascii(value.as_bytes()).map_err(|_| Refusal::IdentifierInvalid),
    }
}

/// The failure that a streamed response ends with: in real trailers, or as text where the `Trailer` header announced them.
fn streamed_failure(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Option<(String, Bytes)> {
    if let Some(trailers) = trailers {
        let error_type = header(trailers, report::ERROR_TYPE);
        if !error_type.is_empty() {
            let object = header(trailers, report::ERROR_BODY);
            return Some(report::trailer_error(error_type, (!object.is_empty()).then_some(object)));
        }
    }
    let announced = headers
        .get_all(TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case(report::ERROR_TYPE));
    if announced { report::text_trailers(body) } else { None }
}

#[cfg(test)]
mod tests;
