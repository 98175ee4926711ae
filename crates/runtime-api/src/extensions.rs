//! The extensions' part of the machine (Extensions API 2020-01-01): who is registered, for what, and where each one stands.
//!
//! ```text
//!   external: Started --register--> Registered --event/next--> Ready --event--> Running --event/next--> Ready
//!   internal:            register-->                           (each of the last three) --exit/error--> ExitError
//!                                   Registered --init/error--> InitError
//! ```
//!
//! An external extension is announced by the owner, who starts its process, before it registers; whoever registers under
//! another name lives inside the runtime process and is an internal one.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::machine::{Action, CallId};
use crate::{Event, ExtensionPhase, Invocation, Refusal};

/// Lambda's limit, external and internal extensions together.
pub(crate) const MAX_EXTENSIONS: usize = 10;

const INVOKE: &str = "INVOKE";
const SHUTDOWN: &str = "SHUTDOWN";

/// What an extension gets from `event/next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtensionEvent {
    /// An invocation was given to the runtime.
    Invoke(Arc<Invocation>),
    /// The environment ends.
    Shutdown {
        /// Why.
        reason: ShutdownReason,
        /// When the process will be killed, in milliseconds since the Unix epoch.
        deadline_ms: u64,
    },
}

/// Why an environment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It was idle for long, or is no longer wanted.
    Spindown,
    /// The invocation ran out of time.
    Timeout,
    /// The runtime or an extension failed.
    Failure,
}

impl ShutdownReason {
    /// `shutdownReason` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spindown => "spindown",
            Self::Timeout => "timeout",
            Self::Failure => "failure",
        }
    }
}

/// Where an extension lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtensionKind {
    /// A process of its own, started by the owner from `/opt/extensions`.
    External,
    /// Part of the runtime process; it cannot have the SHUTDOWN event.
    Internal,
}

/// The extensions of an environment at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions {
    /// External ones, in the order in which they were announced.
    pub external: Vec<ExtensionInfo>,
    /// Internal ones, in the order in which they registered.
    pub internal: Vec<ExtensionInfo>,
}

impl Extensions {
    /// How many external extensions want the SHUTDOWN event: Lambda gives a longer shutdown where there is one.
    pub fn shutdown_subscribers(&self) -> usize {
        self.external.iter().filter(|extension| extension.shutdown).count()
    }
}

/// One extension, with what Lambda's `EXTENSION` log line shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionInfo {
    /// File name, or the name that an internal extension chose.
    pub name: String,
    /// `Started`, `Registered`, `Ready`, `Running`, `InitError` or `ExitError`.
    pub state: &'static str,
    /// Subscribed to INVOKE.
    pub invoke: bool,
    /// Subscribed to SHUTDOWN.
    pub shutdown: bool,
    /// What it gave as its error type when it failed.
    pub error_type: Option<String>,
}

#[derive(Debug)]
enum State {
    Started,
    Registered,
    Ready {
        /// The waiting `event/next`; none after its connection was lost.
        call: Option<CallId>,
    },
    Running {
        call: CallId,
        event: Arc<ExtensionEvent>,
    },
    InitError {
        error_type: String,
    },
    ExitError {
        error_type: String,
    },
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::Registered => REGISTERED,
            Self::Ready { .. } => READY,
            Self::Running { .. } => "Running",
            Self::InitError { .. } => INIT_ERROR,
            Self::ExitError { .. } => "ExitError",
        }
    }
}

const REGISTERED: &str = "Registered";
const READY: &str = "Ready";
const INIT_ERROR: &str = "InitError";
/// AWS names the target of a refused `exit/error` so, though the state itself is called `ExitError`.
const EXITED: &str = "Exited";

#[derive(Debug)]
struct Extension {
    name: String,
    id: Option<Uuid>,
    kind: ExtensionKind,
    invoke: bool,
    shutdown: bool,
    state: State,
    /// Events that it has not fetched yet; at most an INVOKE and a SHUTDOWN.
    mailbox: VecDeque<Arc<ExtensionEvent>>,
}

impl Extension {
    fn new(name: String, kind: ExtensionKind) -> Self {
        Self { name, id: None, kind, invoke: false, shutdown: false, state: State::Started, mailbox: VecDeque::new() }
    }

    fn subscribe(&mut self, id: Uuid, events: &[String]) {
        self.id = Some(id);
        self.invoke = events.iter().any(|event| event == INVOKE);
        self.shutdown = events.iter().any(|event| event == SHUTDOWN);
        self.state = State::Registered;
    }

