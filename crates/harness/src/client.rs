//! One keep-alive HTTP connection to Firelet, with the few calls of the Lambda API that tests and benchmarks make.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// How long a new function may stay `Pending`.
const ACTIVATION_DEADLINE: Duration = Duration::from_secs(60);

/// A connection. Requests on it go one after the other; open another for parallel ones.
pub struct Client {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

/// What the server answered.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {:?}", self.body))
    }

    /// A header's value, or "" where it is absent or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// A function to create; the fields are CreateFunction's, memory in MB and the timeout in seconds.
pub struct Function<'a> {
    pub name: &'a str,
    pub runtime: &'a str,
    pub handler: &'a str,
    pub code: Vec<u8>,
    pub memory: u32,
    pub timeout: u32,
    pub environment: Vec<(&'a str, &'a str)>,
}

impl<'a> Function<'a> {
    /// A function with 256 MB and a timeout of 30 s.
    pub fn new(name: &'a str, runtime: &'a str, handler: &'a str, code: Vec<u8>) -> Function<'a> {
        Function { name, runtime, handler, code, memory: 256, timeout: 30, environment: Vec::new() }
    }
}

impl Client {
    /// Connects to a server.
    pub async fn connect(address: SocketAddr) -> Result<Client> {
        Ok(Client { address, sender: open(address).await? })
    }

    /// Sends one request and reads the whole answer. A connection that the server has closed is opened again.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        // Also waits until the connection has seen the end of the last answer.
        if self.sender.ready().await.is_err() {
            self.sender = open(self.address).await?;
        }
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().with_context(|| format!("bad path {path}"))?;
        request.headers_mut().insert("host", HeaderValue::from_str(&self.address.to_string())?);
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        let response = self.sender.send_request(request).await.with_context(|| format!("request to {path} failed"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.with_context(|| format!("answer to {path} broke off"))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// CreateFunction, then waits until the function's state is no longer `Pending`.
    pub async fn create_function(&mut self, function: &Function<'_>) -> Result<Value> {
        let variables: serde_json::Map<String, Value> =
            function.environment.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        let body = json!({
            "FunctionName": function.name,
            "Runtime": function.runtime,
            "Handler": function.handler,
            "Role": "arn:aws:iam::000000000000:role/test",
            "Code": {"ZipFile": base64(&function.code)},
            "MemorySize": function.memory,
            "Timeout": function.timeout,
            "Environment": {"Variables": variables},
        });
        let headers = [("content-type", "application/json")];
        let answer = self.request(Method::POST, "/2015-03-31/functions", &headers, body.to_string()).await?;
        ensure!(answer.status == StatusCode::CREATED, "CreateFunction: {} {:?}", answer.status, answer.body);

        let path = format!("/2015-03-31/functions/{}/configuration", function.name);
        let started = Instant::now();
        loop {
            let configuration = self.request(Method::GET, &path, &[], "").await?.json()?;
            match configuration["State"].as_str() {
                Some("Active") => return Ok(configuration),
                Some("Pending") => {}
                state => anyhow::bail!("{} is {state:?}: {configuration}", function.name),
            }
            ensure!(started.elapsed() < ACTIVATION_DEADLINE, "{} stays Pending", function.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Invoke, RequestResponse.
    pub async fn invoke(&mut self, function: &str, payload: impl Into<Bytes>) -> Result<Answer> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        self.request(Method::POST, &path, &[], payload).await
    }

    /// Invoke with `X-Amz-Log-Type: Tail`; also returns the decoded tail of the log.
    pub async fn invoke_with_log(&mut self, function: &str, payload: impl Into<Bytes>) -> Result<(Answer, String)> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let answer = self.request(Method::POST, &path, &[("x-amz-log-type", "Tail")], payload).await?;
        let log = unbase64(answer.header("x-amz-log-result")).context("X-Amz-Log-Result is not base64")?;
        Ok((answer, String::from_utf8_lossy(&log).into_owned()))
    }
}

async fn open(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // The connection ends with the sender; an error on it reaches the caller through the request that it breaks.
    tokio::spawn(connection);
    Ok(sender)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding, written out here so that the tests do not trust the code that they test.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Reads standard base64 with padding; `None` where it is not that.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.as_bytes().chunks(4) {
        let digits = chunk.iter().take_while(|byte| **byte != b'=').count();
        if chunk.len() != 4 || digits < 2 {
            return None;
        }
        let mut bits = 0u32;
        for byte in &chunk[..digits] {
            bits = bits << 6 | ALPHABET.iter().position(|digit| digit == byte)? as u32;
        }
        bits <<= 6 * (4 - digits);
        bytes.extend_from_slice(&bits.to_be_bytes()[1..digits]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).unwrap(), plain.as_bytes());
        }
        assert_eq!(unbase64("Zg="), None);
        assert_eq!(unbase64("Z==="), None);
        assert_eq!(unbase64("Z!=="), None);
    }
}
