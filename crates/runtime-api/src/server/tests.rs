//! The server over real TCP: raw bytes where the framing matters, hyper's client where it does not.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::{Credentials, Event, Invocation, Options, Outcome, RuntimeApi};

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

    /// Waits until the machine's state, as it is shown for debugging, contains `text`.
    async fn until(&self, text: &str) {
        let shown = async {
            while !format!("{:?}", self.api).contains(text) {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, shown).await.unwrap_or_else(|_| panic!("no {text} in {:?}", self.api));
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

/// A runtime that has been given the invocation `id`, and the receiver of its outcome.
async fn running(host: &Host, id: &str) -> (Client, tokio::sync::oneshot::Receiver<Outcome>) {
    let mut runtime = host.client().await;
    runtime.ask(NEXT).await;
    let receiver = host.api.invoke(invocation(id)).unwrap();
    assert_eq!(runtime.read().await.status, 200);
    (runtime, receiver)
}

fn error_body(message: &str, error_type: &str) -> String {
    format!("{{\"errorMessage\":\"{message}\",\"errorType\":\"{error_type}\"}}")
}

#[tokio::test]
async fn headers_of_next_leave_out_what_is_empty() {
    let host = Host::start(Options::default()).await;
    let mut runtime = host.client().await;
    let full = Invocation {
        content_type: Some("text/plain".to_owned()),
        trace_id: Some("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1".to_owned()),
        client_context: Some("{\n  \"client\": \"é\"}".to_owned()),
        cognito_identity: Some("{\"cognitoIdentityId\":\"i\",\"cognitoIdentityPoolId\":\"p\"}".to_owned()),
        tenant_id: Some("blue".to_owned()),
        ..invocation("a")
    };
    drop(host.api.invoke(full).unwrap());
    let answer = runtime.get(NEXT).await;
    for (name, expected) in [
        ("Content-Type", "text/plain"),
        ("Lambda-Runtime-Aws-Request-Id", "a"),
        ("Lambda-Runtime-Deadline-Ms", "1700000000123"),
        ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:000000000000:function:f"),
        ("Lambda-Runtime-Trace-Id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"),
        ("Lambda-Runtime-Client-Context", "{   \"client\": \"é\"}"),
        ("Lambda-Runtime-Cognito-Identity", "{\"cognitoIdentityId\":\"i\",\"cognitoIdentityPoolId\":\"p\"}"),
        ("Lambda-Runtime-Aws-Tenant-Id", "blue"),
    ] {
        assert_eq!(answer.header(name), Some(expected), "{name}");
    }
    assert_eq!(runtime.post(&response("a"), "", "").await.status, 202);

    let bare = Invocation {
        content_type: Some(String::new()),
        trace_id: Some(String::new()),
        client_context: Some(String::new()),
        ..invocation("b")
    };
    drop(host.api.invoke(bare).unwrap());
    let answer = runtime.get(NEXT).await;
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    for name in ["Trace-Id", "Client-Context", "Cognito-Identity", "Aws-Tenant-Id"] {
        assert_eq!(answer.header(&format!("Lambda-Runtime-{name}")), None, "{name}");
    }
}

#[tokio::test]
async fn calls_in_the_wrong_order_are_told_so() {
    let host = Host::start(Options::default()).await;
    let mut runtime = host.client().await;
    let answer = runtime.post(&response("x"), "", "1").await;
    assert_eq!((answer.status, answer.body), (400, error_body("Invalid request ID", "InvalidRequestID")));

    let (mut runtime, receiver) = running(&host, "a").await;
    let answer = runtime.post("/2018-06-01/runtime/init/error", "", "{}").await;
    let text = "State transition from Running to InitError failed for runtime. Error: State transition is not allowed";
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!((answer.status, answer.body), (403, error_body(text, "InvalidStateTransition")));

    assert_eq!(runtime.post(&response("a"), "", "1").await.status, 202);
    assert!(matches!(outcome(receiver).await, Outcome::Response { .. }));
    let answer = runtime.post(&response("a"), "", "2").await;
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("from RuntimeResponseSentState to InvocationResponse"), "{}", answer.body);
}

#[tokio::test]
async fn an_init_error_is_taken_once() {
    let mut host = Host::start(Options::default()).await;
    let mut runtime = host.client().await;
    let path = "/2018-06-01/runtime/init/error";
    let body = "{\"errorMessage\":\"no module\"}";
    let answer = runtime.post(path, "Lambda-Runtime-Function-Error-Type: Runtime.ImportModuleError\r\n", body).await;
    assert_eq!((answer.status, answer.body.as_str()), (202, "{\"status\":\"OK\"}"));
    let expected = Event::InitError { error_type: "Runtime.ImportModuleError".to_owned(), body: body.into() };
    assert_eq!(host.event().await, expected);
    assert_eq!(runtime.post(path, "", body).await.status, 403);
    assert_eq!(runtime.get(NEXT).await.status, 403);

    // A report that is too large still counts, without its text.
    host.api.reset();
    let mut runtime = host.client().await;
    let answer = runtime.post(path, "", &"x".repeat(256 * 1024 + 1)).await;
    assert_eq!(answer.status, 413);
    let text = error_body("Exceeded maximum allowed payload size (262144 bytes).", "Runtime.Unknown");
    assert_eq!(host.event().await, Event::InitError { error_type: "Runtime.Unknown".to_owned(), body: text.into() });
}

#[tokio::test]
async fn an_error_carries_its_type_and_cause() {
    let host = Host::start(Options::default()).await;
    let (mut runtime, receiver) = running(&host, "a").await;
    let headers = "Lambda-Runtime-Function-Error-Type: Function.Boom\r\n\
                   Lambda-Runtime-Function-XRay-Error-Cause: {\"message\":\"m\"}\r\n";
    let path = "/2018-06-01/runtime/invocation/a/error";
    assert_eq!(runtime.post(path, headers, "{\"errorMessage\":\"m\"}").await.status, 202);
    let cause = "{\"exceptions\":null,\"working_directory\":\"\",\"paths\":null,\"message\":\"m\"}";
    let expected = Outcome::Error {
        error_type: "Function.Boom".to_owned(),
        body: Bytes::from_static(b"{\"errorMessage\":\"m\"}"),
        xray_cause: Some(cause.into()),
    };
    assert_eq!(outcome(receiver).await, expected);

    let (mut runtime, receiver) = running(&host, "b").await;
    let headers = "Content-Type: application/vnd.aws.lambda.error.cause+json\r\n";
    let body = "{\"errorMessage\":\"m\",\"errorType\":\"T\",\"errorCause\":{\"message\":\"m\"}}";
    assert_eq!(runtime.post("/2018-06-01/runtime/invocation/b/error", headers, body).await.status, 202);
    let expected = Outcome::Error {
        error_type: "Runtime.Unknown".to_owned(),
        body: Bytes::from_static(b"{\"errorMessage\":\"m\",\"errorType\":\"T\"}"),
        xray_cause: Some(cause.into()),
    };
    assert_eq!(outcome(receiver).await, expected);
}

#[tokio::test]
async fn an_answer_over_the_limit_gets_413_and_the_connection_lives_on() {
    let host = Host::start(Options { response_limit: 1000, ..Options::default() }).await;
    let refusal = error_body("Exceeded maximum allowed payload size (1000 bytes).", "RequestEntityTooLarge");
    let (mut runtime, receiver) = running(&host, "exact").await;
    assert_eq!(runtime.post(&response("exact"), "", &"x".repeat(1000)).await.status, 202);
    assert!(matches!(outcome(receiver).await, Outcome::Response { body, .. } if body.len() == 1000));

    let receiver = host.api.invoke(invocation("length")).unwrap();
    assert_eq!(runtime.get(NEXT).await.status, 200);
    // The announced length is enough: the outcome does not wait for the body.
    runtime.write(format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", response("length"))).await;
    assert_eq!(outcome(receiver).await, Outcome::ResponseTooLarge { limit: 1000 });
    runtime.write("x".repeat(1001)).await;
    let answer = runtime.read().await;
    assert_eq!((answer.status, answer.body), (413, refusal.clone()));

    let receiver = host.api.invoke(invocation("chunks")).unwrap();
    assert_eq!(runtime.get(NEXT).await.status, 200);
    runtime
        .write(format!("POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", response("chunks")))
        .await;
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    runtime.write(chunk.repeat(3)).await;
    assert_eq!(outcome(receiver).await, Outcome::ResponseTooLarge { limit: 1000 });
    runtime.write("0\r\n\r\n").await;
    let answer = runtime.read().await;
    assert_eq!((answer.status, answer.body), (413, refusal));
    runtime.ask(NEXT).await;
    let receiver = host.api.invoke(invocation("last")).unwrap();
    assert_eq!(runtime.read().await.status, 200);
    drop(receiver);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_truncated() {
    let mut host = Host::start(Options::default()).await;
    for (round, head) in
        ["Content-Length: 100\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n5\r\npart"].iter().enumerate()
    {
        let id = format!("id-{round}");
        let (mut runtime, receiver) = running(&host, &id).await;
        runtime.write(format!("POST {} HTTP/1.1\r\nHost: x\r\n{head}", response(&id))).await;
        drop(runtime);
        assert_eq!(outcome(receiver).await, Outcome::Truncated);
    }
    // Chunks that make no sense are no complete body either; this client stays to hear so.
    let (mut runtime, receiver) = running(&host, "garbage").await;
    runtime
        .write(format!("POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", response("garbage")))
        .await;
    assert_eq!(outcome(receiver).await, Outcome::Truncated);
    assert_eq!(host.event().await, Event::InitDone);
}

#[tokio::test]
async fn an_unknown_response_mode_fails_the_invocation() {
    let mut host = Host::start(Options::default()).await;
    let (mut runtime, receiver) = running(&host, "a").await;
    let answer = runtime.post(&response("a"), "Lambda-Runtime-Function-Response-Mode: buffered\r\n", "1").await;
    let expected = error_body("Invalid function response mode", "InvalidFunctionResponseMode");
    assert_eq!((answer.status, answer.body), (400, expected));
    assert_eq!(outcome(receiver).await, Outcome::InvalidResponseMode);
    runtime.ask(NEXT).await;
    assert_eq!([host.event().await, host.event().await], [Event::InitDone, Event::Idle]);
}

#[tokio::test]
async fn a_streamed_answer_is_gathered_and_may_end_in_failure() {
    const STREAM: &str =
        "Host: x\r\nLambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n";
    const TRAILER: &str =
        "Trailer: Lambda-Runtime-Function-Error-Type\r\nTrailer: Lambda-Runtime-Function-Error-Body\r\n";
    const TYPE: &str = "Lambda-Runtime-Function-Error-Type: Function.Boom\r\n";
    const BODY: &str = "Lambda-Runtime-Function-Error-Body: eyJhIjoxfQ==\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let response_of = |body: &str| Outcome::Response {
        body: body.to_owned().into(),
        content_type: Some("text/plain".to_owned()),
        streaming: true,
    };
    let failure = Outcome::Error {
        error_type: "Function.Boom".to_owned(),
        body: Bytes::from_static(b"{\"a\":1}"),
        xray_cause: None,
    };
    let text = format!("{TYPE}{BODY}");
    let cases = [
        ("plain", "", format!("{}{}0\r\n\r\n", chunk("one "), chunk("two")), response_of("one two")),
        ("real trailers", TRAILER, format!("{}0\r\n{TYPE}{BODY}\r\n", chunk("one")), failure.clone()),
        ("text at the end", TRAILER, format!("{}{}{}0\r\n\r\n", chunk("one"), chunk(TYPE), chunk(BODY)), failure),
        ("the same text, not announced", "", format!("{}0\r\n\r\n", chunk(&text)), response_of(&text)),
        ("announced, but all went well", TRAILER, format!("{}0\r\n\r\n", chunk("fine")), response_of("fine")),
    ];
    let host = Host::start(Options::default()).await;
    for (name, headers, body, expected) in cases {
        let (mut runtime, receiver) = running(&host, "a").await;
        let path = response("a");
        runtime.write(format!("POST {path} HTTP/1.1\r\n{STREAM}{headers}Content-Type: text/plain\r\n\r\n{body}")).await;
        assert_eq!(runtime.read().await.status, 202, "{name}");
        assert_eq!(outcome(receiver).await, expected, "{name}");
    }
    // Trailers of an answer that is not a stream mean nothing.
    let (mut runtime, receiver) = running(&host, "a").await;
    let body = format!("{}0\r\n{TYPE}{BODY}\r\n", chunk("one"));
    let head = format!("POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{TRAILER}\r\n", response("a"));
    runtime.write(head + &body).await;
    assert_eq!(runtime.read().await.status, 202);
    assert!(matches!(outcome(receiver).await, Outcome::Response { streaming: false, .. }));
}

#[tokio::test]
async fn an_invocation_survives_the_connection_that_waited_for_it() {
    let mut host = Host::start(Options::default()).await;
    let mut first = host.client().await;
    first.ask(NEXT).await;
    assert_eq!(host.event().await, Event::InitDone);
    drop(first);
    // Whether the server has noticed the loss by now or not, the second connection gets it.
    let receiver = host.api.invoke(invocation("a")).unwrap();
    let mut second = host.client().await;
    let answer = second.get(NEXT).await;
    assert_eq!(answer.header("Lambda-Runtime-Aws-Request-Id"), Some("a"));
    assert_eq!(second.post(&response("a"), "", "1").await.status, 202);
    assert!(matches!(outcome(receiver).await, Outcome::Response { .. }));
}

/// Connections that wait for invocations, the first one first.
async fn two_that_wait() -> (Host, [Client; 2]) {
    let mut host = Host::start(Options::default()).await;
    let mut clients = [host.client().await, host.client().await];
    clients[0].ask(NEXT).await;
    assert_eq!(host.event().await, Event::InitDone);
    clients[1].ask(NEXT).await;
    host.until("waiting: [CallId(0), CallId(1)]").await;
    (host, clients)
}

#[tokio::test]
async fn a_connection_that_ends_while_it_waits_gives_up_its_place() {
    let (host, [first, mut second]) = two_that_wait().await;
    drop(first);
    host.until("waiting: [CallId(1)]").await;
    let receiver = host.api.invoke(invocation("a")).unwrap();
    assert_eq!(second.read().await.header("Lambda-Runtime-Aws-Request-Id"), Some("a"));
    drop(receiver);
}

#[tokio::test]
async fn parallel_next_calls_wait_for_one_invocation_each() {
    let (host, mut clients) = two_that_wait().await;
    let receiver = host.api.invoke(invocation("a")).unwrap();
    assert_eq!(clients[0].read().await.header("Lambda-Runtime-Aws-Request-Id"), Some("a"));
    assert_eq!(clients[0].post(&response("a"), "", "1").await.status, 202);
    outcome(receiver).await;
    let receiver = host.api.invoke(invocation("b")).unwrap();
    clients[0].ask(NEXT).await;
    assert_eq!(clients[1].read().await.header("Lambda-Runtime-Aws-Request-Id"), Some("b"));
    drop(receiver);
}

#[tokio::test]
async fn an_abandoned_invocation_cannot_be_answered() {
    let host = Host::start(Options::default()).await;
    let (mut runtime, receiver) = running(&host, "a").await;
    assert_eq!(host.api.invoke(invocation("b")).unwrap_err(), crate::InvokeRefused::Busy);
    host.api.abandon();
    assert!(timeout(DEADLINE, receiver).await.unwrap().is_err());
    let answer = runtime.post(&response("a"), "", "1").await;
    assert_eq!((answer.status, answer.body), (400, error_body("Invalid request ID", "InvalidRequestID")));
}

#[tokio::test]
async fn several_invocations_are_answered_beside_each_other_and_abandoned_alone() {
    let mut host = Host::start(Options { max_concurrency: 2, ..Options::default() }).await;
    let mut clients = [host.client().await, host.client().await];
    let outcomes = ["a", "b"].map(|id| host.api.invoke(invocation(id)).unwrap());
    assert_eq!(host.api.invoke(invocation("c")).unwrap_err(), crate::InvokeRefused::Busy);
    for (client, id) in clients.iter_mut().zip(["a", "b"]) {
        assert_eq!(client.get(NEXT).await.header("Lambda-Runtime-Aws-Request-Id"), Some(id));
    }
    assert_eq!(host.event().await, Event::InitDone);
    let [a, b] = outcomes;
    assert_eq!(clients[1].post(&response("b"), "", "2").await.status, 202);
    assert!(matches!(outcome(b).await, Outcome::Response { body, .. } if body == "2"));
    host.api.abandon_one("a");
    assert!(timeout(DEADLINE, a).await.unwrap().is_err());
    assert_eq!(clients[0].post(&response("a"), "", "1").await.status, 400);
    // Both go on.
    let outcomes = ["c", "d"].map(|id| host.api.invoke(invocation(id)).unwrap());
    for (client, id) in clients.iter_mut().zip(["c", "d"]) {
        assert_eq!(client.get(NEXT).await.header("Lambda-Runtime-Aws-Request-Id"), Some(id));
    }
    host.api.abandon_one("c");
    assert!(host.events.try_recv().is_err(), "the runtime has another place");
    host.api.abandon_one("d");
    assert_eq!(host.event().await, Event::Stuck);
    drop(outcomes);
}

#[tokio::test]
async fn a_reset_ends_the_old_connections_and_serves_new_ones() {
    let mut host = Host::start(Options::default()).await;
    let mut waiting = host.client().await;
    waiting.ask(NEXT).await;
    assert_eq!(host.event().await, Event::InitDone);
    let mut idle = host.client().await;
    assert_eq!(idle.get("/2018-06-01/ping").await.status, 200);
    host.api.reset();
    assert!(waiting.try_read().await.is_none(), "a waiting call ends without an answer");
    idle.ask(NEXT).await;
    assert!(idle.try_read().await.is_none(), "a connection of the old runtime cannot act for the new one");
    let mut new = host.client().await;
    new.ask(NEXT).await;
    assert_eq!(host.event().await, Event::InitDone);
}

#[tokio::test]
async fn a_closed_server_is_gone() {
    for by_drop in [false, true] {
        let host = Host::start(Options::default()).await;
        let (mut runtime, receiver) = running(&host, "a").await;
        let Host { api, mut events, address } = host;
        if by_drop {
            drop(api);
        } else {
            api.close();
            assert_eq!(api.invoke(invocation("b")).unwrap_err(), crate::InvokeRefused::Closed);
        }
        assert!(timeout(DEADLINE, receiver).await.unwrap().is_err());
        assert!(runtime.try_read().await.is_none());
        while timeout(DEADLINE, events.recv()).await.unwrap().is_some() {}
        timeout(DEADLINE, async { while TcpStream::connect(address).await.is_ok() {} }).await.unwrap();
    }
}

#[tokio::test]
async fn a_hostile_client_harms_nobody_else() {
    let host = Host::start(Options::default()).await;
    let mut garbage = host.client().await;
    garbage.write(b"\x16\x03\x01\x02\x00\x01\x00 nonsense\r\n\r\n").await;
    assert_eq!(garbage.read().await.status, 400);
    assert!(garbage.try_read().await.is_none());

    let mut huge = host.client().await;
    let header = format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\nX: {}\r\n", "x".repeat(256 * 1024));
    // The server may answer and end the connection before it has taken everything.
    let _ = huge.stream.write_all(header.as_bytes()).await;
    assert!(huge.try_read().await.is_none_or(|answer| answer.status == 431));

    // Connections that never finish their head, up to two below the limit, which is part of the protection: every one
    // takes a descriptor of the server, of which all environments share some thousands.
    assert_eq!(Options::default().max_connections, 64);
    let mut slow = Vec::new();
    for _ in 0..62 {
        let mut client = host.client().await;
        client.write(format!("GET {NEXT} HTTP/1.1\r\nHost:")).await;
        slow.push(client);
    }
    let (mut runtime, receiver) = running(&host, "a").await;
    assert_eq!(runtime.post(&response("a"), "", "1").await.status, 202);
    outcome(receiver).await;

    // With two more the limit is reached: the next one waits until one of them has gone.
    let mut last = host.client().await;
    assert_eq!(last.get("/ping").await.status, 200);
    let mut late = host.client().await;
    late.ask("/ping").await;
    for _ in 0..5 {
        assert_eq!(last.get("/ping").await.status, 200);
    }
    let early = late.stream.try_read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(std::io::ErrorKind::WouldBlock), "more connections are served than allowed");
    slow.pop();
    assert_eq!(late.read().await.status, 200);
}

#[tokio::test]
async fn who_talks_to_no_purpose_is_answered_slowly_and_invocations_are_not() {
    use crate::api::{FREE_IDLE_CALLS, IDLE_CALL_PAUSE};
    let host = Host::start(Options::default()).await;
    let (mut one, mut two) = (host.client().await, host.client().await);
    for call in 0..FREE_IDLE_CALLS {
        let path = if call % 2 == 0 { "/ping" } else { "/nowhere" };
        one.get(path).await;
    }
    let began = std::time::Instant::now();
    // Two connections are no faster than one.
    for _ in 0..10 {
        one.ask("/ping").await;
        two.ask("/nowhere").await;
        assert_eq!(one.read().await.status, 200);
        assert_eq!(two.read().await.status, 404);
    }
    assert!(began.elapsed() >= 20 * IDLE_CALL_PAUSE, "{:?}", began.elapsed());

    // Somebody who talks on holds up nothing that an invocation is made of.
    let (mut runtime, receiver) = running(&host, "a").await;
    for _ in 0..50 {
        one.ask("/ping").await;
    }
    assert_eq!(runtime.post(&response("a"), "", "1").await.status, 202);
    outcome(receiver).await;
    let early = one.stream.try_read(&mut [0; 64 * 1024]).map_or(0, |bytes| bytes / 64);
    assert!(early < 50, "the answer to an invocation had to wait for {early} pings");
}

#[tokio::test]
async fn requests_that_come_together_are_answered_one_after_the_other() {
    let host = Host::start(Options::default()).await;
    let mut client = host.client().await;
    client.write("GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((client.read().await.status, client.read().await.status), (200, 404));
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let host = Host::start(Options::default()).await;
    let (mut runtime, receiver) = running(&host, "a").await;
    let path = response("a");
    runtime
        .write(format!("POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"))
        .await;
    assert_eq!(runtime.read().await.status, 100);
    runtime.write("1").await;
    assert_eq!(runtime.read().await.status, 202);
    outcome(receiver).await;
}

#[tokio::test]
async fn a_snapshot_environment_is_restored() {
    let mut host = Host::start(Options { snapshot: true, ..Options::default() }).await;
    let mut runtime = host.client().await;
    assert_eq!(host.api.restore(), Err(crate::RestoreRefused));
    runtime.ask("/2018-06-01/runtime/restore/next").await;
    assert_eq!(host.event().await, Event::RestoreReady);
    host.api.restore().unwrap();
    let answer = runtime.read().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    runtime.ask(NEXT).await;
    assert_eq!(host.event().await, Event::InitDone);
}

#[tokio::test]
async fn credentials_are_for_who_shows_the_token() {
    let options = Options { credentials_token: Some("open sesame".to_owned()), ..Options::default() };
    let host = Host::start(options).await;
    let mut runtime = host.client().await;
    let ask =
        |token: &str| format!("GET /2021-04-23/credentials HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n");
    runtime.write(ask("open sesame")).await;
    assert_eq!(runtime.read().await.status, 404, "there are none yet");
    let credentials = Credentials {
        access_key_id: "ASIA".to_owned(),
        secret_access_key: "s".to_owned(),
        session_token: "t".to_owned(),
        expiration: "2026-01-02T03:04:05Z".to_owned(),
    };
    assert!(!format!("{credentials:?}").contains("secret"));
    host.api.set_credentials(Some(credentials));
    for wrong in ["open", "", "open sesame!"] {
        runtime.write(ask(wrong)).await;
        let answer = runtime.read().await;
        assert_eq!((answer.status, answer.header("Content-Type")), (404, Some("text/plain; charset=utf-8")), "{wrong}");
    }
    runtime.write(ask("open sesame")).await;
    let answer = runtime.read().await;
    assert_eq!(answer.status, 200);
    let expected = r#"{"AccessKeyId":"ASIA","SecretAccessKey":"s","Token":"t","Expiration":"2026-01-02T03:04:05Z"}"#;
    assert_eq!(answer.body, expected);
    host.api.set_credentials(None);
    runtime.write(ask("open sesame")).await;
    assert_eq!(runtime.read().await.status, 404);

    let host = Host::start(Options::default()).await;
    let answer = host.client().await.get("/2021-04-23/credentials").await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("NotFound"), "{}", answer.body);
}

mod extensions;
mod hyper_client;
