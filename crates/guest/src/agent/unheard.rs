//! Ends of processes that the host has not said it heard of: each connection is told all of them.
//!
//! That a connection took an event does not mean that the host read it: it may have dropped the connection, or may be a clone
//! of a machine that was stopped with the event on its way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::sync::Notify;

use crate::control::Event;

/// Bounded by what the host starts: each of its processes ends once.
#[derive(Default)]
pub(super) struct Unheard {
    /// In the order in which they happened.
    events: RefCell<BTreeMap<u64, Event>>,
    last: Cell<u64>,
    added: Notify,
}

impl Unheard {
    pub(super) fn add(&self, event: Event) {
        let serial = self.last.get() + 1;
        self.last.set(serial);
        self.events.borrow_mut().insert(serial, event);
        self.added.notify_one();
    }

    /// The first one after `serial`, as soon as there is one, with its own serial. Nothing is lost if the future is dropped. One
    /// connection waits at a time.
    pub(super) async fn after(&self, serial: u64) -> (u64, Event) {
        loop {
            if let Some((serial, event)) = self.events.borrow().range(serial + 1..).next() {
                return (*serial, event.clone());
            }
            self.added.notified().await;
        }
    }

    /// The host knows that these processes have ended.
    pub(super) fn heard(&self, processes: &[u32]) {
        self.events.borrow_mut().retain(|_, Event::Exited { process, .. }| !processes.contains(process));
    }
}
