//! The owner's side: the handle, and the lock under which the machine steps and its actions are carried out.
//!
//! The lock is held for a step only, never across an await. A step hands what it decides straight to the waiting task
//! through a one-shot channel, so that a warm invocation costs two wake-ups: the connection that waits in `next`, and the
//! owner that waits for the outcome.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::machine::{Action, CallId, Input, Machine};
use crate::{
    Credentials, Event, ExtensionEvent, Extensions, Invocation, Options, Outcome, Refusal, ShutdownReason, server,
};

/// Bodies of error reports and registrations that are read at a time; the others wait, so that their size bounds memory.
const SMALL_BODIES: usize = 8;

/// Handle of one environment's Runtime API; clones are cheap and mean the same server.
///
/// When the last clone is dropped the server closes as with [`RuntimeApi::close`].
#[derive(Clone)]
pub struct RuntimeApi {
    owner: Arc<Owner>,
}

/// Why [`RuntimeApi::invoke`] did not take an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvokeRefused {
    /// There are as many invocations without an answer as the environment takes at once (one, but for
    /// [`Options::max_concurrency`]); wait for an outcome or abandon one.
    #[error("an invocation is already in flight, wait for its outcome or abandon it")]
    Busy,
    /// The extensions were told to end.
    #[error("the environment is shutting down, use another one")]
    ShuttingDown,
    /// The server was closed.
    #[error("the runtime api of this environment is closed, use another one")]
    Closed,
}

/// [`RuntimeApi::restore`] found no runtime that waits in `restore/next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no runtime waits in restore/next, restore only after the RestoreReady event")]
pub struct RestoreRefused;

/// [`RuntimeApi::expect_extensions`] was called with more names than Lambda allows, or after the init phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most 10 extensions can be announced, and only before the init phase has ended")]
pub struct TooManyExtensions;

impl RuntimeApi {
    /// Starts to serve on `listener`, which must be reachable from inside the sandbox only. Needs a Tokio runtime.
    pub fn serve(listener: TcpListener, options: Options) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (shared, events) = Shared::new(options);
        let shared = Arc::new(shared);
        tokio::spawn(server::accept(listener, shared.clone()));
        (Self { owner: Arc::new(Owner { shared }) }, events)
    }

    /// Hands an invocation in: it goes to a waiting `next` at once, else to the following one.
    ///
    /// This is also allowed before the first `next` and between an answer and the following `next`. The receiver fails when
    /// the invocation was abandoned or its runtime reset.
    pub fn invoke(&self, invocation: Invocation) -> Result<oneshot::Receiver<Outcome>, InvokeRefused> {
        let mut inner = self.shared().lock();
        if inner.closed {
            return Err(InvokeRefused::Closed);
        }
        if inner.machine.is_busy() {
            return Err(InvokeRefused::Busy);
        }
        let (outcome, receiver) = oneshot::channel();
        let request_id = invocation.request_id.clone();
        inner.outcomes.push((request_id.clone(), outcome));
        match inner.step(Input::Invoke(Arc::new(invocation))) {
            Ok(()) => Ok(receiver),
            Err(_) => {
                inner.take_outcome(&request_id);
                Err(InvokeRefused::ShuttingDown)
            }
        }
    }

    /// Ends every invocation in hand (timeout, crash): the receivers fail, late answers get 400 `InvalidRequestID`.
    pub fn abandon(&self) {
        let mut inner = self.shared().lock();
        let in_hand: Vec<String> = inner.outcomes.iter().map(|(request_id, _)| request_id.clone()).collect();
        for request_id in in_hand {
            inner.abandon(request_id);
        }
    }

    /// Ends one invocation as [`Self::abandon`] does all. Where it was the last that the runtime could have served,
    /// [`Event::Stuck`] follows.
    pub fn abandon_one(&self, request_id: &str) {
        let mut inner = self.shared().lock();
        let was_stuck = inner.machine.is_stuck();
        inner.abandon(request_id.to_owned());
        if !was_stuck
            && inner.machine.is_stuck()
            && let Some(events) = &inner.events
        {
            // The owner may have stopped listening.
            let _ = events.send(Event::Stuck);
        }
    }

    /// Prepares for new processes: runtime and extensions are unknown again, connections of the old ones end.
    ///
    /// An invocation that no runtime has seen yet is kept for the new one; one in flight is lost as with [`Self::abandon`].
    /// Call this when the old processes are gone and before the new ones start.
    pub fn reset(&self) {
        let mut inner = self.shared().lock();
        inner.generation += 1;
        if inner.step(Input::Reset).is_err() {
            tracing::error!("the runtime api refused a reset, which it must never do");
        }
    }

    /// Announces external extensions by their file names, before their processes start: each holds up the init phase
    /// until it has registered and asked for its first event. To be called again after a [`Self::reset`].
    pub fn expect_extensions(&self, names: impl IntoIterator<Item = String>) -> Result<(), TooManyExtensions> {
        let input = Input::ExpectExtensions(names.into_iter().collect());
        self.shared().lock().step(input).map_err(|_| TooManyExtensions)
    }

    /// Sends the SHUTDOWN event to every extension that subscribed to it and returns how many those are.
    ///
    /// One that is busy gets it with its following `event/next`. No invocation is taken any more until a [`Self::reset`].
    pub fn shutdown_extensions(&self, reason: ShutdownReason, deadline_ms: u64) -> usize {
        let mut inner = self.shared().lock();
        if inner.step(Input::Shutdown { reason, deadline_ms }).is_err() {
            tracing::error!("the runtime api refused a shutdown, which it must never do");
        }
        inner.machine.registry().snapshot().shutdown_subscribers()
    }

    /// The extensions and their states at this moment.
    pub fn extensions(&self) -> Extensions {
        self.shared().lock().machine.registry().snapshot()
    }

    /// Returns when [`Self::extensions`] may have changed since the last time that this returned. For one task; one that
    /// gives up waiting misses nothing.
    pub async fn extensions_changed(&self) {
        self.shared().extensions_changed.notified().await;
    }

    /// Lets a runtime out of `restore/next`, after the snapshot was restored and the environment is ready for its hooks.
    pub fn restore(&self) -> Result<(), RestoreRefused> {
        self.shared().lock().step(Input::Restore).map_err(|_| RestoreRefused)
    }

    /// What [`Options::credentials_token`] opens from now on; `None` takes it away.
    pub fn set_credentials(&self, credentials: Option<Credentials>) {
        self.shared().lock().credentials = credentials;
    }

    /// Ends the server: every connection is closed, no event follows, the invocation in hand is dropped.
    pub fn close(&self) {
        self.shared().close();
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }
}

