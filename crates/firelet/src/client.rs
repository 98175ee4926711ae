//! A small HTTP client for the commands that talk to a server. Requests are signed where the environment has credentials,
//! as AWS's own tools take them; a server with `--auth none` does not look at signatures.

use std::time::SystemTime;

use anyhow::{Context, bail};
use aws_model::sigv4::{Credentials, Head, Payload, SigningRequest, sign};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A server, by its URL. Each request makes a connection: commands make few.
#[derive(Debug, Clone)]
pub struct Client {
    authority: String,
    signer: Option<Signer>,
}

/// What requests are signed with.
#[derive(Debug, Clone)]
struct Signer {
    credentials: Credentials,
    region: String,
}

/// An answer with its body.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: hyper::http::response::Parts,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("the server's answer is not JSON; is it a Firelet?")
    }

    /// The answer, unless it is an error: then the server's own words.
    pub fn checked(self) -> anyhow::Result<Self> {
        if self.head.status.is_success() {
            return Ok(self);
        }
        let kind = self.header("x-amzn-errortype").unwrap_or(self.head.status.as_str()).to_owned();
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let message = body["message"].as_str().or(body["Message"].as_str());
        match message {
            Some(message) => bail!("{kind}: {message}"),
            None => bail!("{kind}: {}", String::from_utf8_lossy(&self.body)),
        }
    }
}

impl Client {
    /// A client for `http://HOST:PORT`.
    pub fn new(endpoint: &str) -> anyhow::Result<Self> {
        let rest = endpoint
            .strip_prefix("http://")
            .with_context(|| format!("the endpoint must be http://HOST:PORT, not {endpoint:?}"))?;
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains('/') {
            bail!("the endpoint must be http://HOST:PORT, not {endpoint:?}");
        }
        let authority = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { authority, signer: Signer::from_environment() })
    }

    /// Sends a request, returns the answer as it begins.
    pub async fn begin(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = TcpStream::connect(&self.authority).await.with_context(|| {
            format!(
                "no server answers at http://{}; start one with `firelet serve` or name another with --endpoint",
                self.authority
            )
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("the server hung up")?;
        tokio::spawn(connection);
        let body = body.into();
        let headers: Vec<_> = [("host", self.authority.as_str())].into_iter().chain(headers.iter().copied()).collect();
        let added = self.signer.as_ref().map(|signer| signer.sign(method.as_str(), path, &headers, &body));
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        for (name, value) in added.into_iter().flatten() {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).context("the request cannot be made")?;
        sender.send_request(request).await.context("the server did not answer")
    }

    /// Sends a request, returns the whole answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let (head, body) = self.begin(method, path, headers, body).await?.into_parts();
        let body = body.collect().await.context("the server's answer broke off")?.to_bytes();
        Ok(Answer { head, body })
    }

    /// `GET` of a path whose answer is JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, &[], Bytes::new()).await?.checked()?.json()
    }

    /// An operation of CloudWatch Logs.
    pub async fn logs(&self, operation: &str, input: &Value) -> anyhow::Result<Value> {
        let target = format!("Logs_20140328.{operation}");
        let headers = [("x-amz-target", target.as_str()), ("content-type", "application/x-amz-json-1.1")];
        self.send(Method::POST, "/", &headers, input.to_string()).await?.checked()?.json()
    }

    /// Whether a Firelet answers there.
    pub async fn is_there(&self) -> bool {
        let health = self.send(Method::GET, "/_firelet/health", &[], Bytes::new()).await;
        health.is_ok_and(|answer| answer.head.status == StatusCode::OK)
    }
}

impl Signer {
    fn from_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let credentials = Credentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN"),
        };
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        Some(Self { credentials, region: region.unwrap_or_else(|| "us-east-1".to_owned()) })
    }

    fn sign(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<(&'static str, String)> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let logs = headers.iter().any(|(name, _)| *name == "x-amz-target");
        let request = SigningRequest {
            head: Head { method, path, query, headers },
            payload: Payload::Bytes(body),
            region: &self.region,
            service: if logs { "logs" } else { "lambda" },
        };
        sign(&request, &self.credentials, SystemTime::now())
    }
}

/// A text as one segment of a path or one value of a query.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for endpoint in ["", "localhost:9000", "https://localhost", "http://", "http://a/b"] {
            assert!(Client::new(endpoint).is_err(), "{endpoint}");
        }
        assert_eq!(Client::new("http://localhost/").unwrap().authority, "localhost:80");
    }

    #[test]
    fn arns_fit_into_a_path() {
        assert_eq!(encoded("a:b/c d"), "a%3Ab%2Fc%20d");
    }
}
