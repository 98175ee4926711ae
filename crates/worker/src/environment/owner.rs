//! The task that owns an environment: turns what happens into events of the machine, and its actions into deeds.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use runtime_api::{Invocation, Outcome, ShutdownReason};
use sandbox::{Exit, ProcessId, ProcessSpec, Signal};
use telemetry::lines::{self, InitPhase, InitType, PlatformEvent, Report, RuntimeVersion};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Sleep, sleep_until, timeout};

use super::launch::{Launched, launch, micros};
use super::{Command, Notice, Observer, Reply};
use crate::capture::{Capture, now_ms};
use crate::failure;
use crate::host::{Entry, Inner, StartError, chain};
use crate::lifecycle::{Action, Answer, Event, Failure, Machine, Phase, Status};
use crate::spec::{EnvironmentSpec, InvokeReply, InvokeRequest};

/// What extensions and runtime get to shut down: with external extensions, with internal ones only.
const SHUTDOWN_BUDGET_EXTERNAL: Duration = Duration::from_millis(2_000);
const SHUTDOWN_BUDGET_INTERNAL: Duration = Duration::from_millis(500);
/// The runtime's part of the budget.
const RUNTIME_SHARE: f64 = 0.3;
/// How long killed processes may take to be gone before the sandbox is given up.
const CLEAR_PATIENCE: Duration = Duration::from_secs(5);

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
    match launch(&host, &spec, sandbox_id, &log_stream, initialization_type).await {
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

/// The invocation in hand.
struct Current {
    request: InvokeRequest,
    deadline_ms: u64,
    reply: Option<Reply>,
    outcome: Option<oneshot::Receiver<Outcome>>,
    answer: Option<InvokeReply>,
}

/// Which process an exit is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Runtime,
    Extension(String),
}

/// An exit, with the generation of processes that it belongs to.
struct Exited {
    generation: u64,
    who: Who,
    exit: Exit,
}

