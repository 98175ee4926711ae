//! Log groups, streams and events in one SQLite file of their own.
//!
//! [`LogStore::append`] only puts events into a bounded queue: it never blocks and never fails, because a function's
//! output must not slow the function. A writer thread moves the queue into the file every 50 ms or so. All other calls
//! wait until what was appended before them is written; changes run on the writer thread, queries on connections of
//! their own.
//!
//! What holds when things break: after kill -9, everything that a [`LogStore::flush`] or any other call waited for is
//! there, and what was appended in the last moments may be missing. After power loss the last seconds before it may be
//! missing too (`synchronous=NORMAL`), but the file is sound. Events that find the queue full, or the disk
//! nearly so, are dropped and counted; a `platform.logsDropped` event in their stream says how many.

mod follow;
mod query;
mod queue;
mod schema;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::filter::PatternError;
pub use follow::{Followed, Follower};
pub use query::{
    EventPage, Events, Filter, FilterPage, FilteredEvent, GroupInfo, GroupName, Groups, StoredEvent, StreamInfo,
    StreamOrder, Streams,
};
use queue::Queue;
use writer::Writer;

/// Something that was logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEvent {
    /// When it happened, Unix time in milliseconds.
    pub timestamp_ms: i64,
    /// What was said, newline included.
    pub message: String,
}

/// How a [`LogStore`] works.
#[derive(Clone)]
pub struct LogOptions {
    /// How many days events are kept in groups without a retention policy of their own; `None`: for ever.
    pub retention_days: Option<u32>,
    /// Bytes of events (messages, and 26 for each event) that may wait to be written. Default 32 MiB.
    pub max_queue_bytes: usize,
    /// How long events wait for others before they are written. Default 50 ms.
    pub batch_delay: Duration,
    /// Waiting events that are written without further delay. Default 2,000.
    pub batch_events: usize,
    /// The clock for ingestion and creation times and for retention: Unix time in milliseconds.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Room on the disk that a file is on. Events are dropped and counted while less than a tenth of it is free, or less
    /// than 512 MiB on a large one: a function that floods its log would else take the disk from everybody.
    pub space: AskSpace,
    /// Is shown all that is appended, before it is written here; must not wait. What clients put is not shown.
    pub mirror: Option<Mirror>,
}

/// Takes a copy of what was appended to a stream of a group: names of the group and the stream, and the events.
pub type Mirror = Arc<dyn Fn(&str, &str, &[LogEvent]) + Send + Sync>;

/// Tells the room on the disk that a path is on; `None` where that cannot be told.
pub type AskSpace = Arc<dyn Fn(&Path) -> Option<Space> + Send + Sync>;

/// Room on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What unprivileged users may still write.
    pub free: u64,
    /// Its size.
    pub total: u64,
}

impl Space {
    /// Asks the kernel about the disk that `path` is on; `None` if there is no such path.
    pub fn of(path: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(path).ok()?;
        Some(Self { free: disk.f_bavail * disk.f_frsize, total: disk.f_blocks * disk.f_frsize })
    }

    /// Whether functions may write more of it.
    fn is_ample(self) -> bool {
        self.free >= (self.total / 10).min(MOST_KEPT_FREE)
    }
}

/// What is left to others of a large disk, in bytes.
const MOST_KEPT_FREE: u64 = 512 << 20;

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            retention_days: None,
            max_queue_bytes: 32 * 1024 * 1024,
            batch_delay: Duration::from_millis(50),
            batch_events: 2000,
            clock: Arc::new(|| {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            }),
            space: Arc::new(Space::of),
            mirror: None,
        }
    }
}

impl fmt::Debug for LogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogOptions")
            .field("retention_days", &self.retention_days)
            .field("max_queue_bytes", &self.max_queue_bytes)
            .field("batch_delay", &self.batch_delay)
            .field("batch_events", &self.batch_events)
            .finish_non_exhaustive()
    }
}

