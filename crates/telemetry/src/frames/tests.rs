//! Frames and lines: what writers produce comes back, and garbage does no harm.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A frame as a runtime client writes it.
fn encode(kind: u32, timestamp_us: u64, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), &timestamp_us.to_be_bytes(), message].concat()
}

fn parse(chunks: &[&[u8]]) -> Vec<Frame> {
    let mut parser = FrameParser::new();
    let mut frames: Vec<_> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
    frames.extend(parser.finish());
    frames
}

fn frame(framing: Framing, level: Option<Level>, timestamp_us: Option<u64>, message: &str) -> Frame {
    Frame { framing, level, timestamp_us, message: message.into() }
}

#[test]
fn reads_every_type() {
    let levels = [
        (0x00, None),
        (0x04, Some(Level::Trace)),
        (0x08, Some(Level::Debug)),
        (0x0c, Some(Level::Info)),
        (0x10, Some(Level::Warn)),
        (0x14, Some(Level::Error)),
        (0x18, Some(Level::Fatal)),
    ];
    for (bits, level) in levels {
        for (low, framing) in [(3, Framing::Text), (2, Framing::Json)] {
            let bytes = encode(0xa55a_0000 | bits | low, 1_665_532_815_064_123, "two\nlines é".as_bytes());
            assert_eq!(parse(&[&bytes]), [frame(framing, level, Some(1_665_532_815_064_123), "two\nlines é")]);
        }
    }
    assert_eq!(parse(&[&encode(0xa55a_0017, 5, b"")]), [frame(Framing::Text, Some(Level::Error), Some(5), "")]);
}

#[test]
fn stray_bytes_become_lines_and_frames_go_on() {
    let good = encode(0xa55a_0003, 1, b"good");
    let endless = encode(0xa55a_0003, 1, b"")[..4].iter().copied().chain([0xff; 12]).collect::<Vec<_>>();
    let unknown = encode(0xa55a_001f, 1, b"x");
    let frames = parse(&[b"one\ntwo", &good, &endless, &good, &unknown, b"\xa5\x5a", &good, b"end\xa5"]);
    let messages: Vec<_> = frames.iter().map(|frame| frame.message.as_str()).collect();
    let good_at: Vec<_> = (0..frames.len()).filter(|&i| messages[i] == "good").collect();
    assert_eq!(good_at.len(), 3, "{messages:?}");
    assert!(good_at.iter().all(|&i| frames[i].framing == Framing::Text));
    assert_eq!(messages[..3], ["one\n", "two", "good"]);
    assert_eq!(frames[0].framing, Framing::Raw);
    assert_eq!(*messages.last().unwrap(), "end\u{fffd}");
}

#[test]
fn long_messages_are_cut_between_characters() {
    let text = "é".repeat(MAX_EVENT_BYTES / 2 + 10) + "x";
    let text = format!("y{text}");
    let frames = parse(&[&encode(0xa55a_000b, 9, text.as_bytes())]);
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].message.len(), MAX_EVENT_BYTES - 1);
    assert_eq!(frames.iter().map(|frame| frame.message.as_str()).collect::<String>(), text);
    assert!(frames.iter().all(|frame| frame.timestamp_us == Some(9) && frame.level == Some(Level::Debug)));
    let mut lines = LineSplitter::new();
    let pieces = lines.push(text.as_bytes());
    assert_eq!(pieces.len(), 1);
    assert_eq!(pieces[0].len(), MAX_EVENT_BYTES - 1);
    assert_eq!(pieces[0].clone() + &lines.finish().unwrap(), text);
    // Exactly the limit is one event, and no empty one follows.
    let exact = vec![b'x'; MAX_EVENT_BYTES];
    assert_eq!(parse(&[&encode(0xa55a_0003, 9, &exact)]).len(), 1);
    let two = vec![b'x'; 2 * MAX_EVENT_BYTES];
    assert_eq!(parse(&[&encode(0xa55a_0003, 9, &two)]).len(), 2);
}

