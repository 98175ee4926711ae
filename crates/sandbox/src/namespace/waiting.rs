//! A process that was started before it is known whose it will be, and waits for its environment.
//!
//! It is a tenant's process in all that confines it, but has seen nothing of any tenant. Its environment reaches it over a
//! socket whose other end is here: init has no part in that.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot::error::TryRecvError;

use super::running::NamespaceSandbox;
use crate::{Process, ProcessId, ProcessSpec, SpawnError};

/// How long a process may take until it waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no process that waits.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrestartError {
    /// Its socket could not be made.
    #[error("could not make a socket for its environment")]
    Socket(#[source] io::Error),
    /// It could not be started.
    #[error("it did not start")]
    Spawn(#[from] SpawnError),
    /// It ended before it was ready.
    #[error("it ended instead of waiting")]
    Ended(#[source] io::Error),
    /// It takes too long.
    #[error("it was not ready after {} s", PATIENCE.as_secs())]
    Slow,
}

/// The process, and the way to it.
#[derive(Debug)]
pub(super) struct Waiting {
    spec: ProcessSpec,
    process: Process,
    socket: UnixStream,
}

impl Waiting {
    /// Starts it, and waits until it waits.
    pub async fn start(sandbox: &NamespaceSandbox, spec: ProcessSpec) -> Result<Waiting, PrestartError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(PrestartError::Socket)?;
        ours.set_nonblocking(true).map_err(PrestartError::Socket)?;
        let mut socket = UnixStream::from_std(ours).map_err(PrestartError::Socket)?;
        let process = sandbox.exec(spec.clone(), Some(theirs.into())).await?;
        match tokio::time::timeout(PATIENCE, socket.read_u8()).await {
            Ok(Ok(_)) => Ok(Waiting { spec, process, socket }),
            Ok(Err(error)) => Err(PrestartError::Ended(error)),
            Err(_) => Err(PrestartError::Slow),
        }
    }

    pub fn id(&self) -> ProcessId {
        self.process.id
    }

    /// Whether this is the process that somebody wants to start.
    pub fn fits(&self, wanted: &ProcessSpec) -> bool {
        self.spec.argv == wanted.argv && self.spec.log_fd_env == wanted.log_fd_env
    }

    /// Whether it still waits: it lives, has not closed its socket, and has said nothing more.
    pub fn is_there(&mut self) -> bool {
        let events = PollFlags::IN | PollFlags::RDHUP;
        let mut socket = [PollFd::from_borrowed_fd(self.socket.as_fd(), events)];
        let silent = poll(&mut socket, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count == 0);
        silent && matches!(self.process.exit.try_recv(), Err(TryRecvError::Empty))
    }

    /// Makes it the process that was wanted. Fails if it is gone.
    pub async fn hand_over(mut self, wanted: &ProcessSpec) -> io::Result<Process> {
        let cwd = wanted.cwd.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        let given = serde_json::json!({ "env": wanted.env, "cwd": cwd }).to_string();
        self.socket.write_all(given.as_bytes()).await?;
        self.socket.shutdown().await?;
        Ok(self.process)
    }
}
