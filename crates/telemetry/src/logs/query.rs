//! Reading: groups, streams and pages of events, with the ranges, orders and tokens of the CloudWatch Logs API.
//!
//! Tokens are opaque to clients. They name the position of the last thing that was handed out, so that pages neither
//! skip nor repeat what is there when more is written meanwhile.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::queue::EVENT_OVERHEAD;
use super::{LogError, LogEvent};
use crate::filter::Pattern;

pub(super) const MINUTE_MS: i64 = 60 * 1000;
/// Groups or streams of a page at most.
const MAX_DESCRIBE: usize = 50;
/// Events of a page at most.
const MAX_EVENTS: usize = 10_000;
/// Bytes of a page at most, where it has more than one event.
const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// Events that one page of a filter looks at, at most; the token goes on from there.
const MAX_SCANNED: usize = 100_000;
/// Bytes of a put at most, [`EVENT_OVERHEAD`] included.
const MAX_PUT_BYTES: usize = 1024 * 1024;
/// Milliseconds between the first and the last event of a put.
const MAX_PUT_SPAN_MS: i64 = 24 * 60 * MINUTE_MS;

/// Which groups to describe, by name.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    /// All, or some.
    pub name: GroupName,
    /// How many at most, 1 to 50 (the default).
    pub limit: Option<usize>,
    /// The token of the page before.
    pub token: Option<String>,
}

/// A condition on a group's name.
#[derive(Debug, Clone, Default)]
pub enum GroupName {
    /// None.
    #[default]
    Any,
    /// It begins with this.
    Prefix(String),
    /// It contains this, case and all.
    Contains(String),
}

/// Which streams to describe.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    /// The name begins with this; not together with [`StreamOrder::LastEventTime`].
    pub prefix: Option<String>,
    /// The order.
    pub order: StreamOrder,
    /// Backwards.
    pub descending: bool,
    /// How many at most, 1 to 50 (the default).
    pub limit: Option<usize>,
    /// The token of the page before.
    pub token: Option<String>,
}

/// An order of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamOrder {
    /// By name.
    #[default]
    LogStreamName,
    /// By the time of the last event; streams without events come first.
    LastEventTime,
}

/// Which events of a stream to get.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// From this time on, Unix milliseconds.
    pub start_ms: Option<i64>,
    /// Before this time, Unix milliseconds.
    pub end_ms: Option<i64>,
    /// How many at most, 1 to 10,000 (the default). Pages also end at 1 MiB.
    pub limit: Option<usize>,
    /// The oldest first; otherwise a request without a token gets the newest. Pages are in order of time either way.
    pub start_from_head: bool,
    /// A forward or backward token of another page.
    pub token: Option<String>,
}

/// Which events of a group to look for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only these streams; all when empty. Not together with a prefix.
    pub streams: Vec<String>,
    /// Only streams whose name begins with this.
    pub stream_prefix: Option<String>,
    /// From this time on, Unix milliseconds.
    pub start_ms: Option<i64>,
    /// Up to and including this time, Unix milliseconds.
    pub end_ms: Option<i64>,
    /// The filter pattern; see [`crate::filter`].
    pub pattern: Option<String>,
    /// How many at most, 1 to 10,000 (the default). Pages also end at 1 MiB, or when much was looked at in vain.
    pub limit: Option<usize>,
    /// The token of the page before.
    pub token: Option<String>,
}

/// A log group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Its own retention policy, in days.
    pub retention_days: Option<u32>,
    /// Bytes of its events: messages, and 26 for each.
    pub stored_bytes: u64,
}

/// A log stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// The time of its first event, Unix milliseconds.
    pub first_event_ms: Option<i64>,
    /// The time of its last event, Unix milliseconds.
    pub last_event_ms: Option<i64>,
    /// When it last got events, Unix milliseconds.
    pub last_ingestion_ms: Option<i64>,
    /// Bytes of its events: messages, and 26 for each.
    pub stored_bytes: u64,
}

/// An event as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// When it happened, Unix milliseconds.
    pub timestamp_ms: i64,
    /// When it was taken in, Unix milliseconds.
    pub ingestion_ms: i64,
    /// What was said.
    pub message: String,
}

/// A page of a stream, in order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// Gets what comes after; the token itself where nothing does yet.
    pub next_forward: String,
    /// Gets what comes before; the token itself where nothing does.
    pub next_backward: String,
}

/// An event that a filter found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilteredEvent {
    /// Its stream.
    pub stream: String,
    /// The event.
    pub event: StoredEvent,
    /// 56 digits that no other event has.
    pub event_id: String,
}

