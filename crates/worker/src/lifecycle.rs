//! The life of one execution environment, as a state machine without I/O.
//!
//! ```text
//!            Begin                 InitDone                    Invoke
//!   Created ------> Initializing -----------> Ready ------------------------> Invoking
//!                        |                    |  ^ |FreezeDue: freeze            |  |Answered: reply
//!      InitError, exit,  |               exit |  | '                             |  v
//!      10 s passed       v                    |  '------------ Idle -------------|- (settling)
//!                   Clearing <----------------'                                  |  |
//!                     |  ^ ^------------------- exit, timeout -------------------'--'
//!             Cleared |  '----------------.
//!                     v      Invoke       | failure, timeout
//!                   Broken ----------> Initializing (phase invoke) --InitDone--> Invoking
//!   any state but Ended --Shutdown--> Ended
//!
//!           Restore                InitDone
//!   Created -------> Restoring ----------------> Ready      exit, timeout: Clearing --Cleared--> Ended
//!                        '--- hook failed, exit, 10 s passed ---> Ended
//! ```
//!
//! Where several invocations run at once, the machine knows no single one of them:
//!
//! ```text
//!   Ready --Serve--> Serving --Free--> Ready      exit: fail all, Clearing --> Broken
//!   Broken --Serve--> Reviving --InitDone--> Serving
//! ```
//!
//! An environment that was restored from a snapshot is not initialized again when its runtime is gone: it ends, and the next
//! one is restored.
//!
//! The owner (see [`crate::environment`]) feeds events and carries out the returned actions in order. What a failed
//! runtime leaves behind is killed before anything else runs (`Clearing`); the sandbox and its `/tmp` stay, as on
//! Lambda. A sandbox that misbehaves is never reused: the owner ends the environment.

mod clear;
mod init;
mod invocation;
mod many;
mod restore;
mod step;

use std::time::{Duration, Instant};

use self::invocation::Invocation;
pub use self::step::{Action, Answer, Before, Event, Failure, Phase, RestoreFailure, Status};

/// How long the first initialization may take before it is abandoned and done again inside the first invocation.
pub const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the runtime may take from its release out of a snapshot until it asks for an invocation, hooks included.
pub const RESTORE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whom to tell once the sandbox has been cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterClear {
    FirstInitFailed,
    Idle,
    NobodyWaits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Created,
    Initializing {
        started: Instant,
        invocation: Option<Invocation>,
    },
    /// `began` is when the restore did, `released` when its hooks could begin to run.
    Restoring {
        began: Instant,
        released: Instant,
    },
    Ready {
        frozen: bool,
    },
    Invoking(Invocation),
    /// There are invocations, which the owner keeps.
    Serving,
    /// Initializes again, for those that have come.
    Reviving {
        started: Instant,
    },
    Clearing(AfterClear),
    Broken,
    Ended,
}

/// The machine. One owner, no clock of its own.
#[derive(Debug)]
pub struct Machine {
    state: State,
    init_timeout: Duration,
    restore_timeout: Duration,
    /// What came before the first invocation, until that has reported it.
    unreported: Option<Before>,
    announced: bool,
    restored: bool,
}

/// An event that the state does not allow: a bug in the owner, who discards the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an environment in state {state} cannot take {event}")]
pub struct IllegalEvent {
    /// Name and data of the state.
    pub state: String,
    /// Name and data of the event.
    pub event: String,
}

impl Machine {
    /// A machine whose sandbox is being made.
    pub fn new(init_timeout: Duration, restore_timeout: Duration) -> Self {
        Self {
            state: State::Created,
            init_timeout,
            restore_timeout,
            unreported: None,
            announced: false,
            restored: false,
        }
    }

    /// Whether an invocation may be handed in now.
    pub fn can_invoke(&self) -> bool {
        matches!(self.state, State::Ready { .. } | State::Broken)
    }

    /// Whether an invocation may be handed in beside others.
    pub fn can_serve(&self) -> bool {
        matches!(self.state, State::Ready { .. } | State::Serving | State::Reviving { .. } | State::Broken)
    }

