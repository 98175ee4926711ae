//! A machine and what can be done with it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::link::{CallError, Link, stream_pair};
use super::shell::ShellReport;
use crate::config::Exit;
use crate::snapshot::{Template, TemplateError, WorkingSet};
use crate::wire::{self, Answer, Call, MachineTimes};

/// How long it took until a machine was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineReport {
    /// How long the making of its shell took; not a part of the rest if that came from the pool.
    pub shell: ShellReport,
    /// What the process measured, in microseconds.
    pub inside: MachineTimes,
    /// From the call of `boot` or `restore` until the host knew that the machine is there.
    pub total: Duration,
}

/// Why no snapshot could be taken. The machine is gone.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The VMM process did not do its part.
    #[error("cannot save the machine")]
    Call(#[from] CallError),
    /// What it saved is no template.
    #[error("cannot make a template of the machine")]
    Template(#[from] TemplateError),
    /// The runtime is shutting down.
    #[error("the making of the template was interrupted")]
    Interrupted,
}

/// What tells a clone that was stopped from its template.
#[derive(Debug)]
pub struct Diff {
    /// The pages that are not the template's, at the places where they belong; holes elsewhere. As hostile as the VMM
    /// process, which may still have it.
    pub memory: OwnedFd,
    /// How much of that is data, in bytes, as the VMM process says.
    pub bytes: u64,
    /// The machine's state.
    pub state: Vec<u8>,
}

/// Where a machine's memory comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// Booted: this file is the memory.
    Memory(OwnedFd),
    /// A clone of this template.
    Template(Arc<Template>),
}

/// A machine in its VMM process. Dropping it kills it, and returns at once.
#[derive(Debug)]
pub struct MicroVm {
    link: Link,
    origin: Origin,
    memory_bytes: u64,
    report: MachineReport,
}

/// Connections that the guest opens to one port of the host.
#[derive(Debug)]
pub struct Listener(mpsc::Receiver<UnixStream>);

impl Listener {
    /// The next connection. `None` when the machine has ended.
    pub async fn accept(&mut self) -> Option<UnixStream> {
        self.0.recv().await
    }
}

impl MicroVm {
    pub(super) fn new(link: Link, origin: Origin, memory_bytes: u64, report: MachineReport) -> MicroVm {
        MicroVm { link, origin, memory_bytes, report }
    }

    /// Connects to a port of the guest. The stream is there at once; it closes if the guest does not accept, and is reset
    /// when the machine ends or is restored from a snapshot.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, CallError> {
        let (ours, theirs) = stream_pair().map_err(CallError::Memory)?;
        self.link.tell(Call::Connect { port }, vec![theirs]).await?;
        Ok(ours)
    }

    /// Lets the guest connect to a port of the host. Connections wait in a short queue, and are refused when it is full.
    pub async fn listen(&self, port: u32) -> Result<Listener, CallError> {
        Ok(Listener(self.link.listen(port).await?))
    }

    /// Stops the guest between two instructions. Its connections stay, and carry nothing.
    pub async fn pause(&self) -> Result<(), CallError> {
        self.done(Call::Pause, Vec::new()).await
    }

    /// Lets the guest go on.
    pub async fn resume(&self) -> Result<(), CallError> {
        self.done(Call::Resume, Vec::new()).await
    }

    /// Puts another file behind a drive; the guest is told of its new size.
    pub async fn exchange_drive(&self, index: usize, file: File) -> Result<(), CallError> {
        let drive = u32::try_from(index).unwrap_or(u32::MAX);
        self.done(Call::Exchange { drive }, vec![file.into()]).await
    }

    /// The memory that the machine has touched so far: of a clone at its first response, what the next one should find
    /// ready.
    pub async fn working_set(&self) -> Result<WorkingSet, CallError> {
        let (file, count) = self.written(Call::WorkingSet).await?;
        let ranges = wire::read_ranges(&file, count).map_err(CallError::Memory)?;
        Ok(WorkingSet::from_ranges(ranges, self.memory_bytes))
    }

    /// What tells this clone from its template. It must be paused, and stays so.
    pub async fn diff(&self) -> Result<Diff, CallError> {
        let state = self.state().await?;
        let (memory, bytes) = self.written(Call::DumpPrivate).await?;
        Ok(Diff { memory: memory.into(), bytes, state })
    }

    /// Stops the machine and makes a template of it, which ends it. For a machine that was booted, memory is not copied.
    pub async fn snapshot(self) -> Result<Template, SnapshotError> {
        self.pause().await?;
        match &self.origin {
            Origin::Template(base) => {
                let Diff { memory, state, .. } = self.diff().await?;
                let base = Arc::clone(base);
                self.kill();
                blocking(move || Template::flatten(&base, memory, state)).await
            }
            Origin::Memory(_) => {
                let state = self.state().await?;
                self.kill();
                // As long as the process is there, it can write to its memory.
                self.gone().await;
                let MicroVm { origin, memory_bytes, .. } = self;
                let Origin::Memory(memory) = origin else { return Err(CallError::Ended.into()) };
                blocking(move || Template::from_paused(memory, memory_bytes, state)).await
            }
        }
    }

    /// Waits until the machine has ended, by itself or by being killed.
    pub async fn exited(&self) -> Exit {
        self.link.exited().await
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.link.has_ended()
    }

    /// Waits until its process is gone as well, and with it everything that it had: files, mounts, control group.
    pub async fn gone(&self) -> Exit {
        self.link.gone().await
    }

    /// Ends it now; returns at once. What the kernel has to take apart, it does in the background.
    pub fn kill(&self) {
        self.link.kill();
    }

    /// Number of its process.
    pub fn pid(&self) -> i32 {
        self.link.pid()
    }

    /// Its memory, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How long it took until it was there.
    pub fn report(&self) -> MachineReport {
        self.report
    }

    async fn state(&self) -> Result<Vec<u8>, CallError> {
        let (file, length) = self.written(Call::Save).await?;
        wire::read_state(&file, length).map_err(CallError::Memory)
    }

    async fn done(&self, call: Call, fds: Vec<OwnedFd>) -> Result<(), CallError> {
        match self.link.call(call, fds).await? {
            Answer::Done => Ok(()),
            Answer::Machine(_) | Answer::Written(_) => Err(self.link.unfit()),
        }
    }

    /// Has the process write something into a new memory file.
    async fn written(&self, call: Call) -> Result<(File, u64), CallError> {
        let file = scratch().map_err(CallError::Memory)?;
        let theirs = file.try_clone().map_err(CallError::Memory)?;
        match self.link.call(call, vec![theirs.into()]).await? {
            Answer::Written(count) => Ok((file, count)),
            Answer::Machine(_) | Answer::Done => Err(self.link.unfit()),
        }
    }
}

/// An empty memory file.
pub(super) fn scratch() -> io::Result<File> {
    Ok(memfd_create(c"vmm-scratch", MemfdFlags::CLOEXEC)?.into())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, SnapshotError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| SnapshotError::Interrupted)??)
}
