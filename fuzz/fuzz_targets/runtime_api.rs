//! Any bytes as what a runtime sends to its Runtime API, and any order of steps of the machine behind it.
#![no_main]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use runtime_api::machine::{Action, CallId, Input, Machine};
use runtime_api::{ExtensionPhase, Invocation, Options, Outcome, RuntimeApi, ShutdownReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    if mode & 1 == 0 { steps(mode & 2 != 0, if mode & 4 == 0 { 1 } else { 3 }, rest) } else { server(mode & 2 != 0, mode & 4 != 0, rest) }
});

/// Each pair of bytes is a step. The books must agree with the machine whatever the order.
fn steps(snapshot: bool, concurrency: usize, bytes: &[u8]) {
    let mut machine = Machine::with_concurrency(snapshot, concurrency);
    let mut waiting = BTreeSet::new();
    let (mut taken, mut ended) = (0u64, 0u64);
    for (number, pair) in bytes.chunks_exact(2).take(512).enumerate() {
        let (fresh, old) = (CallId(number as u64), CallId(u64::from(pair[1])));
        let id = Uuid::from_u128(u128::from(pair[1] % 4));
        let request_id = (pair[1] % 4).to_string();
        let (error_type, body) = ("Runtime.Unknown".to_owned(), Bytes::new());
        let input = match pair[0] % 18 {
            0 => Input::Next { call: fresh },
            1 => Input::CallLost { call: old },
            2 => Input::ResponseBegins { call: fresh, request_id },
            3 => Input::ErrorBegins { call: fresh, request_id },
            4 => Input::AnswerEnds { call: old, outcome: Outcome::Truncated },
            5 => Input::InitError { error_type, body },
            6 => Input::RestoreNext { call: fresh },
            7 => Input::RestoreError { error_type, body },
            8 | 9 => Input::Invoke(Arc::new(Invocation { request_id, ..Invocation::default() })),
            10 => Input::Abandon { request_id },
            11 => Input::Restore,
            12 => Input::Reset,
            13 => Input::ExpectExtensions(vec![request_id]),
            14 => Input::Shutdown { reason: ShutdownReason::Failure, deadline_ms: 1 },
            15 => Input::Register { name: request_id, id, events: vec!["INVOKE".to_owned()] },
            16 => Input::EventNext { call: fresh, id },
            _ => Input::ExtensionFailed { id, error_type, body, phase: ExtensionPhase::Exit },
        };
        let waits = matches!(input, Input::Next { .. } | Input::RestoreNext { .. } | Input::EventNext { .. });
        if waits {
            waiting.insert(fresh);
        }
        if let Input::CallLost { call } = input {
            waiting.remove(&call);
        }
        let takes = matches!(input, Input::Invoke(_));
        let before = format!("{machine:?}");
        let Ok(actions) = machine.step(input) else {
            assert_eq!(format!("{machine:?}"), before, "a refusal changed the machine");
            waiting.remove(&fresh);
            continue;
        };
        taken += u64::from(takes);
        for action in actions {
            match action {
                Action::Deliver { call, .. }
                | Action::Release { call }
                | Action::DeliverEvent { call, .. }
                | Action::HangUp { call } => assert!(waiting.remove(&call), "{call:?} did not wait"),
                Action::Complete { .. } | Action::DropOutcome { .. } => ended += 1,
                Action::Emit(_) => {}
            }
        }
        assert_eq!(taken, ended + machine.in_hand() as u64, "an invocation was lost or answered twice");
    }
}

/// The bytes go to a server, perhaps behind a proper `next` for an invocation called `0`; it must answer or hang up.
fn server(invoke: bool, snapshot: bool, bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let options = Options { response_limit: 64, snapshot, ..Options::default() };
        let (api, _events) = RuntimeApi::serve(listener, options);
        let mut client = TcpStream::connect(address).await.expect("the server listens");
        let outcome = invoke.then(|| {
            let invocation = Invocation { request_id: "0".to_owned(), ..Invocation::default() };
            api.invoke(invocation).expect("a new environment takes an invocation")
        });
        if invoke {
            let next = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n";
            client.write_all(next).await.expect("the server reads");
        }
        // The server may hang up on nonsense at any byte; that ends the writing and the reading alike.
        let talk = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut Vec::new()).await;
        };
        tokio::time::timeout(Duration::from_secs(10), talk).await.expect("the server neither answered nor hung up");
        api.close();
        if let Some(outcome) = outcome {
            // Answered or dropped, but not left hanging.
            let _ = tokio::time::timeout(Duration::from_secs(10), outcome).await.expect("an outcome was left behind");
        }
    });
}