impl std::fmt::Debug for RuntimeApi {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RuntimeApi").field("machine", &self.shared().lock().machine).finish()
    }
}

/// Closes the server when the last handle goes; the accept loop and the connections hold `Shared` only.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Pings and refused calls that are answered at once.
pub(crate) const FREE_IDLE_CALLS: u64 = 200;
/// What each of those costs that come after, over all connections.
pub(crate) const IDLE_CALL_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// What the handle, the accept loop and the connections share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) small_bodies: Semaphore,
    /// Ends the accept loop.
    pub(crate) stop: Notify,
    extensions_changed: Arc<Notify>,
    calls: AtomicU64,
    /// Calls so far that moved nothing forward.
    idle_calls: AtomicU64,
    /// Whose turn it is to be answered after too many of those.
    turn: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

struct Inner {
    machine: Machine,
    /// Counts resets: a connection belongs to the runtime that opened it.
    generation: u64,
    closed: bool,
    /// Calls that wait for something to come; few, so a list.
    parked: Vec<(CallId, oneshot::Sender<Reply>)>,
    /// Where the outcomes of the invocations in hand go, by their ids.
    outcomes: Vec<(String, oneshot::Sender<Outcome>)>,
    credentials: Option<Credentials>,
    events: Option<mpsc::UnboundedSender<Event>>,
    extensions_changed: Arc<Notify>,
}

/// What a parked call is answered with.
#[derive(Debug)]
pub(crate) enum Reply {
    Invocation(Arc<Invocation>),
    Restored,
    Event(Arc<ExtensionEvent>),
}

