//! The host's end: the calls of a `RuntimeApi`, written to the guest at once, and what the guest reports.
//!
//! The guest is hostile. Its messages are bounded, it can add to the owner's queue of events no more than an honest API
//! would, and the first one that makes no sense ends the [`Remote`] as the end of the stream does: the invocations in hand are
//! dropped, and the events end.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use runtime_api::{
    Credentials, Event, ExtensionInfo, Extensions, Invocation, InvokeRefused, Options, Outcome, ShutdownReason,
    TooManyExtensions,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::wire::{Command, ExtensionsForm, MAX_BODY, Report, max_body};
use crate::frame::{self, ReadError};

/// Events that an API can emit between two commands of its owner, with room to spare: each of ten extensions fails once,
/// the others happen once.
const EVENTS_PER_COMMAND: u32 = 32;
/// Largest body of an event in bytes: the API reads reports of 256 KiB.
const MAX_EVENT: usize = 512 << 10;
/// Largest list of extensions in bytes. Names and error types come from HTTP heads and could be larger; a function that has
/// such ones does not keep this much memory of the host's.
const MAX_LIST: usize = 256 << 10;
/// Bytes that wait to be written before the guest is given up, who does not read.
const MAX_QUEUED: usize = 64 << 20;
/// The same for each invocation that it may have beside another: their payloads may all come at once.
const MAX_QUEUED_FOR_EACH: usize = 8 << 20;
/// As on Lambda, external and internal ones together.
const MAX_EXTENSIONS: usize = 10;
/// What [`Link::progress`] says when no progress is to be expected.
const OVER: u64 = u64::MAX;

/// Handle of the Runtime API in a microVM; clones are cheap and mean the same one.
///
/// The calls are those of [`runtime_api::RuntimeApi`] and return at once. When the last clone is dropped the API closes as
/// with [`Remote::close`].
#[derive(Clone)]
pub struct Remote {
    owner: Arc<Owner>,
}

/// The guest is gone, or was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the runtime api of this microvm is gone, use another environment")]
pub struct Unsettled;

