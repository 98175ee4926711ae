//! Function output, cut into log events: the frames of `_LAMBDA_TELEMETRY_LOG_FD`, and plain stdout and stderr.
//!
//! A frame is a 4-byte type, a 4-byte length and an 8-byte timestamp in microseconds, all big-endian, then the message
//! (as the official Python and Node.js runtime clients write them). Whatever holds the file descriptor may write to it,
//! so nothing is believed: memory is bounded by [`MAX_EVENT_BYTES`] whatever the length field says, and bytes that are
//! no frame become [`Framing::Raw`] lines until the next frame type is found.
//!
//! Text is made from bytes lossily: what is no UTF-8 becomes U+FFFD.

use std::collections::VecDeque;

use crate::lines::Level;

/// Bytes of one log event at most: 256 KiB, CloudWatch's limit. What is longer is cut into several events, and nothing
/// is lost. A replacement character takes more bytes than what it stands for, so a message of invalid bytes can be up to
/// three times as long.
pub const MAX_EVENT_BYTES: usize = 256 * 1024;

/// A frame that claims to be longer is taken for garbage: it would swallow everything after it.
pub const MAX_FRAME_BYTES: u32 = 16 * 1024 * 1024;

const HEADER: usize = 16;
const MAGIC: u32 = 0xa55a_0000;
const MAGIC_PREFIX: [u8; 3] = [0xa5, 0x5a, 0x00];

/// How an event was framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A text frame.
    Text,
    /// A JSON frame.
    Json,
    /// Bytes outside any frame, by lines.
    Raw,
}

/// One message from the log descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Text, JSON or stray bytes.
    pub framing: Framing,
    /// The level that the frame's type carries, if any.
    pub level: Option<Level>,
    /// The writer's clock, Unix time in microseconds; stray bytes have none.
    pub timestamp_us: Option<u64>,
    /// The message; never longer than [`MAX_EVENT_BYTES`] before invalid bytes were replaced.
    pub message: String,
}

/// Reads frames from chunks of bytes as they come.
#[derive(Debug, Default)]
pub struct FrameParser {
    /// Bytes of an unfinished header.
    header: Vec<u8>,
    body: Option<Body>,
    raw: LineSplitter,
}

#[derive(Debug)]
struct Body {
    framing: Framing,
    level: Option<Level>,
    timestamp_us: u64,
    missing: usize,
    message: Vec<u8>,
    /// Whether a part of this frame was handed out already.
    cut: bool,
}

impl FrameParser {
    /// A parser at the beginning of a frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, hands out what they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() || self.body.as_ref().is_some_and(|body| body.missing == 0) {
            match &mut self.body {
                Some(body) => {
                    let room = body.missing.min(MAX_EVENT_BYTES - body.message.len());
                    let (now, later) = bytes.split_at(room.min(bytes.len()));
                    body.message.extend_from_slice(now);
                    body.missing -= now.len();
                    bytes = later;
                    if body.missing == 0 {
                        frames.extend(body.finish());
                        self.body = None;
                    } else if body.message.len() == MAX_EVENT_BYTES {
                        frames.push(body.cut());
                    }
                }
                None if self.header.is_empty() => bytes = self.seek(bytes, &mut frames),
                None => {
                    self.header.push(bytes[0]);
                    bytes = &bytes[1..];
                    self.advance_header(&mut frames);
                }
            }
        }
        frames
    }

    /// Passes over stray bytes, all in one go: a function that writes nothing else would otherwise keep the server busy
    /// with each of them. Takes a header that follows, as far as it is there; returns what comes after.
    fn seek<'a>(&mut self, bytes: &'a [u8], frames: &mut Vec<Frame>) -> &'a [u8] {
        let mut stray = 0;
        while !may_be_header(&bytes[stray..]) {
            // An empty slice may be one, so there is a byte to pass over.
            stray += 1;
            stray += bytes[stray..].iter().position(|&byte| byte == MAGIC_PREFIX[0]).unwrap_or(bytes.len() - stray);
        }
        if stray > 0 {
            let lines = self.raw.push(&bytes[..stray]);
            frames.extend(lines.into_iter().map(Frame::raw));
        }
        let rest = &bytes[stray..];
        match rest.split_first_chunk() {
            Some((header, rest)) => {
                self.begin(*header, frames);
                rest
            }
            None => {
                self.header.extend_from_slice(rest);
                &[]
            }
        }
    }

    fn begin(&mut self, header: [u8; HEADER], frames: &mut Vec<Frame>) {
        // A stray line ends where a frame begins.
        frames.extend(self.raw.finish().map(Frame::raw));
        self.body = Some(Body::new(header));
    }

    /// The end of the stream: hands out what was not finished.
    pub fn finish(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        if let Some(mut body) = self.body.take()
            && !body.message.is_empty()
        {
            frames.extend(body.finish());
        }
        let stray = std::mem::take(&mut self.header);
        let lines = self.raw.push(&stray);
        frames.extend(lines.into_iter().chain(self.raw.finish()).map(Frame::raw));
        frames
    }

    /// Checks the header as far as it has come; drops its first byte into the stray line as often as it cannot be one.
    fn advance_header(&mut self, frames: &mut Vec<Frame>) {
        let mut stray = 0;
        while !may_be_header(&self.header[stray..]) {
            stray += 1;
        }
        if stray > 0 {
            let lines = self.raw.push(&self.header[..stray]);
            frames.extend(lines.into_iter().map(Frame::raw));
            self.header.drain(..stray);
        }
        if let Ok(header) = <[u8; HEADER]>::try_from(self.header.as_slice()) {
            self.header.clear();
            self.begin(header, frames);
        }
    }
}

