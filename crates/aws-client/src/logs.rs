//! Log events, also written to CloudWatch Logs or what stands for it: [`Writer::append`] puts them into a bounded queue and
//! never waits; a task sends them in batches.
//!
//! While the service cannot be reached, events wait as long as there is room, and what finds none is lost. What the service
//! refuses is lost too. Losses are counted ([`Writer::lost`]) and said in the server's log.

mod queue;
mod wire;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::client::Client;
use crate::retry;
use queue::{Batch, Queue};
use wire::PutError;

/// How long events wait for others before they are sent.
const GATHER: Duration = Duration::from_millis(250);

/// Losses are said at most this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Something that was logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unix time in milliseconds.
    pub timestamp_ms: i64,
    pub message: String,
}

/// Sends events. Cheap to clone; clones share the queue.
#[derive(Debug, Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    more: Notify,
    lost: AtomicU64,
    /// Set when no more events come: what waits has until then.
    deadline: watch::Sender<Option<Instant>>,
    done: watch::Sender<bool>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, events: usize) {
        self.lost.fetch_add(events as u64, Ordering::Relaxed);
    }
}

impl Writer {
    /// Starts the task that sends. `most_waiting` bounds what waits, in bytes; 32 MiB is plenty.
    #[must_use]
    pub fn start(client: Client, most_waiting: usize) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(most_waiting)),
            more: Notify::new(),
            lost: AtomicU64::new(0),
            deadline: watch::Sender::new(None),
            done: watch::Sender::new(false),
        });
        tokio::spawn(Sender { client, shared: Arc::clone(&shared), told: 0, told_at: None }.run());
        Self { shared }
    }

    /// Adds events to a stream; neither waits nor fails.
    pub fn append(&self, group: &str, stream: &str, events: impl IntoIterator<Item = Event>) {
        let lost = self.shared.queue().push(group, stream, events);
        self.shared.lose(lost);
        self.shared.more.notify_one();
    }

    /// Events that will not be written, since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Sends what waits, for `patience` at most, and ends the task. What is left is lost.
    pub async fn finish(&self, patience: Duration) {
        self.shared.deadline.send_replace(Some(Instant::now() + patience));
        self.shared.more.notify_one();
        let mut done = self.shared.done.subscribe();
        // An error means that the task is gone.
        let _ = done.wait_for(|done| *done).await;
    }
}

/// Resolves when no more events come, to the moment until which what waits has time.
async fn time_is_up(deadline: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match deadline.wait_for(Option::is_some).await {
        Ok(until) => until.unwrap_or_else(Instant::now),
        // The writer is gone.
        Err(_) => Instant::now(),
    }
}

/// The task.
struct Sender {
    client: Client,
    shared: Arc<Shared>,
    told: u64,
    told_at: Option<Instant>,
}

impl Sender {
    async fn run(mut self) {
        let mut deadline = self.shared.deadline.subscribe();
        loop {
            self.shared.more.notified().await;
            if deadline.borrow().is_none() {
                // Ends early when the server does.
                let _ = tokio::time::timeout(GATHER, time_is_up(&mut deadline)).await;
            }
            loop {
                let batch = self.shared.queue().take();
                let Some(batch) = batch else { break };
                self.deliver(batch).await;
                self.tell(false);
            }
            self.tell(false);
            if deadline.borrow().is_some() {
                break;
            }
        }
        self.tell(true);
        self.shared.done.send_replace(true);
    }

    /// Sends a batch until it is taken or refused, or time is up.
    async fn deliver(&mut self, batch: Batch) {
        let mut deadline = self.shared.deadline.subscribe();
        let (mut failed, mut created) = (0, false);
        loop {
            let result = {
                let mut put = pin!(wire::put(&self.client, &batch));
                tokio::select! {
                    result = &mut put => Some(result),
                    until = time_is_up(&mut deadline) => tokio::time::timeout_at(until, put).await.ok(),
                }
            };
            let ending = deadline.borrow().is_some();
            match result {
                Some(Ok(rejected)) => return self.shared.lose(rejected),
                Some(Err(PutError::NoStream)) if !created => {
                    created = true;
                    if let Err(error) = wire::create(&self.client, &batch).await {
                        tracing::debug!(%error, group = batch.group, stream = batch.stream, "no log stream was made");
                    }
                }
                Some(Err(error)) if error.is_transient() && !ending => {
                    failed += 1;
                    if failed == 1 {
                        tracing::warn!(%error, "the Logs endpoint takes no events now; they wait");
                    }
                    self.tell(false);
                    let pause = retry::pause(failed + 3, retry::random());
                    let _ = tokio::time::timeout(pause, time_is_up(&mut deadline)).await;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, group = batch.group, stream = batch.stream, "log events were refused");
                    return self.shared.lose(batch.events.len());
                }
                None => return self.shared.lose(batch.events.len()),
            }
        }
    }

    /// Says what was lost since the last time.
    fn tell(&mut self, now: bool) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost == self.told || !now && self.told_at.is_some_and(|at| at.elapsed() < SAY_EVERY) {
            return;
        }
        tracing::warn!(
            events = lost - self.told,
            "log events were not written to the Logs endpoint and are lost there"
        );
        self.told = lost;
        self.told_at = Some(Instant::now());
    }
}
