//! What waits for the writer thread: bounded, and never waited for by those who log.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::writer::Writer;
use super::{LogError, LogEvent, LogOptions};

/// What an event takes beside its message, as CloudWatch counts it.
pub(super) const EVENT_OVERHEAD: usize = 26;
type Change = Box<dyn FnOnce(&mut Writer) + Send>;

/// Changes that may wait; a client that sends more is to come back later.
const MAX_CHANGES: usize = 256;

/// One thing for the writer to do.
pub(super) enum Item {
    Append(Append),
    Change(Change),
}

pub(super) struct Append {
    pub(super) group: String,
    pub(super) stream: String,
    pub(super) events: Vec<LogEvent>,
    pub(super) ingested_ms: i64,
}

impl Append {
    pub(super) fn bytes(&self) -> usize {
        size(&self.events)
    }
}

/// Events that were lost, by group and stream.
pub(super) type Dropped = HashMap<(String, String), Loss>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Loss {
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
    }

    pub(super) fn of(events: &[LogEvent]) -> Self {
        Self { records: events.len() as u64, bytes: events.iter().map(|event| event.message.len() as u64).sum() }
    }
}

/// Streams whose losses are counted apart at most; beyond, losses go uncounted rather than unbounded.
const MAX_DROPPED_STREAMS: usize = 10_000;

pub(super) struct Queue {
    pub(super) options: LogOptions,
    state: Mutex<State>,
    wake: Condvar,
    /// How many pushes are done with.
    done: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    items: Vec<Item>,
    bytes: usize,
    events: usize,
    changes: usize,
    dropped: Dropped,
    /// How many pushes there were.
    pushed: u64,
    /// When the oldest item came.
    since: Option<Instant>,
    urgent: bool,
    closed: bool,
}

/// What the writer takes at a time.
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    pub(super) dropped: Dropped,
    /// To be told to [`Queue::finished`].
    pub(super) upto: u64,
}

impl Queue {
    pub(super) fn new(options: LogOptions) -> Self {
        Self { options, state: Mutex::default(), wake: Condvar::new(), done: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, group: &str, stream: &str, events: Vec<LogEvent>) {
        let bytes = size(&events);
        let ingested_ms = (self.options.clock)();
        let mut state = self.state();
        if state.bytes + bytes > self.options.max_queue_bytes {
            let key = (group.to_owned(), stream.to_owned());
            if state.dropped.len() < MAX_DROPPED_STREAMS || state.dropped.contains_key(&key) {
                state.dropped.entry(key).or_default().add(Loss::of(&events));
            }
            return;
        }
        state.bytes += bytes;
        state.events += events.len();
        let append = Append { group: group.to_owned(), stream: stream.to_owned(), events, ingested_ms };
        let first = state.items.is_empty();
        state.put(Item::Append(append));
        // The writer is woken for the first item, to start its delay, and for the one that ends the delay.
        if first || state.events >= self.options.batch_events {
            self.wake.notify_one();
        }
    }

    /// Adds a change that somebody waits for.
    pub(super) fn push(&self, change: Change) -> Result<(), LogError> {
        let mut state = self.state();
        if state.closed {
            return Err(LogError::Closed);
        }
        if state.changes == MAX_CHANGES {
            return Err(LogError::Overloaded);
        }
        state.changes += 1;
        state.put(Item::Change(change));
        state.urgent = true;
        self.wake.notify_one();
        Ok(())
    }

    pub(super) async fn flush(&self) {
        let mut done = self.done.subscribe();
        let target = {
            let mut state = self.state();
            if *done.borrow_and_update() < state.pushed || !state.dropped.is_empty() {
                // An item of its own, so that there is something to wait for when there are only losses to record.
                state.pushed += 1;
                state.urgent = true;
                self.wake.notify_one();
            }
            state.pushed
        };
        // Fails only when the queue is gone, and with it everybody who could wait.
        let _ = done.wait_for(|done| *done >= target).await;
    }

    /// Lets [`Queue::next`] hand out what is left, then end.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.wake.notify_one();
    }

    /// Nothing more will be written: whoever waits need not.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.closed = true;
        state.items.clear();
        self.done.send_replace(u64::MAX);
    }

    pub(super) fn finished(&self, upto: u64) {
        self.done.send_if_modified(|done| {
            let more = *done < upto;
            *done = (*done).max(upto);
            more
        });
    }

    /// Waits for the next batch; `Some` with nothing in it after `idle` without work, `None` when closed and empty.
    pub(super) fn next(&self, idle: Duration) -> Option<Batch> {
        let mut state = self.state();
        let deadline = Instant::now() + idle;
        loop {
            let now = Instant::now();
            let due = match state.since {
                _ if state.urgent || state.closed || state.events >= self.options.batch_events => now,
                Some(since) => since + self.options.batch_delay,
                None => deadline,
            };
            if due <= now {
                break;
            }
            let (guard, _) = self.wake.wait_timeout(state, due - now).unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
        if state.closed && state.items.is_empty() && state.dropped.is_empty() {
            return None;
        }
        state.urgent = false;
        state.since = None;
        state.bytes = 0;
        state.events = 0;
        state.changes = 0;
        let batch = Batch {
            items: std::mem::take(&mut state.items),
            dropped: std::mem::take(&mut state.dropped),
            upto: state.pushed,
        };
        Some(batch)
    }
}

impl State {
    fn put(&mut self, item: Item) {
        self.items.push(item);
        self.pushed += 1;
        self.since.get_or_insert_with(Instant::now);
    }
}

fn size(events: &[LogEvent]) -> usize {
    events.iter().map(|event| event.message.len() + EVENT_OVERHEAD).sum()
}