impl Remote {
    /// Starts to serve in the guest at the other end. Needs a Tokio runtime.
    pub fn open(stream: UnixStream, options: Options) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (limit, concurrency) = (max_body(&options), options.max_concurrency.max(1));
        Self::start(stream, Command::Open(options), limit, concurrency)
    }

    /// Takes over an API that was opened before, over a stream that has ended, as it does when a microVM is restored. What
    /// its past owner has not been told comes first. If there is none, the events end. It is one that serves one invocation
    /// at a time: no other is kept in a snapshot.
    pub fn attach(stream: UnixStream) -> (Self, mpsc::UnboundedReceiver<Event>) {
        Self::start(stream, Command::Attach, MAX_BODY, 1)
    }

    fn start(
        stream: UnixStream,
        first: Command,
        limit: usize,
        concurrency: usize,
    ) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (read, write) = stream.into_split();
        // Unbounded by its type, bounded by the budget.
        let (events, receiver) = mpsc::unbounded_channel();
        let inner = Inner { events: Some(events), budget: EVENTS_PER_COMMAND, ..Inner::default() };
        let link = Arc::new(Link {
            stream: write,
            wake: Notify::new(),
            progress: watch::channel(0).0,
            concurrency,
            inner: Mutex::new(inner),
        });
        link.send(&mut link.lock(), &first, Bytes::new(), true);
        tokio::spawn(write_queue(link.clone()));
        tokio::spawn(listen(frame::Reader::new(read, limit), link.clone()));
        (Self { owner: Arc::new(Owner { link }) }, receiver)
    }

    /// See [`runtime_api::RuntimeApi::invoke`]. Between a reset and the guest's word whether the runtime had seen the
    /// invocations in hand (see [`Self::settled`]), they count as still in hand.
    pub fn invoke(&self, invocation: Invocation) -> Result<oneshot::Receiver<Outcome>, InvokeRefused> {
        let link = self.link();
        let mut inner = link.lock();
        if inner.closed {
            return Err(InvokeRefused::Closed);
        }
        if inner.pending.len() >= link.concurrency {
            return Err(InvokeRefused::Busy);
        }
        if inner.shutting_down {
            return Err(InvokeRefused::ShuttingDown);
        }
        let (sender, receiver) = oneshot::channel();
        inner.invocations += 1;
        let number = inner.invocations;
        let request_id = invocation.request_id.clone();
        inner.pending.push(Pending { number, request_id, outcome: sender });
        let payload = invocation.payload.clone();
        link.send(&mut inner, &Command::Invoke { number, invocation }, payload, false);
        Ok(receiver)
    }

    /// See [`runtime_api::RuntimeApi::abandon`].
    pub fn abandon(&self) {
        let mut inner = self.link().lock();
        inner.pending.clear();
        self.link().send(&mut inner, &Command::Abandon, Bytes::new(), true);
    }

    /// See [`runtime_api::RuntimeApi::abandon_one`]. What follows of it is there when [`Self::settled`] returns.
    pub fn abandon_one(&self, request_id: &str) {
        let mut inner = self.link().lock();
        let Some(at) = inner.pending.iter().position(|pending| pending.request_id == request_id) else { return };
        let number = inner.pending.swap_remove(at).number;
        self.link().send(&mut inner, &Command::AbandonOne { number }, Bytes::new(), true);
    }

    /// See [`runtime_api::RuntimeApi::reset`]. New processes start after [`Self::settled`].
    pub fn reset(&self) {
        let mut inner = self.link().lock();
        self.link().send(&mut inner, &Command::Reset, Bytes::new(), true);
        inner.reset_at = inner.sent;
        inner.list_from = inner.sent;
        inner.extensions = Extensions::default();
        inner.registration_closed = false;
        inner.shutting_down = false;
    }

    /// See [`runtime_api::RuntimeApi::expect_extensions`]. Their processes start after [`Self::settled`].
    pub fn expect_extensions(&self, names: impl IntoIterator<Item = String>) -> Result<(), TooManyExtensions> {
        let names: Vec<String> = names.into_iter().collect();
        let mut inner = self.link().lock();
        let known = inner.extensions.external.len() + inner.extensions.internal.len();
        if inner.registration_closed || known + names.len() > MAX_EXTENSIONS {
            return Err(TooManyExtensions);
        }
        let announced = |name: &String| ExtensionInfo {
            name: name.clone(),
            state: "Started",
            invoke: false,
            shutdown: false,
            error_type: None,
        };
        inner.extensions.external.extend(names.iter().map(announced));
        self.link().send(&mut inner, &Command::Expect(names), Bytes::new(), true);
        inner.list_from = inner.sent;
        Ok(())
    }

    /// See [`runtime_api::RuntimeApi::shutdown_extensions`]; counts those that the guest has told of.
    pub fn shutdown_extensions(&self, reason: ShutdownReason, deadline_ms: u64) -> usize {
        let mut inner = self.link().lock();
        inner.shutting_down = true;
        self.link().send(&mut inner, &Command::Shutdown { reason, deadline_ms }, Bytes::new(), true);
        inner.extensions.shutdown_subscribers()
    }

    /// The extensions and their states as the guest told last, which it does whenever they change, and before an event that
    /// stands on it.
    pub fn extensions(&self) -> Extensions {
        self.link().lock().extensions.clone()
    }

    /// See [`runtime_api::RuntimeApi::restore`]. A guest in which no runtime waits refuses, and is given up for that: only
    /// after [`Event::RestoreReady`].
    pub fn restore(&self) {
        self.link().send(&mut self.link().lock(), &Command::Restore, Bytes::new(), true);
    }

    /// See [`runtime_api::RuntimeApi::set_credentials`].
    pub fn set_credentials(&self, credentials: Option<Credentials>) {
        let command = Command::Credentials(credentials.map(Into::into));
        self.link().send(&mut self.link().lock(), &command, Bytes::new(), true);
    }

    /// See [`runtime_api::RuntimeApi::close`].
    pub fn close(&self) {
        self.link().close();
    }

    /// Waits until the guest has carried out every command so far, but for invocations, which it answers in their time. No
    /// round trip if it is known already. It has no time limit: a guest can keep silent.
    pub async fn settled(&self) -> Result<(), Unsettled> {
        let mut progress = self.link().progress.subscribe();
        let wanted = self.link().lock().acknowledged;
        // The sender lives in the link, which this handle keeps.
        let reached = progress.wait_for(|taken| *taken >= wanted).await.map_err(|_| Unsettled)?;
        if *reached == OVER { Err(Unsettled) } else { Ok(()) }
    }

    fn link(&self) -> &Link {
        &self.owner.link
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.link().lock();
        formatter.debug_struct("Remote").field("closed", &inner.closed).field("sent", &inner.sent).finish()
    }
}