/// A page of what a filter found, in order of time over all streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterPage {
    /// The events; there may be none although there is a token.
    pub events: Vec<FilteredEvent>,
    /// Gets the next page, where there may be one.
    pub next_token: Option<String>,
}

/// The place of an event in the order of its group and stream: time, then sequence.
type Position = (i64, i64);

fn invalid(text: impl Into<String>) -> LogError {
    LogError::InvalidParameter(text.into())
}

fn bad_token() -> LogError {
    invalid("The specified nextToken is invalid.")
}

pub(super) fn check_group_name(name: &str) -> Result<(), LogError> {
    let fits = (1..=512).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_/#".contains(c))
        && !name.starts_with("aws/");
    if fits { Ok(()) } else { Err(invalid(format!("Value '{name}' at 'logGroupName' is no valid log group name"))) }
}

pub(super) fn check_stream_name(name: &str) -> Result<(), LogError> {
    let fits = !name.is_empty() && name.chars().count() <= 512 && !name.contains([':', '*']);
    if fits { Ok(()) } else { Err(invalid(format!("Value '{name}' at 'logStreamName' is no valid log stream name"))) }
}

/// The rules that a put must keep as a whole.
pub(super) fn check_put(events: &[LogEvent]) -> Result<(), LogError> {
    if !(1..=MAX_EVENTS).contains(&events.len()) {
        return Err(invalid(format!("a batch has 1 to {MAX_EVENTS} log events")));
    }
    if events.iter().any(|event| event.message.is_empty()) {
        return Err(invalid("a log event has an empty message"));
    }
    let bytes: usize = events.iter().map(|event| event.message.len() + EVENT_OVERHEAD).sum();
    if bytes > MAX_PUT_BYTES {
        return Err(invalid(format!("Upload too large: {bytes} bytes exceeds limit of {MAX_PUT_BYTES}")));
    }
    if !events.is_sorted_by_key(|event| event.timestamp_ms) {
        return Err(invalid("Log events in a single PutLogEvents request must be in chronological order."));
    }
    let span = events.iter().map(|event| event.timestamp_ms);
    if span.clone().max().unwrap_or(0).saturating_sub(span.min().unwrap_or(0)) > MAX_PUT_SPAN_MS {
        return Err(invalid(
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.",
        ));
    }
    Ok(())
}

fn limit(asked: Option<usize>, most: usize) -> Result<usize, LogError> {
    let limit = asked.unwrap_or(most);
    if (1..=most).contains(&limit) { Ok(limit) } else { Err(invalid(format!("limit must be between 1 and {most}"))) }
}

pub(super) fn group_id(conn: &Connection, group: &str) -> Result<i64, LogError> {
    let mut find = conn.prepare_cached("SELECT id FROM groups WHERE name = ?1")?;
    find.query_row([group], |row| row.get(0)).optional()?.ok_or(LogError::GroupNotFound)
}

pub(super) fn stream_id(conn: &Connection, group: i64, stream: &str) -> Result<i64, LogError> {
    let mut find = conn.prepare_cached("SELECT id FROM streams WHERE group_id = ?1 AND name = ?2")?;
    find.query_row(params![group, stream], |row| row.get(0)).optional()?.ok_or(LogError::StreamNotFound)
}

pub(super) fn describe_groups(
    conn: &Connection,
    request: &Groups,
) -> Result<(Vec<GroupInfo>, Option<String>), LogError> {
    let limit = limit(request.limit, MAX_DESCRIBE)?;
    let (condition, name) = match &request.name {
        GroupName::Any => ("?2 = ''", ""),
        GroupName::Prefix(prefix) => ("substr(name, 1, length(?2)) = ?2", prefix.as_str()),
        GroupName::Contains(part) => ("instr(name, ?2) > 0", part.as_str()),
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT name, created_ms, retention_days,
             (SELECT coalesce(sum(bytes), 0) FROM streams WHERE group_id = groups.id)
         FROM groups WHERE name > ?1 AND {condition} ORDER BY name LIMIT ?3"
    ))?;
    let after = request.token.as_deref().unwrap_or("");
    let groups = select.query_map(params![after, name, limit as i64 + 1], |row| {
        Ok(GroupInfo {
            name: row.get(0)?,
            created_ms: row.get(1)?,
            retention_days: row.get(2)?,
            stored_bytes: row.get::<_, i64>(3)?.max(0).unsigned_abs(),
        })
    })?;
    let groups = groups.collect::<Result<Vec<_>, _>>()?;
    Ok(page(groups, limit, |group| group.name.clone()))
}