#[test]
fn memory_stays_bounded() {
    let mut parser = FrameParser::new();
    let mut header = encode(0xa55a_0003, 1, b"");
    header[4..8].copy_from_slice(&MAX_FRAME_BYTES.to_be_bytes());
    parser.push(&header);
    let mut events = 0;
    for _ in 0..200 {
        // Continuation bytes only: there is no character to cut between.
        events += parser.push(&[0x80; 64 * 1024]).len();
        assert!(parser.body.as_ref().is_none_or(|body| body.message.len() <= MAX_EVENT_BYTES));
    }
    assert_eq!(events, 200 * 64 / 256);
    let mut lines = LineSplitter::new();
    for _ in 0..100 {
        lines.push(&[0xe2; 64 * 1024]);
        assert!(lines.partial.len() <= MAX_EVENT_BYTES);
    }
}

#[test]
fn stray_bytes_cost_little() {
    // Processor time of this thread, so that a busy machine does not count.
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
    };
    let chunk = vec![b'y'; 16 * 1024];
    let mut parser = FrameParser::new();
    let began = now();
    let bytes: usize = (0..1024).flat_map(|_| parser.push(&chunk)).map(|frame| frame.message.len()).sum();
    let spent = now() - began;
    assert!(bytes >= 15 << 20, "{bytes}");
    // Byte by byte it was 8 s in a debug build; in one go it is some hundredths of that.
    assert!(spent < Duration::from_secs(3), "{spent:?}");
}

#[test]
fn an_unfinished_frame_is_not_lost() {
    let bytes = encode(0xa55a_0003, 1, b"killed in the middle");
    assert_eq!(parse(&[&bytes[..22]]), [frame(Framing::Text, None, Some(1), "killed")]);
}

#[test]
fn lines_keep_their_newline() {
    let mut lines = LineSplitter::new();
    assert_eq!(lines.push(b"a\n\nb"), ["a\n", "\n"]);
    assert_eq!(lines.push(b"c\r\n\xff\n"), ["bc\r\n", "\u{fffd}\n"]);
    assert_eq!(lines.finish(), None);
    assert!(lines.push(b"rest").is_empty());
    assert_eq!(lines.finish().as_deref(), Some("rest"));
    assert_eq!(lines.finish(), None);
}

fn chunks(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let stray = prop::collection::vec(any::<u8>(), 0..20);
    let header = (prop::sample::select(vec![0xa55a_0002u32, 0xa55a_0003, 0xa55a_0017, 0xa55a_0001]), any::<u32>())
        .prop_map(|(kind, length)| [kind.to_be_bytes(), (length % 64).to_be_bytes()].concat());
    let whole = prop::collection::vec(any::<u8>(), 0..40).prop_map(|message| encode(0xa55a_000e, 7, &message));
    let piece = prop_oneof![stray, header, whole];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_is_written_comes_back(
        messages in prop::collection::vec(("\\PC{0,50}", 0..7u32, any::<u64>()), 0..10),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|(text, level, time)| encode(0xa55a_0003 | level << 2, *time, text.as_bytes()))
            .collect();
        let chunks = chunks(&bytes, &cuts);
        let frames = parse(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        prop_assert_eq!(frames.len(), messages.len());
        for (frame, (text, _, time)) in frames.iter().zip(&messages) {
            prop_assert_eq!((&frame.message, frame.timestamp_us), (text, Some(*time)));
        }
    }

    #[test]
    fn chunking_changes_nothing(bytes in pieces(), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        let chunks = chunks(&bytes, &cuts);
        prop_assert_eq!(parse(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>()), parse(&[&bytes]));
    }

    #[test]
    fn lines_join_to_what_was_written(
        text in "[ab\né☃]{0,200}",
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut splitter = LineSplitter::new();
        let mut lines: Vec<_> = chunks(text.as_bytes(), &cuts).iter().flat_map(|chunk| splitter.push(chunk)).collect();
        lines.extend(splitter.finish());
        let wanted: Vec<_> = text.split_inclusive('\n').collect();
        prop_assert_eq!(lines, wanted);
    }
}
