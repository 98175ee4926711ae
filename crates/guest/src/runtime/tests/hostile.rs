//! A guest that lies, floods, stalls or goes away.

use tokio::io::AsyncWriteExt;

use super::super::wire::{EventForm, OutcomeForm, Report};
use super::*;
use crate::frame;

/// A remote whose guest is the test.
fn remote() -> (Remote, mpsc::UnboundedReceiver<Event>, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    let (remote, events) = Remote::open(here, Options::default());
    (remote, events, there)
}

async fn say(stream: &mut UnixStream, taken: u64, report: Report, body: &[u8]) {
    // The host may have hung up already.
    let _ = frame::write(stream, &(taken, report), body).await;
}

/// Everything ends: the invocation in hand, the events, the waiting.
async fn given_up(remote: Remote, mut events: mpsc::UnboundedReceiver<Event>, receiver: oneshot::Receiver<Outcome>) {
    dropped(receiver).await;
    soon("the events to end", async { while events.recv().await.is_some() {} }).await;
    assert_eq!(soon("to settle", remote.settled()).await, Err(Unsettled));
    assert_eq!(remote.invoke(invocation("x")).unwrap_err(), InvokeRefused::Closed);
    remote.abandon();
    remote.reset();
    remote.close();
}

#[tokio::test]
async fn lies_end_everything() {
    let nonsense_list =
        br#"{"external":[{"name":"e","state":"Root","invoke":true,"shutdown":true,"error_type":null}],"internal":[]}"#;
    let one = r#"{"name":"e","state":"Ready","invoke":true,"shutdown":true,"error_type":null}"#;
    let long_list = format!(r#"{{"external":[{}],"internal":[]}}"#, [one; 11].join(","));
    let short_cause = OutcomeForm::Error { error_type: String::new(), cause: Some(2) };
    let lies: Vec<(Report, u64, Vec<u8>)> = vec![
        (Report::Taken, 3, vec![]),
        (Report::Refused, 1, vec![]),
        (Report::Outcome { number: 1, outcome: short_cause }, 2, b"x".to_vec()),
        (Report::Event(EventForm::InitError { error_type: String::new() }), 1, vec![b'x'; (512 << 10) + 1]),
        (Report::Extensions, 1, nonsense_list.to_vec()),
        (Report::Extensions, 1, long_list.into_bytes()),
        (Report::Extensions, 1, b"nonsense".to_vec()),
        (Report::Extensions, 1, vec![b' '; 1 << 20]),
    ];
    for (report, taken, body) in lies {
        let (remote, events, mut guest) = remote();
        let receiver = remote.invoke(invocation("a")).unwrap();
        say(&mut guest, taken, report, &body).await;
        given_up(remote, events, receiver).await;
    }
}

#[tokio::test]
async fn bytes_that_are_no_messages_end_everything() {
    for bytes in [&b"\xff\xff\xff\xff\0\0\0\0"[..], b"\x02\0\0\0\0\0\0\0{}", b"\0\0\0\0\xff\xff\xff\xff", b"\x02\0"] {
        let (remote, events, mut guest) = remote();
        let receiver = remote.invoke(invocation("a")).unwrap();
        guest.write_all(bytes).await.unwrap();
        if bytes.len() < 8 {
            drop(guest);
        }
        given_up(remote, events, receiver).await;
    }
}

#[tokio::test]
async fn the_end_of_the_stream_ends_everything() {
    let (remote, events, guest) = remote();
    let receiver = remote.invoke(invocation("a")).unwrap();
    drop(guest);
    given_up(remote, events, receiver).await;
}

#[tokio::test]
async fn counting_backwards_is_a_lie() {
    let (remote, events, mut guest) = remote();
    let receiver = remote.invoke(invocation("a")).unwrap();
    say(&mut guest, 1, Report::Taken, &[]).await;
    soon("to settle", remote.settled()).await.unwrap();
    say(&mut guest, 0, Report::Taken, &[]).await;
    given_up(remote, events, receiver).await;
}

#[tokio::test]
async fn a_flood_of_events_ends_before_it_fills_the_memory() {
    let (remote, mut events, mut guest) = remote();
    for _ in 0..100 {
        say(&mut guest, 1, Report::Event(EventForm::Idle), &[]).await;
    }
    let mut count = 0;
    soon("the events to end", async {
        while events.recv().await.is_some() {
            count += 1;
        }
    })
    .await;
    assert_eq!(count, 32);
    drop(remote);
}

#[tokio::test]
async fn a_guest_that_does_not_read_is_given_up_before_it_fills_the_memory() {
    let (remote, mut events, _guest) = remote();
    let payload = Bytes::from(vec![0; 6 << 20]);
    let mut rounds = 0;
    let refused = loop {
        match remote.invoke(Invocation { payload: payload.clone(), ..invocation("a") }) {
            Ok(_) => remote.abandon(),
            Err(refused) => break refused,
        }
        rounds += 1;
        assert!(rounds < 100, "it is never given up");
    };
    assert_eq!(refused, InvokeRefused::Closed);
    assert_eq!(soon("the end", events.recv()).await, None);
}

#[tokio::test]
async fn an_answer_to_another_invocation_is_ignored() {
    let (remote, mut events, mut guest) = remote();
    let receiver = remote.invoke(invocation("a")).unwrap();
    let answer = |number| {
        let outcome = OutcomeForm::Response { content_type: None, streaming: false };
        Report::Outcome { number, outcome }
    };
    say(&mut guest, 2, answer(7), b"other").await;
    say(&mut guest, 2, answer(0), b"other").await;
    say(&mut guest, 2, answer(1), b"right").await;
    say(&mut guest, 2, answer(1), b"twice").await;
    say(&mut guest, 2, Report::Event(EventForm::Idle), &[]).await;
    assert_eq!(body_of(outcome(receiver).await), "right");
    assert_eq!(soon("an event", events.recv()).await, Some(Event::Idle));
}

#[tokio::test]
async fn what_was_written_before_a_reset_was_taken_is_not_delivered() {
    let (remote, mut events, mut guest) = remote();
    let receiver = remote.invoke(invocation("a")).unwrap();
    remote.reset();
    remote.expect_extensions(["e".to_owned()]).unwrap();
    let answer = OutcomeForm::Response { content_type: None, streaming: false };
    say(&mut guest, 2, Report::Event(EventForm::InitDone), &[]).await;
    say(&mut guest, 2, Report::Outcome { number: 1, outcome: answer }, b"lost").await;
    say(&mut guest, 3, Report::Extensions, b"{\"external\":[],\"internal\":[]}").await;
    say(&mut guest, 4, Report::Event(EventForm::ExtensionsRegistered), &[]).await;
    dropped(receiver).await;
    assert_eq!(soon("an event", events.recv()).await, Some(Event::ExtensionsRegistered));
    assert_eq!(remote.extensions().external.len(), 1);
}