    fn refuse(&self, to: &'static str, extension: String) -> Refusal {
        Refusal::ExtensionState { from: self.state.name(), to, extension }
    }

    /// Gives the oldest event to a waiting call.
    fn hand_out(&mut self, actions: &mut Vec<Action>) {
        if let State::Ready { call: Some(call) } = self.state
            && let Some(event) = self.mailbox.pop_front()
        {
            actions.push(Action::DeliverEvent { call, event: event.clone() });
            self.state = State::Running { call, event };
        }
    }

    fn info(&self) -> ExtensionInfo {
        let error_type = match &self.state {
            State::InitError { error_type } | State::ExitError { error_type } => Some(error_type.clone()),
            State::Started | State::Registered | State::Ready { .. } | State::Running { .. } => None,
        };
        ExtensionInfo {
            name: self.name.clone(),
            state: self.state.name(),
            invoke: self.invoke,
            shutdown: self.shutdown,
            error_type,
        }
    }
}

/// All extensions of one environment.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    extensions: Vec<Extension>,
    closed: bool,
}

impl Registry {
    /// Announces external extensions, which from now on hold up the init phase.
    pub(crate) fn expect(&mut self, names: Vec<String>) -> Result<(), Refusal> {
        if self.closed {
            return Err(Refusal::RegistrationClosed);
        }
        if self.extensions.len() + names.len() > MAX_EXTENSIONS {
            return Err(Refusal::TooManyExtensions { limit: MAX_EXTENSIONS });
        }
        self.extensions.extend(names.into_iter().map(|name| Extension::new(name, ExtensionKind::External)));
        Ok(())
    }

    pub(crate) fn register(&mut self, name: String, id: Uuid, events: &[String]) -> Result<Vec<Action>, Refusal> {
        let external = self
            .extensions
            .iter_mut()
            .find(|extension| extension.name == name && extension.kind == ExtensionKind::External);
        if let Some(extension) = external {
            check_events(events, ExtensionKind::External)?;
            if !matches!(extension.state, State::Started) {
                return Err(extension.refuse(REGISTERED, name));
            }
            extension.subscribe(id, events);
            let waiting = self.extensions.iter().any(|extension| matches!(extension.state, State::Started));
            return Ok(if waiting { Vec::new() } else { vec![Action::Emit(Event::ExtensionsRegistered)] });
        }
        check_events(events, ExtensionKind::Internal)?;
        if self.closed {
            return Err(Refusal::RegistrationClosed);
        }
        if self.extensions.len() >= MAX_EXTENSIONS {
            return Err(Refusal::TooManyExtensions { limit: MAX_EXTENSIONS });
        }
        if self.extensions.iter().any(|extension| extension.name == name) {
            return Err(Refusal::ExtensionNameTaken);
        }
        let mut extension = Extension::new(name, ExtensionKind::Internal);
        extension.subscribe(id, events);
        self.extensions.push(extension);
        Ok(Vec::new())
    }

    pub(crate) fn next(&mut self, call: CallId, id: Uuid) -> Result<Vec<Action>, Refusal> {
        let extension = self.find(id)?;
        match extension.state {
            State::Registered | State::Running { .. } | State::Ready { call: None } => {
                extension.state = State::Ready { call: Some(call) };
                let mut actions = Vec::new();
                extension.hand_out(&mut actions);
                Ok(actions)
            }
            State::Started | State::Ready { call: Some(_) } | State::InitError { .. } | State::ExitError { .. } => {
                Err(extension.refuse(READY, id.to_string()))
            }
        }
    }

