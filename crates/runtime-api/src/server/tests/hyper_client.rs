//! A client that is not ours: hyper's, as the official Rust runtime uses it.

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;

use super::*;

async fn connect(host: &Host) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(host.address).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, method: &str, path: &str, body: Bytes) -> (u16, Bytes) {
    let request = Request::builder().method(method).uri(path).header("Host", "x").body(Full::new(body)).unwrap();
    sender.ready().await.unwrap();
    let response = timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
    let status = response.status().as_u16();
    (status, timeout(DEADLINE, response.into_body().collect()).await.unwrap().unwrap().to_bytes())
}

#[tokio::test]
async fn large_payloads_pass_in_both_directions() {
    let host = Host::start(Options::default()).await;
    let limit = Options::default().response_limit;
    let payload: Bytes = (0..limit).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    let mut runtime = connect(&host).await;
    for (id, length) in [("a", limit), ("b", limit + 1), ("c", limit)] {
        let receiver = host.api.invoke(Invocation { payload: payload.clone(), ..invocation(id) }).unwrap();
        let (status, event) = send(&mut runtime, "GET", NEXT, Bytes::new()).await;
        assert_eq!(status, 200);
        assert!(event == payload, "the event of {id} was changed on its way");
        let mut body = event.to_vec();
        body.resize(length, b'x');
        let (status, _) = send(&mut runtime, "POST", &response(id), body.into()).await;
        match outcome(receiver).await {
            Outcome::Response { body, .. } => {
                assert!(status == 202 && body == payload, "the answer of {id} was changed on its way");
            }
            other => {
                assert_eq!((id, status, other), ("b", 413, Outcome::ResponseTooLarge { limit }));
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_does_not_take_the_invocation_with_it() {
    let mut host = Host::start(Options::default()).await;
    let mut impatient = connect(&host).await;
    let request = Request::get(NEXT).header("Host", "x").body(Full::default()).unwrap();
    let waiting = tokio::spawn(async move { impatient.send_request(request).await.map(drop) });
    assert_eq!(host.event().await, Event::InitDone);
    waiting.abort();
    let receiver = host.api.invoke(invocation("a")).unwrap();
    let mut patient = connect(&host).await;
    assert_eq!(send(&mut patient, "GET", NEXT, Bytes::new()).await.0, 200);
    assert_eq!(send(&mut patient, "POST", &response("a"), Bytes::from_static(b"1")).await.0, 202);
    outcome(receiver).await;
}
