//! The processes in the sandbox: how they are started, what becomes of them, and how they are ended.

use std::time::{Duration, Instant, SystemTime};

use runtime_api::ShutdownReason;
use sandbox::{Exit, Process, ProcessId, ProcessSpec, Signal};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use super::Owner;
use super::invocation::epoch_ms;
use crate::failure;
use crate::host::{StartError, chain};
use crate::lifecycle::{Event, Failure};

/// What extensions and runtime get to shut down where there are external extensions.
const SHUTDOWN_BUDGET_EXTERNAL: Duration = Duration::from_millis(2_000);
/// The same where there are internal ones only.
const SHUTDOWN_BUDGET_INTERNAL: Duration = Duration::from_millis(500);
/// The runtime's part of the budget.
const RUNTIME_SHARE: f64 = 0.3;
/// How long killed processes may take to be gone before the sandbox is given up.
const CLEAR_PATIENCE: Duration = Duration::from_secs(30);

/// Which process an exit is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Runtime,
    Extension(String),
}

/// An exit, with the generation of processes that it belongs to.
pub(super) struct Exited {
    generation: u64,
    who: Who,
    exit: Exit,
}

/// The processes that are alive.
pub(super) struct Processes {
    /// Counts the times that the sandbox was filled and emptied: what is heard of an earlier generation is old news.
    generation: u64,
    runtime: Option<ProcessId>,
    extensions: Vec<(String, ProcessId)>,
    /// The extension that could not be started.
    pub(super) not_launched: Option<String>,
    exits: mpsc::UnboundedReceiver<Exited>,
    exits_in: mpsc::UnboundedSender<Exited>,
}

impl Default for Processes {
    fn default() -> Self {
        // Unbounded, but each process that was started ends once.
        let (exits_in, exits) = mpsc::unbounded_channel();
        Self { generation: 0, runtime: None, extensions: vec![], not_launched: None, exits, exits_in }
    }
}

impl Processes {
    /// The next process that ends.
    pub(super) async fn next_exit(&mut self) -> Exited {
        match self.exits.recv().await {
            Some(exited) => exited,
            // Cannot be: the sender is beside the receiver.
            None => std::future::pending().await,
        }
    }

    /// Takes an exit off the list; false where it is old news.
    fn forget(&mut self, exited: &Exited) -> bool {
        if exited.generation != self.generation {
            return false;
        }
        match &exited.who {
            Who::Runtime => self.runtime = None,
            Who::Extension(name) => self.extensions.retain(|(alive, _)| alive != name),
        }
        true
    }

    fn new_generation(&mut self) {
        self.generation += 1;
        self.runtime = None;
        self.extensions.clear();
        self.not_launched = None;
    }
}

