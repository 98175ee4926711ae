//! What processes write, from their pipes to the host's connections.
//!
//! The pipe is the buffer: nothing is read before the host has connected, and no more than it takes. A connection that breaks
//! (the machine was restored) leaves what was not sent, and the next one goes on with it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{SendFlags, send};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;

/// Bytes that are moved at a time: what a pipe holds unless it is told otherwise.
const PIECE: usize = 64 << 10;
/// Connections for streams that are not there yet.
const MAX_EARLY: usize = 64;
/// Streams that are remembered after their end.
const MAX_ENDED: usize = 256;

/// All streams that have not ended, by their numbers.
#[derive(Default)]
pub(super) struct Streams {
    open: RefCell<HashMap<u64, Rc<Stream>>>,
    /// The host need not wait for the answer to `Spawn` before it connects.
    early: RefCell<BTreeMap<u64, UnixStream>>,
    /// Those that have ended last: who connects to one hears of its end.
    ended: RefCell<BTreeSet<u64>>,
}

impl Streams {
    /// Makes a pipe's read end the stream `number`.
    pub(super) fn add(self: &Rc<Self>, number: u64, pipe: OwnedFd) -> io::Result<()> {
        let stream = Rc::new(Stream::new(Receiver::from_owned_fd(pipe)?));
        self.ended.borrow_mut().remove(&number);
        self.open.borrow_mut().insert(number, Rc::clone(&stream));
        if let Some(connection) = self.early.borrow_mut().remove(&number) {
            stream.connect(connection);
        }
        let streams = Rc::clone(self);
        tokio::task::spawn_local(async move {
            stream.relay().await;
            let mut open = streams.open.borrow_mut();
            if open.get(&number).is_some_and(|there| Rc::ptr_eq(there, &stream)) {
                open.remove(&number);
                let mut ended = streams.ended.borrow_mut();
                ended.insert(number);
                if ended.len() > MAX_ENDED {
                    ended.pop_first();
                }
            }
        });
        Ok(())
    }

    /// The host has connected to a stream.
    pub(super) fn connect(&self, number: u64, connection: UnixStream) {
        if let Some(stream) = self.open.borrow().get(&number) {
            return stream.connect(connection);
        }
        if self.ended.borrow().contains(&number) {
            return;
        }
        let mut early = self.early.borrow_mut();
        early.insert(number, connection);
        if early.len() > MAX_EARLY {
            // The lowest number: of a process that was, or will never be.
            early.pop_first();
        }
    }

    /// The host will not hear of this stream: its process could not be started.
    pub(super) fn forget(&self, number: u64) {
        self.early.borrow_mut().remove(&number);
        if let Some(stream) = self.open.borrow_mut().remove(&number) {
            stream.give_up();
        }
    }

    /// Hands to all connections what can be read now and taken now.
    pub(super) fn pump(&self) {
        for stream in self.open.borrow().values() {
            stream.pump();
        }
    }

    /// Waits until everything that can be read from the stream now has been handed over.
    pub(super) async fn drain(&self, number: u64) {
        let stream = self.open.borrow().get(&number).cloned();
        if let Some(stream) = stream {
            stream.drain().await;
        }
    }
}

/// One pipe.
struct Stream {
    pipe: Receiver,
    state: RefCell<State>,
    /// A connection has come, or the end.
    changed: Notify,
}

#[derive(Default)]
struct State {
    connection: Option<Rc<UnixStream>>,
    /// Read and not sent yet, from `sent` on.
    pending: Vec<u8>,
    sent: usize,
    ended: bool,
}

/// What stops the pump.
enum Stop {
    Empty,
    Full(Rc<UnixStream>),
    Unconnected,
    Ended,
}

impl Stream {
    fn new(pipe: Receiver) -> Self {
        Self { pipe, state: RefCell::default(), changed: Notify::new() }
    }

    fn connect(&self, connection: UnixStream) {
        self.state.borrow_mut().connection = Some(Rc::new(connection));
        self.changed.notify_waiters();
    }

    fn give_up(&self) {
        let mut state = self.state.borrow_mut();
        state.ended = true;
        state.pending.clear();
        state.sent = 0;
        self.changed.notify_waiters();
    }

    /// Moves what can be moved. Asks the kernel and not tokio, which may not have heard yet what is there.
    fn pump(&self) -> Stop {
        let mut state = self.state.borrow_mut();
        loop {
            if state.ended && state.sent == state.pending.len() {
                return Stop::Ended;
            }
            let Some(connection) = state.connection.clone() else { return Stop::Unconnected };
            if state.sent < state.pending.len() {
                match send(&*connection, &state.pending[state.sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(sent) => state.sent += sent,
                    Err(rustix::io::Errno::AGAIN) => return Stop::Full(connection),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_broken) => state.connection = None,
                }
                continue;
            }
            state.sent = 0;
            let mut piece = std::mem::take(&mut state.pending);
            piece.clear();
            piece.reserve(PIECE);
            match rustix::io::read(self.pipe.as_fd(), rustix::buffer::spare_capacity(&mut piece)) {
                Ok(0) => state.ended = true,
                Ok(_) => state.pending = piece,
                // The room is given back: most pipes are idle most of the time.
                Err(rustix::io::Errno::AGAIN) => return Stop::Empty,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => state.ended = true,
            }
        }
    }

    /// To the end of the pipe.
    async fn relay(&self) {
        loop {
            let changed = self.changed.notified();
            match self.pump() {
                Stop::Empty => {
                    let _ = self.pipe.try_io(not_yet);
                    tokio::select! {
                        ready = self.pipe.readable() => if ready.is_err() { return },
                        () = changed => {}
                    }
                }
                Stop::Full(connection) => wait_for_room(&connection, changed).await,
                Stop::Unconnected => changed.await,
                Stop::Ended => return,
            }
        }
    }

    async fn drain(&self) {
        loop {
            let changed = self.changed.notified();
            match self.pump() {
                Stop::Empty | Stop::Ended => return,
                Stop::Full(connection) => wait_for_room(&connection, changed).await,
                Stop::Unconnected if self.is_empty() => return,
                Stop::Unconnected => changed.await,
            }
        }
    }

    fn is_empty(&self) -> bool {
        let state = self.state.borrow();
        state.sent == state.pending.len() && rustix::io::ioctl_fionread(self.pipe.as_fd()).is_ok_and(|bytes| bytes == 0)
    }
}

async fn wait_for_room(connection: &UnixStream, changed: impl Future<Output = ()>) {
    let _ = connection.try_io(Interest::WRITABLE, not_yet);
    tokio::select! {
        // An error is seen by the pump.
        _ = connection.writable() => {}
        () = changed => {}
    }
}

/// Tells tokio that the kernel was asked and had nothing.
fn not_yet() -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}
