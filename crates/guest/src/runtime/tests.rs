//! Both ends over a real pair of sockets, with a real HTTP client as the runtime.

mod hostile;
mod properties;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use runtime_api::{Event, Invocation, InvokeRefused, Options, Outcome, ShutdownReason, TooManyExtensions};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// Longest wait for anything that must happen; reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// The guest: a slot whose listener the test's runtimes talk to.
struct Guest {
    address: SocketAddr,
    slot: Slot,
}

impl Guest {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { address: listener.local_addr().unwrap(), slot: Slot::new(listener) }
    }

    /// Serves until the owner is gone, and comes back.
    fn serve(mut self, stream: UnixStream) -> JoinHandle<Self> {
        tokio::spawn(async move {
            let _ = serve_owner(stream, &mut self.slot, || {}).await;
            self
        })
    }
}

/// An owner on the host, and the guest that obeys it.
struct Pair {
    remote: Remote,
    events: mpsc::UnboundedReceiver<Event>,
    address: SocketAddr,
    guest: JoinHandle<Guest>,
}

impl Pair {
    fn open(options: Options) -> Self {
        let guest = Guest::new();
        let address = guest.address;
        let (here, there) = UnixStream::pair().unwrap();
        let guest = guest.serve(there);
        let (remote, events) = Remote::open(here, options);
        Self { remote, events, address, guest }
    }

    async fn event(&mut self) -> Event {
        soon("an event", self.events.recv()).await.expect("events ended")
    }

    async fn settled(&self) {
        soon("to settle", self.remote.settled()).await.unwrap();
    }
}

/// A runtime or an extension: hyper's client, as the official Rust runtime uses it.
struct Client(SendRequest<Full<Bytes>>);

/// A call that waits: the client again, the status, the invocation's id and its payload.
type AskingForWork = JoinHandle<Option<(Client, u16, String, Bytes)>>;
/// The same of an extension.
type AskingForEvent = JoinHandle<Option<(Client, Bytes)>>;

const NEXT: &str = "/2018-06-01/runtime/invocation/next";
const REGISTER: &str = "/2020-01-01/extension/register";
const EVENT_NEXT: &str = "/2020-01-01/extension/event/next";