/// The file of a log store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLogsError {
    /// A later build wrote it.
    #[error("{path} has schema version {found}, this build knows up to {supported}: use a newer build")]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The last version that this build knows.
        supported: i64,
    },
    /// It is no log file of ours.
    #[error("{path} was not made by this program: choose another data directory")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("cannot open {path}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The operating system failed.
    #[error("cannot prepare {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A request about logs was refused. The texts are those of the CloudWatch Logs API.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No such group.
    #[error("The specified log group does not exist.")]
    GroupNotFound,
    /// No such stream.
    #[error("The specified log stream does not exist.")]
    StreamNotFound,
    /// The group is there already.
    #[error("The specified log group already exists")]
    GroupExists,
    /// The stream is there already.
    #[error("The specified log stream already exists")]
    StreamExists,
    /// A parameter is wrong; the text says which.
    #[error("{0}")]
    InvalidParameter(String),
    /// The filter pattern cannot be used.
    #[error("Invalid filter pattern")]
    Pattern(#[from] PatternError),
    /// Too many changes wait for the file; nothing of the request was done.
    #[error("too many requests wait for the log store: try again later")]
    Overloaded,
    /// The file could not be read or written.
    #[error("cannot read or write the log store")]
    Storage(#[from] rusqlite::Error),
    /// The writer thread is gone.
    #[error("the log store is closed: restart the server")]
    Closed,
}

/// What became of the events of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutOutcome {
    /// Events from this index on are more than two hours ahead of the clock.
    pub too_new_start: Option<usize>,
    /// Events before this index are older than 14 days.
    pub too_old_end: Option<usize>,
    /// Events before this index are older than the group's retention.
    pub expired_end: Option<usize>,
}

/// The days that a retention policy can have.
pub const RETENTION_DAYS: [u32; 22] =
    [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653];

/// Handle to the log store. Clones share it; the last one that is dropped writes what waits and closes the file.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    queue: Arc<Queue>,
    followers: follow::Followers,
    mirror: Option<Mirror>,
    /// Idle connections for queries.
    readers: Mutex<Vec<Connection>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the log writer panicked");
        }
    }
}

