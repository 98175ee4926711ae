//! The way out of a snapshot, from the release of the runtime until it asks for an invocation, or fails to.

use std::time::Instant;

use super::{Action, Before, Event, IllegalEvent, Machine, RestoreFailure, State, Status};

impl Machine {
    pub(super) fn restoring(
        &mut self,
        began: Instant,
        released: Instant,
        event: Event,
        now: Instant,
    ) -> Result<Vec<Action>, IllegalEvent> {
        let took = now - began;
        let report = |status| Action::ReportRestore { duration: took, status };
        match event {
            Event::InitDone => {
                self.unreported = Some(Before::Restore { took, billed: now - released });
                self.state = State::Ready { frozen: false };
                Ok(vec![
                    Action::ClearDeadline,
                    report(Status::Success),
                    Action::NotifyReady { initialized: true },
                    Action::FreezeSoon,
                ])
            }
            // The state has become Ended: there is nothing in this sandbox to go on with.
            Event::RestoreError(failure) | Event::Exited(failure) => {
                let status = Status::Error(failure.error_type.clone());
                Ok(vec![Action::ClearDeadline, report(status), Action::FailRestore(RestoreFailure::Hook(failure))])
            }
            Event::DeadlinePassed => {
                Ok(vec![report(Status::Timeout), Action::FailRestore(RestoreFailure::Timeout(now - released))])
            }
            Event::FreezeDue | Event::Idle => {
                self.state = State::Restoring { began, released };
                Ok(vec![])
            }
            other => self.refuse(State::Restoring { began, released }, other),
        }
    }
}
