//! What an environment says: the pipes of its processes, the platform's own lines, and where both go.
//!
//! Bytes from a function are hostile: reading is bounded per turn, so that a function that floods its pipes delays
//! nobody's deadline, not even its own.

use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use telemetry::frames::{Frame, FrameParser, LineSplitter};
use telemetry::lines::{Level, LogFormat, PlatformEvent, application_passes};
use telemetry::tail::Tail;
use telemetry::{LogEvent, LogStore};
use tokio::io::unix::AsyncFd;

use crate::spec::LogSettings;

/// Most bytes taken from one pipe in one turn.
const TURN_BYTES: usize = 64 * 1024;
/// Bytes of one read. Every environment, idle ones too, holds a buffer of this size.
const READ_BYTES: usize = 16 * 1024;
/// Most bytes taken from one pipe when an invocation ends: what a full pipe holds, with room for one that is refilled.
const DRAIN_BYTES: usize = 256 * 1024;

/// The log of one environment.
pub(crate) struct Capture {
    store: LogStore,
    group: String,
    stream: String,
    format: LogFormat,
    application_level: Level,
    system_level: Level,
    pipes: Vec<Pipe>,
    tail: Option<Tail>,
    buffer: Vec<u8>,
}

struct Pipe {
    fd: AsyncFd<OwnedFd>,
    content: Content,
}

enum Content {
    Lines(LineSplitter),
    Frames(FrameParser),
}

impl Capture {
    pub(crate) fn new(store: LogStore, settings: &LogSettings, stream: String) -> Self {
        let level = |name: &Option<String>| name.as_deref().and_then(Level::from_name).unwrap_or(Level::Info);
        Self {
            store,
            group: settings.group.clone(),
            stream,
            format: settings.format,
            application_level: level(&settings.application_level),
            system_level: level(&settings.system_level),
            pipes: Vec::new(),
            tail: None,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Reads from a pipe of lines from now on. The descriptor must be non-blocking.
    pub(crate) fn attach_lines(&mut self, fd: OwnedFd) -> std::io::Result<()> {
        self.attach(fd, Content::Lines(LineSplitter::new()))
    }

    /// Reads from a pipe of log frames from now on. The descriptor must be non-blocking.
    pub(crate) fn attach_frames(&mut self, fd: OwnedFd) -> std::io::Result<()> {
        self.attach(fd, Content::Frames(FrameParser::new()))
    }

    fn attach(&mut self, fd: OwnedFd, content: Content) -> std::io::Result<()> {
        // SAFETY: an `OwnedFd` is open for as long as it lives and always names the same descriptor, and nothing takes
        // it out of the `AsyncFd` before that is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }?;
        self.pipes.push(Pipe { fd, content });
        Ok(())
    }

    /// Keeps the last 4 KiB from now on.
    pub(crate) fn start_tail(&mut self) {
        self.tail = Some(Tail::new());
    }

    /// What was kept since [`Self::start_tail`].
    pub(crate) fn take_tail(&mut self) -> Option<Vec<u8>> {
        self.tail.take().map(|tail| tail.as_str().as_bytes().to_vec())
    }

    /// Writes a line of the platform's.
    pub(crate) fn platform(&mut self, event: &PlatformEvent) {
        self.platform_at(event, now_ms());
    }

    /// Writes a line of the platform's about a moment that has passed, in milliseconds since the Unix epoch.
    pub(crate) fn platform_at(&mut self, event: &PlatformEvent, time_ms: i64) {
        if let Some(message) = event.line(self.format, self.system_level, time_ms) {
            self.write(vec![LogEvent { timestamp_ms: time_ms, message }]);
        }
    }

    /// Waits until some pipe has something, and takes up to a turn's worth from each that has.
    pub(crate) async fn read_some(&mut self) {
        let ready = std::future::poll_fn(|cx| {
            let mut ready = Vec::new();
            for (at, pipe) in self.pipes.iter().enumerate() {
                if pipe.fd.poll_read_ready(cx).is_ready() {
                    ready.push(at);
                }
            }
            if ready.is_empty() { Poll::Pending } else { Poll::Ready(ready) }
        })
        .await;
        // From the back, since a pipe that has ended is removed.
        for at in ready.into_iter().rev() {
            self.take(at, TURN_BYTES);
        }
        // A function that never stops writing would keep this thread from everything else that waits for it.
        tokio::task::yield_now().await;
    }

    /// Takes what the pipes hold now: all that was written before the runtime asked for its next invocation, lines
    /// without an end included.
    pub(crate) fn drain(&mut self) {
        for at in (0..self.pipes.len()).rev() {
            self.take(at, DRAIN_BYTES);
        }
        for at in 0..self.pipes.len() {
            if let Content::Lines(lines) = &mut self.pipes[at].content
                && let Some(message) = lines.finish()
            {
                let said = vec![Said { level: None, time_us: None, message }];
                let events = events(said, self.format, self.application_level);
                self.write(events);
            }
        }
    }

    /// Takes what the pipes hold, then closes them: their writers are gone.
    pub(crate) fn detach_all(&mut self) {
        self.drain();
        for mut pipe in std::mem::take(&mut self.pipes) {
            self.finish(&mut pipe.content);
        }
    }

    /// Reads up to `limit` bytes from one pipe; removes it when it has ended.
    fn take(&mut self, at: usize, limit: usize) {
        let mut taken = 0;
        while taken < limit {
            let pipe = &mut self.pipes[at];
            match read(&pipe.fd, &mut self.buffer) {
                Ok(0) => {
                    let mut pipe = self.pipes.swap_remove(at);
                    self.finish(&mut pipe.content);
                    return;
                }
                Ok(count) => {
                    taken += count;
                    let events = parse(&mut pipe.content, &self.buffer[..count], self.format, self.application_level);
                    self.write(events);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, stream = self.stream, "could not read a function's output");
                    self.pipes.swap_remove(at);
                    return;
                }
            }
        }
    }

    fn finish(&mut self, content: &mut Content) {
        let rest: Vec<Said> = match content {
            Content::Lines(lines) => std::iter::from_fn(|| lines.finish())
                .map(|message| Said { level: None, time_us: None, message })
                .collect(),
            Content::Frames(frames) => frames.finish().into_iter().map(Said::from).collect(),
        };
        let events = events(rest, self.format, self.application_level);
        self.write(events);
    }

    fn write(&mut self, events: Vec<LogEvent>) {
        if events.is_empty() {
            return;
        }
        if let Some(tail) = &mut self.tail {
            for event in &events {
                tail.push(&event.message);
            }
        }
        self.store.append(&self.group, &self.stream, events);
    }
}

/// Reads at once, whatever tokio knows of the pipe's readiness: the bytes that a runtime wrote just before its `next`
/// may be there before the reactor has heard of them. Where there are none, the readiness is cleared.
fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match rustix::io::read(fd.get_ref(), &mut *buffer) {
        Err(rustix::io::Errno::AGAIN) => {
            fd.try_io(tokio::io::Interest::READABLE, |fd| rustix::io::read(fd, buffer).map_err(std::io::Error::from))
        }
        read => read.map_err(std::io::Error::from),
    }
}

