//! The state of one environment's runtime and extensions, and the rules of every call: no I/O, no clock, no randomness.
//!
//! ```text
//!   Started --next--> Ready --invocation--> Running --response--> InvocationResponse ------.
//!     |  |              ^                     |  ^ |--error-----> InvocationErrorResponse --| body read, or broken off
//!     |  |              |                     '--' next: the same invocation again         v
//!     |  |              '-------------------------next------------------------------ ResponseSent
//!     |  '--init/error--> InitError                    (an abandoned invocation ends here as well)
//!     '--restore/next--> RestoreReady --restored--> Restoring --next--> Ready
//!                                                       '--restore/error, init/error--> RestoreError
//! ```
//!
//! Around the runtime's state stands the phase of the environment, which also counts the extensions:
//! `Init` until the runtime and every extension have asked for work, then `Idle`; `Invoke` from the moment an invocation is
//! handed out until all who got it have asked again; `Shutdown` once extensions were told to end. An invocation that
//! arrives while the phase is not `Idle` is kept and handed out when it becomes so.
//!
//! A machine that serves several invocations at once has the state `Many` in place of everything from `Ready` on: the
//! runtime's loops ask for work and answer it independently of each other (see `flights`), and the phase stays `Idle`.
//!
//! [`Machine::step`] either refuses, and then has changed nothing, or returns what is to be done, in order.

mod flights;
mod step;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use self::flights::Flights;
pub use self::step::{Action, CallId, Input};
use crate::extensions::{Registry, ShutdownReason};
use crate::{Event, Invocation, Outcome, Refusal};

/// The runtime process, by the names that AWS gives to its states.
#[derive(Debug)]
enum Runtime {
    Started,
    InitError,
    /// It has called `next`; the calls that still wait are in `Machine::waiting`.
    Ready,
    Running {
        invocation: Arc<Invocation>,
        /// The one call that was given the invocation, as long as nobody else has asked for it again.
        delivered: Option<CallId>,
    },
    InvocationResponse {
        request_id: String,
        call: CallId,
    },
    InvocationErrorResponse {
        request_id: String,
        call: CallId,
    },
    ResponseSent {
        /// None when the platform ended the invocation.
        request_id: Option<String>,
    },
    /// It has called `next` where several invocations run at once.
    Many(Flights),
    RestoreReady {
        /// The waiting call; none after its connection was lost.
        call: Option<CallId>,
        /// Whether the owner has been told: when all extensions wait as well.
        told: bool,
    },
    Restoring,
    RestoreError,
}

impl Runtime {
    /// The name in `State transition from X to Y`. Two of them end in `State` at AWS as well.
    fn name(&self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::InitError => "InitError",
            Self::Ready | Self::Many(_) => READY,
            Self::Running { .. } => "Running",
            Self::InvocationResponse { .. } => INVOCATION_RESPONSE,
            Self::InvocationErrorResponse { .. } => INVOCATION_ERROR_RESPONSE,
            Self::ResponseSent { .. } => "RuntimeResponseSentState",
            Self::RestoreReady { .. } => "RestoreReady",
            Self::Restoring => "Restoring",
            Self::RestoreError => RESTORE_ERROR,
        }
    }
}

const READY: &str = "Ready";
const INVOCATION_RESPONSE: &str = "InvocationResponse";
const INVOCATION_ERROR_RESPONSE: &str = "InvocationErrorResponse";
const RESTORE_ERROR: &str = "RuntimeRestoreErrorState";

/// Where the environment as a whole stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Init,
    Idle,
    Invoke,
    Shutdown,
}

/// The state machine of one environment.
#[derive(Debug)]
pub struct Machine {
    runtime: Runtime,
    /// `next` calls without an answer, oldest first. As on AWS a second one waits behind the first.
    waiting: VecDeque<CallId>,
    /// Invocations that no runtime has seen yet, oldest first.
    kept: VecDeque<Arc<Invocation>>,
    phase: Phase,
    registry: Registry,
    snapshot: bool,
    /// How many invocations there may be at once.
    concurrency: usize,
}

