//! What waits to be sent, and how it is cut into batches that PutLogEvents takes.

use std::collections::{HashMap, VecDeque};

use super::Event;

/// Most events of a batch.
pub(super) const MOST_EVENTS: usize = 10_000;
/// Most bytes of a batch: of messages, and [`OVERHEAD`] for each.
pub(super) const MOST_BYTES: usize = 1_048_576;
/// What an event counts beside its message, in bytes.
pub(super) const OVERHEAD: usize = 26;
/// Most time between the first and the last event of a batch, in milliseconds.
pub(super) const LONGEST_SPAN: i64 = 24 * 60 * 60 * 1_000;

/// Events of one stream, sorted by time, within the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub group: String,
    pub stream: String,
    pub events: Vec<Event>,
}

type Stream = (String, String);

/// Events by stream; streams take turns.
#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    bytes: usize,
    turns: VecDeque<Stream>,
    waiting: HashMap<Stream, VecDeque<Event>>,
}

fn weight(event: &Event) -> usize {
    event.message.len() + OVERHEAD
}

/// Shortens a text to so many bytes, or a few less: characters stay whole.
fn cut(text: &mut String, longest: usize) {
    let mut end = longest.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

impl Queue {
    /// A queue for `most` bytes of messages and [`OVERHEAD`]s.
    pub fn new(most: usize) -> Self {
        Self { most, bytes: 0, turns: VecDeque::new(), waiting: HashMap::new() }
    }

    /// Takes events in, as far as there is room; answers how many there was none for. A message that is longer than a batch
    /// is cut, an empty one is not an event.
    pub fn push(&mut self, group: &str, stream: &str, events: impl IntoIterator<Item = Event>) -> usize {
        let mut lost = 0;
        let key = (group.to_owned(), stream.to_owned());
        for mut event in events.into_iter().filter(|event| !event.message.is_empty()) {
            cut(&mut event.message, MOST_BYTES - OVERHEAD);
            let weight = weight(&event);
            if self.bytes + weight > self.most {
                lost += 1;
                continue;
            }
            self.bytes += weight;
            let waiting = self.waiting.entry(key.clone()).or_insert_with(|| {
                self.turns.push_back(key.clone());
                VecDeque::new()
            });
            waiting.push_back(event);
        }
        lost
    }

    /// The next batch.
    pub fn take(&mut self) -> Option<Batch> {
        let key = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&key)?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        let (mut first, mut last) = (i64::MAX, i64::MIN);
        while let Some(event) = waiting.front() {
            let (earliest, latest) = (first.min(event.timestamp_ms), last.max(event.timestamp_ms));
            let fits = events.len() < MOST_EVENTS
                && bytes + weight(event) <= MOST_BYTES
                && latest.saturating_sub(earliest) < LONGEST_SPAN;
            if !fits && !events.is_empty() {
                break;
            }
            (first, last) = (earliest, latest);
            bytes += weight(event);
            events.extend(waiting.pop_front());
        }
        if waiting.is_empty() {
            self.waiting.remove(&key);
        } else {
            self.turns.push_back(key.clone());
        }
        self.bytes -= bytes;
        events.sort_by_key(|event| event.timestamp_ms);
        let (group, stream) = key;
        Some(Batch { group, stream, events })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(timestamp_ms: i64, message: &str) -> Event {
        Event { timestamp_ms, message: message.to_owned() }
    }

    #[test]
    fn streams_take_turns_and_events_keep_their_order() {
        let mut queue = Queue::new(MOST_BYTES);
        assert_eq!(queue.push("g", "a", [event(2, "second"), event(1, "first"), event(2, "third")]), 0);
        assert_eq!(queue.push("g", "b", [event(1, "other")]), 0);
        let batch = queue.take().unwrap();
        assert_eq!((batch.stream.as_str(), batch.events[0].message.as_str()), ("a", "first"));
        assert_eq!(batch.events[1..], [event(2, "second"), event(2, "third")]);
        assert_eq!(queue.take().unwrap().stream, "b");
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut queue = Queue::new(100);
        let events = (0..5).map(|number| event(number, "0123456789"));
        assert_eq!(queue.push("g", "s", events), 3);
        assert_eq!(queue.take().unwrap().events.len(), 2);
        assert_eq!(queue.push("g", "s", [event(9, "x")]), 0, "there is room again");
    }

    #[test]
    fn a_message_longer_than_a_batch_is_cut_at_a_character() {
        let mut queue = Queue::new(MOST_BYTES * 4);
        queue.push("g", "s", [event(1, &"ä".repeat(MOST_BYTES)), event(1, "")]);
        let batch = queue.take().unwrap();
        assert_eq!(batch.events.len(), 1);
        assert_eq!(batch.events[0].message.len(), MOST_BYTES - OVERHEAD);
    }

    proptest! {
        #[test]
        fn every_batch_is_within_the_limits_and_nothing_is_forgotten(
            pushes in proptest::collection::vec(
                (0..3_u8, proptest::collection::vec((0..LONGEST_SPAN * 3, 1..300_000_usize), 0..8)),
                0..8,
            ),
            most in 0..4_000_000_usize,
        ) {
            let mut queue = Queue::new(most);
            let (mut given, mut lost) = (0, 0);
            for (stream, events) in pushes {
                given += events.len();
                let events = events.into_iter().map(|(time, length)| event(time, &"x".repeat(length)));
                lost += queue.push("g", &stream.to_string(), events);
            }
            let mut taken = 0;
            while let Some(batch) = queue.take() {
                taken += batch.events.len();
                prop_assert!(!batch.events.is_empty() && batch.events.len() <= MOST_EVENTS);
                prop_assert!(batch.events.iter().map(weight).sum::<usize>() <= MOST_BYTES);
                prop_assert!(batch.events.is_sorted_by_key(|event| event.timestamp_ms));
                let span = batch.events[batch.events.len() - 1].timestamp_ms - batch.events[0].timestamp_ms;
                prop_assert!(span < LONGEST_SPAN);
            }
            prop_assert_eq!(taken + lost, given);
            prop_assert_eq!(queue.bytes, 0);
        }
    }
}
