//! The Runtime API in the agent: a shell is the runtime, the test is the owner.

use bytes::Bytes;
use guest::control::{RUNTIME, Request};
use guest::runtime::Remote;
use runtime_api::{Event, Invocation, Options, Outcome};

use super::support::{Agent, shell, soon};

/// Takes invocations and answers them, and says so before.
const RUNTIME_SCRIPT: &str = r#"
exec 3<>/dev/tcp/127.0.0.1/9001
answer() { length=0; while IFS= read -r line <&3; do line=${line%$'\r'}
    case $line in '') break;; Lambda-Runtime-Aws-Request-Id:*) id=${line#*: };; Content-Length:*) length=${line#*: };; esac; done
    IFS= read -r -N "$length" body <&3; }
while :; do
    printf 'GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n' >&3; answer
    echo "got $id"
    printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nyes' "$id" >&3; answer
done
"#;

async fn event(events: &mut tokio::sync::mpsc::UnboundedReceiver<Event>) -> Option<Event> {
    soon("an event", events.recv()).await
}

#[tokio::test]
async fn what_a_function_wrote_is_there_before_its_answer() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    let (remote, mut events) = Remote::open(agent.connect(RUNTIME).await, Options::default());
    soon("to settle", remote.settled()).await.unwrap();
    host.start(shell(1, RUNTIME_SCRIPT)).await;
    let stdout = agent.stream(10).await;
    assert_eq!(event(&mut events).await, Some(Event::InitDone));
    for round in 0..20 {
        let id = format!("id-{round}");
        let invocation =
            Invocation { request_id: id.clone(), payload: Bytes::from_static(b"{}"), ..Invocation::default() };
        let outcome = soon("an outcome", remote.invoke(invocation).unwrap()).await.unwrap();
        assert!(matches!(outcome, Outcome::Response { body, .. } if body == "yes"));
        let mut line = [0; 64];
        soon("the log", stdout.readable()).await.unwrap();
        let length = stdout.try_read(&mut line).unwrap();
        assert_eq!(std::str::from_utf8(&line[..length]).unwrap(), format!("got {id}\n"));
        assert_eq!(event(&mut events).await, Some(Event::Idle));
    }
    eprintln!("the agent has {} KiB resident", agent.resident_kib());
}

#[tokio::test]
async fn the_api_survives_its_connection() {
    let Some(agent) = Agent::start().await else { return };
    let mut host = agent.host().await;
    let stream = agent.connect(RUNTIME).await;
    let fd = rustix::io::dup(&stream).unwrap();
    let (old, mut events) = Remote::open(stream, Options::default());
    host.start(shell(1, RUNTIME_SCRIPT)).await;
    assert_eq!(event(&mut events).await, Some(Event::InitDone));
    // The machine was restored: the connection is gone without anybody having closed the API.
    rustix::net::shutdown(&fd, rustix::net::Shutdown::Both).unwrap();
    assert_eq!(event(&mut events).await, None);
    drop(old);
    let (remote, mut events) = Remote::attach(agent.connect(RUNTIME).await);
    let invocation = Invocation { request_id: "a".to_owned(), ..Invocation::default() };
    let outcome = soon("an outcome", remote.invoke(invocation).unwrap()).await.unwrap();
    assert!(matches!(outcome, Outcome::Response { body, .. } if body == "yes"));
    assert_eq!(event(&mut events).await, Some(Event::Idle));
    host.ask(Request::KillAll).await;
}
