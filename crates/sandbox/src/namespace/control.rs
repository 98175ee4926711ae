//! The server's end of the control socket of one init: what it is asked, and who waits for what it reports.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::link;
use crate::{Exit, ProcessId};
use supervisor::channel;
use supervisor::wire::{FromInit, Timings, ToInit};

/// What an init says once.
#[derive(Debug)]
pub(super) enum Built {
    Ready { timings: Timings, mounted: OwnedFd, listeners: Vec<OwnedFd> },
    Failed { step: String, errno: i32 },
}

/// Shared by the sandbox, its teardown and the task that listens.
#[derive(Debug)]
pub(super) struct Control {
    socket: AsyncFd<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gone: bool,
    last_process: u32,
    built: Option<oneshot::Sender<Built>>,
    exits: HashMap<u32, oneshot::Sender<Exit>>,
    /// In the order of the requests, each of which is answered once.
    all_killed: VecDeque<oneshot::Sender<()>>,
}

impl Control {
    /// Takes the non-blocking control socket of an init. The receiver is dropped unanswered if the init ends before.
    pub fn new(socket: OwnedFd) -> io::Result<(Arc<Control>, oneshot::Receiver<Built>)> {
        let socket = link::watch(socket)?;
        let (tell, built) = oneshot::channel();
        let state = Mutex::new(State { built: Some(tell), ..State::default() });
        let control = Arc::new(Control { socket, state });
        tokio::spawn(Arc::clone(&control).listen());
        Ok((control, built))
    }

    pub async fn ask(&self, request: &ToInit, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        link::send(&self.socket, &request.encode(), fds).await
    }

    /// As [`Control::ask`], for callers that cannot wait; fails if the socket is full, which takes hundreds of requests
    /// that init has not looked at.
    pub fn ask_now(&self, request: &ToInit) -> io::Result<()> {
        channel::send(self.socket.get_ref().as_fd(), &request.encode(), &[])
    }

    /// Whether the init has its end of the socket still open. Asks the kernel, which knows before the task that listens.
    pub fn is_open(&self) -> bool {
        let mut socket = [PollFd::new(self.socket.get_ref(), PollFlags::empty())];
        poll(&mut socket, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count == 0)
    }

    /// Numbers a new process. `None` if the sandbox has ended.
    pub fn announce(&self) -> Option<(ProcessId, oneshot::Receiver<Exit>)> {
        let mut state = self.state();
        if state.gone {
            return None;
        }
        state.last_process += 1;
        let number = state.last_process;
        let (tell, exit) = oneshot::channel();
        state.exits.insert(number, tell);
        Some((ProcessId(number), exit))
    }

    /// How many processes have been started so far.
    pub fn processes(&self) -> u32 {
        self.state().last_process
    }

    /// Resolves when every process has been killed. `None` if the sandbox has ended, and with it all of them.
    pub fn announce_kill(&self) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state();
        if state.gone {
            return None;
        }
        let (tell, killed) = oneshot::channel();
        state.all_killed.push_back(tell);
        Some(killed)
    }

    /// Ends the sandbox: its init reads the end of the socket and exits.
    pub fn hang_up(&self) {
        // The other end may be gone already.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }

    async fn listen(self: Arc<Self>) {
        loop {
            let (payload, fds) = match link::receive(&self.socket).await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "lost the init of a sandbox");
                    break;
                }
            };
            match FromInit::decode(&payload) {
                Ok(report) => self.hear(report, fds),
                Err(error) => {
                    tracing::error!(%error, "cannot understand the init of a sandbox");
                    break;
                }
            }
        }
        self.hang_up();
        let ended = std::mem::replace(&mut *self.state(), State { gone: true, ..State::default() });
        for tell in ended.exits.into_values() {
            let _ = tell.send(Exit::Signal(libc::SIGKILL));
        }
    }

    fn hear(&self, report: FromInit, mut fds: Vec<OwnedFd>) {
        let mut state = self.state();
        // Whoever does not wait any more has dropped the receiver: nothing to do about a send that fails.
        match report {
            FromInit::Ready(timings) => {
                if let Some(tell) = state.built.take()
                    && !fds.is_empty()
                {
                    let mounted = fds.remove(0);
                    let _ = tell.send(Built::Ready { timings, mounted, listeners: fds });
                }
            }
            FromInit::Failed { step, errno } => match state.built.take() {
                Some(tell) => {
                    let _ = tell.send(Built::Failed { step, errno });
                }
                None => tracing::error!(step, errno, "the init of a sandbox failed"),
            },
            FromInit::Exit { process, exit } => {
                if let Some(tell) = state.exits.remove(&process) {
                    let _ = tell.send(exit);
                }
            }
            FromInit::AllKilled => {
                if let Some(tell) = state.all_killed.pop_front() {
                    let _ = tell.send(());
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done in there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
