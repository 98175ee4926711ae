//! Frames that arrive whole, in pieces, cut off, or lying.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, duplex};

use super::*;

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn encoded(message: &str, body: &[u8]) -> Vec<u8> {
    [&head(&message, body.len()).unwrap()[..], body].concat()
}

proptest! {
    #[test]
    fn frames_arrive_as_they_were_sent_however_they_are_cut(
        frames in proptest::collection::vec((".{0,40}", proptest::collection::vec(any::<u8>(), 0..300)), 0..6),
        room in 1..64usize,
    ) {
        run(async {
            let (mut here, there) = duplex(room);
            let sent = frames.clone();
            let writing = tokio::spawn(async move {
                for (message, body) in &sent {
                    write(&mut here, message, body).await.unwrap();
                }
            });
            let mut reader = Reader::new(there, 300);
            for (message, body) in &frames {
                let (got, bytes) = reader.next::<String>().await.unwrap();
                assert_eq!((&got, &bytes[..]), (message, &body[..]));
            }
            writing.await.unwrap();
            assert!(matches!(reader.next::<String>().await, Err(ReadError::Ended)));
        });
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        run(async {
            let mut reader = Reader::new(&bytes[..], 64);
            while reader.next::<serde_json::Value>().await.is_ok() {}
        });
    }
}

#[tokio::test]
async fn an_end_inside_a_frame_is_not_an_end() {
    let whole = encoded("message", b"body");
    for length in 1..whole.len() {
        let mut reader = Reader::new(&whole[..length], 64);
        assert!(matches!(reader.next::<String>().await, Err(ReadError::Broken(_))), "cut at {length}");
    }
    assert!(matches!(Reader::new(&b""[..], 64).next::<String>().await, Err(ReadError::Ended)));
}

#[tokio::test]
async fn announced_lengths_are_believed_up_to_the_limit_only() {
    for (header, body) in [(MAX_HEADER as u32 + 1, 0), (u32::MAX, u32::MAX), (0, 65)] {
        let bytes = [header.to_le_bytes(), body.to_le_bytes()].concat();
        let error = Reader::new(&bytes[..], 64).next::<String>().await.unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_announced_length_takes_no_memory_before_its_bytes_come() {
    let bytes = [(MAX_HEADER as u32).to_le_bytes(), (1u32 << 30).to_le_bytes()].concat();
    let (mut here, there) = duplex(64);
    let mut reader = Reader::new(there, 1 << 30);
    AsyncWriteExt::write_all(&mut here, &bytes).await.unwrap();
    tokio::select! {
        biased;
        _ = reader.next::<String>() => panic!("there is no frame yet"),
        () = tokio::task::yield_now() => {}
    }
    assert!(reader.buffer.capacity() <= 2 * ROOM, "{}", reader.buffer.capacity());
}

#[tokio::test]
async fn a_dropped_read_loses_nothing() {
    let bytes = encoded("message", b"body");
    let (mut here, there) = duplex(64);
    let mut reader = Reader::new(there, 64);
    for part in bytes.chunks(3) {
        AsyncWriteExt::write_all(&mut here, part).await.unwrap();
        if part.len() == 3 && part != &bytes[bytes.len() - 3..] {
            tokio::select! {
                biased;
                got = reader.next::<String>() => assert_eq!(got.unwrap().0, "message"),
                () = tokio::task::yield_now() => continue,
            }
            return;
        }
    }
    assert_eq!(reader.next::<String>().await.unwrap().1, &b"body"[..]);
}

#[tokio::test]
async fn headers_that_are_too_large_are_not_sent() {
    let error = head(&"x".repeat(MAX_HEADER), 0).unwrap_err();
    assert!(matches!(error, EncodeError::TooLarge { .. }));
    let (mut here, mut there) = duplex(64);
    write(&mut here, &"x".repeat(MAX_HEADER), b"").await.unwrap_err();
    drop(here);
    let mut rest = Vec::new();
    there.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}