impl Shared {
    fn new(options: Options) -> (Self, mpsc::UnboundedReceiver<Event>) {
        // Unbounded by its type, bounded by the protocol: each call adds at most two events.
        let (events, receiver) = mpsc::unbounded_channel();
        let extensions_changed = Arc::new(Notify::new());
        let inner = Inner {
            extensions_changed: extensions_changed.clone(),
            machine: Machine::with_concurrency(options.snapshot, options.max_concurrency),
            generation: 0,
            closed: false,
            parked: Vec::new(),
            outcomes: Vec::new(),
            credentials: None,
            events: Some(events),
        };
        let shared = Self {
            options,
            small_bodies: Semaphore::new(SMALL_BODIES),
            stop: Notify::new(),
            extensions_changed,
            calls: AtomicU64::new(0),
            idle_calls: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
            inner: Mutex::new(inner),
        };
        (shared, receiver)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// To be awaited before a call is answered that moves nothing forward: a ping, a refusal. Invocations bound all other
    /// calls; of these, a function could make the server answer as many as it has processor time for, its own or not.
    pub(crate) async fn slow_idle_talk(&self) {
        if self.idle_calls.fetch_add(1, Ordering::Relaxed) >= FREE_IDLE_CALLS {
            let _turn = self.turn.lock().await;
            tokio::time::sleep(IDLE_CALL_PAUSE).await;
        }
    }

    pub(crate) fn new_call(&self) -> CallId {
        CallId(self.calls.fetch_add(1, Ordering::Relaxed))
    }

    /// A step on behalf of a connection of this generation.
    pub(crate) fn step(&self, generation: u64, input: Input) -> Result<(), Refusal> {
        let mut inner = self.lock();
        inner.check(generation)?;
        inner.step(input)
    }

    /// A step that makes `call` wait; the receiver fails when the call is hung up.
    pub(crate) fn park(
        &self,
        generation: u64,
        call: CallId,
        input: Input,
    ) -> Result<oneshot::Receiver<Reply>, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        inner.check(generation)?;
        inner.parked.push((call, sender));
        if let Err(refusal) = inner.step(input) {
            inner.unpark(call);
            return Err(refusal);
        }
        Ok(receiver)
    }

    /// A call ended without its answer having been taken.
    pub(crate) fn call_lost(&self, generation: u64, call: CallId) {
        let mut inner = self.lock();
        inner.unpark(call);
        if inner.check(generation).is_ok() && inner.step(Input::CallLost { call }).is_err() {
            tracing::error!("the runtime api refused the loss of a call, which it must never do");
        }
    }

    /// The credentials, for a caller who shows the token; `None` for any other, and where there are none now.
    pub(crate) fn credentials(&self, shown: &str) -> Result<Option<Credentials>, Refusal> {
        let token = self.options.credentials_token.as_ref().ok_or(Refusal::NotFound)?;
        Ok(self.lock().credentials.clone().filter(|_| token == shown))
    }

    fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.parked.clear();
        inner.outcomes.clear();
        inner.events = None;
        self.stop.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn check(&self, generation: u64) -> Result<(), Refusal> {
        if self.closed || self.generation != generation { Err(Refusal::Stale) } else { Ok(()) }
    }

    fn step(&mut self, input: Input) -> Result<(), Refusal> {
        let actions = self.machine.step(input)?;
        if !self.machine.registry().is_empty() {
            self.extensions_changed.notify_one();
        }
        for action in actions {
            match action {
                Action::Deliver { call, invocation } => self.answer(call, Reply::Invocation(invocation)),
                Action::Release { call } => self.answer(call, Reply::Restored),
                Action::DeliverEvent { call, event } => self.answer(call, Reply::Event(event)),
                Action::HangUp { call } => drop(self.unpark(call)),
                Action::Complete { request_id, outcome } => {
                    if let Some(sender) = self.take_outcome(&request_id) {
                        // The owner may have stopped listening; the runtime's answer is then of no use to anybody.
                        let _ = sender.send(outcome);
                    }
                }
                Action::DropOutcome { request_id } => drop(self.take_outcome(&request_id)),
                Action::Emit(event) => {
                    if let Some(events) = &self.events {
                        // Likewise.
                        let _ = events.send(event);
                    }
                }
            }
        }
        Ok(())
    }

    fn abandon(&mut self, request_id: String) {
        if let Err(refusal) = self.step(Input::Abandon { request_id }) {
            tracing::error!(%refusal, "the runtime api refused to abandon an invocation, which it must never do");
        }
    }

    fn take_outcome(&mut self, request_id: &str) -> Option<oneshot::Sender<Outcome>> {
        let at = self.outcomes.iter().position(|(known, _)| known == request_id)?;
        Some(self.outcomes.swap_remove(at).1)
    }

    fn answer(&mut self, call: CallId, reply: Reply) {
        if let Some(sender) = self.unpark(call) {
            // If its connection has just gone, `call_lost` follows and the machine gives the reply to somebody else.
            let _ = sender.send(reply);
        }
    }

    fn unpark(&mut self, call: CallId) -> Option<oneshot::Sender<Reply>> {
        let at = self.parked.iter().position(|(parked, _)| *parked == call)?;
        Some(self.parked.swap_remove(at).1)
    }
}