impl LogStore {
    /// Opens the file, making it and its directory where they are missing, and starts the writer. Blocks; call it at
    /// start-up.
    pub fn open(path: impl AsRef<Path>, options: LogOptions) -> Result<Self, OpenLogsError> {
        let path = path.as_ref().to_owned();
        let conn = schema::open(&path)?;
        let mirror = options.mirror.clone();
        let queue = Arc::new(Queue::new(options));
        let writer = Writer::new(conn, queue.clone(), path.clone())
            .map_err(|source| OpenLogsError::Sqlite { path: path.clone(), source })?;
        let writer = std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenLogsError::Io { path: path.clone(), source })?;
        let shared = Shared {
            path,
            queue,
            followers: follow::Followers::default(),
            mirror,
            readers: Mutex::default(),
            writer: Some(writer),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Adds events to a stream, making group and stream where they are missing. Neither blocks nor fails: when the
    /// queue is full the events are dropped and counted. Followers get them at once.
    pub fn append(&self, group: &str, stream: &str, events: Vec<LogEvent>) {
        if events.is_empty() {
            return;
        }
        self.shared.followers.publish(group, stream, &events);
        if let Some(mirror) = &self.shared.mirror {
            mirror(group, stream, &events);
        }
        self.shared.queue.append(group, stream, events);
    }

    /// Waits until everything that was appended before is in the file (or was dropped and counted).
    pub async fn flush(&self) {
        self.shared.queue.flush().await;
    }

    /// The events of a group from now on, as they come.
    #[must_use]
    pub fn follow(&self, group: &str) -> Follower {
        self.shared.followers.follow(group)
    }

    /// Makes a group.
    pub async fn create_group(&self, group: &str) -> Result<(), LogError> {
        query::check_group_name(group)?;
        let group = group.to_owned();
        self.change(move |writer| writer.create_group(&group)).await
    }

    /// Removes a group with all its streams and events.
    pub async fn delete_group(&self, group: &str) -> Result<(), LogError> {
        let group = group.to_owned();
        self.change(move |writer| writer.delete_group(&group)).await
    }

    /// Makes a stream in a group.
    pub async fn create_stream(&self, group: &str, stream: &str) -> Result<(), LogError> {
        query::check_stream_name(stream)?;
        let (group, stream) = (group.to_owned(), stream.to_owned());
        self.change(move |writer| writer.create_stream(&group, &stream)).await
    }

    /// Removes a stream with all its events.
    pub async fn delete_stream(&self, group: &str, stream: &str) -> Result<(), LogError> {
        let (group, stream) = (group.to_owned(), stream.to_owned());
        self.change(move |writer| writer.delete_stream(&group, &stream)).await
    }

    /// Sets how many days the events of a group are kept (one of [`RETENTION_DAYS`]); `None`: as [`LogOptions`] says.
    pub async fn set_retention(&self, group: &str, days: Option<u32>) -> Result<(), LogError> {
        if let Some(days) = days.filter(|days| !RETENTION_DAYS.contains(days)) {
            let text = format!(
                "1 validation error detected: Value '{days}' at 'retentionInDays' failed to satisfy constraint"
            );
            return Err(LogError::InvalidParameter(text));
        }
        let group = group.to_owned();
        self.change(move |writer| writer.set_retention(&group, days)).await
    }

    /// Removes events that are older than their group's retention. The writer does this by itself every hour.
    pub async fn purge_expired(&self) -> Result<(), LogError> {
        self.change(Writer::purge_expired).await
    }

    /// Puts events that a client sends into a stream that exists, and resolves when they are written. Events that are
    /// too old or too new are left out, and the answer says which.
    pub async fn put_events(&self, group: &str, stream: &str, events: Vec<LogEvent>) -> Result<PutOutcome, LogError> {
        query::check_put(&events)?;
        let (name, stream_name, to_publish) = (group.to_owned(), stream.to_owned(), events.clone());
        let (outcome, kept) = self.change(move |writer| writer.put_events(&name, &stream_name, events)).await?;
        self.shared.followers.publish(group, stream, &to_publish[kept]);
        Ok(outcome)
    }

    /// Groups by name.
    pub async fn describe_groups(&self, request: Groups) -> Result<(Vec<GroupInfo>, Option<String>), LogError> {
        self.query(move |conn| query::describe_groups(conn, &request)).await
    }

    /// Streams of a group.
    pub async fn describe_streams(
        &self,
        group: &str,
        request: Streams,
    ) -> Result<(Vec<StreamInfo>, Option<String>), LogError> {
        let group = group.to_owned();
        self.query(move |conn| query::describe_streams(conn, &group, &request)).await
    }

    /// A page of the events of one stream.
    pub async fn get_events(&self, group: &str, stream: &str, request: Events) -> Result<EventPage, LogError> {
        let (group, stream) = (group.to_owned(), stream.to_owned());
        self.query(move |conn| query::get_events(conn, &group, &stream, &request)).await
    }

    /// A page of the events of a group that match.
    pub async fn filter_events(&self, group: &str, request: Filter) -> Result<FilterPage, LogError> {
        let group = group.to_owned();
        self.query(move |conn| query::filter_events(conn, &group, &request)).await
    }

    /// Runs a change on the writer thread, after everything that was appended before.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Writer) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        self.shared.queue.push(Box::new(move |writer| {
            // A caller that stopped listening is no error.
            let _ = reply.send(change(writer));
        }))?;
        answer.await.map_err(|_| LogError::Closed)?
    }

    /// Runs a query on the blocking pool, after everything that was appended before.
    async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        self.flush().await;
        let shared = self.shared.clone();
        let work = move || {
            let readers = || shared.readers.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = readers().pop();
            let conn = match idle {
                Some(conn) => conn,
                None => schema::open_reader(&shared.path)?,
            };
            let result = query(&conn);
            readers().push(conn);
            result
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(LogError::Closed),
            },
        }
    }
}

#[cfg(test)]
mod tests;