impl Owner {
    pub(super) async fn start_processes(&mut self, announce: bool) -> Result<(), StartError> {
        if announce {
            self.announce();
        } else {
            // What a runtime that ended by itself has left behind.
            self.clear(ShutdownReason::Failure).await?;
        }
        self.init_began = Instant::now();
        if self.launched.extensions.is_empty() {
            self.start_runtime().await;
            return Ok(());
        }
        let names = self.launched.extensions.iter().map(|(name, _)| name.clone());
        if let Err(error) = self.launched.api.expect_extensions(names) {
            let message = error.to_string();
            let failure = Failure { error_type: "Extension.LaunchError".to_owned(), posted: None, message };
            self.pending.push_back(Event::SpawnFailed(failure));
            return Ok(());
        }
        for at in 0..self.launched.extensions.len() {
            let (name, process) = self.launched.extensions[at].clone();
            match self.spawn(Who::Extension(name.clone()), process).await {
                Ok(id) => self.processes.extensions.push((name, id)),
                Err(failure) => {
                    let failure = Failure { error_type: "Extension.LaunchError".to_owned(), ..failure };
                    self.processes.not_launched = Some(name);
                    self.pending.push_back(Event::SpawnFailed(failure));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(super) async fn start_runtime(&mut self) {
        let started = match self.launched.runtime.clone() {
            Ok(process) => self.spawn(Who::Runtime, process).await,
            Err(failure) => Err(failure),
        };
        match started {
            Ok(id) => self.processes.runtime = Some(id),
            Err(failure) => self.pending.push_back(Event::SpawnFailed(failure)),
        }
    }

    async fn spawn(&mut self, who: Who, process: ProcessSpec) -> Result<ProcessId, Failure> {
        self.launched.api.settled().await;
        let started = self.launched.sandbox.spawn(process).await.map_err(|error| failure::spawn(&error))?;
        self.follow(who, started).map_err(|error| Failure {
            error_type: "Sandbox.Failure".to_owned(),
            posted: None,
            message: format!("the output of the process cannot be read: {error}"),
        })
    }

    /// Takes over a process that came with its sandbox.
    pub(super) fn adopt(&mut self, extension: Option<String>, process: Process) -> std::io::Result<()> {
        match extension {
            None => self.processes.runtime = Some(self.follow(Who::Runtime, process)?),
            Some(name) => {
                let id = self.follow(Who::Extension(name.clone()), process)?;
                self.processes.extensions.push((name, id));
            }
        }
        Ok(())
    }

    /// Numbers of the runtime and of the extensions that are alive.
    pub(super) fn alive(&self) -> (Option<ProcessId>, &[(String, ProcessId)]) {
        (self.processes.runtime, &self.processes.extensions)
    }

    /// Reads what a process says, and waits for its end.
    fn follow(&mut self, who: Who, started: Process) -> std::io::Result<ProcessId> {
        self.capture.attach_lines(started.stdout)?;
        self.capture.attach_lines(started.stderr)?;
        if let Some(log) = started.log {
            self.capture.attach_frames(log)?;
        }
        let (exits, generation, exit) = (self.processes.exits_in.clone(), self.processes.generation, started.exit);
        tokio::spawn(async move {
            let exit = exit.await.unwrap_or(Exit::Signal(libc::SIGKILL));
            let _ = exits.send(Exited { generation, who, exit });
        });
        Ok(started.id)
    }

    /// A process has ended by itself.
    pub(super) fn exited(&mut self, exited: Exited) {
        if self.processes.forget(&exited) {
            let failure = match exited.who {
                Who::Runtime => failure::exited(exited.exit),
                Who::Extension(_) => failure::extension_exited(exited.exit),
            };
            self.pending.push_back(Event::Exited(failure));
        }
    }

    /// Kills all processes; the sandbox and its `/tmp` stay.
    pub(super) async fn clear(&mut self, reason: ShutdownReason) -> Result<(), StartError> {
        self.launched.sandbox.thaw().map_err(|error| StartError::Broken(chain(&error)))?;
        if let Some(runtime) = self.processes.runtime.take() {
            self.launched.sandbox.signal(runtime, Signal::Kill);
        }
        self.end_extensions(reason, SHUTDOWN_BUDGET_EXTERNAL).await;
        timeout(CLEAR_PATIENCE, self.launched.sandbox.kill_all())
            .await
            .map_err(|_| StartError::Broken("processes survived being killed".to_owned()))?;
        self.capture.detach_all();
        self.launched.api.reset();
        while self.launched.api_events.try_recv().is_ok() {}
        self.processes.new_generation();
        Ok(())
    }

    /// The shutdown phase of an environment that is no longer needed.
    pub(super) async fn shut_down(&mut self) {
        let known = self.launched.api.extensions();
        let budget = match (known.external.is_empty(), known.internal.is_empty()) {
            (false, _) => SHUTDOWN_BUDGET_EXTERNAL,
            (true, false) => SHUTDOWN_BUDGET_INTERNAL,
            // Nobody asked to be told: killed at once, as on Lambda.
            (true, true) => return,
        };
        if let Err(error) = self.launched.sandbox.thaw() {
            // Who cannot be thawed cannot be told anything either.
            tracing::warn!(%error, environment = self.log_stream, "an environment is killed without its shutdown phase");
            return;
        }
        let began = Instant::now();
        if let Some(runtime) = self.processes.runtime {
            self.launched.sandbox.signal(runtime, Signal::Terminate);
            self.wait_for_exits(budget.mul_f64(RUNTIME_SHARE), |processes| processes.runtime.is_none()).await;
        }
        if let Some(runtime) = self.processes.runtime {
            self.launched.sandbox.signal(runtime, Signal::Kill);
        }
        self.end_extensions(ShutdownReason::Spindown, budget.saturating_sub(began.elapsed())).await;
    }

    /// Tells the extensions to end and waits for them, within `budget`. Those that did not ask to be told are killed.
    async fn end_extensions(&mut self, reason: ShutdownReason, budget: Duration) {
        if self.processes.extensions.is_empty() {
            return;
        }
        let deadline_ms = epoch_ms(SystemTime::now() + budget);
        let told = self.launched.api.shutdown_extensions(reason, deadline_ms);
        let known = self.launched.api.extensions().external;
        for (name, id) in &self.processes.extensions {
            if !known.iter().any(|extension| extension.shutdown && extension.name == *name) {
                self.launched.sandbox.signal(*id, Signal::Kill);
            }
        }
        if told > 0 {
            self.wait_for_exits(budget, |processes| processes.extensions.is_empty()).await;
        }
    }

    async fn wait_for_exits(&mut self, budget: Duration, done: impl Fn(&Processes) -> bool) {
        let until = tokio::time::Instant::now() + budget;
        while !done(&self.processes) {
            tokio::select! {
                biased;
                () = sleep_until(until) => return,
                exited = self.processes.next_exit() => {
                    self.processes.forget(&exited);
                }
                () = self.capture.read_some() => {}
            }
        }
    }
}
