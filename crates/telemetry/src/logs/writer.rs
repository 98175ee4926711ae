//! The thread that owns the writing connection.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::query::{MINUTE_MS, group_id, stream_id};
use super::queue::{Append, Dropped, EVENT_OVERHEAD, Item, Loss, Queue};
use super::{LogError, LogEvent, PutOutcome};
use crate::lines::PlatformEvent;

/// Niceness of the writer: whoever waits for an answer has the processor first. Low enough to keep up when all are busy.
const NICENESS: i32 = 10;

/// How often expired events are looked for.
const PURGE_EVERY_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// Streams whose ids are remembered at most.
const MAX_KNOWN: usize = 10_000;

/// Lowers the priority of this thread, which on Linux has a number like that of a process.
fn step_back() {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!(%error, "the log writer keeps its priority");
    }
}

#[derive(Debug, Clone, Copy)]
struct Ids {
    group: i64,
    stream: i64,
}

pub(super) struct Writer {
    conn: Connection,
    queue: Arc<Queue>,
    known: HashMap<(String, String), Ids>,
    last_seq: i64,
    purged_ms: Option<i64>,
    /// Losses that could not be recorded yet.
    dropped: Dropped,
    /// The file, to ask for the room beside it.
    path: PathBuf,
    /// Whether the last batch found the disk nearly full.
    is_cramped: bool,
}

impl Writer {
    pub(super) fn new(conn: Connection, queue: Arc<Queue>, path: PathBuf) -> Result<Self, rusqlite::Error> {
        let last_seq = conn.query_row("SELECT last FROM counter", [], |row| row.get(0))?;
        let (known, dropped) = (HashMap::new(), Dropped::new());
        Ok(Self { conn, queue, known, last_seq, purged_ms: None, dropped, path, is_cramped: false })
    }

    pub(super) fn run(mut self) {
        step_back();
        // However this thread ends, nobody is to wait for it.
        let _abandon = Abandon(self.queue.clone());
        let idle = Duration::from_millis(PURGE_EVERY_MS.unsigned_abs());
        while let Some(batch) = self.queue.next(idle) {
            for (key, loss) in batch.dropped {
                self.dropped.entry(key).or_default().add(loss);
            }
            let mut appends = Vec::new();
            for item in batch.items {
                match item {
                    Item::Append(append) => appends.push(append),
                    Item::Change(change) => {
                        self.write(std::mem::take(&mut appends));
                        change(&mut self);
                    }
                }
            }
            self.write(appends);
            self.queue.finished(batch.upto);
            self.purge_when_due();
        }
    }

    /// Writes appended events in one transaction. When that fails they are lost, and counted.
    fn write(&mut self, mut appends: Vec<Append>) {
        if !self.has_room() {
            for Append { group, stream, events, .. } in appends {
                self.dropped.entry((group, stream)).or_default().add(Loss::of(&events));
            }
            return;
        }
        let losses = std::mem::take(&mut self.dropped);
        let now_ms = self.now_ms();
        appends.extend(losses.iter().map(|((group, stream), loss)| marker(group, stream, *loss, now_ms)));
        if appends.is_empty() {
            return;
        }
        let markers = losses.len();
        if let Err(error) = self.transaction(|writer| appends.iter().try_for_each(|append| writer.insert(append))) {
            let events: usize = appends.iter().map(|append| append.events.len()).sum();
            tracing::error!(%error, events, "log events were dropped: they cannot be written");
            self.dropped = losses;
            for append in appends.drain(..appends.len() - markers) {
                self.dropped.entry((append.group, append.stream)).or_default().add(Loss::of(&append.events));
            }
        }
    }

    /// Whether the disk has room for what functions say.
    fn has_room(&mut self) -> bool {
        // A file system that does not tell is written to until it refuses.
        let is_cramped = (self.queue.options.space)(&self.path).is_some_and(|space| !space.is_ample());
        if is_cramped && !self.is_cramped {
            tracing::error!(path = %self.path.display(), "log events are dropped: the disk is nearly full");
        }
        self.is_cramped = is_cramped;
        !is_cramped
    }

