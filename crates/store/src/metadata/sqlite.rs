//! Metadata in one SQLite file: the embedded store of a single server.
//!
//! One thread owns the connection. Batches that wait at the same moment share one transaction and thus one fsync (group
//! commit); each runs in a savepoint of its own, so a conflict undoes only its own batch. Reads go through the same
//! thread, after the transaction: they never see what is not yet durable.
//!
//! The file is WAL with `synchronous=FULL`, locked exclusively for the life of the value: a second server on the same
//! data directory is refused, and a kill -9 leaves no lock behind. `user_version` is the version of the schema.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::{CommitError, Entry, Metadata, StoreError, Write, check_batch};
use crate::BoxFuture;

/// The schema that this build writes. Raise it with every change, and migrate in `prepare`.
const SCHEMA_VERSION: i64 = 1;
/// Marks the file as ours ("Fire" in ASCII), see `PRAGMA application_id`.
const APPLICATION_ID: i64 = 0x4669_7265;
/// Commands that may wait for the thread before callers wait to enqueue theirs.
const QUEUE: usize = 1024;
/// Batches that share one transaction at most, so that nobody's answer waits for an endless group.
const GROUP: usize = 256;
/// How long opening waits for a server that is just going away.
const BUSY: Duration = Duration::from_millis(250);

/// A durable [`Metadata`]. Dropping it waits until what was enqueued is written and the file is released.
#[derive(Debug)]
pub struct SqliteMetadata {
    path: PathBuf,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// The file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another value in this one) has it open.
    #[error("{path} is in use by another server: stop that one, or choose another data directory")]
    InUse {
        /// The file.
        path: PathBuf,
    },
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
    /// It is no metadata file of ours.
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
        /// The file or its directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SqliteMetadata {
    /// Opens the file, making it and its directory where they are missing. Blocks; call it at start-up.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let io = |source| OpenError::Io { path: path.clone(), source };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(io)?;
        let conn = Connection::open(&path)
            .and_then(|conn| {
                conn.busy_timeout(BUSY)?;
                Ok(conn)
            })
            .map_err(|source| classify(&path, source))?;
        prepare(&conn, &path)?;
        // The journal's directory entry is synced by SQLite, the database's own is ours to sync.
        std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(io)?;

        let (commands, queue) = mpsc::channel(QUEUE);
        let owner = Owner { conn, place: path.display().to_string() };
        let thread =
            std::thread::Builder::new().name("metadata".to_owned()).spawn(move || owner.run(queue)).map_err(io)?;
        Ok(Self { path, commands: Some(commands), thread: Some(thread) })
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed { place: self.path.display().to_string() }
    }

    /// Hands a command to the thread and waits for the answer.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(|| self.closed())?;
        commands.send(command(reply)).await.map_err(|_| self.closed())?;
        answer.await.map_err(|_| self.closed())
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Owner) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(|reply| {
            Command::Read(Box::new(move |owner| {
                // A caller that stopped listening is no error.
                let _ = reply.send(read(owner).map_err(|error| owner.error(error)));
            }))
        })
        .await?
    }
}

impl Drop for SqliteMetadata {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the metadata thread panicked");
        }
    }
}

impl Metadata for SqliteMetadata {
    fn load<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Vec<(String, Entry)>, StoreError>> {
        let table = table.to_owned();
        Box::pin(self.read(move |owner| owner.load(&table)))
    }

    fn get<'a>(&'a self, table: &'a str, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        let (table, key) = (table.to_owned(), key.to_owned());
        Box::pin(self.read(move |owner| owner.get(&table, &key)))
    }

    fn commit<'a>(&'a self, batch: Vec<Write>) -> BoxFuture<'a, Result<Vec<u64>, CommitError>> {
        Box::pin(async move {
            check_batch(&batch)?;
            self.ask(|reply| Command::Commit(Pending { batch, reply })).await?
        })
    }
}

fn classify(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse { path },
        Some(ErrorCode::NotADatabase) => OpenError::Foreign { path },
        _ => OpenError::Sqlite { path, source },
    }
}

fn prepare(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    let sqlite = |source| classify(path, source);
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    // Exclusive before WAL: the index of the log then lives in this process's memory, and nobody else gets in.
    conn.query_row("PRAGMA locking_mode=EXCLUSIVE", [], |_| Ok(())).map_err(sqlite)?;
    // Look before the first change: a file that is not ours must stay as it is.
    let application = pragma("application_id").map_err(sqlite)?;
    let version = pragma("user_version").map_err(sqlite)?;
    let objects: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    if application != APPLICATION_ID && (application != 0 || objects != 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, supported: SCHEMA_VERSION });
    }
    conn.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).map_err(sqlite)?;
    conn.execute_batch("PRAGMA synchronous=FULL; BEGIN EXCLUSIVE").map_err(sqlite)?;
    if version == 0 {
        conn.execute_batch(&format!(
            "CREATE TABLE entries (
                 tbl TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL,
                 PRIMARY KEY (tbl, key)
             ) WITHOUT ROWID;
             CREATE TABLE sequence (last INTEGER NOT NULL);
             INSERT INTO sequence (last) VALUES (0);
             PRAGMA application_id={APPLICATION_ID};
             PRAGMA user_version={SCHEMA_VERSION};"
        ))
        .map_err(sqlite)?;
    }
    conn.execute_batch("COMMIT").map_err(sqlite)
}

type CommitReply = oneshot::Sender<Result<Vec<u64>, CommitError>>;

enum Command {
    Read(Box<dyn FnOnce(&Owner) + Send>),
    Commit(Pending),
}

struct Pending {
    batch: Vec<Write>,
    reply: CommitReply,
}