    /// Takes one event; returns what to do.
    pub fn step(&mut self, event: Event, now: Instant) -> Result<Vec<Action>, IllegalEvent> {
        if event == Event::Shutdown {
            return Ok(self.shut_down(now));
        }
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Created => self.created(event, now),
            State::Initializing { started, invocation } => self.initializing(started, invocation, event, now),
            State::Restoring { began, released } => self.restoring(began, released, event, now),
            State::Ready { frozen } => self.ready(frozen, event, now),
            State::Invoking(invocation) => self.invoking(invocation, event, now),
            State::Serving => self.serving(event),
            State::Reviving { started } => self.reviving(started, event, now),
            State::Clearing(then) => self.clearing(then, event),
            State::Broken => self.broken(event, now),
            State::Ended => Ok(vec![]),
        }
    }

    fn time_out(invocation: &Invocation, before: Option<Before>, now: Instant) -> Vec<Action> {
        // However late the clock was looked at, nobody is billed for more than the timeout.
        let duration = (now - invocation.started).min(invocation.timeout);
        let mut actions = vec![Action::LogEnd { duration, before, status: Status::Timeout }, Action::Abandon];
        actions.extend(invocation.reply_at_end(Action::ReplyTimeout(invocation.timeout)));
        actions.push(Action::Clear { timed_out: true });
        actions
    }

    fn ready(&mut self, frozen: bool, event: Event, now: Instant) -> Result<Vec<Action>, IllegalEvent> {
        match event {
            Event::Invoke { timeout, tail } => {
                let invocation = Invocation::new(now, timeout, tail);
                let mut actions = Vec::with_capacity(4);
                if frozen {
                    actions.push(Action::Thaw);
                }
                actions.extend([Action::LogStart, Action::SetDeadline(invocation.deadline()), Action::Deliver]);
                self.state = State::Invoking(invocation);
                Ok(actions)
            }
            Event::Serve => {
                self.unreported = None;
                self.state = State::Serving;
                let thaw = frozen.then_some(Action::Thaw);
                Ok(thaw.into_iter().chain([Action::Admit]).collect())
            }
            Event::FreezeDue => {
                self.state = State::Ready { frozen: true };
                Ok(if frozen { vec![] } else { vec![Action::Freeze] })
            }
            Event::Exited(_) => {
                // Nobody is told: the next invocation initializes anew, and waits for the clearing if it has to.
                self.state = State::Clearing(AfterClear::NobodyWaits);
                Ok(vec![Action::Clear { timed_out: false }])
            }
            Event::DeadlinePassed | Event::Idle | Event::Free => {
                self.state = State::Ready { frozen };
                Ok(vec![])
            }
            other => self.refuse(State::Ready { frozen }, other),
        }
    }

    fn invoking(
        &mut self,
        mut invocation: Invocation,
        event: Event,
        now: Instant,
    ) -> Result<Vec<Action>, IllegalEvent> {
        match event {
            Event::Answered(answer) if invocation.answer.is_none() => {
                invocation.answer = Some(answer);
                let mut actions = vec![Action::NotifySettling];
                actions.extend(invocation.reply_at_answer());
                self.state = State::Invoking(invocation);
                Ok(actions)
            }
            Event::Idle if invocation.answer.is_some() => {
                self.state = State::Ready { frozen: false };
                let duration = now - invocation.started;
                let before = self.unreported.take();
                let mut actions =
                    vec![Action::ClearDeadline, Action::LogEnd { duration, before, status: invocation.status() }];
                actions.extend(invocation.reply_kept());
                actions.extend([Action::NotifyIdle, Action::FreezeSoon]);
                Ok(actions)
            }
            Event::Exited(failure) => {
                let duration = now - invocation.started;
                let before = self.unreported.take();
                let status = Status::Error(failure.error_type.clone());
                self.state = State::Clearing(AfterClear::Idle);
                let mut actions =
                    vec![Action::ClearDeadline, Action::LogEnd { duration, before, status }, Action::Abandon];
                actions.extend(invocation.reply_at_end(Action::ReplyFailure(failure)));
                actions.push(Action::Clear { timed_out: false });
                Ok(actions)
            }
            Event::DeadlinePassed => {
                let before = self.unreported.take();
                self.state = State::Clearing(AfterClear::Idle);
                Ok(Self::time_out(&invocation, before, now))
            }
            Event::FreezeDue | Event::Idle | Event::Answered(_) => {
                self.state = State::Invoking(invocation);
                Ok(vec![])
            }
            other => self.refuse(State::Invoking(invocation), other),
        }
    }

    fn shut_down(&mut self, now: Instant) -> Vec<Action> {
        let gone = Failure {
            error_type: "Sandbox.Failure".to_owned(),
            posted: None,
            message: "the server is shutting down".to_owned(),
        };
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => vec![],
            State::Initializing { invocation: Some(invocation), .. } | State::Invoking(invocation) => {
                // What the runtime had answered before stays what it was.
                let status = match &invocation.answer {
                    Some(_) => invocation.status(),
                    None => Status::Error(gone.error_type.clone()),
                };
                let mut actions =
                    vec![Action::LogEnd { duration: now - invocation.started, before: self.unreported.take(), status }];
                actions.extend(invocation.reply_at_end(Action::ReplyFailure(gone)));
                actions.push(Action::TearDown);
                actions
            }
            State::Serving | State::Reviving { .. } => vec![Action::FailAll(gone), Action::TearDown],
            State::Ready { frozen: true } => vec![Action::Thaw, Action::TearDown],
            State::Created
            | State::Initializing { invocation: None, .. }
            | State::Restoring { .. }
            | State::Ready { frozen: false }
            | State::Clearing(_)
            | State::Broken => vec![Action::TearDown],
        }
    }

    fn refuse(&mut self, state: State, event: Event) -> Result<Vec<Action>, IllegalEvent> {
        let error = IllegalEvent { state: format!("{state:?}"), event: format!("{event:?}") };
        self.state = state;
        Err(error)
    }
}

#[cfg(test)]
mod tests;