/// Why the task woke.
enum Wake {
    Command(Option<Command>),
    Outcome(Option<Outcome>),
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
    /// Counts the times that the sandbox was filled with processes.
    generation: u64,
    runtime: Option<ProcessId>,
    extensions_alive: usize,
    exits: mpsc::UnboundedReceiver<Exited>,
    exits_in: mpsc::UnboundedSender<Exited>,
    init_began: Instant,
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
        let ahead = initialization_type != InitType::OnDemand;
        let init_timeout = if ahead { options.provisioned_init_timeout } else { options.init_timeout };
        let (exits_in, exits) = mpsc::unbounded_channel();
        let now = Instant::now();
        Self {
            capture: Capture::new(presence.host.logs.clone(), &spec.logging, log_stream.clone()),
            machine: Machine::new(init_timeout, ahead),
            presence,
            spec,
            initialization_type,
            log_stream,
            launched,
            commands,
            pending: VecDeque::from([Event::Begin]),
            current: None,
            generation: 0,
            runtime: None,
            extensions_alive: 0,
            exits,
            exits_in,
            init_began: now,
            deadline: None,
            freeze_at: None,
            timer: Box::pin(sleep_until(now.into())),
            timer_at: None,
            torn_down: false,
        }
    }

    async fn live(mut self) {
        let error = loop {
            if let Err(error) = self.settle().await {
                break Some(error);
            }
            if self.torn_down {
                break None;
            }
            let wake = self.wait().await;
            self.interpret(wake);
        };
        if let Some(error) = &error {
            tracing::warn!(function = self.spec.function_name, environment = self.log_stream, %error, "an environment broke");
        }
        // The manager need not wait for the teardown.
        self.presence.tell_gone(error.clone());
        if error.is_none() {
            self.shut_down().await;
        }
        self.capture.detach_all();
        self.launched.api.close();
        self.launched.sandbox.destroy().await;
    }

    /// Feeds the machine until it has nothing more to say.
    async fn settle(&mut self) -> Result<(), StartError> {
        while let Some(event) = self.pending.pop_front() {
            let actions =
                self.machine.step(event, Instant::now()).map_err(|illegal| StartError::Broken(illegal.to_string()))?;
            for action in actions {
                self.act(action).await?;
            }
        }
        Ok(())
    }

    async fn wait(&mut self) -> Wake {
        let at = [self.deadline, self.freeze_at].into_iter().flatten().min();
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
            event = self.launched.api_events.recv() => Wake::Api(event),
            command = self.commands.recv() => Wake::Command(command),
            Some(exited) = self.exits.recv() => Wake::Exited(exited),
            () = self.timer.as_mut(), if at.is_some() => Wake::Time,
            () = self.capture.read_some() => Wake::Said,
        }
    }

    /// Turns a wake-up into events. What the Runtime API has said comes first: an answer counts even if the runtime
    /// has ended or the time is over by the moment that it is looked at.
    fn interpret(&mut self, wake: Wake) {
        match wake {
            Wake::Outcome(outcome) => self.answered(outcome),
            Wake::Api(event) => {
                self.collect_outcome();
                match event {
                    Some(event) => self.api_event(event),
                    None => self.pending.push_back(Event::Shutdown),
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
                if self.freeze_at.take_if(|at| *at <= now).is_some() {
                    self.pending.push_back(Event::FreezeDue);
                }
            }
            Wake::Said => {}
        }
    }

    fn collect_outcome(&mut self) {
        let outcome = self.current.as_mut().and_then(|current| current.outcome.as_mut());
        if let Some(Ok(outcome)) = outcome.map(oneshot::Receiver::try_recv) {
            self.answered(Some(outcome));
        }
    }

    fn answered(&mut self, outcome: Option<Outcome>) {
        let Some(current) = &mut self.current else { return };
        current.outcome = None;
        let Some(outcome) = outcome else { return };
        let refused = |error_type: &str, message: &str| {
            Answer::Refused(Failure { error_type: error_type.to_owned(), posted: None, message: message.to_owned() })
        };
        let answer = match outcome {
            Outcome::Response { body, .. } => {
                current.answer = Some(InvokeReply { payload: body, function_error: false, log_tail: None });
                Answer::Delivered
            }
            Outcome::Error { body, .. } => {
                current.answer = Some(InvokeReply { payload: body, function_error: true, log_tail: None });
                Answer::Delivered
            }
            Outcome::ResponseTooLarge { limit } => Answer::Refused(failure::response_too_large(limit)),
            Outcome::Truncated => refused("Runtime.TruncatedResponse", "Response truncated"),
            Outcome::InvalidResponseMode => {
                refused("Runtime.InvalidResponseModeHeader", "Invalid response mode header")
            }
        };
        self.pending.push_back(Event::Answered(answer));
    }

    fn api_event(&mut self, event: runtime_api::Event) {
        match event {
            runtime_api::Event::ExtensionsRegistered => self.pending.push_back(Event::ExtensionsRegistered),
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
            // Only in snapshot environments, which this worker does not make.
            runtime_api::Event::RestoreReady | runtime_api::Event::RestoreError { .. } => {}
        }
    }

    fn command(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Invoke(request, reply)) if self.machine.can_invoke() => {
                let deadline = SystemTime::now() + self.spec.timeout;
                let deadline_ms = deadline.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let event = Event::Invoke { timeout: self.spec.timeout, tail: request.tail };
                self.current = Some(Current {
                    request,
                    deadline_ms: u64::try_from(deadline_ms).unwrap_or(u64::MAX),
                    reply: Some(reply),
                    outcome: None,
                    answer: None,
                });
                self.freeze_at = None;
                self.pending.push_back(event);
            }
            Some(Command::Invoke(_, reply)) => {
                let _ = reply.send(Err(StartError::Broken("the environment is busy".to_owned())));
            }
            Some(Command::Retire) | None => self.pending.push_back(Event::Shutdown),
        }
    }

    fn exited(&mut self, exited: Exited) {
        if exited.generation != self.generation {
            return;
        }
        let failure = match exited.who {
            Who::Runtime => {
                self.runtime = None;
                failure::exited(exited.exit)
            }
            Who::Extension(_) => {
                self.extensions_alive = self.extensions_alive.saturating_sub(1);
                failure::extension_exited(exited.exit)
            }
        };
        self.pending.push_back(Event::Exited(failure));
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
            Action::Abandon => {
                self.launched.api.abandon();
                if let Some(current) = &mut self.current {
                    current.outcome = None;
                }
                Ok(())
            }
            Action::ReplyAnswer => {
                let answer = self.current.as_mut().and_then(|current| current.answer.take());
                self.reply(answer.map(Ok));
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
            Action::LogEnd { duration, init, status } => {
                self.log_end(duration, init, &status);
                Ok(())
            }
            Action::NotifyReady { initialized } => {
                if initialized {
                    let init_us = micros(self.init_began.elapsed());
                    let memory = self.launched.sandbox.usage().memory_bytes;
                    let timing = crate::host::ColdStart { init_us, ..self.launched.timing };
                    self.presence.host.cold_started(&self.presence.entry, memory, timing);
                }
                (self.presence.observer)(Notice::Ready { initialized });
                Ok(())
            }
            Action::NotifySettling => {
                (self.presence.observer)(Notice::Settling);
                Ok(())
            }
            Action::NotifyIdle => {
                (self.presence.observer)(Notice::Idle);
                Ok(())
            }
            Action::Clear { timed_out } => {
                let reason = if timed_out { ShutdownReason::Timeout } else { ShutdownReason::Failure };
                self.clear(reason).await?;
                self.pending.push_back(Event::Cleared);
                Ok(())
            }
            Action::TearDown => {
                self.torn_down = true;
                Ok(())
            }
        }
    }

    async fn start_processes(&mut self, announce: bool) -> Result<(), StartError> {
        if announce {
            self.announce();
        } else {
            // What a runtime that ended by itself has left behind.
            self.clear(ShutdownReason::Failure).await?;
        }
        self.generation += 1;
        self.init_began = Instant::now();
        if self.launched.extensions.is_empty() {
            self.start_runtime().await;
            return Ok(());
        }
        let names = self.launched.extensions.iter().map(|(name, _)| name.clone());
        if let Err(error) = self.launched.api.expect_extensions(names) {
            let message = error.to_string();
            let failure = Failure { error_type: "Extension.TooManyExtensions".to_owned(), posted: None, message };
            self.pending.push_back(Event::SpawnFailed(failure));
            return Ok(());
        }
        for at in 0..self.launched.extensions.len() {
            let (name, process) = self.launched.extensions[at].clone();
            let who = Who::Extension(name);
            if let Err(mut failure) = self.spawn(who, process).await {
                failure.error_type = "Extension.LaunchError".to_owned();
                self.pending.push_back(Event::SpawnFailed(failure));
                return Ok(());
            }
            self.extensions_alive += 1;
        }
        Ok(())
    }

    async fn start_runtime(&mut self) {
        let started = match self.launched.runtime.clone() {
            Ok(process) => self.spawn(Who::Runtime, process).await,
            Err(failure) => Err(failure),
        };
        match started {
            Ok(id) => self.runtime = Some(id),
            Err(failure) => self.pending.push_back(Event::SpawnFailed(failure)),
        }
    }

    async fn spawn(&mut self, who: Who, process: ProcessSpec) -> Result<ProcessId, Failure> {
        let started = self.launched.sandbox.spawn(process).await.map_err(|error| failure::spawn(&error))?;
        let unreadable = |error: std::io::Error| Failure {
            error_type: "Sandbox.Failure".to_owned(),
            posted: None,
            message: format!("the output of the process cannot be read: {error}"),
        };
        self.capture.attach_lines(started.stdout).map_err(unreadable)?;
        self.capture.attach_lines(started.stderr).map_err(unreadable)?;
        if let Some(log) = started.log {
            self.capture.attach_frames(log).map_err(unreadable)?;
        }
        let (exits, generation, exit) = (self.exits_in.clone(), self.generation, started.exit);
        tokio::spawn(async move {
            let exit = exit.await.unwrap_or(Exit::Signal(libc::SIGKILL));
            let _ = exits.send(Exited { generation, who, exit });
        });
        Ok(started.id)
    }

    fn deliver(&mut self) {
        let Some(current) = &mut self.current else { return };
        let request = &current.request;
        let invocation = Invocation {
            request_id: request.request_id.clone(),
            payload: request.payload.clone(),
            deadline_ms: current.deadline_ms,
            invoked_function_arn: request.invoked_function_arn.clone(),
            trace_id: request.trace_id.clone(),
            client_context: request.client_context.clone(),
            ..Invocation::default()
        };
        match self.launched.api.invoke(invocation) {
            Ok(outcome) => current.outcome = Some(outcome),
            Err(refused) => {
                let message = refused.to_string();
                let failure = Failure { error_type: "Sandbox.Failure".to_owned(), posted: None, message };
                self.pending.push_back(Event::Exited(failure));
            }
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

    fn reply_error(&mut self, payload: impl FnOnce(&str) -> Vec<u8>) {
        let Some(current) = &self.current else { return };
        let payload = payload(&current.request.request_id).into();
        self.reply(Some(Ok(InvokeReply { payload, function_error: true, log_tail: None })));
    }

    /// Kills all processes; the sandbox and its `/tmp` stay.
    async fn clear(&mut self, reason: ShutdownReason) -> Result<(), StartError> {
        self.launched.sandbox.thaw().map_err(|error| StartError::Broken(chain(&error)))?;
        if let Some(runtime) = self.runtime.take() {
            self.launched.sandbox.signal(runtime, Signal::Kill);
        }
        if self.extensions_alive > 0 {
            self.end_extensions(reason, SHUTDOWN_BUDGET_EXTERNAL).await;
        }
        timeout(CLEAR_PATIENCE, self.launched.sandbox.kill_all())
            .await
            .map_err(|_| StartError::Broken("processes survived being killed".to_owned()))?;
        self.capture.detach_all();
        self.launched.api.reset();
        while self.launched.api_events.try_recv().is_ok() {}
        // Exits that are still on their way belong to the generation that has just ended.
        self.generation += 1;
        self.extensions_alive = 0;
        Ok(())
    }

    /// The shutdown phase of an environment that is no longer needed.
    async fn shut_down(&mut self) {
        let known = self.launched.api.extensions();
        let budget = match (known.external.is_empty(), known.internal.is_empty()) {
            (false, _) => SHUTDOWN_BUDGET_EXTERNAL,
            (true, false) => SHUTDOWN_BUDGET_INTERNAL,
            // Nobody asked to be told: killed at once, as on Lambda.
            (true, true) => return,
        };
        let _ = self.launched.sandbox.thaw();
        let began = Instant::now();
        if let Some(runtime) = self.runtime {
            self.launched.sandbox.signal(runtime, Signal::Terminate);
            self.wait_for_exits(budget.mul_f64(RUNTIME_SHARE), |owner| owner.runtime.is_none()).await;
        }
        self.end_extensions(ShutdownReason::Spindown, budget.saturating_sub(began.elapsed())).await;
    }

    /// Tells the extensions to end and waits for them, within `budget`.
    async fn end_extensions(&mut self, reason: ShutdownReason, budget: Duration) {
        let deadline = SystemTime::now() + budget;
        let deadline_ms = deadline.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let told = self.launched.api.shutdown_extensions(reason, u64::try_from(deadline_ms).unwrap_or(u64::MAX));
        if told > 0 {
            self.wait_for_exits(budget, |owner| owner.extensions_alive == 0).await;
        }
    }

    async fn wait_for_exits(&mut self, budget: Duration, done: impl Fn(&Self) -> bool) {
        let until = tokio::time::Instant::now() + budget;
        while !done(self) {
            tokio::select! {
                Some(exited) = self.exits.recv() => {
                    if exited.generation != self.generation {
                        continue;
                    }
                    match exited.who {
                        Who::Runtime => self.runtime = None,
                        Who::Extension(_) => self.extensions_alive = self.extensions_alive.saturating_sub(1),
                    }
                }
                () = self.capture.read_some() => {}
                () = sleep_until(until) => return,
            }
        }
    }

    fn announce(&mut self) {
        let arn = self.spec.runtime_version_arn.clone().unwrap_or_default();
        let version = self.launched.resolved.runtime_version.clone();
        self.capture.platform(&PlatformEvent::InitStart {
            init_type: self.initialization_type,
            phase: InitPhase::Init,
            runtime: Some(RuntimeVersion { version, arn }),
            function_name: self.spec.function_name.clone(),
            function_version: self.spec.version.clone(),
            instance_id: self.log_stream.clone(),
            instance_max_memory: u64::from(self.spec.memory_mb) << 20,
        });
    }

    fn report_init(&mut self, phase: Phase, duration: Duration, status: &Status) {
        self.capture.drain();
        let phase = match phase {
            Phase::Init => InitPhase::Init,
            Phase::Invoke => InitPhase::Invoke,
        };
        let init_type = self.initialization_type;
        let status = logged(status);
        self.capture.platform(&PlatformEvent::InitReport { init_type, phase, status, duration });
    }

    fn log_start(&mut self) {
        let Some(current) = &self.current else { return };
        if current.request.tail {
            self.capture.start_tail();
        }
        self.capture.platform(&PlatformEvent::Start {
            request_id: current.request.request_id.clone(),
            version: self.spec.version.clone(),
            trace: None,
        });
    }

    fn log_end(&mut self, duration: Duration, init: Option<Duration>, status: &Status) {
        let Some(current) = &self.current else { return };
        let request_id = current.request.request_id.clone();
        let produced_bytes = current.answer.as_ref().map(|answer| answer.payload.len() as u64);
        self.capture.drain();
        let usage = self.launched.sandbox.usage();
        self.presence.entry.served(usage.memory_bytes);
        let status = logged(status);
        self.capture.platform(&PlatformEvent::RuntimeDone {
            request_id: request_id.clone(),
            status: status.clone(),
            duration,
            produced_bytes,
            spans: vec![],
            trace: None,
        });
        let max_memory_mb = usage.memory_peak_bytes.div_ceil(1 << 20).min(u64::from(self.spec.memory_mb));
        self.capture.platform(&PlatformEvent::Report(Report {
            request_id,
            status,
            duration,
            memory_mb: self.spec.memory_mb,
            max_memory_mb: u32::try_from(max_memory_mb).unwrap_or(self.spec.memory_mb),
            init,
            restore: None,
            trace: None,
            spans: vec![],
        }));
    }
}

fn logged(status: &Status) -> lines::Status {
    match status {
        Status::Success => lines::Status::Success,
        Status::Error(error_type) => lines::Status::error(error_type),
        Status::Timeout => lines::Status::Timeout,
    }
}
