//! The loop of the device thread: one epoll instance that wakes whoever subscribed, until nobody asks it to turn again.

use std::io;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
pub use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, SubscriberId};

/// What an [`EventLoop`] wakes.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Descriptors and who is woken when they are ready. Turned by one thread.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
}

impl EventLoop {
    /// A loop that watches nothing yet.
    pub fn new() -> io::Result<EventLoop> {
        let manager = EventManager::new().map_err(as_io)?;
        Ok(EventLoop { manager })
    }

    /// Adds a subscriber; its `init` is called before this returns.
    pub fn add(&mut self, subscriber: Subscriber) -> SubscriberId {
        self.manager.add_subscriber(subscriber)
    }

    /// Takes a subscriber out again and stops watching its descriptors. `None` if there is none of that id.
    pub fn remove(&mut self, id: SubscriberId) -> Option<Subscriber> {
        self.manager.remove_subscriber(id).ok()
    }

    /// Waits until something is ready, or `timeout` has passed (`None`: for ever), and wakes the subscribers concerned.
    /// Returns how many descriptors were ready; a signal counts as none.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let milliseconds = match timeout {
            None => -1,
            Some(timeout) => i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX),
        };
        match self.manager.run_with_timeout(milliseconds).map_err(as_io) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }
}

fn as_io(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(format!("event manager: {other:?}")),
    }
}
