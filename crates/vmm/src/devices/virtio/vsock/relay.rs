//! Moves bytes between the guest's queues and the host's sockets, as the multiplexer decides.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vm_memory::Permissions;

use super::muxer::{Effect, Id, Next, Payload};
use super::packet::{HEADER_SIZE, Header};
use super::pieces::Pieces;
use super::stream::{MAX_VECTORS, Read, Stream};
use super::{Active, Vsock};
use crate::devices::virtio::queue::{QueueError, Segment, Virtqueue};
use crate::devices::virtio::{Interrupt, Progress};
use crate::memory::Memory;

/// Most bytes of one packet to the guest.
const MAX_PAYLOAD: usize = 64 << 10;
/// Buffers of the guest that are filled with one system call, once the first one was full.
const BATCH: usize = 32;
/// Bytes that a connection may send to the guest before it is another one's turn.
const BURST: usize = 256 << 10;

/// A buffer of the guest's receive queue.
struct Place<'m> {
    head: u16,
    header: Pieces<'m>,
    payload: Pieces<'m>,
}

impl Vsock {
    /// Takes packets from the guest.
    pub(super) fn transmit(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let memory = active.memory.clone();
        let mut turns = active.tx.size();
        let before = active.tx.state().next_used;
        active.tx.mute(&memory)?;
        self.unfinished = true;
        let progress = loop {
            if self.muxer.is_full() {
                // Goes on when the guest has made room for the refusals.
                break Progress::Done;
            }
            let Some(left) = turns.checked_sub(1) else { break Progress::More };
            turns = left;
            match active.tx.pop(&memory)? {
                Some(chain) => {
                    let limit = HEADER_SIZE + self.largest;
                    if let Some(pieces) = Pieces::new(&memory, &chain.readable, limit, Permissions::Read) {
                        self.packet(pieces);
                    }
                    active.tx.push(&memory, chain.head, 0)?;
                }
                None if active.tx.unmute(&memory)? => {}
                None => {
                    self.unfinished = false;
                    break Progress::Done;
                }
            }
        };
        signal(&mut active.tx, before, &memory, &active.interrupt)?;
        Ok(progress)
    }

    /// One packet from the guest. One without a whole header is dropped.
    fn packet(&mut self, pieces: Pieces<'_>) {
        let Some((head, payload)) = pieces.split_header() else { return };
        let mut bytes = [0; HEADER_SIZE];
        // From here on, only this copy of the header counts.
        head.read(0, &mut bytes);
        let header = Header::from_bytes(&bytes);
        let outcome = self.muxer.receive(&header, payload.len(), Instant::now());
        self.settle();
        if let Payload::Deliver(id) = outcome {
            let Some(stream) = self.streams.get_mut(&id) else { return self.abort(id) };
            // The multiplexer has checked that the length is no more than there is.
            match stream.write(&payload, header.len as usize) {
                Ok(taken) => self.muxer.delivered(id, taken as u32),
                Err(_) => self.muxer.host_deaf(id, Instant::now()),
            }
            self.watch(id);
            self.settle();
        }
    }

    /// Gives packets to the guest.
    pub(super) fn receive(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let memory = active.memory.clone();
        let mut turns = active.rx.size();
        let before = active.rx.state().next_used;
        let progress = loop {
            if !self.muxer.has_next() {
                active.rx.mute(&memory)?;
                break Progress::Done;
            }
            let Some(left) = turns.checked_sub(1) else { break Progress::More };
            turns = left;
            let Some(chain) = active.rx.pop(&memory)? else {
                if active.rx.unmute(&memory)? {
                    continue;
                }
                break Progress::Done;
            };
            let Some(place) = place(&memory, chain.head, &chain.writable) else {
                // A buffer that can carry nothing.
                active.rx.push(&memory, chain.head, 0)?;
                continue;
            };
            match self.muxer.next_packet() {
                Some(Next::Control(header)) => {
                    place.header.write(&header.to_bytes());
                    active.rx.push(&memory, place.head, HEADER_SIZE as u32)?;
                }
                Some(Next::Data(id, limit)) => self.fill(active, &memory, id, limit as usize, place)?,
                None => active.rx.undo_pop(),
            }
            self.settle();
        };
        signal(&mut active.rx, before, &memory, &active.interrupt)?;
        Ok(progress)
    }