/// Why a batch did not go in: its own fault, or the file's.
enum Failure {
    Conflict { table: String, key: String },
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sqlite(source)
    }
}

/// The thread's state: the connection and its name for errors.
struct Owner {
    conn: Connection,
    place: String,
}

impl Owner {
    fn run(&self, mut queue: mpsc::Receiver<Command>) {
        let (mut commits, mut reads) = (Vec::new(), Vec::new());
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Commit(pending) => commits.push(pending),
                    Command::Read(read) => reads.push(read),
                }
                next = if commits.len() + reads.len() < GROUP { queue.try_recv().ok() } else { None };
            }
            self.commit_group(std::mem::take(&mut commits));
            reads.drain(..).for_each(|read| read(self));
        }
    }

    /// Applies all batches in one transaction; should the file refuse it as a whole, each on its own, so that one batch
    /// that is too big for the disk does not take the others with it.
    fn commit_group(&self, group: Vec<Pending>) {
        if group.is_empty() {
            return;
        }
        match self.transaction(group.iter().map(|pending| pending.batch.as_slice())) {
            Ok(outcomes) => {
                for (pending, outcome) in group.into_iter().zip(outcomes) {
                    let _ = pending.reply.send(outcome);
                }
            }
            Err(error) if group.len() == 1 => {
                tracing::warn!(store = self.place, %error, "a commit failed");
                if let Some(pending) = group.into_iter().next() {
                    let _ = pending.reply.send(Err(self.error(error).into()));
                }
            }
            Err(error) => {
                tracing::warn!(store = self.place, %error, batches = group.len(), "a group commit failed, going one by one");
                for pending in group {
                    self.commit_group(vec![pending]);
                }
            }
        }
    }

    /// Runs the batches, each in a savepoint, and makes them durable. An error means that none was applied.
    fn transaction<'a>(
        &self,
        batches: impl Iterator<Item = &'a [Write]>,
    ) -> Result<Vec<Result<Vec<u64>, CommitError>>, rusqlite::Error> {
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let applied = self.apply_all(batches).and_then(|outcomes| {
            self.conn.execute_batch("COMMIT")?;
            Ok(outcomes)
        });
        // SQLite ends the transaction by itself after some errors (a full disk among them), and not after others.
        if applied.is_err() && !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK")?;
        }
        applied
    }

    fn apply_all<'a>(
        &self,
        batches: impl Iterator<Item = &'a [Write]>,
    ) -> Result<Vec<Result<Vec<u64>, CommitError>>, rusqlite::Error> {
        let mut outcomes = Vec::new();
        for batch in batches {
            self.conn.prepare_cached("SAVEPOINT batch")?.execute([])?;
            match self.apply(batch) {
                Ok(revisions) => outcomes.push(Ok(revisions)),
                Err(Failure::Conflict { table, key }) => {
                    self.conn.prepare_cached("ROLLBACK TO batch")?.execute([])?;
                    outcomes.push(Err(CommitError::Conflict { table, key }));
                }
                Err(Failure::Sqlite(error)) => return Err(error),
            }
            self.conn.prepare_cached("RELEASE batch")?.execute([])?;
        }
        Ok(outcomes)
    }

    fn apply(&self, batch: &[Write]) -> Result<Vec<u64>, Failure> {
        let mut find = self.conn.prepare_cached("SELECT revision FROM entries WHERE tbl = ?1 AND key = ?2")?;
        for write in batch {
            let (table, key) = (write.table(), write.key());
            let found = find.query_row([table, key], |row| row.get::<_, i64>(0)).optional()?;
            if !write.expect().allows(found.map(i64::cast_unsigned)) {
                return Err(Failure::Conflict { table: table.to_owned(), key: key.to_owned() });
            }
        }
        let count = i64::try_from(batch.len()).unwrap_or(i64::MAX);
        let last: i64 = self
            .conn
            .prepare_cached("UPDATE sequence SET last = last + ?1 RETURNING last")?
            .query_row([count], |row| row.get(0))?;
        let revisions = last - count + 1..=last;
        for (write, revision) in batch.iter().zip(revisions.clone()) {
            match write {
                Write::Put { table, key, value, .. } => self
                    .conn
                    .prepare_cached(
                        "INSERT OR REPLACE INTO entries (tbl, key, value, revision) VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![table, key, value, revision])?,
                Write::Delete { table, key, .. } => self
                    .conn
                    .prepare_cached("DELETE FROM entries WHERE tbl = ?1 AND key = ?2")?
                    .execute([table, key])?,
            };
        }
        Ok(revisions.map(i64::cast_unsigned).collect())
    }

    fn load(&self, table: &str) -> Result<Vec<(String, Entry)>, rusqlite::Error> {
        let mut select =
            self.conn.prepare_cached("SELECT key, value, revision FROM entries WHERE tbl = ?1 ORDER BY key")?;
        let rows = select.query_map([table], |row| {
            Ok((row.get(0)?, Entry { value: row.get(1)?, revision: row.get::<_, i64>(2)?.cast_unsigned() }))
        })?;
        rows.collect()
    }

    fn get(&self, table: &str, key: &str) -> Result<Option<Entry>, rusqlite::Error> {
        self.conn
            .prepare_cached("SELECT value, revision FROM entries WHERE tbl = ?1 AND key = ?2")?
            .query_row([table, key], |row| {
                Ok(Entry { value: row.get(0)?, revision: row.get::<_, i64>(1)?.cast_unsigned() })
            })
            .optional()
    }

    fn error(&self, error: rusqlite::Error) -> StoreError {
        let place = self.place.clone();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full { place },
            _ => StoreError::Backend { place, source: Box::new(error) },
        }
    }
}

#[cfg(test)]
mod tests;
