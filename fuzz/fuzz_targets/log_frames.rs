//! Bytes on a function's log descriptor and its stdout: no panic, bounded events, and the same events however the bytes
//! are cut into reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use telemetry::frames::{FrameParser, LineSplitter, MAX_EVENT_BYTES};
use telemetry::lines;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let mut whole = FrameParser::new();
    let mut frames = whole.push(bytes);
    frames.extend(whole.finish());
    for frame in &frames {
        // A byte that is no UTF-8 becomes a character of three.
        assert!(frame.message.len() <= 3 * MAX_EVENT_BYTES);
        let _ = lines::application_level(&frame.message);
    }

    let mut cut = FrameParser::new();
    let mut again = Vec::new();
    for chunk in bytes.chunks(usize::from(step).max(1)) {
        again.extend(cut.push(chunk));
    }
    again.extend(cut.finish());
    assert_eq!(frames, again);

    let mut splitter = LineSplitter::new();
    let mut text: String = bytes.chunks(usize::from(step).max(1)).flat_map(|chunk| splitter.push(chunk)).collect();
    text.extend(splitter.finish());
    if let Ok(plain) = std::str::from_utf8(bytes) {
        assert_eq!(text, plain);
    }
});
