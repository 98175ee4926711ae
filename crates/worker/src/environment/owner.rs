//! The task that owns an environment: turns what happens into events of the machine, and its actions into deeds.

mod flights;
mod invocation;
mod processes;
mod record;
mod snapshot;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use runtime_api::{Outcome, ShutdownReason};
use telemetry::lines::{self, InitType};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{Sleep, sleep_until};

use self::flights::Flight;
use self::invocation::Current;
use self::processes::{Exited, Processes};
use self::snapshot::Keeping;
use super::launch::{Launched, cpu_millis, launch, micros, restore};
use super::{Command, Notice, Observer};
use crate::capture::{Capture, now_ms};
use crate::failure;
use crate::host::{Entry, Inner, StartError, chain};
use crate::lifecycle::{Action, Event, Failure, Machine};
use crate::snapshots;
use crate::spec::EnvironmentSpec;

/// The life of an environment, from launch to teardown.
pub(super) async fn run(
    host: Arc<Inner>,
    spec: Arc<EnvironmentSpec>,
    initialization_type: InitType,
    observer: Observer,
    commands: mpsc::UnboundedReceiver<Command>,
) {
    let id = uuid::Uuid::new_v4();
    let custom = spec.logging.custom_group.then_some(spec.function_name.as_str());
    let log_stream = lines::stream_name(now_ms(), custom, &spec.version, id);
    let entry = host.enter(&spec, &log_stream);
    let presence = Presence { host: Arc::clone(&host), entry: Arc::clone(&entry), observer, told: false };
    let sandbox_id = id.simple().to_string()[..16].to_owned();
    let kept =
        spec.snap_start.as_ref().filter(|_| initialization_type == InitType::OnDemand && host.backend.snapshots());
    let (launched, initialization_type) = match kept {
        None => (launch(&host, &spec, sandbox_id, &log_stream, initialization_type).await, initialization_type),
        Some(name) => match snapshots::find(&host, &spec, name).await {
            Ok(Some(snapshot)) => match restore(&host, &spec, sandbox_id.clone(), &snapshot).await {
                Err(error) if !host.backend.keeps_everything() => {
                    tracing::warn!(function = spec.function_name, version = spec.version, %error, "initializing instead");
                    let launched = launch(&host, &spec, sandbox_id, &log_stream, initialization_type).await;
                    if launched.is_ok() {
                        snapshots::give_up(&host, name).await;
                    }
                    (launched, initialization_type)
                }
                restored => (restored, InitType::SnapStart),
            },
            Ok(None) => (launch(&host, &spec, sandbox_id, &log_stream, initialization_type).await, initialization_type),
            Err(error) => (Err(error), InitType::SnapStart),
        },
    };
    match launched {
        Err(error) => presence.gone(Some(error)),
        Ok(launched) => Owner::new(presence, spec, initialization_type, log_stream, launched, commands).live().await,
    }
}

/// Sees to it that the observer hears of the end and the host's list is cleaned, whatever happens.
struct Presence {
    host: Arc<Inner>,
    entry: Arc<Entry>,
    observer: Observer,
    told: bool,
}

impl Presence {
    fn gone(mut self, error: Option<StartError>) {
        self.tell_gone(error);
    }