    pub(crate) fn failed(
        &mut self,
        id: Uuid,
        error_type: String,
        body: Bytes,
        phase: ExtensionPhase,
    ) -> Result<Vec<Action>, Refusal> {
        let unknown = |_| Refusal::IdentifierUnknown("Lambda-Extension-Identifier".to_owned());
        let extension = self.find(id).map_err(unknown)?;
        let state = match (&extension.state, phase) {
            (State::Registered, ExtensionPhase::Init) => State::InitError { error_type: error_type.clone() },
            (State::Registered | State::Ready { .. } | State::Running { .. }, ExtensionPhase::Exit) => {
                State::ExitError { error_type: error_type.clone() }
            }
            // Only the first report counts; another one is accepted and changes nothing.
            (State::InitError { .. }, ExtensionPhase::Init) | (State::ExitError { .. }, ExtensionPhase::Exit) => {
                return Ok(Vec::new());
            }
            (
                State::Started | State::Ready { .. } | State::Running { .. } | State::ExitError { .. },
                ExtensionPhase::Init,
            ) => return Err(extension.refuse(INIT_ERROR, id.to_string())),
            (State::Started | State::InitError { .. }, ExtensionPhase::Exit) => {
                return Err(extension.refuse(EXITED, id.to_string()));
            }
        };
        let mut actions = Vec::new();
        if let State::Ready { call: Some(call) } = std::mem::replace(&mut extension.state, state) {
            actions.push(Action::HangUp { call });
        }
        let name = extension.name.clone();
        actions.push(Action::Emit(Event::ExtensionError { name, error_type, body, phase }));
        Ok(actions)
    }

    /// True if the call was one of an extension: a waiting one is forgotten, an event it did not get goes back to its mailbox.
    pub(crate) fn call_lost(&mut self, lost: CallId) -> bool {
        for extension in &mut self.extensions {
            match &extension.state {
                State::Ready { call: Some(call) } if *call == lost => {
                    extension.state = State::Ready { call: None };
                    return true;
                }
                State::Running { call, event } if *call == lost => {
                    extension.mailbox.push_front(event.clone());
                    extension.state = State::Ready { call: None };
                    return true;
                }
                State::Started
                | State::Registered
                | State::Ready { .. }
                | State::Running { .. }
                | State::InitError { .. }
                | State::ExitError { .. } => {}
            }
        }
        false
    }

    pub(crate) fn invoke(&mut self, invocation: &Arc<Invocation>, actions: &mut Vec<Action>) {
        for extension in self.extensions.iter_mut().filter(|extension| extension.invoke) {
            extension.mailbox.push_back(Arc::new(ExtensionEvent::Invoke(invocation.clone())));
            extension.hand_out(actions);
        }
    }

    pub(crate) fn shutdown(&mut self, reason: ShutdownReason, deadline_ms: u64) -> Vec<Action> {
        let event = Arc::new(ExtensionEvent::Shutdown { reason, deadline_ms });
        let mut actions = Vec::new();
        for extension in self.extensions.iter_mut().filter(|extension| extension.shutdown) {
            extension.mailbox.clear();
            extension.mailbox.push_back(event.clone());
            extension.hand_out(&mut actions);
        }
        actions
    }

    /// Forgets everybody and returns the calls that waited.
    pub(crate) fn reset(&mut self) -> Vec<CallId> {
        self.closed = false;
        self.extensions
            .drain(..)
            .filter_map(|extension| match extension.state {
                State::Ready { call } => call,
                State::Started
                | State::Registered
                | State::Running { .. }
                | State::InitError { .. }
                | State::ExitError { .. } => None,
            })
            .collect()
    }

    /// True when every extension waits for its next event. Those that did not subscribe to INVOKE never leave this state.
    pub(crate) fn all_ready(&self) -> bool {
        self.extensions
            .iter()
            .all(|extension| matches!(extension.state, State::Ready { .. }) && extension.mailbox.is_empty())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extensions.is_empty()
    }

    pub(crate) fn close_registration(&mut self) {
        self.closed = true;
    }

    pub(crate) fn snapshot(&self) -> Extensions {
        let of = |kind| {
            self.extensions.iter().filter(|extension| extension.kind == kind).map(Extension::info).collect::<Vec<_>>()
        };
        Extensions { external: of(ExtensionKind::External), internal: of(ExtensionKind::Internal) }
    }

    fn find(&mut self, id: Uuid) -> Result<&mut Extension, Refusal> {
        self.extensions
            .iter_mut()
            .find(|extension| extension.id == Some(id))
            .ok_or_else(|| Refusal::IdentifierUnknown(format!("extension {id}")))
    }
}

fn check_events(events: &[String], kind: ExtensionKind) -> Result<(), Refusal> {
    for event in events {
        let reason = match (event.as_str(), kind) {
            (INVOKE, _) | (SHUTDOWN, ExtensionKind::External) => continue,
            (SHUTDOWN, ExtensionKind::Internal) => "ShutdownEventNotSupportedForInternalExtension",
            _ => "ErrorInvalidEventType",
        };
        return Err(Refusal::EventType { event: event.clone(), reason });
    }
    Ok(())
}