impl Machine {
    /// A machine for an environment whose runtime is about to start. Only where `snapshot` is set may it call `restore/next`.
    pub fn new(snapshot: bool) -> Self {
        Self::with_concurrency(snapshot, 1)
    }

    /// A machine whose runtime serves up to so many invocations at once.
    pub fn with_concurrency(snapshot: bool, concurrency: usize) -> Self {
        Self {
            runtime: Runtime::Started,
            waiting: VecDeque::new(),
            kept: VecDeque::new(),
            phase: Phase::Init,
            registry: Registry::default(),
            snapshot,
            concurrency: concurrency.max(1),
        }
    }

    /// Takes one input; on a refusal nothing has changed.
    pub fn step(&mut self, input: Input) -> Result<Vec<Action>, Refusal> {
        match input {
            Input::Next { call } => self.next(call),
            Input::CallLost { call } => Ok(self.call_lost(call)),
            Input::ResponseBegins { call, request_id } => {
                self.answer_begins(call, request_id, INVOCATION_RESPONSE, |request_id| Runtime::InvocationResponse {
                    request_id,
                    call,
                })
            }
            Input::ErrorBegins { call, request_id } => {
                self.answer_begins(call, request_id, INVOCATION_ERROR_RESPONSE, |request_id| {
                    Runtime::InvocationErrorResponse { request_id, call }
                })
            }
            Input::AnswerEnds { call, outcome } => self.answer_ends(call, outcome),
            Input::InitError { error_type, body } => self.init_error(error_type, body),
            Input::RestoreNext { call } => self.restore_next(call),
            Input::RestoreError { error_type, body } => self.restore_error(error_type, body),
            Input::Invoke(invocation) => self.invoke(invocation),
            Input::Abandon { request_id } => Ok(self.abandon(&request_id)),
            Input::Restore => self.restore(),
            Input::Reset => Ok(self.reset()),
            Input::ExpectExtensions(names) => self.registry.expect(names).map(|()| Vec::new()),
            Input::Shutdown { reason, deadline_ms } => Ok(self.shutdown(reason, deadline_ms)),
            Input::Register { name, id, events } => {
                if self.concurrency > 1 {
                    check_concurrent_events(&events)?;
                }
                self.registry.register(name, id, &events)
            }
            Input::EventNext { call, id } => self.event_next(call, id),
            Input::ExtensionFailed { id, error_type, body, phase } => self.registry.failed(id, error_type, body, phase),
        }
    }

    /// The extensions, for the owner's questions.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// True while no further invocation can be taken.
    pub fn is_busy(&self) -> bool {
        self.in_hand() >= self.concurrency
    }

