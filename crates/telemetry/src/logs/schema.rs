//! The tables, and how connections to them are set up.
//!
//! Events are clustered by group, time and sequence number, the order of FilterLogEvents; an index gives the same order
//! within a stream. `counter` holds the last sequence number, which is never used twice.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::OpenLogsError;

/// The schema that this build writes. Raise it with every change, and migrate in `open`.
pub(super) const SCHEMA_VERSION: i64 = 1;
/// Marks the file as ours ("Flog" in ASCII), see `PRAGMA application_id`.
const APPLICATION_ID: i64 = 0x466c_6f67;
/// How long a connection waits for another one's lock.
const BUSY: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE groups (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_ms INTEGER NOT NULL, retention_days INTEGER
    );
    CREATE TABLE streams (
        id INTEGER PRIMARY KEY, group_id INTEGER NOT NULL, name TEXT NOT NULL, created_ms INTEGER NOT NULL,
        first_ms INTEGER, last_ms INTEGER, ingested_ms INTEGER, bytes INTEGER NOT NULL DEFAULT 0,
        UNIQUE (group_id, name)
    );
    CREATE TABLE events (
        group_id INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, seq INTEGER NOT NULL, stream_id INTEGER NOT NULL,
        ingested_ms INTEGER NOT NULL, message TEXT NOT NULL,
        PRIMARY KEY (group_id, timestamp_ms, seq)
    ) WITHOUT ROWID;
    CREATE INDEX events_of_stream ON events (stream_id, timestamp_ms, seq);
    CREATE TABLE counter (last INTEGER NOT NULL);
    INSERT INTO counter (last) VALUES (0);";

/// Opens the writer's connection.
pub(super) fn open(path: &Path) -> Result<Connection, OpenLogsError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| OpenLogsError::Io { path: path.to_owned(), source })?;
    }
    let sqlite = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenLogsError::Foreign { path: path.to_owned() },
        _ => OpenLogsError::Sqlite { path: path.to_owned(), source },
    };
    let conn = Connection::open(path).map_err(sqlite)?;
    conn.busy_timeout(BUSY).map_err(sqlite)?;
    let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(sqlite);
    // Look before the first change: a file that is not ours must stay as it is.
    let application = number("PRAGMA application_id")?;
    let found = number("PRAGMA user_version")?;
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    if application != APPLICATION_ID && (application != 0 || objects != 0) {
        return Err(OpenLogsError::Foreign { path: path.to_owned() });
    }
    if found > SCHEMA_VERSION {
        return Err(OpenLogsError::Newer { path: path.to_owned(), found, supported: SCHEMA_VERSION });
    }
    conn.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).map_err(sqlite)?;
    conn.execute_batch("PRAGMA synchronous=NORMAL").map_err(sqlite)?;
    if found == 0 {
        let script = format!(
            "BEGIN; {TABLES} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        );
        conn.execute_batch(&script).map_err(sqlite)?;
    }
    Ok(conn)
}

/// Opens a connection for queries.
pub(super) fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY)?;
    Ok(conn)
}