/// One thing that a function said.
struct Said {
    level: Option<Level>,
    time_us: Option<u64>,
    message: String,
}

impl From<Frame> for Said {
    fn from(frame: Frame) -> Self {
        Self { level: frame.level, time_us: frame.timestamp_us, message: frame.message }
    }
}

fn parse(content: &mut Content, bytes: &[u8], format: LogFormat, threshold: Level) -> Vec<LogEvent> {
    let said = match content {
        Content::Lines(lines) => {
            lines.push(bytes).into_iter().map(|message| Said { level: None, time_us: None, message }).collect()
        }
        Content::Frames(frames) => frames.push(bytes).into_iter().map(Said::from).collect(),
    };
    events(said, format, threshold)
}

fn events(said: Vec<Said>, format: LogFormat, threshold: Level) -> Vec<LogEvent> {
    let now = now_ms();
    said.into_iter()
        .filter(|said| application_passes(format, threshold, said.level, &said.message))
        .map(|said| {
            // A function may claim any time; one in the future or long past would hide the line from every query.
            let claimed = said.time_us.and_then(|us| i64::try_from(us / 1_000).ok());
            let claimed = claimed.filter(|ms| (now - ms).abs() < 60_000);
            LogEvent { timestamp_ms: claimed.unwrap_or(now), message: said.message }
        })
        .collect()
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};
    use telemetry::LogOptions;
    use telemetry::logs::{Events, StoredEvent};

    use super::*;

    const STREAM: &str = "2026/01/01/[1]a";

    struct Captured {
        capture: Capture,
        store: LogStore,
        _dir: tempfile::TempDir,
    }

    impl Captured {
        fn new(format: LogFormat, application_level: Option<&str>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = LogStore::open(dir.path().join("logs.db"), LogOptions::default()).unwrap();
            let settings = LogSettings {
                group: "g".to_owned(),
                custom_group: false,
                format,
                application_level: application_level.map(str::to_owned),
                system_level: None,
            };
            Self { capture: Capture::new(store.clone(), &settings, STREAM.to_owned()), store, _dir: dir }
        }

        async fn written(&self) -> Vec<StoredEvent> {
            let request = Events { start_from_head: true, ..Events::default() };
            self.store.get_events("g", STREAM, request).await.unwrap().events
        }

        async fn messages(&self) -> Vec<String> {
            self.written().await.into_iter().map(|event| event.message).collect()
        }
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    fn frame(kind: u32, time_us: i64, message: &str) -> Vec<u8> {
        let mut frame = kind.to_be_bytes().to_vec();
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(time_us.to_be_bytes());
        frame.extend(message.as_bytes());
        frame
    }

    #[tokio::test]
    async fn levels_and_times_of_frames_count_within_reason() {
        let mut captured = Captured::new(LogFormat::Json, Some("WARN"));
        let (read, write) = pipe();
        captured.capture.attach_frames(read).unwrap();
        let now = now_ms();
        let (info, error) = (0xa55a_000e, 0xa55a_0016);
        for (kind, time_ms, message) in
            [(info, now, "quiet"), (error, now - 5_000, "recent"), (error, now - 3_600_000, "claimed to be old")]
        {
            rustix::io::write(&write, &frame(kind, time_ms * 1_000, message)).unwrap();
        }
        captured.capture.drain();
        let written = captured.written().await;
        let mut said: Vec<_> = written.iter().map(|event| (event.message.as_str(), event.timestamp_ms)).collect();
        said.sort_unstable();
        assert_eq!(said[1], ("recent", now - 5_000));
        assert!(said[0].0 == "claimed to be old" && said[0].1 >= now, "{said:?}");
        assert_eq!(said.len(), 2);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_written_when_the_invocation_ends_and_a_closed_pipe_is_forgotten() {
        let mut captured = Captured::new(LogFormat::Text, None);
        let (read, write) = pipe();
        captured.capture.attach_lines(read).unwrap();
        rustix::io::write(&write, b"one\ntw").unwrap();
        captured.capture.drain();
        rustix::io::write(&write, b"o\nthree").unwrap();
        drop(write);
        captured.capture.read_some().await;
        assert_eq!(captured.messages().await, ["one\n", "tw", "o\n", "three"]);
        assert!(captured.capture.pipes.is_empty());
    }
}
