//! A process that was started before it is known whose it will be, and waits for its environment.
//!
//! It is a tenant's process in all that confines it, but has seen nothing of any tenant. Its environment reaches it over a
//! socket whose other end is here: init has no part in that.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::oneshot::error::TryRecvError;

use super::images;
use super::running::NamespaceSandbox;
use crate::{Process, ProcessId, ProcessSpec, SpawnError};

/// How long a process may take until it waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a process finds that somebody waits for; white space to whoever reads it with the environment.
const HURRY: &[u8] = b" ";
/// Longest word of a process that was to become another one, in bytes.
const MAX_WORD: u64 = 512;
/// Most descriptors that go along with an environment.
const MAX_FDS: usize = 2;

/// Whether somebody waits for a sandbox that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    Waiting,
    Later,
}

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
    pub async fn start(
        sandbox: &NamespaceSandbox,
        spec: ProcessSpec,
        demand: Demand,
    ) -> Result<Waiting, PrestartError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(PrestartError::Socket)?;
        ours.set_nonblocking(true).map_err(PrestartError::Socket)?;
        let mut socket = UnixStream::from_std(ours).map_err(PrestartError::Socket)?;
        if demand == Demand::Waiting {
            // Before it is started, so that it is there when it looks.
            socket.write_all(HURRY).await.map_err(PrestartError::Socket)?;
        }
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

    /// Makes it the process that was wanted. Fails if it is gone. With a library, what comes back as well is the way to have it write
    /// itself out later.
    pub async fn hand_over(
        mut self,
        wanted: &ProcessSpec,
        library: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Process, Option<UnixStream>)> {
        let cwd = wanted.cwd.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        let given = serde_json::json!({ "env": wanted.env, "cwd": cwd });
        let Some(library) = library else {
            self.give(&given, &[]).await?;
            return Ok((self.process, None));
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let library = images::again(library)?;
        self.give(&given, &[theirs.as_fd(), library.as_fd()]).await?;
        Ok((self.process, Some(UnixStream::from_std(ours)?)))
    }

    /// Makes it the process of an image.
    pub async fn become_image(mut self, image: BorrowedFd<'_>, library: BorrowedFd<'_>) -> io::Result<Process> {
        // A position of its own: others are reading too.
        let (image, library): (File, File) = (images::again(image)?, images::again(library)?);
        self.give(&serde_json::json!({ "become": true }), &[image.as_fd(), library.as_fd()]).await?;
        let mut word = Vec::new();
        match tokio::time::timeout(PATIENCE, (&mut self.socket).take(MAX_WORD).read_to_end(&mut word)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        images::understand(&word).map_err(io::Error::other)?;
        Ok(self.process)
    }

    async fn give(&mut self, given: &serde_json::Value, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let given = given.to_string().into_bytes();
        let mut rest = given.as_slice();
        if !fds.is_empty() {
            let sent = self.socket.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let part = [io::IoSlice::new(rest)];
                Ok(sendmsg(self.socket.as_fd(), &part, &mut control, SendFlags::NOSIGNAL)?)
            });
            rest = &rest[sent.await?..];
        }
        self.socket.write_all(rest).await?;
        self.socket.shutdown().await
    }
}
