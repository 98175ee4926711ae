//! The server over real TCP: raw bytes where the framing matters, hyper's client where it does not.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::{Event, Invocation, Options, Outcome, RuntimeApi};

/// Longest wait for anything that must happen; reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server with its events, and the address for clients.
struct Host {
    api: RuntimeApi,
    events: UnboundedReceiver<Event>,
    address: std::net::SocketAddr,
}

impl Host {
    async fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (api, events) = RuntimeApi::serve(listener, options);
        Self { api, events, address }
    }

    async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    async fn event(&mut self) -> Event {
        timeout(DEADLINE, self.events.recv()).await.expect("no event in time").expect("events ended")
    }
}

/// A client that writes bytes as they are and reads answers one by one.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Client {
    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads one answer with a `Content-Length`; none if the connection ended first.
    async fn try_read(&mut self) -> Option<Answer> {
        loop {
            let text = String::from_utf8_lossy(&self.buffer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok())
                    .unwrap_or(0);
                if body.len() >= length {
                    let answer = Answer {
                        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
                        head: head.to_owned(),
                        body: body[..length].to_owned(),
                    };
                    self.buffer.drain(..head.len() + 4 + length);
                    return Some(answer);
                }
            }
            let mut chunk = [0; 65536];
            match timeout(DEADLINE, self.stream.read(&mut chunk)).await.expect("no answer in time") {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
            }
        }
    }

    async fn read(&mut self) -> Answer {
        self.try_read().await.expect("the connection ended without an answer")
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.ask(path).await;
        self.read().await
    }

    async fn ask(&mut self, path: &str) {
        self.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    }

    async fn post(&mut self, path: &str, headers: &str, body: &str) -> Answer {
        self.write(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n", body.len())).await;
        self.write(body).await;
        self.read().await
    }
}

const NEXT: &str = "/2018-06-01/runtime/invocation/next";

fn response(id: &str) -> String {
    format!("/2018-06-01/runtime/invocation/{id}/response")
}

fn invocation(id: &str) -> Invocation {
    Invocation {
        request_id: id.to_owned(),
        payload: Bytes::from_static(b"{\"a\":1}"),
        deadline_ms: 1_700_000_000_123,
        invoked_function_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".to_owned(),
        ..Invocation::default()
    }
}

async fn outcome(receiver: tokio::sync::oneshot::Receiver<Outcome>) -> Outcome {
    timeout(DEADLINE, receiver).await.expect("no outcome in time").expect("outcome was dropped")
}

#[tokio::test]
async fn one_connection_serves_invocation_after_invocation() {
    let mut host = Host::start(Options::default()).await;
    let mut runtime = host.client().await;
    runtime.ask(NEXT).await;
    assert_eq!(host.event().await, Event::InitDone);
    for round in 0..3 {
        let id = format!("id-{round}");
        let receiver = host.api.invoke(invocation(&id)).unwrap();
        let answer = runtime.read().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, "{\"a\":1}");
        assert_eq!(answer.header("Lambda-Runtime-Aws-Request-Id"), Some(id.as_str()));
        assert_eq!(answer.header("Lambda-Runtime-Deadline-Ms"), Some("1700000000123"));
        let answer = runtime.post(&response(&id), "Content-Type: application/json\r\n", "\"ok\"").await;
        assert_eq!((answer.status, answer.body.as_str()), (202, "{\"status\":\"OK\"}"));
        let expected = Outcome::Response {
            body: Bytes::from_static(b"\"ok\""),
            content_type: Some("application/json".to_owned()),
            streaming: false,
        };
        assert_eq!(outcome(receiver).await, expected);
        runtime.ask(NEXT).await;
        assert_eq!(host.event().await, Event::Idle);
    }
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_get_json() {
    let host = Host::start(Options::default()).await;
    let mut client = host.client().await;
    let answer = client.get("/2018-06-01/ping").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "pong"));
    let answer = client.get("/2018-06-01/runtime/nothing").await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("\"errorType\":\"NotFound\""), "{}", answer.body);
    let answer = client.post(NEXT, "", "").await;
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET")));
    let answer = client.get("/2018-06-01/runtime/restore/next").await;
    assert_eq!(answer.status, 404, "only snapshot environments can be restored");
}