fn response(id: &str) -> String {
    format!("/2018-06-01/runtime/invocation/{id}/response")
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// An answer's status, headers and body; none if the connection ended first.
    async fn try_send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Option<(u16, hyper::HeaderMap, Bytes)> {
        let mut request = Request::builder().method(method).uri(path).header("Host", "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        soon("a connection", self.0.ready()).await.ok()?;
        let answer = self.0.send_request(request.body(Full::new(body.into())).unwrap());
        let answer = soon("an answer", answer).await.ok()?;
        let (head, body) = answer.into_parts();
        Some((head.status.as_u16(), head.headers, soon("a body", body.collect()).await.ok()?.to_bytes()))
    }

    async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> u16 {
        self.try_send("POST", path, &[], body).await.expect("the connection ended").0
    }

    async fn register(&mut self, name: &str, events: &str) -> (u16, String) {
        let headers = [("Lambda-Extension-Name", name)];
        let body = format!("{{\"events\":{events}}}");
        let (status, headers, _) = self.try_send("POST", REGISTER, &headers, body).await.expect("the connection ended");
        let id = headers.get("lambda-extension-identifier").map(|id| id.to_str().unwrap().to_owned());
        (status, id.unwrap_or_default())
    }

    /// Asks for the next event in the background.
    fn event_next(mut self, id: String) -> AskingForEvent {
        tokio::spawn(async move {
            let headers = [("Lambda-Extension-Identifier", id.as_str())];
            let (_, _, body) = self.try_send("GET", EVENT_NEXT, &headers, "").await?;
            Some((self, body))
        })
    }

    /// Asks for the next invocation in the background; gives itself back with the status and the invocation's id.
    fn next(mut self) -> AskingForWork {
        tokio::spawn(async move {
            let (status, headers, body) = self.try_send("GET", NEXT, &[], "").await?;
            let id = headers.get("lambda-runtime-aws-request-id").map(|id| id.to_str().unwrap().to_owned());
            Some((self, status, id.unwrap_or_default(), body))
        })
    }
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

async fn outcome(receiver: oneshot::Receiver<Outcome>) -> Outcome {
    soon("an outcome", receiver).await.expect("the outcome was dropped")
}

async fn dropped(receiver: oneshot::Receiver<Outcome>) {
    soon("the outcome to be dropped", receiver).await.expect_err("an outcome came");
}

fn body_of(outcome: Outcome) -> Bytes {
    match outcome {
        Outcome::Response { body, .. } => body,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn invocations_go_there_and_answers_come_back() {
    let mut pair = Pair::open(Options::default());
    let mut runtime = Client::connect(pair.address).await;
    for round in 0..3 {
        let waiting = runtime.next();
        assert_eq!(pair.event().await, if round == 0 { Event::InitDone } else { Event::Idle });
        let id = format!("id-{round}");
        let extra = Invocation {
            content_type: Some("text/x".to_owned()),
            trace_id: Some("Root=1".to_owned()),
            client_context: Some("{\"c\":\"\u{e4}\"}".to_owned()),
            ..invocation(&id)
        };
        let receiver = pair.remote.invoke(extra).unwrap();
        assert_eq!(pair.remote.invoke(invocation("other")).unwrap_err(), InvokeRefused::Busy);
        let (mut back, status, got, payload) = waiting.await.unwrap().unwrap();
        assert_eq!((status, got.as_str(), &payload[..]), (200, id.as_str(), &b"{\"a\":1}"[..]));
        assert_eq!(back.post(&response(&id), "\"ok\"").await, 202);
        assert_eq!(body_of(outcome(receiver).await), "\"ok\"");
        runtime = back;
    }
}

#[tokio::test]
async fn several_invocations_are_answered_beside_each_other_and_abandoned_alone() {
    /// Two that wait for work, and then have it: by the ids of what they have.
    async fn at_work(waiting: [AskingForWork; 2]) -> HashMap<String, Client> {
        let mut clients = HashMap::new();
        for waiting in waiting {
            let (client, _, id, _) = waiting.await.unwrap().unwrap();
            clients.insert(id, client);
        }
        clients
    }
    let mut pair = Pair::open(Options { max_concurrency: 2, ..Options::default() });
    let waiting = [Client::connect(pair.address).await.next(), Client::connect(pair.address).await.next()];
    assert_eq!(pair.event().await, Event::InitDone);
    let [a, b] = ["a", "b"].map(|id| pair.remote.invoke(invocation(id)).unwrap());
    assert_eq!(pair.remote.invoke(invocation("c")).unwrap_err(), InvokeRefused::Busy);
    let mut clients = at_work(waiting).await;
    assert_eq!(clients.get_mut("b").unwrap().post(&response("b"), "2").await, 202);
    assert_eq!(body_of(outcome(b).await), "2");
    pair.remote.abandon_one("a");
    dropped(a).await;
    pair.settled().await;
    assert_eq!(clients.get_mut("a").unwrap().post(&response("a"), "1").await, 400);
    // Both go on.
    let outcomes = ["c", "d"].map(|id| pair.remote.invoke(invocation(id)).unwrap());
    let clients = at_work(["a", "b"].map(|id| clients.remove(id).unwrap().next())).await;
    pair.remote.abandon_one("c");
    pair.settled().await;
    assert_eq!(pair.events.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    pair.remote.abandon_one("d");
    pair.settled().await;
    assert_eq!(pair.events.try_recv(), Ok(Event::Stuck), "known when the abandonment is");
    drop((outcomes, clients));
}

#[tokio::test]
async fn every_kind_of_outcome_arrives_whole() {
    let mut pair = Pair::open(Options { response_limit: 64, ..Options::default() });
    let mut runtime = Client::connect(pair.address).await;
    let large = "x".repeat(65);
    let error = "{\"errorMessage\":\"m\"}";
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, Outcome);
    let cases: [Case<'_>; 4] = [
        (
            "response",
            &[("Content-Type", "text/plain")],
            "fine",
            Outcome::Response { body: "fine".into(), content_type: Some("text/plain".to_owned()), streaming: false },
        ),
        (
            "error",
            &[
                ("Lambda-Runtime-Function-Error-Type", "Function.Bad"),
                ("Lambda-Runtime-Function-XRay-Error-Cause", "{\"a\":\"b\"}"),
            ],
            error,
            Outcome::Error { error_type: "Function.Bad".to_owned(), body: error.into(), xray_cause: None },
        ),
        ("response", &[], &large, Outcome::ResponseTooLarge { limit: 64 }),
        ("response", &[("Lambda-Runtime-Function-Response-Mode", "bad")], "x", Outcome::InvalidResponseMode),
    ];
    for (round, (path, headers, body, expected)) in cases.into_iter().enumerate() {
        let waiting = runtime.next();
        pair.event().await;
        let receiver = pair.remote.invoke(invocation("a")).unwrap();
        let (mut back, ..) = waiting.await.unwrap().unwrap();
        let path = format!("/2018-06-01/runtime/invocation/a/{path}");
        back.try_send("POST", &path, headers, body.to_owned()).await;
        let got = match outcome(receiver).await {
            // What becomes of the cause is the API's affair; here it must not get into the body.
            Outcome::Error { error_type, body, .. } => Outcome::Error { error_type, body, xray_cause: None },
            other => other,
        };
        assert_eq!(got, expected, "case {round}");
        runtime = Client::connect(pair.address).await;
    }
}

#[tokio::test]
async fn large_payloads_pass_in_both_directions() {
    let pair = Pair::open(Options::default());
    let limit = Options::default().response_limit;
    let payload: Bytes = (0..limit).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    let mut runtime = Client::connect(pair.address).await;
    for id in ["a", "b"] {
        let receiver = pair.remote.invoke(Invocation { payload: payload.clone(), ..invocation(id) }).unwrap();
        let (mut back, _, _, event) = runtime.next().await.unwrap().unwrap();
        assert!(event == payload, "the event of {id} was changed on its way");
        assert_eq!(back.post(&response(id), event).await, 202);
        assert!(body_of(outcome(receiver).await) == payload, "the answer of {id} was changed on its way");
        runtime = back;
    }
}

#[tokio::test]
async fn an_abandoned_invocation_is_not_answered_and_the_next_one_is() {
    let mut pair = Pair::open(Options::default());
    let waiting = Client::connect(pair.address).await.next();
    assert_eq!(pair.event().await, Event::InitDone);
    let receiver = pair.remote.invoke(invocation("a")).unwrap();
    let (mut runtime, ..) = waiting.await.unwrap().unwrap();
    pair.remote.abandon();
    dropped(receiver).await;
    pair.settled().await;
    assert_eq!(runtime.post(&response("a"), "late").await, 400);
    let receiver = pair.remote.invoke(invocation("b")).unwrap();
    let (mut runtime, _, id, _) = runtime.next().await.unwrap().unwrap();
    assert_eq!(id, "b");
    assert_eq!(runtime.post(&response("b"), "1").await, 202);
    assert_eq!(body_of(outcome(receiver).await), "1");
}

#[tokio::test]
async fn after_a_reset_nothing_of_the_old_runtime_is_heard() {
    let mut pair = Pair::open(Options::default());
    let waiting = Client::connect(pair.address).await.next();
    assert_eq!(pair.event().await, Event::InitDone);
    let receiver = pair.remote.invoke(invocation("a")).unwrap();
    let (mut runtime, ..) = waiting.await.unwrap().unwrap();
    // The answer and the call after it are in the guest before it hears of the reset, but the host has asked for that.
    assert_eq!(runtime.post(&response("a"), "1").await, 202);
    let _asking = runtime.next();
    pair.remote.reset();
    pair.settled().await;
    assert_eq!(pair.events.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    drop(receiver);
    let waiting = Client::connect(pair.address).await.next();
    assert_eq!(pair.event().await, Event::InitDone);
    let receiver = pair.remote.invoke(invocation("b")).unwrap();
    let (mut runtime, _, id, _) = waiting.await.unwrap().unwrap();
    assert_eq!(id, "b");
    assert_eq!(runtime.post(&response("b"), "2").await, 202);
    assert_eq!(body_of(outcome(receiver).await), "2");
}

#[tokio::test]
async fn an_invocation_that_no_runtime_has_seen_outlives_a_reset() {
    let pair = Pair::open(Options::default());
    let receiver = pair.remote.invoke(invocation("a")).unwrap();
    pair.remote.reset();
    pair.settled().await;
    assert_eq!(pair.remote.invoke(invocation("b")).unwrap_err(), InvokeRefused::Busy);
    let (mut runtime, _, id, _) = Client::connect(pair.address).await.next().await.unwrap().unwrap();
    assert_eq!(id, "a");
    assert_eq!(runtime.post(&response("a"), "1").await, 202);
    assert_eq!(body_of(outcome(receiver).await), "1");
}

#[tokio::test]
async fn extensions_are_known_when_an_event_needs_them() {
    let mut pair = Pair::open(Options::default());
    pair.remote.expect_extensions(["e".to_owned()]).unwrap();
    assert_eq!(pair.remote.extensions().external[0].state, "Started");
    pair.settled().await;
    let mut extension = Client::connect(pair.address).await;
    let (status, id) = extension.register("e", "[\"INVOKE\",\"SHUTDOWN\"]").await;
    assert_eq!(status, 200);
    assert_eq!(pair.event().await, Event::ExtensionsRegistered);
    let known = pair.remote.extensions();
    assert_eq!((known.external[0].state, known.external[0].shutdown), ("Registered", true));

    let mut internal = Client::connect(pair.address).await;
    assert_eq!(internal.register("i", "[\"INVOKE\"]").await.0, 200);
    assert_eq!(internal.register("i", "[]").await.0, 403);
    // No event tells of an internal one, and yet it becomes known.
    soon("the list", async {
        while pair.remote.extensions().internal.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let too_many = (0..9).map(|n| n.to_string());
    assert_eq!(pair.remote.expect_extensions(too_many), Err(TooManyExtensions));

    let waiting = extension.event_next(id);
    assert_eq!(pair.remote.shutdown_extensions(ShutdownReason::Timeout, 42), 1);
    assert_eq!(pair.remote.invoke(invocation("a")).unwrap_err(), InvokeRefused::ShuttingDown);
    let (_, event) = waiting.await.unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_slice(&event).unwrap();
    assert_eq!((&event["shutdownReason"], &event["deadlineMs"]), (&"timeout".into(), &42.into()));
    pair.remote.reset();
    assert_eq!(pair.remote.extensions(), Default::default());
    pair.remote.invoke(invocation("a")).unwrap();
}

#[tokio::test]
async fn announcing_extensions_after_the_init_phase_is_refused() {
    let mut pair = Pair::open(Options::default());
    let _waiting = Client::connect(pair.address).await.next();
    assert_eq!(pair.event().await, Event::InitDone);
    assert_eq!(pair.remote.expect_extensions(["e".to_owned()]), Err(TooManyExtensions));
}

#[tokio::test]
async fn closing_ends_the_api_and_everything_that_waits_for_it() {
    let mut pair = Pair::open(Options::default());
    let waiting = Client::connect(pair.address).await.next();
    assert_eq!(pair.event().await, Event::InitDone);
    let receiver = pair.remote.invoke(invocation("a")).unwrap();
    let (runtime, ..) = waiting.await.unwrap().unwrap();
    let other = runtime.next();
    pair.remote.close();
    dropped(receiver).await;
    assert_eq!(soon("the end", pair.events.recv()).await, None);
    assert_eq!(pair.remote.invoke(invocation("b")).unwrap_err(), InvokeRefused::Closed);
    assert_eq!(pair.remote.settled().await, Err(Unsettled));
    let _ = soon("the runtime's connection", other).await;
    let guest = soon("the guest", pair.guest).await.unwrap();
    // Nothing to attach to.
    let (here, there) = UnixStream::pair().unwrap();
    let _guest = guest.serve(there);
    let (remote, mut events) = Remote::attach(here);
    assert_eq!(soon("the end", events.recv()).await, None);
    assert_eq!(remote.invoke(invocation("b")).unwrap_err(), InvokeRefused::Closed);
}

#[tokio::test]
async fn dropping_the_last_handle_closes() {
    let pair = Pair::open(Options::default());
    drop(pair.remote.clone());
    pair.settled().await;
    drop(pair.remote);
    soon("the guest", pair.guest).await.unwrap();
}

#[tokio::test]
async fn an_api_outlives_its_owners_stream_and_can_be_attached_to() {
    let guest = Guest::new();
    let address = guest.address;
    let (here, there) = UnixStream::pair().unwrap();
    let (cut, wire) = UnixStream::pair().unwrap();
    let serving = guest.serve(there);
    // As over vsock: the stream breaks without the guest being told to close.
    let relay = tokio::spawn(async move {
        let (mut here, mut wire) = (here, wire);
        let _ = tokio::io::copy_bidirectional(&mut here, &mut wire).await;
    });
    let (old, mut events) = Remote::open(cut, Options::default());
    old.expect_extensions(["e".to_owned()]).unwrap();
    old.settled().await.unwrap();
    let mut extension = Client::connect(address).await;
    let (_, id) = extension.register("e", "[\"INVOKE\"]").await;
    assert_eq!(soon("an event", events.recv()).await, Some(Event::ExtensionsRegistered));
    relay.abort();
    assert_eq!(soon("the end", events.recv()).await, None);
    assert_eq!(old.invoke(invocation("x")).unwrap_err(), InvokeRefused::Closed);
    let guest = soon("the guest", serving).await.unwrap();

    // Happens while nobody listens, and is told later.
    let asking = extension.event_next(id);
    let waiting = Client::connect(address).await.next();
    let (here, there) = UnixStream::pair().unwrap();
    let _serving = guest.serve(there);
    let (remote, mut events) = Remote::attach(here);
    soon("to settle", remote.settled()).await.unwrap();
    assert_eq!(remote.extensions().external[0].name, "e");
    assert_eq!(soon("an event", events.recv()).await, Some(Event::InitDone));
    let receiver = remote.invoke(invocation("a")).unwrap();
    let (mut runtime, _, id, _) = waiting.await.unwrap().unwrap();
    assert_eq!(id, "a");
    assert!(asking.await.unwrap().is_some());
    assert_eq!(runtime.post(&response("a"), "1").await, 202);
    assert_eq!(body_of(outcome(receiver).await), "1");
}

#[tokio::test]
async fn a_runtime_waits_for_its_restore_and_gets_credentials_from_the_next_owner() {
    let guest = Guest::new();
    let address = guest.address;
    let (here, there) = UnixStream::pair().unwrap();
    let (cut, wire) = UnixStream::pair().unwrap();
    let serving = guest.serve(there);
    let relay = tokio::spawn(async move {
        let (mut here, mut wire) = (here, wire);
        let _ = tokio::io::copy_bidirectional(&mut here, &mut wire).await;
    });
    let options = Options { snapshot: true, credentials_token: Some("token".to_owned()), ..Options::default() };
    let (old, mut events) = Remote::open(cut, options);
    soon("to settle", old.settled()).await.unwrap();
    let mut runtime = Client::connect(address).await;
    let waiting = tokio::spawn(async move {
        let answer = runtime.try_send("GET", "/2018-06-01/runtime/restore/next", &[], "").await;
        (runtime, answer.map(|(status, _, _)| status))
    });
    assert_eq!(soon("an event", events.recv()).await, Some(Event::RestoreReady));
    relay.abort();
    assert_eq!(soon("the end", events.recv()).await, None);
    drop(old);
    let guest = soon("the guest", serving).await.unwrap();

    let (here, there) = UnixStream::pair().unwrap();
    let _serving = guest.serve(there);
    let (remote, mut events) = Remote::attach(here);
    remote.set_credentials(Some(runtime_api::Credentials {
        access_key_id: "ASIAFRESH".to_owned(),
        secret_access_key: "s".to_owned(),
        session_token: "t".to_owned(),
        expiration: "2026-01-02T03:04:05Z".to_owned(),
    }));
    remote.restore();
    let (mut runtime, status) = soon("the release", waiting).await.unwrap();
    assert_eq!(status, Some(200));
    let headers = [("Authorization", "token")];
    let (status, _, body) = runtime.try_send("GET", "/2021-04-23/credentials", &headers, "").await.unwrap();
    assert!(status == 200 && body.starts_with(br#"{"AccessKeyId":"ASIAFRESH""#), "{status} {body:?}");
    let _waiting = runtime.next();
    assert_eq!(soon("an event", events.recv()).await, Some(Event::InitDone));
    // Where no runtime waits, the guest refuses, and is given up.
    remote.restore();
    assert_eq!(soon("the end", events.recv()).await, None);
}

#[tokio::test]
async fn opening_again_starts_afresh() {
    let guest = Guest::new();
    let address = guest.address;
    let mut guest = Some(guest);
    for _ in 0..3 {
        let (here, there) = UnixStream::pair().unwrap();
        let serving = guest.take().unwrap().serve(there);
        let (remote, mut events) = Remote::open(here, Options::default());
        remote.settled().await.unwrap();
        let _waiting = Client::connect(address).await.next();
        assert_eq!(soon("an event", events.recv()).await, Some(Event::InitDone));
        drop(remote);
        guest = Some(soon("the guest", serving).await.unwrap());
    }
}