    fn tell_gone(&mut self, error: Option<StartError>) {
        if !std::mem::replace(&mut self.told, true) {
            (self.observer)(Notice::Gone { error });
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.tell_gone(Some(StartError::Broken("the environment's task ended early".to_owned())));
        self.host.leave(&self.entry);
    }
}

/// Why the task woke.
enum Wake {
    Command(Option<Command>),
    Outcome(Option<Outcome>),
    Flight(usize, Option<Outcome>),
    Api(Option<runtime_api::Event>),
    Exited(Exited),
    Time,
    Said,
}

struct Owner {
    presence: Presence,
    spec: Arc<EnvironmentSpec>,
    initialization_type: InitType,
    log_stream: String,
    launched: Launched,
    commands: mpsc::UnboundedReceiver<Command>,
    machine: Machine,
    pending: VecDeque<Event>,
    capture: Capture,
    current: Option<Current>,
    /// How many invocations there may be at once; with more than one they are flights.
    concurrency: usize,
    flights: Vec<Flight>,
    /// Whether invocations were taken away from the runtime since it was last heard what that means for it.
    abandoned: bool,
    processes: Processes,
    init_began: Instant,
    /// Of an environment that is kept in a snapshot, or was.
    keeping: Keeping,
    deadline: Option<Instant>,
    freeze_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Instant>,
    torn_down: bool,
}

impl Owner {
    fn new(
        presence: Presence,
        spec: Arc<EnvironmentSpec>,
        initialization_type: InitType,
        log_stream: String,
        launched: Launched,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let options = &presence.host.options;
        let init_timeout = match initialization_type {
            InitType::OnDemand => options.init_timeout,
            InitType::Provisioned | InitType::SnapStart => options.provisioned_init_timeout,
        };
        let now = Instant::now();
        let concurrency = presence.host.concurrency(&spec) as usize;
        Self {
            capture: Capture::new(presence.host.logs.clone(), &spec.logging, log_stream.clone()),
            machine: Machine::new(init_timeout, options.restore_timeout),
            presence,
            spec,
            initialization_type,
            log_stream,
            launched,
            commands,
            pending: VecDeque::new(),
            current: None,
            concurrency,
            flights: vec![],
            abandoned: false,
            processes: Processes::default(),
            init_began: now,
            keeping: Keeping::default(),
            deadline: None,
            freeze_at: None,
            timer: Box::pin(sleep_until(now.into())),
            timer_at: None,
            torn_down: false,
        }
    }

    async fn live(mut self) {
        let broken = self.serve().await.err();
        if let Some(error) = &broken {
            tracing::warn!(function = self.spec.function_name, environment = self.log_stream, %error, "an environment broke");
            self.break_off(error).await;
            self.break_flights_off(error).await;
        }
        // The manager need not wait for the teardown, and nobody shall wait for what is not going to be served.
        self.presence.tell_gone(broken.clone());
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Invoke(_, reply) = command {
                let _ = reply.send(Err(StartError::Broken("the environment ended before the invocation".to_owned())));
            }
        }
        if let Some(reply) = self.keeping.reply.take() {
            return self.become_snapshot(reply).await;
        }
        if broken.is_none() {
            self.shut_down().await;
        }
        self.capture.detach_all();
        self.launched.api.close();
        self.launched.sandbox.destroy().await;
    }

    /// From the first initialization to the end; the error is why the sandbox can be used no longer.
    async fn serve(&mut self) -> Result<(), StartError> {
        let first = self.first_event()?;
        self.pending.push_back(first);
        loop {
            self.settle().await?;
            if self.torn_down {
                return Ok(());
            }
            let wake = self.wait().await;
            self.interpret(wake)?;
        }
    }

    /// What was retired while its sandbox was being made is not even initialized.
    fn first_event(&mut self) -> Result<Event, StartError> {
        match self.commands.try_recv() {
            Ok(Command::Retire) | Err(TryRecvError::Disconnected) => return Ok(Event::Shutdown),
            Ok(early) => self.command(Some(early)),
            Err(TryRecvError::Empty) => {}
        }
        match self.launched.revived.take() {
            None => Ok(Event::Begin),
            Some(revived) => self.revive(revived),
        }
    }

    /// Feeds the machine until it has nothing more to say.
    async fn settle(&mut self) -> Result<(), StartError> {
        self.hear_of_abandoned().await;
        self.conclude_flights().await;
        while let Some(event) = self.pending.pop_front() {
            self.keeping.take_note_of(&event);
            let actions =
                self.machine.step(event, Instant::now()).map_err(|illegal| StartError::Broken(illegal.to_string()))?;
            for action in actions {
                self.act(action).await?;
            }
            self.conclude_flights().await;
        }
        Ok(())
    }

