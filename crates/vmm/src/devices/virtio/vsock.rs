//! The vsock device (virtio 1.2, section 5.10): streams between the guest and Unix sockets of the host.
//!
//! ```text
//!   guest                     this device                                        host
//!   tx queue --> pieces, packet --> muxer (credit, states) --> stream -----> Unix socket
//!   rx queue <-- relay <----------- muxer <------------------- poll, stream <--
//! ```
//!
//! The host opens connections to ports of the guest ([`Handle::connect`]); the guest may open some only to ports that
//! were announced ([`Handle::listen`]). What does not fit the guest's credit stays in the Unix socket, what the host does
//! not read fills the credit of the guest and no more. Copies are the kernel's alone, between socket and guest memory,
//! except of bytes that a socket has no room for.
//!
//! A snapshot holds no connections. After a restore the guest is told so with a transport reset, and it is not asked for
//! new connections until it has taken note: it would drop them with the old ones.

mod connection;
mod credit;
pub mod muxer;
pub mod packet;
mod pieces;
mod poll;
mod relay;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_memory::Permissions;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::{QueueError, Virtqueue};
use super::{
    ActivateError, Activation, EventSet, F_EVENT_IDX, F_VERSION_1, Interrupt, Progress, QueueState, StateError,
    VirtioDevice, Watched,
};
use crate::memory::Memory;
use muxer::{Id, Limits, Muxer};
use pieces::Pieces;
use poll::{Happened, Poll};
use stream::Stream;

/// Device type of vsock.
const KIND: u32 = 19;
/// Descriptors of the queues. Linux before 6.2 uses two for each packet, and fills the receive queue with 4 KiB each.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// The event that says that all connections are gone.
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// Requests through the handle that wait for the guest's driver. More are refused.
const MAX_REQUESTS: usize = 1024;

/// What takes the host's end of a connection that the guest opened. Called on the device thread; must not block.
pub type Listener = Box<dyn FnMut(UnixStream) + Send>;

/// The device.
pub struct Vsock {
    cid: u32,
    shared: Arc<Shared>,
    muxer: Muxer,
    /// Most bytes that a packet of the guest may have.
    largest: usize,
    streams: HashMap<Id, Stream>,
    listeners: HashMap<u32, Listener>,
    poll: Poll,
    active: Option<Active>,
    /// The guest is to hear of a transport reset.
    reset_due: bool,
    /// Buffers of the event queue that the guest had besides when it was told.
    spare_events: u16,
    /// Packets of the guest wait: for room for refusals, or for their turn.
    unfinished: bool,
}

/// What there is while the guest's driver is.
struct Active {
    memory: Memory,
    rx: Virtqueue,
    tx: Virtqueue,
    events: Virtqueue,
    interrupt: Interrupt,
}

/// Asks the device for connections, from any thread.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    requests: Mutex<VecDeque<Request>>,
    wake: EventFd,
}

enum Request {
    Connect(u32, UnixStream),
    Listen(u32, Listener),
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Connect(port, _) => write!(f, "Connect({port})"),
            Request::Listen(port, _) => write!(f, "Listen({port})"),
        }
    }
}

/// What a snapshot keeps.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    cid: u32,
    next_port: u32,
}

impl Handle {
    /// Makes `socket` the host's end of a new connection to a port of the guest. It is opened as soon as the guest's driver
    /// is there, and closed when the guest refuses, does not answer within ten seconds, or there are too many connections.
    pub fn connect(&self, port: u32, socket: UnixStream) {
        self.ask(Request::Connect(port, socket));
    }

    /// Lets the guest open connections to a port of the host; `listener` gets the host's end of each.
    pub fn listen(&self, port: u32, listener: impl FnMut(UnixStream) + Send + 'static) {
        self.ask(Request::Listen(port, Box::new(listener)));
    }