pub(super) fn describe_streams(
    conn: &Connection,
    group: &str,
    request: &Streams,
) -> Result<(Vec<StreamInfo>, Option<String>), LogError> {
    let limit = limit(request.limit, MAX_DESCRIBE)?;
    let by_time = request.order == StreamOrder::LastEventTime;
    if by_time && request.prefix.is_some() {
        return Err(invalid("Cannot order by LastEventTime with a logStreamNamePrefix."));
    }
    let group = group_id(conn, group)?;
    let (time, direction, after) = match (by_time, request.descending) {
        (true, false) => ("coalesce(last_ms, -1)", "ASC", ">"),
        (true, true) => ("coalesce(last_ms, -1)", "DESC", "<"),
        (false, false) => ("0", "ASC", ">"),
        (false, true) => ("0", "DESC", "<"),
    };
    let (token_time, token_name) = match &request.token {
        Some(token) => {
            let (time, name) = token.split_once(':').ok_or_else(bad_token)?;
            (time.parse::<i64>().map_err(|_| bad_token())?, Some(name))
        }
        None => (0, None),
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT name, created_ms, first_ms, last_ms, ingested_ms, bytes, {time} AS time FROM streams
         WHERE group_id = ?1 AND substr(name, 1, length(?2)) = ?2 AND (?3 IS NULL OR (time, name) {after} (?4, ?3))
         ORDER BY time {direction}, name {direction} LIMIT ?5"
    ))?;
    let prefix = request.prefix.as_deref().unwrap_or("");
    let streams = select.query_map(params![group, prefix, token_name, token_time, limit as i64 + 1], |row| {
        Ok(StreamInfo {
            name: row.get(0)?,
            created_ms: row.get(1)?,
            first_event_ms: row.get(2)?,
            last_event_ms: row.get(3)?,
            last_ingestion_ms: row.get(4)?,
            stored_bytes: row.get::<_, i64>(5)?.max(0).unsigned_abs(),
        })
    })?;
    let streams = streams.collect::<Result<Vec<_>, _>>()?;
    let time = |stream: &StreamInfo| if by_time { stream.last_event_ms.unwrap_or(-1) } else { 0 };
    Ok(page(streams, limit, |stream| format!("{}:{}", time(stream), stream.name)))
}

/// Cuts the one row too many off, and makes a token of the last one that stays.
fn page<T>(mut rows: Vec<T>, limit: usize, token: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let token = rows.last().filter(|_| more).map(token);
    (rows, token)
}

/// Which way a page of a stream goes from where.
enum From {
    After(Position),
    Before(Position),
}

const FIRST: Position = (i64::MIN, 0);
const LAST: Position = (i64::MAX, i64::MAX);

fn parse_position(text: &str) -> Result<Position, LogError> {
    let (time, seq) = text.split_once('/').ok_or_else(bad_token)?;
    Ok((time.parse().map_err(|_| bad_token())?, seq.parse().map_err(|_| bad_token())?))
}

fn position_token(direction: &str, position: Position) -> String {
    format!("{direction}{}/{}", position.0, position.1)
}

pub(super) fn get_events(
    conn: &Connection,
    group: &str,
    stream: &str,
    request: &Events,
) -> Result<EventPage, LogError> {
    let limit = limit(request.limit, MAX_EVENTS)?;
    let group = group_id(conn, group)?;
    let stream = stream_id(conn, group, stream)?;
    let from = match request.token.as_deref() {
        Some(token) => match (token.strip_prefix("f/"), token.strip_prefix("b/")) {
            (Some(position), _) => From::After(parse_position(position)?),
            (_, Some(position)) => From::Before(parse_position(position)?),
            (None, None) => return Err(bad_token()),
        },
        None if request.start_from_head => From::After(FIRST),
        None => From::Before(LAST),
    };
    // Sequence numbers begin at 1, so 0 stands before all events of its millisecond.
    let (start, end) = (request.start_ms.map_or(FIRST, |ms| (ms, 0)), request.end_ms.map_or(LAST, |ms| (ms, 0)));
    let (direction, lower, upper) = match from {
        From::After(position) => ("ASC", position.max(start), end),
        From::Before(position) => ("DESC", start, position.min(end)),
    };
    let mut select = conn.prepare_cached(&format!(
        "SELECT timestamp_ms, seq, ingested_ms, message FROM events INDEXED BY events_of_stream
         WHERE stream_id = ?1 AND (timestamp_ms, seq) > (?2, ?3) AND (timestamp_ms, seq) < (?4, ?5)
         ORDER BY timestamp_ms {direction}, seq {direction} LIMIT ?6"
    ))?;
    let mut rows = select.query(params![stream, lower.0, lower.1, upper.0, upper.1, limit as i64])?;
    let mut found: Vec<(Position, StoredEvent)> = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let event = stored_event(row)?;
        bytes += event.message.len() + EVENT_OVERHEAD;
        if bytes > MAX_PAGE_BYTES && !found.is_empty() {
            break;
        }
        found.push(((row.get(0)?, row.get(1)?), event));
    }
    if matches!(from, From::Before(_)) {
        found.reverse();
    }
    // Where there is nothing, the way that was asked for stays where it is, and the other one turns round there.
    let (first, last) = match (found.first(), found.last(), from) {
        (Some((first, _)), Some((last, _)), _) => (*first, *last),
        (_, _, From::After(position)) => ((position.0, position.1.saturating_add(1)), position),
        // Nothing is before the end either: whatever comes will be after the beginning.
        (_, _, From::Before(LAST)) if request.token.is_none() => (FIRST, FIRST),
        (_, _, From::Before(position)) => (position, (position.0, position.1.saturating_sub(1))),
    };
    Ok(EventPage {
        events: found.into_iter().map(|(_, event)| event).collect(),
        next_forward: position_token("f/", last),
        next_backward: position_token("b/", first),
    })
}

