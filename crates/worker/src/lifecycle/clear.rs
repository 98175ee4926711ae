//! After the runtime is gone: what it leaves behind is killed, then the next invocation initializes anew.

use std::time::Instant;

use super::{Action, AfterClear, Event, IllegalEvent, Invocation, Machine, State};

impl Machine {
    pub(super) fn clearing(&mut self, then: AfterClear, event: Event) -> Result<Vec<Action>, IllegalEvent> {
        match event {
            // Nobody is told anything more than that it has ended.
            Event::Cleared if self.restored => Ok(vec![Action::TearDown]),
            Event::Cleared => {
                self.state = State::Broken;
                Ok(match then {
                    AfterClear::FirstInitFailed => vec![Action::NotifyReady { initialized: false }],
                    AfterClear::Idle => vec![Action::NotifyIdle],
                    AfterClear::NobodyWaits => vec![],
                })
            }
            // The dying processes and their last words.
            Event::Exited(_)
            | Event::Answered(_)
            | Event::Idle
            | Event::ExtensionsRegistered
            | Event::InitDone
            | Event::InitError(_)
            | Event::RestoreError(_)
            | Event::SpawnFailed(_)
            | Event::DeadlinePassed
            | Event::Free
            | Event::FreezeDue => {
                self.state = State::Clearing(then);
                Ok(vec![])
            }
            other => self.refuse(State::Clearing(then), other),
        }
    }

    pub(super) fn broken(&mut self, event: Event, now: Instant) -> Result<Vec<Action>, IllegalEvent> {
        match event {
            Event::Invoke { timeout, tail } => {
                self.unreported = None;
                let invocation = Invocation::new(now, timeout, tail);
                let mut actions = vec![Action::Thaw, Action::LogStart];
                actions.extend(self.initialize(Some(invocation), now));
                Ok(actions)
            }
            Event::Serve => {
                self.unreported = None;
                self.state = State::Reviving { started: now };
                let deadline = Action::SetDeadline(now + self.init_timeout);
                Ok(vec![Action::Thaw, deadline, Action::StartProcesses { announce: false }])
            }
            Event::Exited(_)
            | Event::Answered(_)
            | Event::Idle
            | Event::ExtensionsRegistered
            | Event::InitDone
            | Event::InitError(_)
            | Event::DeadlinePassed
            | Event::Free
            | Event::FreezeDue => {
                self.state = State::Broken;
                Ok(vec![])
            }
            other => self.refuse(State::Broken, other),
        }
    }
}