    /// Runs in one transaction; after an error nothing of it is left, in the file and in what is remembered of it.
    fn transaction<T, E: From<rusqlite::Error>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let last_seq = self.last_seq;
        let result = work(self).and_then(|value| {
            self.conn.prepare_cached("UPDATE counter SET last = ?1")?.execute([self.last_seq])?;
            self.conn.execute_batch("COMMIT")?;
            Ok(value)
        });
        if result.is_err() {
            self.known.clear();
            self.last_seq = last_seq;
            // SQLite ends the transaction by itself after some errors, a full disk among them.
            if !self.conn.is_autocommit() {
                self.conn.execute_batch("ROLLBACK")?;
            }
        }
        result
    }

    fn insert(&mut self, append: &Append) -> Result<(), rusqlite::Error> {
        let ids = self.ids(&append.group, &append.stream, append.ingested_ms)?;
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO events (group_id, timestamp_ms, seq, stream_id, ingested_ms, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for event in &append.events {
            self.last_seq += 1;
            insert.execute(params![
                ids.group,
                event.timestamp_ms,
                self.last_seq,
                ids.stream,
                append.ingested_ms,
                event.message
            ])?;
        }
        let times = || append.events.iter().map(|event| event.timestamp_ms);
        self.conn
            .prepare_cached(
                "UPDATE streams SET first_ms = min(coalesce(first_ms, ?2), ?2), last_ms = max(coalesce(last_ms, ?3), ?3),
                 ingested_ms = ?4, bytes = bytes + ?5 WHERE id = ?1",
            )?
            .execute(params![ids.stream, times().min(), times().max(), append.ingested_ms, append.bytes() as i64])?;
        Ok(())
    }

    /// The ids of a group and a stream, which are made where they are missing.
    fn ids(&mut self, group: &str, stream: &str, now_ms: i64) -> Result<Ids, rusqlite::Error> {
        let key = (group.to_owned(), stream.to_owned());
        if let Some(ids) = self.known.get(&key) {
            return Ok(*ids);
        }
        // The update that changes nothing makes RETURNING answer for a row that was there.
        let group_id = self
            .conn
            .prepare_cached(
                "INSERT INTO groups (name, created_ms) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET name = name RETURNING id",
            )?
            .query_row(params![group, now_ms], |row| row.get(0))?;
        let stream_id = self
            .conn
            .prepare_cached(
                "INSERT INTO streams (group_id, name, created_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT (group_id, name) DO UPDATE SET name = name RETURNING id",
            )?
            .query_row(params![group_id, stream, now_ms], |row| row.get(0))?;
        let ids = Ids { group: group_id, stream: stream_id };
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(key, ids);
        Ok(ids)
    }

    pub(super) fn create_group(&mut self, group: &str) -> Result<(), LogError> {
        let sql = "INSERT INTO groups (name, created_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        match self.conn.execute(sql, params![group, self.now_ms()])? {
            0 => Err(LogError::GroupExists),
            _ => Ok(()),
        }
    }

    pub(super) fn delete_group(&mut self, group: &str) -> Result<(), LogError> {
        let id = group_id(&self.conn, group)?;
        self.known.clear();
        self.transaction(|writer| {
            writer.conn.execute("DELETE FROM events WHERE group_id = ?1", [id])?;
            writer.conn.execute("DELETE FROM streams WHERE group_id = ?1", [id])?;
            writer.conn.execute("DELETE FROM groups WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    pub(super) fn create_stream(&mut self, group: &str, stream: &str) -> Result<(), LogError> {
        let id = group_id(&self.conn, group)?;
        let sql = "INSERT INTO streams (group_id, name, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        match self.conn.execute(sql, params![id, stream, self.now_ms()])? {
            0 => Err(LogError::StreamExists),
            _ => Ok(()),
        }
    }

    pub(super) fn delete_stream(&mut self, group: &str, stream: &str) -> Result<(), LogError> {
        let group = group_id(&self.conn, group)?;
        let id = stream_id(&self.conn, group, stream)?;
        self.known.clear();
        self.transaction(|writer| {
            writer.conn.execute("DELETE FROM events WHERE stream_id = ?1", [id])?;
            writer.conn.execute("DELETE FROM streams WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    pub(super) fn set_retention(&mut self, group: &str, days: Option<u32>) -> Result<(), LogError> {
        let id = group_id(&self.conn, group)?;
        self.conn.execute("UPDATE groups SET retention_days = ?2 WHERE id = ?1", params![id, days])?;
        Ok(())
    }

    /// Writes a client's events. They are in order, so the ones that are let in are a range.
    pub(super) fn put_events(
        &mut self,
        group: &str,
        stream: &str,
        mut events: Vec<LogEvent>,
    ) -> Result<(PutOutcome, Range<usize>), LogError> {
        let group_id = group_id(&self.conn, group)?;
        stream_id(&self.conn, group_id, stream)?;
        let own: Option<u32> =
            self.conn.query_row("SELECT retention_days FROM groups WHERE id = ?1", [group_id], |row| row.get(0))?;
        let retention = own.or(self.queue.options.retention_days);
        let now_ms = self.now_ms();
        let older_than = |limit: i64| events.partition_point(|event| event.timestamp_ms < limit);
        let too_old = older_than(now_ms - 14 * DAY_MS);
        let expired = retention.map_or(0, |days| older_than(now_ms - i64::from(days) * DAY_MS));
        let too_new = older_than(now_ms + 2 * 60 * MINUTE_MS + 1);
        let outcome = PutOutcome {
            too_new_start: (too_new < events.len()).then_some(too_new),
            too_old_end: (too_old > 0).then_some(too_old),
            expired_end: (expired > too_old).then_some(expired),
        };
        let kept = too_old.max(expired)..too_new;
        events.truncate(kept.end);
        events.drain(..kept.start);
        if !events.is_empty() {
            let append = Append { group: group.to_owned(), stream: stream.to_owned(), events, ingested_ms: now_ms };
            self.transaction(|writer| writer.insert(&append))?;
        }
        Ok((outcome, kept))
    }

    fn purge_when_due(&mut self) {
        let now_ms = self.now_ms();
        if self.purged_ms.is_some_and(|purged| now_ms - purged < PURGE_EVERY_MS) {
            return;
        }
        if let Err(error) = self.purge_expired() {
            tracing::warn!(%error, "expired log events could not be removed, trying again in an hour");
        }
    }

    pub(super) fn purge_expired(&mut self) -> Result<(), LogError> {
        let now_ms = self.now_ms();
        self.purged_ms = Some(now_ms);
        let default = self.queue.options.retention_days;
        let groups: Vec<(i64, u32)> = self
            .conn
            .prepare(
                "SELECT id, coalesce(retention_days, ?1) FROM groups WHERE coalesce(retention_days, ?1) IS NOT NULL",
            )?
            .query_map([default], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        for (group, days) in groups {
            self.transaction(|writer| writer.purge(group, now_ms - i64::from(days) * DAY_MS))?;
        }
        Ok(())
    }

    /// Removes the events of a group from before `limit_ms`, and corrects its streams.
    fn purge(&mut self, group: i64, limit_ms: i64) -> Result<(), rusqlite::Error> {
        let expired: Vec<(i64, i64)> = self
            .conn
            .prepare_cached(
                "SELECT stream_id, sum(octet_length(message) + ?3) FROM events
                 WHERE group_id = ?1 AND timestamp_ms < ?2 GROUP BY stream_id",
            )?
            .query_map(params![group, limit_ms, EVENT_OVERHEAD as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        if expired.is_empty() {
            return Ok(());
        }
        self.conn.execute("DELETE FROM events WHERE group_id = ?1 AND timestamp_ms < ?2", [group, limit_ms])?;
        for (stream, bytes) in expired {
            let first: Option<i64> = self
                .conn
                .prepare_cached("SELECT timestamp_ms FROM events WHERE stream_id = ?1 ORDER BY timestamp_ms LIMIT 1")?
                .query_row([stream], |row| row.get(0))
                .optional()?;
            self.conn
                .prepare_cached("UPDATE streams SET bytes = bytes - ?2, first_ms = ?3 WHERE id = ?1")?
                .execute(params![stream, bytes, first])?;
        }
        Ok(())
    }

    fn now_ms(&self) -> i64 {
        (self.queue.options.clock)()
    }
}

/// The event that tells of lost ones.
fn marker(group: &str, stream: &str, loss: Loss, now_ms: i64) -> Append {
    let reason = "the log store could not keep up".to_owned();
    let event = PlatformEvent::LogsDropped { records: loss.records, bytes: loss.bytes, reason };
    let event = LogEvent { timestamp_ms: now_ms, message: event.json_line(now_ms) };
    Append { group: group.to_owned(), stream: stream.to_owned(), events: vec![event], ingested_ms: now_ms }
}

struct Abandon(Arc<Queue>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