pub(super) fn filter_events(conn: &Connection, group: &str, request: &Filter) -> Result<FilterPage, LogError> {
    let limit = limit(request.limit, MAX_EVENTS)?;
    if !request.streams.is_empty() && request.stream_prefix.is_some() {
        return Err(invalid("logStreamNames and logStreamNamePrefix cannot be used together."));
    }
    let pattern = Pattern::parse(request.pattern.as_deref().unwrap_or(""))?;
    let group = group_id(conn, group)?;
    let position = request.token.as_deref().map_or(Ok(FIRST), parse_position)?;
    let lower = position.max(request.start_ms.map_or(FIRST, |ms| (ms, 0)));
    let upper = request.end_ms.map_or(LAST, |ms| (ms, i64::MAX));

    let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(group)];
    values.extend([lower.0, lower.1, upper.0, upper.1].map(|bound| Box::new(bound) as Box<dyn ToSql>));
    let mut condition = String::new();
    if let Some(prefix) = &request.stream_prefix {
        values.push(Box::new(prefix.clone()));
        condition.push_str(" AND substr(streams.name, 1, length(?6)) = ?6");
    } else if !request.streams.is_empty() {
        let mut ids = Vec::new();
        for stream in &request.streams {
            ids.push(stream_id(conn, group, stream)?.to_string());
        }
        // Numbers of our own, so there is nothing to escape.
        condition = format!(" AND events.stream_id IN ({})", ids.join(","));
    }
    let mut select = conn.prepare(&format!(
        "SELECT timestamp_ms, seq, events.ingested_ms, message, streams.name
         FROM events CROSS JOIN streams ON streams.id = events.stream_id
         WHERE events.group_id = ?1 AND (timestamp_ms, seq) > (?2, ?3) AND (timestamp_ms, seq) < (?4, ?5)
         {condition} ORDER BY timestamp_ms, seq"
    ))?;
    let mut rows = select.query(rusqlite::params_from_iter(values))?;
    let mut events: Vec<FilteredEvent> = Vec::new();
    let (mut bytes, mut scanned, mut last) = (0, 0, position);
    while let Some(row) = rows.next()? {
        if events.len() == limit || scanned == MAX_SCANNED {
            return Ok(FilterPage { events, next_token: Some(position_token("", last)) });
        }
        scanned += 1;
        let matches = pattern.matches(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?);
        if matches {
            let event = stored_event(row)?;
            bytes += event.message.len() + EVENT_OVERHEAD;
            if bytes > MAX_PAGE_BYTES && !events.is_empty() {
                return Ok(FilterPage { events, next_token: Some(position_token("", last)) });
            }
            let event_id = format!("{:020}{:036}", event.timestamp_ms, row.get::<_, i64>(1)?);
            events.push(FilteredEvent { stream: row.get(4)?, event, event_id });
        }
        last = (row.get(0)?, row.get(1)?);
    }
    Ok(FilterPage { events, next_token: None })
}

fn stored_event(row: &Row<'_>) -> Result<StoredEvent, rusqlite::Error> {
    Ok(StoredEvent { timestamp_ms: row.get(0)?, ingestion_ms: row.get(2)?, message: row.get(3)? })
}
