//! The host's end of one VMM process: a task that owns its socket and waits for its end.
//!
//! ```text
//!            order                     answer
//! Link ------------------> task <------------------ process
//!   `--- kill (pidfd) ------------------------------^   |
//!        watch: running -> ended (Exit known) -> gone <-'  reaped, user given back
//! ```
//!
//! The process is not believed: what it sends is a message that fits the moment, or its end.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::spawn::Spawned;
use super::users::User;
use crate::config::Exit;
use crate::wire::{self, Answer, Call, Received, Report, Request, ShellTimes};

/// Orders that wait for the task.
const ORDERS: usize = 64;
/// Connections of a guest that wait for the listener; more are refused.
const BACKLOG: usize = 64;
/// Packets that are read after the process has ended; its socket holds fewer unless it is flooded.
const LAST_WORDS: usize = 1024;
/// Descriptors that the process may not have taken out of its socket yet, before more orders wait.
const UNSENT: usize = 16;

/// Why a VMM process did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The process has ended; see [`MicroVm::exited`](super::MicroVm::exited).
    #[error("the VMM process has ended")]
    Ended,
    /// It refused, with this reason.
    #[error("the VMM process refused: {0}")]
    Refused(String),
    /// It did not answer in time and was killed.
    #[error("the VMM process did not answer within {0:?} and was killed")]
    Late(Duration),
    /// It answered something else than what it was asked, and was killed.
    #[error("the VMM process gave an answer that does not fit and was killed")]
    Unfit,
    /// A memory file could not be made or read.
    #[error("cannot exchange memory with the VMM process")]
    Memory(#[source] io::Error),
}

/// How far the end of a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Running,
    Ended(Exit),
    Gone(Exit),
}

/// A handle of the process. Dropping it kills.
#[derive(Debug)]
pub(super) struct Link {
    orders: mpsc::Sender<Order>,
    life: watch::Receiver<Life>,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    pid: i32,
    patience: Duration,
}

/// What the task does for its handle.
#[derive(Debug)]
enum Order {
    Call { call: Call, fds: Vec<OwnedFd>, answer: Option<oneshot::Sender<Result<Answer, String>>> },
    Listen { port: u32, streams: mpsc::Sender<UnixStream> },
}