/// Closes the API when the last handle goes; the tasks hold the link only.
struct Owner {
    link: Arc<Link>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.link.close();
    }
}

/// What the handles and the two tasks share.
struct Link {
    stream: OwnedWriteHalf,
    /// Wakes the writing task: something is queued, or all is over.
    wake: Notify,
    /// Commands that the guest has taken, or [`OVER`].
    progress: watch::Sender<u64>,
    /// Invocations that there may be at once.
    concurrency: usize,
    inner: Mutex<Inner>,
}

/// An invocation in hand.
struct Pending {
    number: u64,
    request_id: String,
    outcome: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// What could not be written at once.
    queue: VecDeque<Bytes>,
    /// Commands so far.
    sent: u64,
    /// The last of them that the guest confirms at once.
    acknowledged: u64,
    /// The last reset: events that were written before it was taken are of an older runtime.
    reset_at: u64,
    /// The last command that made a list of extensions obsolete that was written before it was taken.
    list_from: u64,
    invocations: u64,
    /// In no order.
    pending: Vec<Pending>,
    events: Option<mpsc::UnboundedSender<Event>>,
    /// Events that the guest may still send before the next command.
    budget: u32,
    extensions: Extensions,
    registration_closed: bool,
    shutting_down: bool,
}

impl Inner {
    fn no_longer_pending(&mut self, number: u64) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.number == number)?;
        Some(self.pending.swap_remove(at))
    }
}

