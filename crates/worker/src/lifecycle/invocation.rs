//! An invocation under way, and what its caller gets when: at once, with the log, or because it was cut short.

use std::time::{Duration, Instant};

use super::{Action, Answer, Status};

/// An invocation that has an environment to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) started: Instant,
    pub(super) timeout: Duration,
    pub(super) tail: bool,
    pub(super) answer: Option<Answer>,
}

impl Invocation {
    pub(super) fn new(started: Instant, timeout: Duration, tail: bool) -> Self {
        Self { started, timeout, tail, answer: None }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.started + self.timeout
    }

    /// The reply that became due when the runtime answered, but for a caller who waits for the log.
    pub(super) fn reply_at_answer(&self) -> Option<Action> {
        if self.tail { None } else { self.answer.as_ref().map(Self::reply) }
    }

    /// The reply that an answer kept for the log's sake is due at the end.
    pub(super) fn reply_kept(&self) -> Option<Action> {
        self.answer.as_ref().filter(|_| self.tail).map(Self::reply)
    }

    /// What the caller still gets when the invocation is cut short: the answer kept for the log's sake, or `unanswered`
    /// where none came.
    pub(super) fn reply_at_end(&self, unanswered: Action) -> Vec<Action> {
        match &self.answer {
            None => vec![Action::NotifySettling, unanswered],
            Some(_) => self.reply_kept().into_iter().collect(),
        }
    }

    fn reply(answer: &Answer) -> Action {
        match answer {
            Answer::Delivered => Action::ReplyAnswer,
            Answer::Refused(failure) => Action::ReplyFailure(failure.clone()),
        }
    }

    /// How an invocation that the runtime finished by itself is reported.
    pub(super) fn status(&self) -> Status {
        match &self.answer {
            Some(Answer::Refused(failure)) => Status::Error(failure.error_type.clone()),
            Some(Answer::Delivered) | None => Status::Success,
        }
    }
}
