//! Live events of a group, for `logs --follow`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::LogEvent;

/// Events that a slow follower may lag behind before it misses some.
const BACKLOG: usize = 4096;

/// What a follower sees next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// An event.
    Event {
        /// The stream that it went to.
        stream: Arc<str>,
        /// The event.
        event: LogEvent,
    },
    /// The follower was too slow for this many events.
    Missed(u64),
}

/// Receives the events of one group, beginning with its creation.
#[derive(Debug)]
pub struct Follower {
    events: broadcast::Receiver<(Arc<str>, LogEvent)>,
}

impl Follower {
    /// The next event; `None` when the log store was closed.
    pub async fn next(&mut self) -> Option<Followed> {
        match self.events.recv().await {
            Ok((stream, event)) => Some(Followed::Event { stream, event }),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Followed::Missed(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

type Sender = broadcast::Sender<(Arc<str>, LogEvent)>;

#[derive(Default)]
pub(super) struct Followers {
    groups: Mutex<HashMap<String, Sender>>,
    /// The number of groups, so that an append without followers takes no lock.
    count: AtomicUsize,
}

impl Followers {
    pub(super) fn follow(&self, group: &str) -> Follower {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, sender| sender.receiver_count() > 0);
        let sender = groups.entry(group.to_owned()).or_insert_with(|| broadcast::channel(BACKLOG).0);
        let follower = Follower { events: sender.subscribe() };
        self.count.store(groups.len(), Ordering::Release);
        follower
    }

    pub(super) fn publish(&self, group: &str, stream: &str, events: &[LogEvent]) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = groups.get(group) else { return };
        let stream: Arc<str> = stream.into();
        // Sending fails only when nobody follows any more.
        if events.iter().any(|event| sender.send((stream.clone(), event.clone())).is_err()) {
            groups.remove(group);
            self.count.store(groups.len(), Ordering::Release);
        }
    }
}
