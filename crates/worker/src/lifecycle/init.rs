//! Initialization: the first one, and those inside an invocation after the runtime was lost.

use std::time::{Duration, Instant};

use super::{Action, AfterClear, Before, Event, Failure, IllegalEvent, Invocation, Machine, Phase, State, Status};

impl Machine {
    pub(super) fn created(&mut self, event: Event, now: Instant) -> Result<Vec<Action>, IllegalEvent> {
        match event {
            Event::Begin => Ok(self.initialize(None, now)),
            Event::Restore { began } => {
                self.state = State::Restoring { began, released: now };
                self.restored = true;
                Ok(vec![Action::SetDeadline(now + self.restore_timeout), Action::StartRestore])
            }
            other => self.refuse(State::Created, other),
        }
    }

    pub(super) fn initialize(&mut self, invocation: Option<Invocation>, now: Instant) -> Vec<Action> {
        let deadline = invocation.as_ref().map_or(now + self.init_timeout, Invocation::deadline);
        self.state = State::Initializing { started: now, invocation };
        let announce = !std::mem::replace(&mut self.announced, true);
        vec![Action::SetDeadline(deadline), Action::StartProcesses { announce }]
    }

    pub(super) fn initializing(
        &mut self,
        started: Instant,
        invocation: Option<Invocation>,
        event: Event,
        now: Instant,
    ) -> Result<Vec<Action>, IllegalEvent> {
        let duration = now - started;
        match event {
            Event::ExtensionsRegistered => {
                self.state = State::Initializing { started, invocation };
                Ok(vec![Action::StartRuntime])
            }
            Event::InitDone => Ok(self.initialized(duration, invocation)),
            Event::SpawnFailed(failure) | Event::InitError(failure) | Event::Exited(failure) => {
                Ok(self.init_failed(duration, invocation, failure, now))
            }
            Event::DeadlinePassed => Ok(self.init_timed_out(duration, invocation, now)),
            // A runtime that was frozen or killed earlier may still be heard of.
            Event::FreezeDue | Event::Idle => {
                self.state = State::Initializing { started, invocation };
                Ok(vec![])
            }
            other => self.refuse(State::Initializing { started, invocation }, other),
        }
    }

    fn initialized(&mut self, duration: Duration, invocation: Option<Invocation>) -> Vec<Action> {
        match invocation {
            None => {
                self.unreported = Some(Before::Init(duration));
                self.state = State::Ready { frozen: false };
                vec![
                    Action::ClearDeadline,
                    Action::ReportInit { phase: Phase::Init, duration, status: Status::Success },
                    Action::NotifyReady { initialized: true },
                    Action::FreezeSoon,
                ]
            }
            Some(invocation) => {
                self.state = State::Invoking(invocation);
                vec![Action::ReportInit { phase: Phase::Invoke, duration, status: Status::Success }, Action::Deliver]
            }
        }
    }

    fn init_failed(
        &mut self,
        duration: Duration,
        invocation: Option<Invocation>,
        failure: Failure,
        now: Instant,
    ) -> Vec<Action> {
        let status = Status::Error(failure.error_type.clone());
        let report = |phase| Action::ReportInit { phase, duration, status: status.clone() };
        match invocation {
            None => {
                self.state = State::Clearing(AfterClear::FirstInitFailed);
                vec![Action::ClearDeadline, report(Phase::Init), Action::Clear { timed_out: false }]
            }
            Some(invocation) => {
                self.state = State::Clearing(AfterClear::Idle);
                vec![
                    Action::ClearDeadline,
                    report(Phase::Invoke),
                    Action::LogEnd { duration: now - invocation.started, before: None, status: status.clone() },
                    Action::NotifySettling,
                    Action::ReplyFailure(failure),
                    Action::Clear { timed_out: false },
                ]
            }
        }
    }

    fn init_timed_out(&mut self, duration: Duration, invocation: Option<Invocation>, now: Instant) -> Vec<Action> {
        let report = |phase| Action::ReportInit { phase, duration, status: Status::Timeout };
        match invocation {
            None => {
                self.state = State::Clearing(AfterClear::FirstInitFailed);
                vec![report(Phase::Init), Action::Clear { timed_out: true }]
            }
            Some(invocation) => {
                self.state = State::Clearing(AfterClear::Idle);
                let mut actions = vec![report(Phase::Invoke)];
                actions.extend(Self::time_out(&invocation, None, now));
                actions
            }
        }
    }
}
