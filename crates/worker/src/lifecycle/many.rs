//! Several invocations at once, of which the machine knows no single one.

use std::time::Instant;

use super::{Action, AfterClear, Event, Failure, IllegalEvent, Machine, Phase, State, Status};

impl Machine {
    pub(super) fn serving(&mut self, event: Event) -> Result<Vec<Action>, IllegalEvent> {
        match event {
            Event::Serve => {
                self.state = State::Serving;
                Ok(vec![Action::Admit])
            }
            Event::Free => {
                self.state = State::Ready { frozen: false };
                Ok(vec![Action::FreezeSoon])
            }
            Event::Exited(failure) => Ok(self.fail_all(failure)),
            Event::FreezeDue | Event::Idle | Event::DeadlinePassed => {
                self.state = State::Serving;
                Ok(vec![])
            }
            other => self.refuse(State::Serving, other),
        }
    }

    pub(super) fn fail_all(&mut self, failure: Failure) -> Vec<Action> {
        self.state = State::Clearing(AfterClear::NobodyWaits);
        vec![Action::FailAll(failure), Action::Clear { timed_out: false }]
    }

    pub(super) fn reviving(
        &mut self,
        started: Instant,
        event: Event,
        now: Instant,
    ) -> Result<Vec<Action>, IllegalEvent> {
        let duration = now - started;
        let report = |status| Action::ReportInit { phase: Phase::Invoke, duration, status };
        match event {
            Event::ExtensionsRegistered => {
                self.state = State::Reviving { started };
                Ok(vec![Action::StartRuntime])
            }
            Event::InitDone => {
                self.state = State::Serving;
                Ok(vec![Action::ClearDeadline, report(Status::Success), Action::Admit])
            }
            Event::SpawnFailed(failure) | Event::InitError(failure) | Event::Exited(failure) => {
                let mut actions = vec![Action::ClearDeadline, report(Status::Error(failure.error_type.clone()))];
                actions.extend(self.fail_all(failure));
                Ok(actions)
            }
            Event::DeadlinePassed => {
                let message = format!("the initialization took longer than {:.2} seconds", duration.as_secs_f64());
                let failure = Failure { error_type: "Sandbox.Timedout".to_owned(), posted: None, message };
                let mut actions = vec![report(Status::Timeout)];
                actions.extend(self.fail_all(failure));
                Ok(actions)
            }
            // Those that have come may run out of time before.
            Event::Serve | Event::Free | Event::FreezeDue | Event::Idle => {
                self.state = State::Reviving { started };
                Ok(vec![])
            }
            other => self.refuse(State::Reviving { started }, other),
        }
    }
}
