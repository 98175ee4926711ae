//! The invocation in hand: from its caller to the runtime, and the answer back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use runtime_api::{Invocation, Outcome};
use tokio::sync::oneshot;

use super::Owner;
use crate::environment::Reply;
use crate::failure;
use crate::host::StartError;
use crate::lifecycle::{Answer, Event, Failure, Status};
use crate::spec::{InvokeReply, InvokeRequest};

/// An invocation, from its arrival until the environment is free again.
pub(super) struct Current {
    pub(super) request: InvokeRequest,
    pub(super) outcome: Option<oneshot::Receiver<Outcome>>,
    /// Bytes that the runtime answered with.
    pub(super) produced_bytes: Option<u64>,
    /// When START was written, until END is.
    pub(super) open_since: Option<Instant>,
    deadline_ms: u64,
    /// Whether the runtime answered with an error.
    pub(super) failed: bool,
    reply: Option<Reply>,
    answer: Option<InvokeReply>,
}

impl Current {
    pub(super) fn new(request: InvokeRequest, timeout: Duration, reply: Reply) -> Self {
        Self {
            request,
            outcome: None,
            produced_bytes: None,
            open_since: None,
            deadline_ms: epoch_ms(SystemTime::now() + timeout),
            failed: false,
            reply: Some(reply),
            answer: None,
        }
    }

    /// What the runtime gets. To be asked for once.
    pub(super) fn invocation(&mut self) -> Invocation {
        let request = &mut self.request;
        Invocation {
            request_id: request.request_id.clone(),
            // Delivered once, and large: not kept here for as long as the function runs.
            payload: std::mem::take(&mut request.payload),
            deadline_ms: self.deadline_ms,
            invoked_function_arn: std::mem::take(&mut request.invoked_function_arn),
            trace_id: request.trace_id.take(),
            client_context: request.client_context.take(),
            ..Invocation::default()
        }
    }
}

/// What the runtime's answer amounts to; what the caller gets of it is kept in `current`.
pub(super) fn judge(current: &mut Current, outcome: Outcome) -> Answer {
    let refused = |error_type: &str, message: &str| {
        Answer::Refused(Failure { error_type: error_type.to_owned(), posted: None, message: message.to_owned() })
    };
    let (payload, function_error) = match outcome {
        Outcome::Response { body, .. } => (body, false),
        Outcome::Error { body, .. } => (body, true),
        Outcome::ResponseTooLarge { limit } => return Answer::Refused(failure::response_too_large(limit)),
        Outcome::Truncated => return refused("Runtime.TruncatedResponse", "Response truncated"),
        Outcome::InvalidResponseMode => {
            return refused("Runtime.InvalidResponseModeHeader", "Invalid response mode header");
        }
    };
    current.produced_bytes = Some(payload.len() as u64);
    current.failed = function_error;
    current.answer = Some(InvokeReply { payload, function_error, log_tail: None });
    Answer::Delivered
}

impl Owner {
    /// Hands the invocation to the runtime.
    pub(super) fn deliver(&mut self) {
        let Some(current) = &mut self.current else { return };
        let invocation = current.invocation();
        match self.launched.api.invoke(invocation) {
            Ok(outcome) => current.outcome = Some(outcome),
            Err(refused) => {
                let message = refused.to_string();
                let failure = Failure { error_type: "Sandbox.Failure".to_owned(), posted: None, message };
                self.pending.push_back(Event::Exited(failure));
            }
        }
    }

    /// Looks whether the runtime has answered.
    pub(super) fn collect_outcome(&mut self) {
        let outcome = self.current.as_mut().and_then(|current| current.outcome.as_mut());
        if let Some(Ok(outcome)) = outcome.map(oneshot::Receiver::try_recv) {
            self.answered(Some(outcome));
        }
        self.collect_flights();
    }

    /// The runtime has answered, or (`None`) the Runtime API has dropped the invocation.
    pub(super) fn answered(&mut self, outcome: Option<Outcome>) {
        let Some(current) = &mut self.current else { return };
        current.outcome = None;
        let Some(outcome) = outcome else { return };
        let answer = judge(current, outcome);
        self.pending.push_back(Event::Answered(answer));
    }

    /// Takes the invocation away from the runtime.
    pub(super) fn abandon(&mut self) {
        self.launched.api.abandon();
        if let Some(current) = &mut self.current {
            current.outcome = None;
        }
    }

    pub(super) fn reply_answer(&mut self) {
        let answer = self.current.as_mut().and_then(|current| current.answer.take());
        self.reply(answer.map(Ok));
    }

    pub(super) fn reply_error(&mut self, payload: impl FnOnce(&str) -> Vec<u8>) {
        let Some(current) = &self.current else { return };
        let payload = payload(&current.request.request_id).into();
        self.reply(Some(Ok(InvokeReply { payload, function_error: true, log_tail: None })));
    }

    /// The sandbox broke: the caller is told why, and the log does not end in the middle of the invocation.
    pub(super) async fn break_off(&mut self, error: &StartError) {
        self.reply(Some(Err(error.clone())));
        if let Some(since) = self.current.as_ref().and_then(|current| current.open_since) {
            self.log_end(since.elapsed(), None, &Status::Error("Sandbox.Failure".to_owned())).await;
        }
    }

    fn reply(&mut self, answer: Option<Result<InvokeReply, StartError>>) {
        let Some(current) = &mut self.current else { return };
        let (Some(reply), Some(mut answer)) = (current.reply.take(), answer) else { return };
        if let Ok(answer) = &mut answer
            && current.request.tail
        {
            answer.log_tail = self.capture.take_tail();
        }
        // A caller who has gone away does not want to know.
        let _ = reply.send(answer);
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn epoch_ms(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