/// What an honest guest does not do.
#[derive(Debug, thiserror::Error)]
enum Lie {
    #[error("it counts commands that were not sent")]
    Count,
    #[error("it counts backwards")]
    Backwards,
    #[error("it sends more events than can have happened")]
    Events,
    #[error("an event is too large")]
    EventSize,
    #[error("an answer lacks the bytes it speaks of")]
    Outcome,
    #[error("its list of extensions cannot be read")]
    List,
    #[error("its list of extensions is too large to be kept")]
    ListSize,
    #[error("there are more extensions than can be")]
    TooManyExtensions,
    #[error("it refuses what it was told")]
    Refused,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a command, as far as that is possible without waiting, and queues the rest.
    fn send(&self, inner: &mut Inner, command: &Command, body: Bytes, acknowledged: bool) {
        inner.sent += 1;
        if acknowledged {
            inner.acknowledged = inner.sent;
        }
        inner.budget = EVENTS_PER_COMMAND;
        if inner.closed {
            return;
        }
        let mut head = match frame::head(command, body.len()) {
            Ok(head) => head,
            Err(error) => {
                tracing::error!(%error, "a command does not fit the stream to the guest");
                return self.end(inner);
            }
        };
        let mut body = body;
        if inner.queue.is_empty() {
            match self.stream.try_write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]) {
                Ok(written) => {
                    let of_head = written.min(head.len());
                    head.advance(of_head);
                    body.advance((written - of_head).min(body.len()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The reading task hears of it as well, and ends all.
                Err(error) => tracing::debug!(%error, "cannot write to the guest"),
            }
        }
        inner.queue.extend([head, body].into_iter().filter(|part| !part.is_empty()));
        if inner.queue.iter().map(Bytes::len).sum::<usize>() > MAX_QUEUED + (self.concurrency - 1) * MAX_QUEUED_FOR_EACH
        {
            tracing::warn!("a guest does not read what its runtime api is told");
            return self.end(inner);
        }
        if !inner.queue.is_empty() {
            self.wake.notify_one();
        }
    }

    /// The owner has had enough.
    fn close(&self) {
        let mut inner = self.lock();
        if !inner.closed {
            self.send(&mut inner, &Command::Close, Bytes::new(), false);
            self.finish(&mut inner);
        }
    }

    /// The guest has gone, or lied.
    fn end(&self, inner: &mut Inner) {
        inner.queue.clear();
        self.finish(inner);
        self.shut();
    }

    fn shut(&self) {
        // Fails only where the other side was quicker.
        let _ = rustix::net::shutdown(self.stream.as_ref(), rustix::net::Shutdown::Both);
    }

    fn finish(&self, inner: &mut Inner) {
        inner.closed = true;
        inner.pending.clear();
        inner.events = None;
        self.progress.send_replace(OVER);
        self.wake.notify_one();
    }

    /// Takes a message of the guest's; false when no other is wanted.
    fn take(&self, taken: u64, report: Report, body: Bytes) -> Result<bool, Lie> {
        let mut inner = self.lock();
        if inner.closed {
            return Ok(false);
        }
        if taken > inner.sent {
            return Err(Lie::Count);
        }
        if taken < *self.progress.borrow() {
            return Err(Lie::Backwards);
        }
        let outdated = taken < inner.reset_at;
        match report {
            Report::Taken => {}
            Report::Attached { registration_closed, shutting_down } => {
                if !outdated {
                    inner.registration_closed |= registration_closed;
                    inner.shutting_down |= shutting_down;
                }
            }
            Report::Refused => return Err(Lie::Refused),
            Report::Outcome { number, outcome } => {
                let outcome = outcome.join(body).ok_or(Lie::Outcome)?;
                // One that is answered too late was abandoned; one that was answered before a reset is lost with its runtime.
                if let Some(pending) = inner.no_longer_pending(number)
                    && !outdated
                {
                    // The owner may have stopped listening.
                    let _ = pending.outcome.send(outcome);
                }
            }
            Report::Dropped { number } => drop(inner.no_longer_pending(number)),
            Report::Event(event) => {
                if body.len() > MAX_EVENT {
                    return Err(Lie::EventSize);
                }
                inner.budget = inner.budget.checked_sub(1).ok_or(Lie::Events)?;
                if !outdated {
                    let event = event.join(body);
                    inner.registration_closed |= matches!(event, Event::InitDone | Event::Idle);
                    if let Some(events) = &inner.events {
                        // Likewise.
                        let _ = events.send(event);
                    }
                }
            }
            Report::Extensions => {
                if body.len() > MAX_LIST {
                    return Err(Lie::ListSize);
                }
                let list = serde_json::from_slice::<ExtensionsForm>(&body).ok().and_then(ExtensionsForm::known);
                let list = list.ok_or(Lie::List)?;
                if list.external.len() + list.internal.len() > MAX_EXTENSIONS {
                    return Err(Lie::TooManyExtensions);
                }
                if taken >= inner.list_from {
                    inner.extensions = list;
                }
            }
        }
        self.progress.send_if_modified(|progress| std::mem::replace(progress, taken) != taken);
        Ok(true)
    }
}

/// Hears the guest until one of the two ends.
async fn listen(mut frames: frame::Reader<OwnedReadHalf>, link: Arc<Link>) {
    let mut progress = link.progress.subscribe();
    loop {
        let next = tokio::select! {
            biased;
            next = frames.next::<(u64, Report)>() => next,
            _ = progress.wait_for(|taken| *taken == OVER) => return,
        };
        match next {
            Ok(((taken, report), body)) => match link.take(taken, report, body) {
                Ok(true) => {}
                Ok(false) => return,
                Err(lie) => {
                    tracing::warn!(error = %lie, "a guest is given up");
                    break;
                }
            },
            Err(ReadError::Ended) => break,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a guest is given up");
                break;
            }
        }
    }
    let mut inner = link.lock();
    if !inner.closed {
        link.end(&mut inner);
    }
}

/// Writes what could not be written at once, and shuts the stream when all is over.
async fn write_queue(link: Arc<Link>) {
    loop {
        link.wake.notified().await;
        loop {
            let Some(mut part) = link.lock().queue.front().cloned() else { break };
            let written = match link.stream.writable().await {
                Ok(()) => link.stream.try_write(&part),
                Err(error) => Err(error),
            };
            match written {
                Ok(written) => {
                    part.advance(written);
                    let mut inner = link.lock();
                    // Emptied meanwhile if the guest was given up.
                    if inner.queue.pop_front().is_some() && !part.is_empty() {
                        inner.queue.push_front(part);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    // Nothing more can be said; the reading task sees the end.
                    link.lock().queue.clear();
                }
            }
        }
        if link.lock().closed {
            return link.shut();
        }
    }
}