    async fn wait(&mut self) -> Wake {
        let at = [self.deadline, self.freeze_at, self.first_deadline()].into_iter().flatten().min();
        if let Some(at) = at
            && self.timer_at != Some(at)
        {
            self.timer.as_mut().reset(at.into());
            self.timer_at = Some(at);
        }
        let outcome = self.current.as_mut().and_then(|current| current.outcome.as_mut());
        tokio::select! {
            biased;
            outcome = async { match outcome { Some(outcome) => outcome.await.ok(), None => std::future::pending().await } } => Wake::Outcome(outcome),
            (at, outcome) = flights::next_outcome(&mut self.flights) => Wake::Flight(at, outcome),
            event = self.launched.api_events.recv() => Wake::Api(event),
            // Before the commands, so that nothing is handed to a runtime that is known to be dead.
            exited = self.processes.next_exit() => Wake::Exited(exited),
            command = self.commands.recv() => Wake::Command(command),
            () = self.timer.as_mut(), if at.is_some() => Wake::Time,
            () = self.capture.read_some() => Wake::Said,
        }
    }

    /// Turns a wake-up into events. What the Runtime API has said comes first: an answer counts even if the runtime
    /// has ended or the time is over by the moment that it is looked at.
    fn interpret(&mut self, wake: Wake) -> Result<(), StartError> {
        match wake {
            Wake::Outcome(outcome) => self.answered(outcome),
            Wake::Flight(at, outcome) => self.flight_answered(at, outcome),
            Wake::Api(event) => {
                self.collect_outcome();
                match event {
                    Some(event) => self.api_event(event),
                    // Nobody but this task closes it.
                    None => {
                        return Err(StartError::Broken(
                            "the sandbox has ended, and its runtime api with it".to_owned(),
                        ));
                    }
                }
            }
            Wake::Command(command) => self.command(command),
            Wake::Exited(exited) => {
                self.collect_outcome();
                while let Ok(event) = self.launched.api_events.try_recv() {
                    self.api_event(event);
                }
                self.exited(exited);
            }
            Wake::Time => {
                self.timer_at = None;
                self.collect_outcome();
                let now = Instant::now();
                if self.deadline.take_if(|at| *at <= now).is_some() {
                    self.pending.push_back(Event::DeadlinePassed);
                }
                self.time_flights_out(now);
                if self.freeze_at.take_if(|at| *at <= now).is_some() {
                    self.pending.push_back(Event::FreezeDue);
                }
            }
            Wake::Said => {}
        }
        Ok(())
    }

    fn api_event(&mut self, event: runtime_api::Event) {
        match event {
            runtime_api::Event::ExtensionsRegistered => self.pending.push_back(Event::ExtensionsRegistered),
            // The moment for a snapshot is as good as that for a first invocation, which it will be.
            runtime_api::Event::RestoreReady => {
                self.keeping.hooks = true;
                self.pending.push_back(Event::InitDone);
            }
            runtime_api::Event::InitDone => self.pending.push_back(Event::InitDone),
            runtime_api::Event::InitError { error_type, body } => {
                let posted = (!body.is_empty()).then(|| body.to_vec());
                let message = "the runtime failed to initialize".to_owned();
                self.pending.push_back(Event::InitError(Failure { error_type, posted, message }));
            }
            runtime_api::Event::Idle => self.pending.push_back(Event::Idle),
            runtime_api::Event::ExtensionError { name, phase, .. } => {
                let (error_type, verb) = match phase {
                    runtime_api::ExtensionPhase::Init => ("Extension.InitError", "failed to initialize"),
                    runtime_api::ExtensionPhase::Exit => ("Extension.ExitError", "gave up"),
                };
                let message = format!("extension {name} {verb}");
                let failure = Failure { error_type: error_type.to_owned(), posted: None, message };
                self.pending.push_back(Event::Exited(failure));
            }
            runtime_api::Event::Stuck => {
                let message = "the runtime has come back from no invocation that ran out of time".to_owned();
                let failure = Failure { error_type: "Runtime.Unavailable".to_owned(), posted: None, message };
                self.pending.push_back(Event::Exited(failure));
            }
            runtime_api::Event::RestoreError { error_type, body } => {
                let posted = (!body.is_empty()).then(|| body.to_vec());
                let message = "a hook failed after the restore".to_owned();
                self.pending.push_back(Event::RestoreError(Failure { error_type, posted, message }));
            }
        }
    }