    /// How many invocations are kept or unanswered.
    pub fn in_hand(&self) -> usize {
        let with_the_runtime = match &self.runtime {
            Runtime::Running { .. } | Runtime::InvocationResponse { .. } | Runtime::InvocationErrorResponse { .. } => 1,
            Runtime::Many(flights) => flights.len(),
            Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::ResponseSent { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => 0,
        };
        self.kept.len() + with_the_runtime
    }

    /// True where the runtime has come back from none of as many abandoned invocations as it serves at once.
    pub fn is_stuck(&self) -> bool {
        matches!(&self.runtime, Runtime::Many(flights) if flights.lost() >= self.concurrency)
    }

    fn refuse(&self, to: &'static str) -> Refusal {
        Refusal::RuntimeState { from: self.runtime.name(), to }
    }

    fn next(&mut self, call: CallId) -> Result<Vec<Action>, Refusal> {
        match &mut self.runtime {
            Runtime::Started | Runtime::Restoring | Runtime::ResponseSent { .. } => {
                self.runtime = match self.concurrency {
                    1 => Runtime::Ready,
                    _ => Runtime::Many(Flights::default()),
                };
                self.waiting.push_back(call);
                let mut actions = Vec::new();
                self.settle(&mut actions);
                Ok(actions)
            }
            Runtime::Ready => {
                self.waiting.push_back(call);
                let mut actions = Vec::new();
                self.hand_out(&mut actions);
                Ok(actions)
            }
            Runtime::Many(flights) => {
                self.waiting.push_back(call);
                flights.waits(self.waiting.len(), self.concurrency);
                let mut actions = Vec::new();
                self.hand_out(&mut actions);
                Ok(actions)
            }
            Runtime::Running { invocation, delivered } => {
                *delivered = None;
                Ok(vec![Action::Deliver { call, invocation: invocation.clone() }])
            }
            Runtime::InitError
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::RestoreError => Err(self.refuse(READY)),
        }
    }

    fn call_lost(&mut self, call: CallId) -> Vec<Action> {
        let mut actions = Vec::new();
        let waited = self.waiting.len();
        self.waiting.retain(|waiting| *waiting != call);
        if self.waiting.len() < waited || self.registry.call_lost(call) {
            return actions;
        }
        match &mut self.runtime {
            Runtime::Running { invocation, delivered } if *delivered == Some(call) => {
                // Nobody has it: the next in line gets it, else the next who asks.
                *delivered = self.waiting.pop_front();
                if let Some(call) = *delivered {
                    actions.push(Action::Deliver { call, invocation: invocation.clone() });
                }
            }
            Runtime::Many(flights) => {
                actions.extend(flights.call_lost(call, &mut self.kept));
                self.hand_out(&mut actions);
            }
            Runtime::RestoreReady { call: waiting, .. } if *waiting == Some(call) => *waiting = None,
            Runtime::InvocationResponse { call: begun, .. } | Runtime::InvocationErrorResponse { call: begun, .. }
                if *begun == call =>
            {
                actions.extend(self.answer_ends(call, Outcome::Truncated).unwrap_or_default());
            }
            Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => {}
        }
        actions
    }

    fn answer_begins(
        &mut self,
        call: CallId,
        request_id: String,
        to: &'static str,
        state: impl FnOnce(String) -> Runtime,
    ) -> Result<Vec<Action>, Refusal> {
        if let Runtime::Many(flights) = &mut self.runtime {
            return flights.answer_begins(call, &request_id, to);
        }
        // The id is looked at first, as AWS does: an old answer gets 400 in whatever state it comes.
        let (current, running) = match &self.runtime {
            Runtime::Running { invocation, .. } => (Some(&invocation.request_id), true),
            Runtime::InvocationResponse { request_id, .. } | Runtime::InvocationErrorResponse { request_id, .. } => {
                (Some(request_id), false)
            }
            Runtime::ResponseSent { request_id } => (request_id.as_ref(), false),
            Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::Many(_)
            | Runtime::RestoreReady { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => (None, false),
        };
        if current != Some(&request_id) {
            return Err(Refusal::RequestId);
        }
        if !running {
            return Err(self.refuse(to));
        }
        self.runtime = state(request_id);
        Ok(Vec::new())
    }

    fn answer_ends(&mut self, call: CallId, outcome: Outcome) -> Result<Vec<Action>, Refusal> {
        match &mut self.runtime {
            Runtime::InvocationResponse { request_id, call: begun }
            | Runtime::InvocationErrorResponse { request_id, call: begun }
                if *begun == call =>
            {
                let request_id = std::mem::take(request_id);
                self.runtime = Runtime::ResponseSent { request_id: Some(request_id.clone()) };
                Ok(vec![Action::Complete { request_id, outcome }])
            }
            Runtime::Many(flights) => flights.answer_ends(call, outcome),
            Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => Err(Refusal::RequestId),
        }
    }

    fn init_error(&mut self, error_type: String, body: Bytes) -> Result<Vec<Action>, Refusal> {
        match self.runtime {
            Runtime::Started => {
                self.runtime = Runtime::InitError;
                Ok(vec![Action::Emit(Event::InitError { error_type, body })])
            }
            // Runtimes exist that report a failed restore hook here.
            Runtime::Restoring => self.restore_error(error_type, body),
            Runtime::InitError
            | Runtime::Ready
            | Runtime::Many(_)
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::RestoreError => Err(self.refuse("InitError")),
        }
    }

    fn restore_next(&mut self, call: CallId) -> Result<Vec<Action>, Refusal> {
        if !self.snapshot {
            return Err(Refusal::NotFound);
        }
        match &mut self.runtime {
            Runtime::Started => {
                self.runtime = Runtime::RestoreReady { call: Some(call), told: false };
                let mut actions = Vec::new();
                self.settle(&mut actions);
                Ok(actions)
            }
            Runtime::RestoreReady { call: waiting @ None, .. } => {
                *waiting = Some(call);
                Ok(Vec::new())
            }
            Runtime::RestoreReady { call: Some(_), .. }
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::Many(_)
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => Err(self.refuse("RestoreReady")),
        }
    }

    fn restore_error(&mut self, error_type: String, body: Bytes) -> Result<Vec<Action>, Refusal> {
        if !self.snapshot {
            return Err(Refusal::NotFound);
        }
        match self.runtime {
            Runtime::Restoring => {
                self.runtime = Runtime::RestoreError;
                Ok(vec![Action::Emit(Event::RestoreError { error_type, body })])
            }
            Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::Many(_)
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::RestoreError => Err(self.refuse(RESTORE_ERROR)),
        }
    }

    fn invoke(&mut self, invocation: Arc<Invocation>) -> Result<Vec<Action>, Refusal> {
        if self.is_busy() {
            return Err(Refusal::Busy);
        }
        if self.phase == Phase::Shutdown {
            return Err(Refusal::ShuttingDown);
        }
        self.kept.push_back(invocation);
        let mut actions = Vec::new();
        self.hand_out(&mut actions);
        Ok(actions)
    }

    fn abandon(&mut self, request_id: &str) -> Vec<Action> {
        let kept = self.kept.iter().position(|kept| kept.request_id == request_id);
        let found = kept.and_then(|at| self.kept.remove(at)).is_some()
            || match &mut self.runtime {
                Runtime::Running { invocation, .. } if invocation.request_id == request_id => {
                    self.runtime = Runtime::ResponseSent { request_id: None };
                    true
                }
                Runtime::InvocationResponse { request_id: current, .. }
                | Runtime::InvocationErrorResponse { request_id: current, .. }
                    if current == request_id =>
                {
                    self.runtime = Runtime::ResponseSent { request_id: None };
                    true
                }
                Runtime::Many(flights) => flights.abandon(request_id),
                Runtime::Started
                | Runtime::InitError
                | Runtime::Ready
                | Runtime::Running { .. }
                | Runtime::InvocationResponse { .. }
                | Runtime::InvocationErrorResponse { .. }
                | Runtime::ResponseSent { .. }
                | Runtime::RestoreReady { .. }
                | Runtime::Restoring
                | Runtime::RestoreError => false,
            };
        if found { vec![Action::DropOutcome { request_id: request_id.to_owned() }] } else { Vec::new() }
    }

    fn restore(&mut self) -> Result<Vec<Action>, Refusal> {
        match self.runtime {
            Runtime::RestoreReady { call: Some(call), .. } => {
                self.runtime = Runtime::Restoring;
                Ok(vec![Action::Release { call }])
            }
            Runtime::RestoreReady { call: None, .. }
            | Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::Many(_)
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => Err(self.refuse("Restoring")),
        }
    }

    fn reset(&mut self) -> Vec<Action> {
        let mut actions: Vec<Action> = self.waiting.drain(..).map(|call| Action::HangUp { call }).collect();
        actions.extend(self.registry.reset().into_iter().map(|call| Action::HangUp { call }));
        match std::mem::replace(&mut self.runtime, Runtime::Started) {
            Runtime::Running { invocation, .. } => {
                actions.push(Action::DropOutcome { request_id: invocation.request_id.clone() });
            }
            Runtime::InvocationResponse { request_id, .. } | Runtime::InvocationErrorResponse { request_id, .. } => {
                actions.push(Action::DropOutcome { request_id });
            }
            Runtime::Many(flights) => {
                actions.extend(flights.ids().into_iter().map(|request_id| Action::DropOutcome { request_id }));
            }
            Runtime::RestoreReady { call: Some(call), .. } => actions.push(Action::HangUp { call }),
            Runtime::RestoreReady { call: None, .. }
            | Runtime::Started
            | Runtime::InitError
            | Runtime::Ready
            | Runtime::ResponseSent { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => {}
        }
        self.phase = Phase::Init;
        actions
    }

    fn shutdown(&mut self, reason: ShutdownReason, deadline_ms: u64) -> Vec<Action> {
        self.phase = Phase::Shutdown;
        let mut actions = self.registry.shutdown(reason, deadline_ms);
        let kept = self.kept.drain(..).map(|kept| Action::DropOutcome { request_id: kept.request_id.clone() });
        actions.extend(kept);
        actions
    }

    fn event_next(&mut self, call: CallId, id: Uuid) -> Result<Vec<Action>, Refusal> {
        let mut actions = self.registry.next(call, id)?;
        self.settle(&mut actions);
        Ok(actions)
    }

    /// Moves the phase on when everybody who has to has asked for work.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        let done = match self.phase {
            Phase::Init => {
                let all_ready = self.registry.all_ready();
                if let Runtime::RestoreReady { told: told @ false, .. } = &mut self.runtime
                    && all_ready
                {
                    *told = true;
                    actions.push(Action::Emit(Event::RestoreReady));
                    return;
                }
                Event::InitDone
            }
            Phase::Invoke => Event::Idle,
            Phase::Idle | Phase::Shutdown => return,
        };
        if matches!(self.runtime, Runtime::Ready | Runtime::Many(_)) && self.registry.all_ready() {
            self.phase = Phase::Idle;
            self.registry.close_registration();
            actions.push(Action::Emit(done));
            self.hand_out(actions);
        }
    }

    /// Gives kept invocations to the runtime and the extensions, if they are there to take them.
    fn hand_out(&mut self, actions: &mut Vec<Action>) {
        if self.phase != Phase::Idle {
            return;
        }
        match &mut self.runtime {
            Runtime::Many(flights) => flights.hand_out(&mut self.kept, &mut self.waiting, actions),
            Runtime::Ready if !self.waiting.is_empty() => {
                let Some(invocation) = self.kept.pop_front() else { return };
                let Some(call) = self.waiting.pop_front() else { return };
                self.phase = Phase::Invoke;
                actions.push(Action::Deliver { call, invocation: invocation.clone() });
                self.registry.invoke(&invocation, actions);
                self.runtime = Runtime::Running { invocation, delivered: Some(call) };
            }
            Runtime::Ready
            | Runtime::Started
            | Runtime::InitError
            | Runtime::Running { .. }
            | Runtime::InvocationResponse { .. }
            | Runtime::InvocationErrorResponse { .. }
            | Runtime::ResponseSent { .. }
            | Runtime::RestoreReady { .. }
            | Runtime::Restoring
            | Runtime::RestoreError => {}
        }
    }
}

/// Where several invocations run at once, extensions are told of the end alone.
fn check_concurrent_events(events: &[String]) -> Result<(), Refusal> {
    match events.iter().find(|event| *event == "INVOKE") {
        Some(event) => Err(Refusal::EventType { event: event.clone(), reason: "ErrorInvalidEventType" }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
