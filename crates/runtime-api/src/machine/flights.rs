//! Several invocations at once: what the runtime has in hand, each on its own.
//!
//! ```text
//!   kept --next--> Given --response, error--> Answering --body read, or broken off--> gone
//!     ^              | connection lost            |
//!     '--------------'                            '-- abandoned --> gone
//! ```
//!
//! The runtime asks for work from as many places as it serves invocations at once. One that it does not answer in time
//! keeps its place: the platform knows no means to interrupt it alone. The extensions hear nothing of invocations.

use std::collections::VecDeque;
use std::sync::Arc;

use super::step::{Action, CallId};
use crate::{Invocation, Outcome, Refusal};

/// The invocations that the runtime has in hand.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: Vec<Flight>,
    /// Places of the runtime's that are still at something abandoned, and serve nothing.
    lost: usize,
}

#[derive(Debug)]
struct Flight {
    invocation: Arc<Invocation>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Given { call: CallId },
    Answering { call: CallId, state: &'static str },
}

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    /// How many places of the runtime's serve nothing any more.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    /// So many calls wait, of a runtime with so many places: who has nothing and does not wait is lost.
    pub(super) fn waits(&mut self, waiting: usize, concurrency: usize) {
        self.lost = self.lost.min(concurrency.saturating_sub(waiting + self.flights.len()));
    }

    /// Gives the oldest kept invocations to the calls that have waited longest.
    pub(super) fn hand_out(
        &mut self,
        kept: &mut VecDeque<Arc<Invocation>>,
        waiting: &mut VecDeque<CallId>,
        actions: &mut Vec<Action>,
    ) {
        while let Some(call) = waiting.front().copied()
            && let Some(invocation) = kept.pop_front()
        {
            waiting.pop_front();
            actions.push(Action::Deliver { call, invocation: invocation.clone() });
            self.flights.push(Flight { invocation, stage: Stage::Given { call } });
        }
    }

    pub(super) fn answer_begins(
        &mut self,
        call: CallId,
        request_id: &str,
        state: &'static str,
    ) -> Result<Vec<Action>, Refusal> {
        let found = self.flights.iter_mut().find(|flight| flight.invocation.request_id == request_id);
        let flight = found.ok_or(Refusal::RequestId)?;
        match flight.stage {
            Stage::Given { .. } => {
                flight.stage = Stage::Answering { call, state };
                Ok(Vec::new())
            }
            Stage::Answering { state: from, .. } => Err(Refusal::RuntimeState { from, to: state }),
        }
    }

    pub(super) fn answer_ends(&mut self, call: CallId, outcome: Outcome) -> Result<Vec<Action>, Refusal> {
        let of_call = |flight: &Flight| matches!(flight.stage, Stage::Answering { call: begun, .. } if begun == call);
        let at = self.flights.iter().position(of_call).ok_or(Refusal::RequestId)?;
        let request_id = self.flights.swap_remove(at).invocation.request_id.clone();
        Ok(vec![Action::Complete { request_id, outcome }])
    }

    /// A call that was being answered, or was answering, is gone. An invocation that did not get through is kept again.
    pub(super) fn call_lost(&mut self, lost: CallId, kept: &mut VecDeque<Arc<Invocation>>) -> Vec<Action> {
        if let Some(at) = self.flights.iter().position(|flight| flight.stage == Stage::Given { call: lost }) {
            kept.push_front(self.flights.swap_remove(at).invocation);
        }
        self.answer_ends(lost, Outcome::Truncated).unwrap_or_default()
    }

    /// Takes one away from the runtime; false where it has none by this id.
    pub(super) fn abandon(&mut self, request_id: &str) -> bool {
        let Some(at) = self.flights.iter().position(|flight| flight.invocation.request_id == request_id) else {
            return false;
        };
        if let Stage::Given { .. } = self.flights.swap_remove(at).stage {
            self.lost += 1;
        }
        true
    }

    /// The ids of all.
    pub(super) fn ids(&self) -> Vec<String> {
        self.flights.iter().map(|flight| flight.invocation.request_id.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
