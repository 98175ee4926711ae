//! Several invocations at once, where the function's configuration asks for it: each has its own deadline, fails alone, and
//! frees its own slot. The machine only knows whether there are any.

use std::task::Poll;
use std::time::{Duration, Instant};

use runtime_api::Outcome;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::invocation::{Current, judge};
use super::{Notice, Owner};
use crate::environment::Reply;
use crate::failure;
use crate::host::StartError;
use crate::lifecycle::{Answer, Event, Failure, Status};
use crate::spec::InvokeRequest;

/// How long a machine has to say whether its runtime can serve on.
const HEARING: Duration = Duration::from_secs(1);

/// An invocation beside others.
pub(super) struct Flight {
    current: Current,
    started: Instant,
    /// When its time is over.
    deadline: Instant,
    /// Whether the runtime has it, or has had it.
    delivered: bool,
    /// How it has ended, until that was told.
    end: Option<End>,
}

enum End {
    Answered(Answer),
    Failed(Failure),
    TimedOut,
}

/// The next flight that is heard of, and what.
pub(super) async fn next_outcome(flights: &mut [Flight]) -> (usize, Option<Outcome>) {
    std::future::poll_fn(|context| {
        for (at, flight) in flights.iter_mut().enumerate() {
            if let Some(outcome) = &mut flight.current.outcome
                && let Poll::Ready(outcome) = std::pin::Pin::new(outcome).poll(context)
            {
                return Poll::Ready((at, outcome.ok()));
            }
        }
        Poll::Pending
    })
    .await
}

impl Owner {
    /// When the first flight runs out of time.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.flights.iter().filter(|flight| flight.end.is_none()).map(|flight| flight.deadline).min()
    }

    /// Takes an invocation in.
    pub(super) fn take_in(&mut self, mut request: InvokeRequest, reply: Reply) {
        if !self.machine.can_serve() || self.flights.len() >= self.concurrency {
            let _ = reply.send(Err(StartError::Broken("the environment is busy".to_owned())));
            return;
        }
        // The log is that of all of them.
        request.tail = false;
        let (started, timeout) = (Instant::now(), self.spec.timeout);
        self.current = Some(Current::new(request, timeout, reply));
        self.log_start();
        if let Some(current) = self.current.take() {
            self.flights.push(Flight { current, started, deadline: started + timeout, delivered: false, end: None });
        }
        self.freeze_at = None;
        self.pending.push_back(Event::Serve);
    }

    /// Hands what has come to the runtime.
    pub(super) fn admit(&mut self) {
        for flight in self.flights.iter_mut().filter(|flight| !flight.delivered && flight.end.is_none()) {
            flight.delivered = true;
            match self.launched.api.invoke(flight.current.invocation()) {
                Ok(outcome) => flight.current.outcome = Some(outcome),
                Err(refused) => {
                    let message = refused.to_string();
                    let failure = Failure { error_type: "Sandbox.Failure".to_owned(), posted: None, message };
                    flight.end = Some(End::Failed(failure));
                }
            }
        }
    }

    /// The runtime has answered one, or (`None`) the Runtime API has dropped it.
    pub(super) fn flight_answered(&mut self, at: usize, outcome: Option<Outcome>) {
        let Some(flight) = self.flights.get_mut(at) else { return };
        flight.current.outcome = None;
        if let Some(outcome) = outcome
            && flight.end.is_none()
        {
            flight.end = Some(End::Answered(judge(&mut flight.current, outcome)));
        }
    }

    /// Looks which ones the runtime has answered.
    pub(super) fn collect_flights(&mut self) {
        for at in 0..self.flights.len() {
            let outcome = self.flights[at].current.outcome.as_mut().map(oneshot::Receiver::try_recv);
            if let Some(Ok(outcome)) = outcome {
                self.flight_answered(at, Some(outcome));
            }
        }
    }

    /// Ends those whose time is over.
    pub(super) fn time_flights_out(&mut self, now: Instant) {
        for flight in self.flights.iter_mut().filter(|flight| flight.end.is_none() && flight.deadline <= now) {
            flight.end = Some(End::TimedOut);
            flight.current.outcome = None;
            self.launched.api.abandon_one(&flight.current.request.request_id);
            self.abandoned = true;
        }
    }

    /// Hears whether the runtime can serve on, after invocations were taken away from it: nobody else shall be handed to one
    /// that cannot. A machine that does not say so in time is heard of later.
    pub(super) async fn hear_of_abandoned(&mut self) {
        if std::mem::take(&mut self.abandoned) {
            if timeout(HEARING, self.launched.api.settled()).await.is_err() {
                tracing::debug!(environment = self.log_stream, "it is not known whether the runtime can serve on");
            }
            while let Ok(event) = self.launched.api_events.try_recv() {
                self.api_event(event);
            }
        }
    }

    /// Ends all with one failure.
    pub(super) async fn fail_flights(&mut self, failure: Failure) {
        for flight in self.flights.iter_mut().filter(|flight| flight.end.is_none()) {
            flight.end = Some(End::Failed(failure.clone()));
            flight.current.outcome = None;
            self.launched.api.abandon_one(&flight.current.request.request_id);
        }
        self.conclude_flights().await;
    }

    /// Tells of those that have ended.
    pub(super) async fn conclude_flights(&mut self) {
        let mut concluded = false;
        while let Some(at) = self.flights.iter().position(|flight| flight.end.is_some()) {
            let Flight { current, started, end, .. } = self.flights.remove(at);
            let Some(end) = end else { continue };
            self.current = Some(current);
            let (duration, status) = self.verdict(&end, started.elapsed());
            self.log_end(duration, None, &status).await;
            (self.presence.observer)(Notice::Settling);
            match end {
                End::Answered(Answer::Delivered) => self.reply_answer(),
                End::Answered(Answer::Refused(failure)) | End::Failed(failure) => {
                    self.reply_error(|request_id| failure::payload(&failure, request_id));
                }
                End::TimedOut => {
                    let limit = self.spec.timeout;
                    self.reply_error(|request_id| failure::timeout_payload(limit, request_id));
                }
            }
            self.current = None;
            (self.presence.observer)(Notice::Idle);
            concluded = true;
        }
        if concluded && self.flights.is_empty() {
            self.pending.push_front(Event::Free);
        }
    }

    /// As [`Self::break_off`], for all of them.
    pub(super) async fn break_flights_off(&mut self, error: &StartError) {
        for flight in std::mem::take(&mut self.flights) {
            self.current = Some(flight.current);
            self.break_off(error).await;
        }
    }

    fn verdict(&self, end: &End, elapsed: Duration) -> (Duration, Status) {
        match end {
            End::Answered(Answer::Delivered) => (elapsed, Status::Success),
            End::Answered(Answer::Refused(failure)) | End::Failed(failure) => {
                (elapsed, Status::Error(failure.error_type.clone()))
            }
            End::TimedOut => (elapsed.min(self.spec.timeout), Status::Timeout),
        }
    }
}