impl Link {
    /// Takes over a process that was just made. The receiver is told when it is a shell. Belongs into a runtime.
    pub fn new(
        spawned: Spawned,
        socket: OwnedFd,
        user: Option<User>,
        patience: Duration,
    ) -> io::Result<(Link, oneshot::Receiver<ShellTimes>)> {
        let pidfd = Arc::new(watched(spawned.pidfd, Interest::READABLE)?);
        let socket = watched(socket, Interest::READABLE | Interest::WRITABLE)?;
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (life, lived) = watch::channel(Life::Running);
        let (ready, is_ready) = oneshot::channel();
        let task = Task {
            socket,
            pidfd: Arc::clone(&pidfd),
            inbox,
            outbox: VecDeque::new(),
            waiting: HashMap::new(),
            listeners: HashMap::new(),
            next: 1,
            ready: Some(ready),
            life,
        };
        tokio::spawn(async move {
            task.run().await;
            // Only now may somebody else become this user.
            drop(user);
        });
        Ok((Link { orders, life: lived, pidfd, pid: spawned.pid, patience }, is_ready))
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends the process; returns at once.
    pub fn kill(&self) {
        kill(&self.pidfd);
    }

    /// Whether it has ended, noticed by the task or not.
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        *self.life.borrow() != Life::Running
            || poll(&mut [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)], Some(&now)) != Ok(0)
    }

    /// Waits until the machine has ended.
    pub async fn exited(&self) -> Exit {
        let mut life = self.life.clone();
        match life.wait_for(|life| *life != Life::Running).await.as_deref() {
            Ok(Life::Ended(exit) | Life::Gone(exit)) => exit.clone(),
            // The runtime is shutting down.
            Ok(Life::Running) | Err(_) => Exit::Killed,
        }
    }

    /// Waits until the process is gone, and with it everything that it had.
    pub async fn gone(&self) -> Exit {
        let mut life = self.life.clone();
        match life.wait_for(|life| matches!(life, Life::Gone(_))).await.as_deref() {
            Ok(Life::Ended(exit) | Life::Gone(exit)) => exit.clone(),
            Ok(Life::Running) | Err(_) => Exit::Killed,
        }
    }

    /// Asks and waits for the answer. Whoever stops waiting leaves the request to be answered.
    pub async fn call(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Answer, CallError> {
        let (answer, result) = oneshot::channel();
        let order = Order::Call { call, fds, answer: Some(answer) };
        self.orders.send(order).await.map_err(|_| CallError::Ended)?;
        match tokio::time::timeout(self.patience, result).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(reason))) => Err(CallError::Refused(reason)),
            Ok(Err(_)) => Err(CallError::Ended),
            Err(_) => {
                self.kill();
                Err(CallError::Late(self.patience))
            }
        }
    }

    /// Tells something that is not answered.
    pub async fn tell(&self, call: Call, fds: Vec<OwnedFd>) -> Result<(), CallError> {
        self.orders.send(Order::Call { call, fds, answer: None }).await.map_err(|_| CallError::Ended)
    }

    /// Lets the guest connect to `port`.
    pub async fn listen(&self, port: u32) -> Result<mpsc::Receiver<UnixStream>, CallError> {
        let (streams, accepted) = mpsc::channel(BACKLOG);
        self.orders.send(Order::Listen { port, streams }).await.map_err(|_| CallError::Ended)?;
        Ok(accepted)
    }

    /// Kills for an answer that does not fit.
    pub fn unfit(&self) -> CallError {
        self.kill();
        CallError::Unfit
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kill(pidfd: &AsyncFd<OwnedFd>) {
    // Fails only if it has ended already.
    let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
}

struct Task {
    socket: AsyncFd<OwnedFd>,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    inbox: mpsc::Receiver<Order>,
    /// Packets that the socket had no room for.
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Who waits for which answer.
    waiting: HashMap<u64, oneshot::Sender<Result<Answer, String>>>,
    listeners: HashMap<u32, mpsc::Sender<UnixStream>>,
    /// Number of the next request.
    next: u64,
    ready: Option<oneshot::Sender<ShellTimes>>,
    life: watch::Sender<Life>,
}

impl Task {
    async fn run(mut self) {
        let mut listening = true;
        loop {
            tokio::select! {
                received = receive(&self.socket), if listening => {
                    let report = match received {
                        Ok(Received::Packet(packet, fds)) => self.handle(&packet, fds),
                        // Its process ends next, or should.
                        Ok(Received::Closed) => Err(Exit::Killed),
                        Err(error) => Err(Exit::Failed(format!("a VMM process broke the protocol: {error}"))),
                    };
                    if let Err(exit) = report {
                        listening = false;
                        self.end(exit);
                    }
                }
                _ = self.pidfd.readable() => break,
                sent = send(&self.socket, &self.outbox), if !self.outbox.is_empty() => {
                    match sent {
                        Ok(()) => drop(self.outbox.pop_front()),
                        // It has closed its end, which `receive` finds as well.
                        Err(_) => self.outbox.clear(),
                    }
                }
                order = self.inbox.recv(), if self.outbox.len() < UNSENT && !self.inbox.is_closed() => {
                    if let Some(order) = order {
                        self.order(order);
                    }
                }
            }
        }
        self.bury(listening);
    }

    /// The process has ended: hears its last words and waits for it.
    fn bury(&mut self, listening: bool) {
        let last_words = std::iter::from_fn(|| match wire::receive(self.socket.get_ref(), false, 1) {
            Ok(Received::Packet(packet, fds)) if listening => Some((packet, fds)),
            _ => None,
        });
        let last_words: Vec<_> = last_words.take(LAST_WORDS).collect();
        let exit = last_words.into_iter().find_map(|(packet, fds)| self.handle(&packet, fds).err());
        self.end(exit.unwrap_or(Exit::Killed));
        let _ = waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED);
        self.life.send_modify(|life| {
            if let Life::Ended(exit) = life {
                *life = Life::Gone(exit.clone());
            }
        });
    }

    /// Notes how the machine ended, unless that is known, and sees that its process ends too.
    fn end(&mut self, exit: Exit) {
        self.life.send_if_modified(|life| {
            let first = *life == Life::Running;
            if first {
                *life = Life::Ended(exit);
            }
            first
        });
        kill(&self.pidfd);
        self.inbox.close();
        self.outbox.clear();
        self.waiting.clear();
        self.listeners.clear();
        self.ready = None;
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Call { call, fds, answer } => {
                let id = self.post(call, fds);
                if let Some(answer) = answer {
                    self.waiting.insert(id, answer);
                }
            }
            Order::Listen { port, streams } => {
                self.listeners.insert(port, streams);
                self.post(Call::Listen { port }, Vec::new());
            }
        }
    }

    fn post(&mut self, call: Call, fds: Vec<OwnedFd>) -> u64 {
        let id = self.next;
        self.next += 1;
        match wire::encode(&Request { id, call }) {
            Ok(packet) => self.outbox.push_back((packet, fds)),
            Err(error) => self.end(Exit::Failed(error.to_string())),
        }
        id
    }

    /// Takes in a packet of the process; an error is its end.
    fn handle(&mut self, packet: &[u8], fds: Vec<OwnedFd>) -> Result<(), Exit> {
        let broken = |what: &str| Exit::Failed(format!("a VMM process broke the protocol: {what}"));
        match wire::decode(packet).map_err(|error| broken(&error.to_string()))? {
            Report::Ready(times) => {
                let ready = self.ready.take().ok_or_else(|| broken("it was ready before"))?;
                let _ = ready.send(times);
                Ok(())
            }
            Report::Answer { id, result } => {
                let answer = self.waiting.remove(&id).ok_or_else(|| broken("an answer without a question"))?;
                // The one who asked may have gone.
                let _ = answer.send(result.map_err(|reason| wire::plain(&reason)));
                Ok(())
            }
            Report::Incoming { port } => {
                let streams = self.listeners.get(&port).ok_or_else(|| broken("a connection that nobody waits for"))?;
                let stream = fds.into_iter().next().ok_or_else(|| broken("a connection without a socket"))?;
                let stream = stream_of(stream).map_err(|_| broken("a connection that is none"))?;
                // If nobody takes it, it closes, and the VMM resets the guest's end.
                let _ = streams.try_send(stream);
                Ok(())
            }
            Report::Exit(exit) => Err(match exit {
                Exit::Crashed(reason) => Exit::Crashed(wire::plain(&reason)),
                Exit::Failed(reason) => Exit::Failed(wire::plain(&reason)),
                Exit::Reset | Exit::Killed => exit,
            }),
        }
    }
}

/// A stream for this process, and its other end for a VMM. Neither end blocks, and the VMM cannot change that for ours.
pub(super) fn stream_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// Makes the runtime tell when a descriptor is ready.
fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// The stream that a VMM has passed up, if it is one.
///
/// The VMM may have kept it too, and with it a say in whether it blocks; its filter refuses the calls for that.
fn stream_of(fd: OwnedFd) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    if sockopt::socket_domain(&fd)? != AddressFamily::UNIX || sockopt::socket_type(&fd)? != SocketType::STREAM {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Received> {
    socket.async_io(Interest::READABLE, |socket| wire::receive(socket, false, 1)).await
}

async fn send(socket: &AsyncFd<OwnedFd>, outbox: &VecDeque<(Vec<u8>, Vec<OwnedFd>)>) -> io::Result<()> {
    let Some((packet, fds)) = outbox.front() else { return Ok(()) };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    socket.async_io(Interest::WRITABLE, |socket| wire::send(socket, packet, &fds, false)).await
}