    /// Reads a connection's socket into buffers of the guest, beginning with `first`.
    fn fill<'m>(
        &mut self,
        active: &mut Active,
        memory: &'m Memory,
        id: Id,
        limit: usize,
        first: Place<'m>,
    ) -> Result<(), QueueError> {
        let mut left = limit.min(BURST);
        let mut places = vec![first];
        loop {
            let room = places.iter().map(|place| place.payload.len()).sum::<usize>().min(left);
            let read = match self.streams.get(&id) {
                Some(stream) => stream.read(&mut vectors(&places, room), room),
                None => Read::Lost,
            };
            let Read::Bytes { count, more } = read else {
                places.iter().for_each(|_| active.rx.undo_pop());
                self.ended(id, read);
                return Ok(());
            };
            let mut rest = count;
            for place in places.drain(..) {
                let bytes = place.payload.len().min(rest);
                rest -= bytes;
                match (bytes > 0).then(|| self.muxer.sent(id, bytes as u32)).flatten() {
                    Some(header) => {
                        place.header.write(&header.to_bytes());
                        active.rx.push(memory, place.head, (HEADER_SIZE + bytes) as u32)?;
                    }
                    None => active.rx.undo_pop(),
                }
            }
            left -= count;
            if !more {
                self.muxer.dry(id);
                return Ok(());
            }
            while left > 0 && places.len() < BATCH {
                let Some(chain) = active.rx.pop(memory)? else { break };
                let next = place(memory, chain.head, &chain.writable);
                let Some(next) = next.filter(|next| pieces(&places) + next.payload.count() <= MAX_VECTORS) else {
                    active.rx.undo_pop();
                    break;
                };
                places.push(next);
            }
            if places.is_empty() {
                return Ok(());
            }
        }
    }

    fn ended(&mut self, id: Id, read: Read) {
        match read {
            Read::Bytes { .. } => {}
            Read::Dry => self.muxer.dry(id),
            Read::End => self.muxer.host_ended(id, Instant::now()),
            Read::Lost => {
                self.muxer.hung_up(id, Instant::now());
                self.muxer.host_ended(id, Instant::now());
            }
        }
    }

    /// Writes what waits for a socket that has room now.
    pub(super) fn flush(&mut self, id: Id) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.flush() {
            Ok(taken) => self.muxer.delivered(id, taken as u32),
            Err(_) => self.muxer.host_deaf(id, Instant::now()),
        }
        self.watch(id);
        self.settle();
    }

    /// Does at the host's side what the multiplexer has decided.
    pub(super) fn settle(&mut self) {
        while let Some(effect) = self.muxer.effect() {
            match effect {
                Effect::Accept(id, port) => self.accept(id, port),
                Effect::ShutdownWrite(id) => self.shutdown(id, Shutdown::Write),
                Effect::ShutdownRead(id) => self.shutdown(id, Shutdown::Read),
                // Closing takes it out of the epoll set as well: nobody else has this end.
                Effect::Close(id) => drop(self.streams.remove(&id)),
            }
        }
    }

    fn accept(&mut self, id: Id, port: u32) {
        let Some(listener) = self.listeners.get_mut(&port) else { return self.muxer.abort(id) };
        match UnixStream::pair() {
            Ok((ours, theirs)) => {
                listener(theirs);
                self.adopt(id, ours);
            }
            Err(error) => {
                tracing::warn!(%error, port, "cannot make a socket for a connection of the guest");
                self.muxer.abort(id);
            }
        }
    }

    /// Makes `socket` the host's end of a connection.
    pub(super) fn adopt(&mut self, id: Id, socket: UnixStream) {
        let stream = Stream::new(socket);
        if let Err(error) = self.poll.add(&stream, id) {
            tracing::warn!(%error, "cannot watch the socket of a connection");
            return self.muxer.abort(id);
        }
        self.streams.insert(id, stream);
    }

    fn abort(&mut self, id: Id) {
        self.muxer.abort(id);
        self.settle();
    }

    fn shutdown(&self, id: Id, how: Shutdown) {
        if let Some(stream) = self.streams.get(&id) {
            stream.shutdown(how);
        }
    }

    /// Watches a socket for room exactly while bytes wait for it: otherwise each read of the host would wake us.
    fn watch(&mut self, id: Id) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let wanted = stream.is_waiting();
        if stream.watched_for_room != wanted {
            stream.watched_for_room = wanted;
            if let Err(error) = self.poll.modify(stream, id, wanted) {
                tracing::warn!(%error, "cannot watch the socket of a connection");
                self.muxer.abort(id);
            }
        }
    }
}

/// Tells the driver if buffers were given back since `before`. Without that, a driver that does not say when it wants to
/// know would be interrupted for nothing.
fn signal(queue: &mut Virtqueue, before: u16, memory: &Memory, interrupt: &Interrupt) -> Result<(), QueueError> {
    if queue.state().next_used == before { Ok(()) } else { queue.signal(memory, interrupt) }
}

/// A buffer of the receive queue, if it has room for a header and a byte.
fn place<'m>(memory: &'m Memory, head: u16, segments: &[Segment]) -> Option<Place<'m>> {
    let pieces = Pieces::new(memory, segments, HEADER_SIZE + MAX_PAYLOAD, Permissions::Write)?;
    let (header, payload) = pieces.split_header()?;
    (payload.len() > 0).then_some(Place { head, header, payload })
}

fn pieces(places: &[Place<'_>]) -> usize {
    places.iter().map(|place| place.payload.count()).sum()
}

fn vectors(places: &[Place<'_>], room: usize) -> Vec<libc::iovec> {
    let mut vectors = Vec::with_capacity(pieces(places));
    let mut left = room;
    for place in places {
        place.payload.vectors(left, &mut vectors);
        left -= left.min(place.payload.len());
    }
    vectors
}
