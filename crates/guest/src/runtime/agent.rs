//! The guest's end: carries out the owner's commands on a local [`RuntimeApi`] and tells what comes of them.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use runtime_api::{Event, Extensions, Invocation, Outcome, RuntimeApi};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::wire::{Command, EventForm, ExtensionsForm, OutcomeForm, Report};
use crate::frame::{self, ReadError};

/// Largest payload that is taken, in bytes: asynchronous and synchronous ones of Lambda fit. The owner is trusted; this
/// bounds what a mistake costs.
const MAX_PAYLOAD: usize = 64 << 20;

/// Where the Runtime API of this microVM is, or will be.
#[derive(Debug)]
pub struct Slot {
    listener: TcpListener,
    hosted: Option<Hosted>,
}

/// An API at work, with what its owner has to be told when it is another one.
#[derive(Debug)]
struct Hosted {
    api: RuntimeApi,
    events: UnboundedReceiver<Event>,
    registration_closed: bool,
    shutting_down: bool,
}

/// Why the owner is not served any longer.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// What it said cannot be read.
    #[error("could not read the owner's commands")]
    Read(#[source] ReadError),
    /// It cannot be told anything.
    #[error("could not write to the owner")]
    Write(#[source] io::Error),
    /// The API cannot be started.
    #[error("could not listen for the runtime")]
    Listen(#[source] io::Error),
    /// A command that has no meaning before `Open` or `Attach`, or the latter where there is nothing.
    #[error("the owner has not opened the runtime api")]
    NotOpen,
}

impl Slot {
    /// The API will be served on `listener` when an owner opens it; until then, connections wait.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, hosted: None }
    }

    fn open(&mut self, options: runtime_api::Options) -> io::Result<()> {
        // An API of an earlier owner ends before the new one accepts.
        self.hosted = None;
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let (api, events) = RuntimeApi::serve(tokio::net::TcpListener::from_std(listener)?, options);
        self.hosted = Some(Hosted { api, events, registration_closed: false, shutting_down: false });
        Ok(())
    }
}

/// Obeys the owner at the other end of `stream` until it closes the API (which then ends), or the stream ends: then the API
/// stays for an owner that attaches, and only what invocations were in hand are abandoned, for nobody would hear of them.
///
/// `flush` is called before the owner hears of an outcome or an event: what the runtime has written until then shall be on
/// its way. May be dropped to serve another stream.
pub async fn serve_owner<S, F>(stream: S, slot: &mut Slot, flush: F) -> Result<(), OwnerError>
where
    S: AsyncRead + AsyncWrite,
    F: FnMut(),
{
    let (read, write) = tokio::io::split(stream);
    let mut commands = frame::Reader::new(read, MAX_PAYLOAD);
    let mut teller = Teller { stream: write, taken: 0, known: Extensions::default() };
    let (first, _) = match commands.next().await {
        Ok(first) => first,
        Err(ReadError::Ended) => return Ok(()),
        Err(error) => return Err(OwnerError::Read(error)),
    };
    teller.taken = 1;
    match first {
        Command::Open(options) => slot.open(options).map_err(OwnerError::Listen)?,
        Command::Attach if slot.hosted.is_some() => {}
        _ => {
            teller.tell(Report::Refused, &[]).await?;
            return Err(OwnerError::NotOpen);
        }
    }
    let Some(hosted) = &mut slot.hosted else { return Err(OwnerError::NotOpen) };
    let Hosted { registration_closed, shutting_down, .. } = *hosted;
    teller.extensions(hosted.api.extensions()).await?;
    teller.tell(Report::Attached { registration_closed, shutting_down }, &[]).await?;
    let closed = Session { hosted, teller, flights: Flights::default(), flush }.run(&mut commands).await?;
    if closed {
        slot.hosted = None;
    }
    Ok(())
}

/// The stream to the owner.
struct Teller<S> {
    stream: WriteHalf<S>,
    /// Commands so far.
    taken: u64,
    /// The extensions as the owner knows them.
    known: Extensions,
}

impl<S: AsyncRead + AsyncWrite> Teller<S> {
    async fn tell(&mut self, report: Report, body: &[u8]) -> Result<(), OwnerError> {
        frame::write(&mut self.stream, &(self.taken, report), body).await.map_err(OwnerError::Write)
    }

    async fn extensions(&mut self, now: Extensions) -> Result<(), OwnerError> {
        if now == self.known {
            return Ok(());
        }
        self.known = now.clone();
        let body = serde_json::to_vec(&ExtensionsForm::new(now)).map_err(|error| OwnerError::Write(error.into()))?;
        self.tell(Report::Extensions, &body).await
    }
}

/// The invocations in hand.
#[derive(Default)]
struct Flights(Vec<Flight>);

struct Flight {
    number: u64,
    request_id: String,
    outcome: oneshot::Receiver<Outcome>,
}

impl Flights {
    /// The number and the outcome of one that is over, none if it was dropped; waits for ever if there is none in hand.
    async fn outcome(&mut self) -> (u64, Option<Outcome>) {
        std::future::poll_fn(|context| {
            let polled = self.0.iter_mut().enumerate().find_map(|(at, flight)| {
                match Pin::new(&mut flight.outcome).poll(context) {
                    Poll::Ready(outcome) => Some((at, outcome.ok())),
                    Poll::Pending => None,
                }
            });
            match polled {
                Some((at, outcome)) => Poll::Ready((self.0.swap_remove(at).number, outcome)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The same if it has happened already.
    fn try_outcome(&mut self) -> Option<(u64, Option<Outcome>)> {
        let (at, outcome) = self.0.iter_mut().enumerate().find_map(|(at, flight)| match flight.outcome.try_recv() {
            Ok(outcome) => Some((at, Some(outcome))),
            Err(oneshot::error::TryRecvError::Closed) => Some((at, None)),
            Err(oneshot::error::TryRecvError::Empty) => None,
        })?;
        Some((self.0.swap_remove(at).number, outcome))
    }
}

struct Session<'a, S, F> {
    hosted: &'a mut Hosted,
    teller: Teller<S>,
    flights: Flights,
    flush: F,
}

impl<S, F> Drop for Session<'_, S, F> {
    fn drop(&mut self) {
        if !self.flights.0.is_empty() {
            self.hosted.api.abandon();
        }
    }
}

impl<S: AsyncRead + AsyncWrite, F: FnMut()> Session<'_, S, F> {
    /// True if the owner has closed the API.
    async fn run(mut self, commands: &mut frame::Reader<ReadHalf<S>>) -> Result<bool, OwnerError> {
        loop {
            tokio::select! {
                (number, outcome) = self.flights.outcome() => self.outcome(number, outcome).await?,
                event = self.hosted.events.recv() => match event {
                    Some(event) => self.event(event).await?,
                    // Only when the API is closed, which nobody but this session does.
                    None => return Ok(true),
                },
                () = self.hosted.api.extensions_changed() => {
                    self.teller.extensions(self.hosted.api.extensions()).await?;
                }
                command = commands.next() => match command {
                    Ok((command, body)) => {
                        if self.obey(command, body).await? {
                            return Ok(true);
                        }
                    }
                    Err(ReadError::Ended) => return Ok(false),
                    Err(error) => return Err(OwnerError::Read(error)),
                },
            }
        }
    }

    async fn outcome(&mut self, number: u64, outcome: Option<Outcome>) -> Result<(), OwnerError> {
        (self.flush)();
        match outcome.map(OutcomeForm::split) {
            Some((outcome, body)) => self.teller.tell(Report::Outcome { number, outcome }, &body).await,
            None => self.teller.tell(Report::Dropped { number }, &[]).await,
        }
    }

    /// An event, after everything that it stands on.
    async fn event(&mut self, event: Event) -> Result<(), OwnerError> {
        while let Some((number, outcome)) = self.flights.try_outcome() {
            self.outcome(number, outcome).await?;
        }
        self.teller.extensions(self.hosted.api.extensions()).await?;
        if matches!(event, Event::InitDone | Event::Idle) {
            self.hosted.registration_closed = true;
        }
        (self.flush)();
        let (event, body) = EventForm::split(event);
        self.teller.tell(Report::Event(event), &body).await
    }

    /// Carries a command out; true if it was the last.
    async fn obey(&mut self, command: Command, body: Bytes) -> Result<bool, OwnerError> {
        self.teller.taken += 1;
        let api = &self.hosted.api;
        match command {
            Command::Invoke { number, invocation } => {
                let request_id = invocation.request_id.clone();
                match api.invoke(Invocation { payload: body, ..invocation }) {
                    Ok(outcome) => self.flights.0.push(Flight { number, request_id, outcome }),
                    // The owner knows only later what this API knew when it came.
                    Err(_) => self.teller.tell(Report::Dropped { number }, &[]).await?,
                }
                return Ok(false);
            }
            Command::Abandon => {
                api.abandon();
                self.flights.0.clear();
            }
            Command::AbandonOne { number } => {
                // It may have been answered, or dropped, just before.
                if let Some(at) = self.flights.0.iter().position(|flight| flight.number == number) {
                    api.abandon_one(&self.flights.0.swap_remove(at).request_id);
                }
                while let Ok(event) = self.hosted.events.try_recv() {
                    self.event(event).await?;
                }
            }
            Command::Reset => {
                api.reset();
                // What the old runtime said until now. The new one is started after the owner has heard of this.
                while self.hosted.events.try_recv().is_ok() {}
                self.hosted.registration_closed = false;
                self.hosted.shutting_down = false;
                self.teller.known = Extensions::default();
                while let Some((number, _lost)) = self.flights.try_outcome() {
                    self.outcome(number, None).await?;
                }
            }
            Command::Expect(names) => {
                if api.expect_extensions(names).is_err() {
                    self.teller.tell(Report::Refused, &[]).await?;
                }
            }
            Command::Shutdown { reason, deadline_ms } => {
                api.shutdown_extensions(reason, deadline_ms);
                self.hosted.shutting_down = true;
            }
            Command::Restore => {
                if api.restore().is_err() {
                    self.teller.tell(Report::Refused, &[]).await?;
                }
            }
            Command::Credentials(credentials) => api.set_credentials(credentials.map(Into::into)),
            Command::Close => {
                api.close();
                return Ok(true);
            }
            Command::Open(_) | Command::Attach => return Err(OwnerError::NotOpen),
        }
        self.teller.extensions(self.hosted.api.extensions()).await?;
        self.teller.tell(Report::Taken, &[]).await?;
        Ok(false)
    }
}
