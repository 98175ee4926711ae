//! The server's end of the supervisor's socket: orders to it, and who has ended.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use supervisor::channel;
use supervisor::wire::{FromSupervisor, ToSupervisor};

/// How the init of a sandbox came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It ran, and is gone with everything in its process namespace.
    Exited,
    /// It could not be cloned.
    NotCloned {
        /// The kernel's reason.
        errno: i32,
    },
    /// The supervisor is gone, and the kernel takes the inits with it.
    SupervisorGone,
}

/// Cheap to share. The socket closes when the last clone is gone and the supervisor has closed its end.
#[derive(Debug)]
pub(super) struct Link {
    socket: AsyncFd<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gone: bool,
    running: HashMap<u64, oneshot::Sender<Ended>>,
}

impl Link {
    /// Takes the non-blocking socket of a supervisor. Called inside a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Arc<Link>> {
        let socket = watch(socket)?;
        let link = Arc::new(Link { socket, state: Mutex::default() });
        tokio::spawn(Arc::clone(&link).listen());
        Ok(link)
    }

    /// Word of the end of a new sandbox. `None` if the supervisor is gone.
    pub fn announce(&self, key: u64) -> Option<oneshot::Receiver<Ended>> {
        let mut state = self.state();
        if state.gone {
            return None;
        }
        let (tell, ended) = oneshot::channel();
        state.running.insert(key, tell);
        Some(ended)
    }

    /// Whether the supervisor is known to be gone.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub async fn order(&self, order: &ToSupervisor, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&self.socket, &order.encode(), fds).await
    }

    /// Lets the supervisor end: it reads the end of the socket and kills what is left.
    pub fn hang_up(&self) {
        // The other end may be gone already.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Write);
    }

    async fn listen(self: Arc<Self>) {
        loop {
            match receive(&self.socket)
                .await
                .map(|message| message.map(|(payload, _)| FromSupervisor::decode(&payload)))
            {
                Ok(Some(Ok(FromSupervisor::Exited { key }))) => self.ended(key, Ended::Exited),
                Ok(Some(Ok(FromSupervisor::CloneFailed { key, errno }))) => {
                    self.ended(key, Ended::NotCloned { errno });
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    tracing::error!(%error, "cannot understand the sandbox supervisor");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "lost the sandbox supervisor");
                    break;
                }
            }
        }
        let running = {
            let mut state = self.state();
            state.gone = true;
            std::mem::take(&mut state.running)
        };
        for tell in running.into_values() {
            let _ = tell.send(Ended::SupervisorGone);
        }
    }

    fn ended(&self, key: u64, how: Ended) {
        if let Some(tell) = self.state().running.remove(&key) {
            // Nobody waits for a sandbox whose creation was given up.
            let _ = tell.send(how);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done in there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers a non-blocking socket with the runtime.
pub(super) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) };
    Ok(watched?)
}

/// Sends one message over a non-blocking socket.
pub(super) async fn send(socket: &AsyncFd<OwnedFd>, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    socket.async_io(Interest::WRITABLE, |socket| channel::send(socket.as_fd(), payload, fds)).await
}

/// Receives one message over a non-blocking socket; `None` at its end.
pub(super) async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, |socket| channel::receive(socket.as_fd())).await
}
