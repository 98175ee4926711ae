//! A finished sandbox: starting processes in it, stopping it between invocations, measuring it.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;

use super::images::{self, Keeping};
use super::live::Shell;
use super::waiting::{Demand, PrestartError, Waiting};
use crate::cgroup::{Entry, Group};
use crate::create::failed;
use crate::{
    BoxFuture, CreateError, FreezeError, Process, ProcessId, ProcessSpec, Sandbox, Service, Signal, Snapshot,
    SnapshotError, SpawnError, Usage,
};
use supervisor::StartFailure;
use supervisor::wire::{Spawn, ToInit};

/// Longest word of a failed start that is read, in bytes.
const MAX_STATUS: u64 = 4096;

/// A finished sandbox.
#[derive(Debug)]
pub(super) struct NamespaceSandbox {
    /// The name that its owner gave it; its control group is named after the key, which is known earlier.
    id: String,
    shell: Shell,
    listeners: Option<Vec<TcpListener>>,
    /// The process that was started ahead, until it is wanted.
    waiting: Mutex<Option<Waiting>>,
    /// Of one that is to be kept.
    keeping: Mutex<Option<Keeping>>,
}

impl NamespaceSandbox {
    pub fn new(id: String, shell: Shell, listeners: Vec<TcpListener>) -> Self {
        NamespaceSandbox { id, shell, listeners: Some(listeners), waiting: Mutex::new(None), keeping: Mutex::new(None) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Gives a sandbox that was prepared for whoever needs it to somebody.
    pub fn name(&mut self, id: String) {
        self.id = id;
    }

    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// Starts a process that waits for its environment, and waits until it does.
    pub async fn prestart(&self, spec: ProcessSpec, demand: Demand) -> Result<(), PrestartError> {
        let waiting = Waiting::start(self, spec, demand).await?;
        *self.waiting() = Some(waiting);
        Ok(())
    }

    /// Whether the process that was started ahead still waits.
    pub fn is_waiting(&self) -> bool {
        self.shell.is_alive() && self.waiting().as_mut().is_some_and(Waiting::is_there)
    }

    /// Its process, when it starts, is told how to leave an image.
    pub fn keep_by(self, keeping: Keeping) -> Self {
        *self.keeping() = Some(keeping);
        self
    }

    /// The way to its process, if that has been told; nothing the second time.
    pub fn take_keeping(&self) -> Option<Keeping> {
        self.keeping().take()
    }

    fn keeping(&self) -> MutexGuard<'_, Option<Keeping>> {
        // Only ever replaced as a whole.
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the process that waits the one of an image.
    pub async fn become_image(&self, memory: &File, library: Option<BorrowedFd<'_>>) -> Result<Process, CreateError> {
        let step = |source| failed("have a process go on from its image", source);
        let waiting = self.waiting().take();
        let (Some(waiting), Some(library)) = (waiting, library) else {
            return Err(step(io::Error::new(io::ErrorKind::Unsupported, "no process waits for it")));
        };
        waiting.become_image(memory.as_fd(), library).await.map_err(step)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // Only ever replaced as a whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(&self, spec: ProcessSpec) -> Result<Process, SpawnError> {
        let waiting = self.waiting().take_if(|waiting| waiting.fits(&spec));
        if let Some(waiting) = waiting {
            let id = waiting.id();
            let host = self.keeping().as_ref().map(|keeping| Arc::clone(&keeping.host));
            let library = host.as_ref().and_then(|host| host.images.as_ref()).map(|images| images.library.as_fd());
            match waiting.hand_over(&spec, library).await {
                Ok((process, socket)) => {
                    if let Some(keeping) = self.keeping().as_mut() {
                        keeping.socket = socket;
                    }
                    return Ok(process);
                }
                Err(error) => {
                    tracing::warn!(sandbox = self.id, %error, "a process that was started ahead is gone: starting another");
                    self.signal(id, Signal::Kill);
                }
            }
        }
        self.exec(spec, None).await
    }

    /// Starts a program. `socket`: it waits, and will find its environment there.
    pub(super) async fn exec(&self, spec: ProcessSpec, socket: Option<OwnedFd>) -> Result<Process, SpawnError> {
        let program = spec.argv.first().cloned().unwrap_or_default();
        let failed = |source| SpawnError::Step { program: program.clone(), step: "make its pipes".into(), source };
        let (stdout, stdout_inside) = output_pipe().map_err(failed)?;
        let (stderr, stderr_inside) = output_pipe().map_err(failed)?;
        let (status, status_inside) = output_pipe().map_err(failed)?;
        let log = spec.log_fd_env.as_ref().map(|_| output_pipe()).transpose().map_err(failed)?;
        let mut status = tokio::net::unix::pipe::Receiver::from_owned_fd(status).map_err(failed)?.take(MAX_STATUS);

        let (id, exit) = self.shell.control().announce().ok_or(SpawnError::SandboxGone)?;
        let (log, log_inside) = log.unzip();
        let fds = [&stdout_inside, &stderr_inside, &status_inside].into_iter().chain(&log_inside).chain(&socket);
        let fds: Vec<BorrowedFd<'_>> = fds.map(AsFd::as_fd).collect();
        let cwd = spec.cwd.clone();
        let request = ToInit::Spawn(Box::new(Spawn {
            process: id.0,
            argv: spec.argv,
            env: spec.env,
            cwd: spec.cwd,
            log_fd_env: spec.log_fd_env,
            waits: socket.is_some(),
        }));
        self.shell.control().ask(&request, &fds).await.map_err(|_| SpawnError::SandboxGone)?;
        drop((stdout_inside, stderr_inside, status_inside, log_inside, socket));

        // Closed by the exec, or by the end of the process or of the whole sandbox, which `exit` tells.
        let mut word = Vec::new();
        status.read_to_end(&mut word).await.map_err(failed)?;
        let reason = io::Error::from_raw_os_error;
        match StartFailure::decode(&word) {
            None => Ok(Process { id, stdout, stderr, log, exit }),
            Some(StartFailure::Exec(errno)) => Err(SpawnError::Exec { program, source: reason(errno) }),
            Some(StartFailure::Cwd(errno)) => {
                Err(SpawnError::Cwd { path: cwd.display().to_string(), source: reason(errno) })
            }
            Some(StartFailure::Step(step, errno)) => Err(SpawnError::Step { program, step, source: reason(errno) }),
        }
    }

    /// Fails if the sandbox has ended by itself, although its group is still there until it is buried: whoever thaws it
    /// is about to use it, and would otherwise do so again and again.
    fn with_group(&self, act: impl FnOnce(&Group) -> io::Result<()>) -> Result<(), FreezeError> {
        let failed = |source| FreezeError { id: self.id.clone(), source };
        if !self.shell.is_alive() {
            return Err(failed(io::ErrorKind::NotConnected.into()));
        }
        match &*self.shell.group() {
            Some(group) => act(group).map_err(failed),
            None => Err(failed(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Sandbox for NamespaceSandbox {
    fn take_service(&mut self) -> Option<Service> {
        self.listeners.take().map(Service::Host)
    }

    fn spawn<'a>(&'a self, process: ProcessSpec) -> BoxFuture<'a, Result<Process, SpawnError>> {
        Box::pin(self.start(process))
    }

    fn signal(&self, process: ProcessId, signal: Signal) {
        if let Err(error) =
            self.shell.control().ask_now(&ToInit::Signal { process: process.0, signal: signal.number() })
        {
            // Most of all: the sandbox has ended, and the process with it.
            tracing::debug!(sandbox = self.id, %error, "a signal was not delivered");
        }
    }

    fn kill_all<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            drop(self.waiting().take());
            let Some(killed) = self.shell.control().announce_kill() else { return };
            if self.shell.control().ask(&ToInit::KillAll, &[]).await.is_err() {
                return;
            }
            if let Err(error) = self.thaw() {
                // Frozen processes of version 1 would not die.
                tracing::warn!(sandbox = self.id, %error, "cannot thaw what was killed");
            }
            // An error means that the sandbox has ended, and all of its processes with it.
            let _ = killed.await;
        })
    }

    fn freeze(&self) -> Result<(), FreezeError> {
        self.with_group(|group| match group.entry() {
            Entry::None => self.shell.control().ask_now(&ToInit::Stop { stop: true }),
            Entry::V1 { .. } | Entry::V2 { .. } => group.freeze(),
        })
    }

    fn thaw(&self) -> Result<(), FreezeError> {
        self.with_group(|group| match group.entry() {
            Entry::None => self.shell.control().ask_now(&ToInit::Stop { stop: false }),
            Entry::V1 { .. } | Entry::V2 { .. } => group.thaw(),
        })
    }

    fn set_cpu(&self, cpu_millis: u32) {
        let group = self.shell.group();
        if let Some(Err(error)) = group.as_ref().map(|group| group.set_cpu(cpu_millis)) {
            tracing::warn!(sandbox = self.id, %error, "could not change the CPU share");
        }
    }

    fn usage<'a>(&'a self) -> BoxFuture<'a, Usage> {
        let group = self.shell.group();
        let usage = group.as_ref().map(Group::usage).unwrap_or_default();
        Box::pin(std::future::ready(usage))
    }

    fn reset_peak(&self) {
        if let Some(group) = &*self.shell.group() {
            group.reset_peak();
        }
    }

    fn snapshot(self: Box<Self>) -> BoxFuture<'static, Result<Arc<dyn Snapshot>, SnapshotError>> {
        Box::pin(images::take(self))
    }

    fn destroy(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.shell.bury().await })
    }
}

/// Both ends of a pipe: the server's, non-blocking, and the sandbox's, blocking.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((read, write))
}