impl Frame {
    fn raw(message: String) -> Self {
        Self { framing: Framing::Raw, level: None, timestamp_us: None, message }
    }
}

impl Body {
    /// From a header that `may_be_header` let through.
    fn new(header: [u8; HEADER]) -> Self {
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (framing, level) = frame_type(word(0)).unwrap_or((Framing::Text, None));
        let timestamp_us = u64::from(word(8)) << 32 | u64::from(word(12));
        Self { framing, level, timestamp_us, missing: word(4) as usize, message: Vec::new(), cut: false }
    }

    fn frame(&self, message: &[u8]) -> Frame {
        Frame {
            framing: self.framing,
            level: self.level,
            timestamp_us: Some(self.timestamp_us),
            message: String::from_utf8_lossy(message).into_owned(),
        }
    }

    /// A part of a message that is too long, cut between characters.
    fn cut(&mut self) -> Frame {
        let rest = self.message.split_off(cut_point(&self.message));
        let frame = self.frame(&self.message);
        self.message = rest;
        self.cut = true;
        frame
    }

    /// What is left; an empty frame is an empty message, but the empty end of a cut one is nothing.
    fn finish(&mut self) -> Option<Frame> {
        (!self.message.is_empty() || !self.cut).then(|| self.frame(&self.message))
    }
}

/// Whether these first bytes of a header can become one.
fn may_be_header(bytes: &[u8]) -> bool {
    let prefix = bytes.len().min(MAGIC_PREFIX.len());
    if bytes[..prefix] != MAGIC_PREFIX[..prefix] {
        return false;
    }
    if bytes.len() >= 4 && frame_type(MAGIC | u32::from(bytes[3])).is_none() {
        return false;
    }
    bytes.len() < 8 || u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) <= MAX_FRAME_BYTES
}

/// The low two bits tell text from JSON, the next three the level.
fn frame_type(word: u32) -> Option<(Framing, Option<Level>)> {
    let framing = match word & 0x3 {
        0x3 => Framing::Text,
        0x2 => Framing::Json,
        _ => return None,
    };
    let level = match word & !0x3 {
        0xa55a_0000 => None,
        0xa55a_0004 => Some(Level::Trace),
        0xa55a_0008 => Some(Level::Debug),
        0xa55a_000c => Some(Level::Info),
        0xa55a_0010 => Some(Level::Warn),
        0xa55a_0014 => Some(Level::Error),
        0xa55a_0018 => Some(Level::Fatal),
        _ => return None,
    };
    Some((framing, level))
}

/// Cuts stdout or stderr into lines, each with its newline, as they come.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The unfinished line, shorter than [`MAX_EVENT_BYTES`].
    partial: Vec<u8>,
    ready: VecDeque<String>,
}

impl LineSplitter {
    /// A splitter at the beginning of a line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, hands out the lines that they complete. A line longer than [`MAX_EVENT_BYTES`] comes in
    /// several pieces.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let mut piece = piece;
            while !piece.is_empty() {
                let room = MAX_EVENT_BYTES - self.partial.len();
                let (now, later) = piece.split_at(room.min(piece.len()));
                self.partial.extend_from_slice(now);
                piece = later;
                if self.partial.last() == Some(&b'\n') {
                    self.take(self.partial.len());
                } else if self.partial.len() == MAX_EVENT_BYTES {
                    self.take(cut_point(&self.partial));
                }
            }
        }
        self.ready.drain(..).collect()
    }

    /// The unfinished line, if there is one: at the end of the stream, or of an invocation.
    pub fn finish(&mut self) -> Option<String> {
        if !self.partial.is_empty() {
            self.take(self.partial.len());
        }
        self.ready.pop_front()
    }

    fn take(&mut self, len: usize) {
        let rest = self.partial.split_off(len);
        self.ready.push_back(String::from_utf8_lossy(&self.partial).into_owned());
        self.partial = rest;
    }
}

/// Where to cut bytes that go on: before a character that is not complete yet, else at the end. Never 0 for more than
/// three bytes.
fn cut_point(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let at = bytes.len() - back;
        let wanted = match bytes[at] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if wanted > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests;