    fn command(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Invoke(request, reply)) if self.concurrency > 1 => self.take_in(request, reply),
            Some(Command::Invoke(request, reply)) if self.machine.can_invoke() => {
                let timeout = self.spec.timeout;
                self.pending.push_back(Event::Invoke { timeout, tail: request.tail });
                self.current = Some(Current::new(request, timeout, reply));
                self.freeze_at = None;
            }
            Some(Command::Invoke(_, reply)) => {
                let _ = reply.send(Err(StartError::Broken("the environment is busy".to_owned())));
            }
            Some(Command::Snapshot(reply)) => {
                self.keeping.reply = Some(reply);
                self.pending.push_back(Event::Shutdown);
            }
            Some(Command::Retire) | None => self.pending.push_back(Event::Shutdown),
        }
    }

    async fn act(&mut self, action: Action) -> Result<(), StartError> {
        match action {
            Action::StartProcesses { announce } => self.start_processes(announce).await,
            Action::StartRuntime => {
                self.start_runtime().await;
                Ok(())
            }
            Action::SetDeadline(at) => {
                self.deadline = Some(at);
                Ok(())
            }
            Action::ClearDeadline => {
                self.deadline = None;
                Ok(())
            }
            Action::ReportInit { phase, duration, status } => {
                self.report_init(phase, duration, &status);
                Ok(())
            }
            Action::StartRestore => {
                self.start_restore();
                Ok(())
            }
            Action::ReportRestore { duration, status } => {
                self.report_restore(duration, &status);
                Ok(())
            }
            Action::FailRestore(failure) => Err(StartError::Restore(failure)),
            Action::LogStart => {
                self.log_start();
                Ok(())
            }
            Action::Thaw => self.launched.sandbox.thaw().map_err(|error| StartError::Broken(chain(&error))),
            Action::Freeze => self.launched.sandbox.freeze().map_err(|error| StartError::Broken(chain(&error))),
            Action::FreezeSoon => {
                self.freeze_at = Some(Instant::now() + self.presence.host.options.freeze_delay);
                Ok(())
            }
            Action::Deliver => {
                self.deliver();
                Ok(())
            }
            Action::Admit => {
                self.admit();
                Ok(())
            }
            Action::FailAll(failure) => {
                self.fail_flights(failure).await;
                Ok(())
            }
            Action::Abandon => {
                self.abandon();
                Ok(())
            }
            Action::ReplyAnswer => {
                self.reply_answer();
                Ok(())
            }
            Action::ReplyFailure(failure) => {
                self.reply_error(|request_id| failure::payload(&failure, request_id));
                Ok(())
            }
            Action::ReplyTimeout(limit) => {
                self.reply_error(|request_id| failure::timeout_payload(limit, request_id));
                Ok(())
            }
            Action::LogEnd { duration, before, status } => {
                self.log_end(duration, before, &status).await;
                Ok(())
            }
            Action::NotifyReady { initialized } => {
                self.launched.sandbox.set_cpu(cpu_millis(self.spec.memory_mb));
                // An initialization for a snapshot serves nobody.
                if initialized && !self.keeping.is_for_keeping(self.initialization_type) {
                    let init_us = micros(self.init_began.elapsed());
                    let memory = self.launched.sandbox.usage().await.memory_bytes;
                    let timing = crate::host::ColdStart { init_us, ..self.launched.timing };
                    self.presence.host.cold_started(&self.presence.entry, self.initialization_type, memory, timing);
                }
                (self.presence.observer)(Notice::Ready { initialized });
                Ok(())
            }
            Action::NotifySettling => {
                (self.presence.observer)(Notice::Settling);
                Ok(())
            }
            Action::NotifyIdle => {
                self.current = None;
                (self.presence.observer)(Notice::Idle);
                Ok(())
            }
            Action::Clear { timed_out } => {
                let reason = if timed_out { ShutdownReason::Timeout } else { ShutdownReason::Failure };
                self.clear(reason).await?;
                self.presence.entry.measured(self.launched.sandbox.usage().await.memory_bytes);
                self.pending.push_back(Event::Cleared);
                Ok(())
            }
            Action::TearDown => {
                self.torn_down = true;
                Ok(())
            }
        }
    }
}