    fn ask(&self, request: Request) {
        {
            let mut requests = self.0.requests();
            if requests.len() >= MAX_REQUESTS {
                tracing::warn!(?request, "too many requests wait for the guest's vsock driver");
                return;
            }
            requests.push_back(request);
        }
        self.0.wake();
    }
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, VecDeque<Request>> {
        // Nothing under the lock can leave it half done.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It can fail only when the counter is full, and then a wake is on its way.
        let _ = self.wake.write(1);
    }
}

impl Vsock {
    /// A device that gives the guest this context id (3 at least), with the usual [`Limits`].
    pub fn new(cid: u32) -> io::Result<Self> {
        Self::with_limits(cid, Limits::default())
    }

    /// A device with other limits.
    pub fn with_limits(cid: u32, limits: Limits) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let poll = Poll::new(&wake)?;
        Ok(Self {
            cid,
            shared: Arc::new(Shared { requests: Mutex::default(), wake }),
            largest: limits.buffer.max(limits.small_buffer) as usize,
            muxer: Muxer::new(u64::from(cid), limits),
            streams: HashMap::new(),
            listeners: HashMap::new(),
            poll,
            active: None,
            reset_due: false,
            spare_events: 0,
            unfinished: false,
        })
    }

    /// How to ask it for connections.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Does what was asked for through the handle.
    fn requests(&mut self, active: &Active) {
        let _ = self.shared.wake.read();
        let requests = std::mem::take(&mut *self.shared.requests());
        for request in requests {
            match request {
                Request::Listen(port, listener) => {
                    self.muxer.listen(port);
                    self.listeners.insert(port, listener);
                }
                Request::Connect(port, socket) => match self.muxer.open(port, Instant::now()) {
                    Ok(id) => self.adopt(id, socket),
                    Err(error) => tracing::warn!(port, %error, "connection refused"),
                },
            }
        }
        if self.muxer.is_held() {
            // The interrupt that told of the reset may have come before the interrupt controller was restored.
            active.interrupt.queue();
        }
    }

    /// Tells the guest that its connections are gone, as soon as it has a buffer for that, and sees whether it has taken
    /// note: then it makes that buffer available again.
    fn events(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let Active { memory, events, interrupt, .. } = active;
        while self.reset_due {
            let Some(chain) = events.pop(memory)? else { break };
            let written = Pieces::new(memory, &chain.writable, TRANSPORT_RESET.len(), Permissions::Write)
                .map_or(0, |pieces| pieces.write(&TRANSPORT_RESET));
            self.reset_due = written < TRANSPORT_RESET.len();
            events.push(memory, chain.head, written as u32)?;
            if !self.reset_due {
                self.spare_events = available(events, memory)?;
                events.signal(memory, interrupt)?;
            }
        }
        if !self.reset_due && self.muxer.is_held() && available(events, memory)? > self.spare_events {
            self.muxer.hold(false);
        }
        Ok(Progress::Done)
    }

    /// Works with the queues; a malformed one ends it all until the driver resets the device.
    fn work(&mut self, work: impl FnOnce(&mut Self, &mut Active) -> Result<Progress, QueueError>) -> Progress {
        let Some(mut active) = self.active.take() else { return Progress::Done };
        if active.interrupt.is_broken() {
            self.active = Some(active);
            self.drop_all();
            return Progress::Done;
        }
        let result = work(self, &mut active).and_then(|mut progress| {
            progress = both(progress, self.receive(&mut active)?);
            if self.unfinished && !self.muxer.is_full() {
                progress = both(progress, self.transmit(&mut active)?);
                progress = both(progress, self.receive(&mut active)?);
            }
            Ok(progress)
        });
        let progress = result.unwrap_or_else(|error| {
            tracing::warn!(%error, "the guest's vsock queues are broken");
            active.interrupt.needs_reset();
            self.drop_all();
            Progress::Done
        });
        self.active = Some(active);
        if let Err(error) = self.poll.arm(self.muxer.deadline(), Instant::now()) {
            tracing::warn!(%error, "cannot set the timer of the vsock device");
        }
        progress
    }

    fn drop_all(&mut self) {
        let _ = self.shared.wake.read();
        self.shared.requests().retain(|request| matches!(request, Request::Listen(..)));
        self.muxer.clear();
        self.settle();
    }

    fn happened(&mut self, active: &Active, happened: Happened) {
        let now = Instant::now();
        match happened {
            Happened::Wake => self.requests(active),
            Happened::Timer => self.muxer.expire(now),
            Happened::Socket { id, readable, ended, writable, hung_up } => {
                if let Some(stream) = self.streams.get_mut(&id).filter(|_| ended) {
                    stream.ended = true;
                }
                if writable {
                    self.flush(id);
                }
                if hung_up {
                    self.muxer.hung_up(id, now);
                }
                if readable {
                    self.muxer.readable(id);
                }
            }
        }
        self.settle();
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.cid).to_le_bytes();
        let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
        let count = rest.len().min(data.len());
        data[..count].copy_from_slice(&rest[..count]);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The driver may not write anything.
    }

    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError> {
        let mut queues = parts.queues.into_iter().map(Virtqueue::new);
        let mut next = |index| queues.next().filter(Virtqueue::is_ready).ok_or(ActivateError::QueueMissing(index));
        let (rx, tx, events) = (next(RX)?, next(TX)?, next(EVENT)?);
        self.active = Some(Active { memory: parts.memory, rx, tx, events, interrupt: parts.interrupt });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.reset_due = false;
        self.unfinished = false;
        self.muxer.clear();
        self.muxer.hold(false);
        self.settle();
    }

    fn notified(&mut self, queue: usize) -> Progress {
        match queue {
            TX => self.work(Self::transmit),
            EVENT => self.work(Self::events),
            _ => self.work(|_, _| Ok(Progress::Done)),
        }
    }

    fn watched(&self) -> Vec<Watched> {
        vec![Watched { fd: self.poll.fd(), token: 0, read: true, write: false }]
    }

    fn ready(&mut self, _token: u32, _events: EventSet) -> bool {
        let progress = self.work(|this, active| {
            match this.poll.take() {
                Ok(happened) => happened.into_iter().for_each(|happened| this.happened(active, happened)),
                Err(error) => tracing::warn!(%error, "cannot poll the sockets of the vsock device"),
            }
            Ok(Progress::Done)
        });
        if progress == Progress::More {
            // There is no one to call again but ourselves.
            self.shared.wake();
        }
        false
    }

    fn queues(&self) -> Vec<QueueState> {
        let queues = |active: &Active| vec![active.rx.state(), active.tx.state(), active.events.state()];
        self.active.as_ref().map(queues).unwrap_or_default()
    }

    fn save(&self) -> Vec<u8> {
        let state = State { cid: self.cid, next_port: self.muxer.next_port() };
        postcard::to_stdvec(&state).expect("two numbers can be encoded")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let state: State = postcard::from_bytes(state)?;
        if state.cid != self.cid {
            return Err(StateError::Mismatch("the context id is another one"));
        }
        self.muxer.set_next_port(state.next_port);
        self.muxer.hold(true);
        self.reset_due = true;
        Ok(())
    }
}

/// Counts the buffers that the guest has made available, and has it notify us of the next one.
fn available(queue: &mut Virtqueue, memory: &Memory) -> Result<u16, QueueError> {
    let mut count = 0;
    // The notification is due behind the last buffer, so that all must be taken when it is asked for.
    for _ in 0..2 * queue.size() {
        if queue.pop(memory)?.is_some() {
            count += 1;
        } else if !queue.unmute(memory)? {
            break;
        }
    }
    (0..count).for_each(|_| queue.undo_pop());
    Ok(count)
}

/// Whether one of the two is not done.
fn both(first: Progress, second: Progress) -> Progress {
    if first == Progress::More { first } else { second }
}

#[cfg(test)]
mod tests;
