//! The network device (5.1): a tap interface of the host, whose packets carry the same header (`virtio_net_hdr_v1`, 12
//! bytes) as the guest's, so that checksums and segmentation are left to whoever does them last.
//!
//! Packets go out straight from the guest's memory and come in through one buffer, which holds the packet for which the
//! driver has no space yet. One pair of queues, no control queue.

mod tap;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use self::tap::Tap;
use super::queue::{Chain, QueueError, Virtqueue};
use super::{
    ActivateError, Activation, EventSet, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt, Progress, QueueState,
    StateError, VirtioDevice, Watched, buffers,
};
use crate::memory::Memory;

/// Device type of a network card.
const KIND: u32 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
const RECEIVE: usize = 0;
/// Bytes of the header in front of each packet.
const HEADER_BYTES: usize = 12;
/// Where in the header stands over how many buffers the packet is spread.
const NUM_BUFFERS: usize = 10;
/// Most bytes of a packet with its header: 64 KiB that are cut later, and the Ethernet header.
const PACKET_BYTES: usize = 65_536 + 18 + HEADER_BYTES;
/// Most packets that come in during one turn.
const TURN_PACKETS: usize = 64;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;

/// A network card.
pub struct Net {
    tap: Tap,
    mac: [u8; 6],
    active: Option<Active>,
}

struct Active {
    memory: Memory,
    receive: Virtqueue,
    transmit: Virtqueue,
    interrupt: Interrupt,
    /// Whether the driver takes packets that are spread over several buffers.
    mergeable: bool,
    /// The packet that came in last, until the driver has taken it.
    packet: Box<[u8]>,
    pending: usize,
    /// The driver has no buffers for what is pending; the tap waits.
    starved: bool,
    /// The tap is gone.
    dead: bool,
}

impl Net {
    /// A card with hardware address `mac` on `tap`, which must be an interface of `/dev/net/tun`, opened with `O_NONBLOCK`
    /// and made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    pub fn new(tap: OwnedFd, mac: [u8; 6]) -> io::Result<Net> {
        Ok(Net { tap: Tap::new(tap)?, mac, active: None })
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        let offloads = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
        F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_MAC | F_MRG_RXBUF | offloads
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_space(&self.mac, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError> {
        let [receive, transmit] = super::queues(parts.queues)?;
        let has = |feature: u64| parts.features & feature != 0;
        let csum = has(F_GUEST_CSUM);
        // A packet that is cut later has its checksum filled in later, too (5.1.3.1).
        self.tap
            .set_offloads(csum, csum && has(F_GUEST_TSO4), csum && has(F_GUEST_TSO6))
            .map_err(|source| ActivateError::Host { doing: "set what the tap leaves to the guest", source })?;
        self.active = Some(Active {
            memory: parts.memory,
            receive: Virtqueue::new(receive),
            transmit: Virtqueue::new(transmit),
            interrupt: parts.interrupt,
            mergeable: has(F_MRG_RXBUF),
            packet: vec![0; PACKET_BYTES].into_boxed_slice(),
            pending: 0,
            starved: false,
            dead: false,
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn notified(&mut self, queue: usize) -> Progress {
        let Some(active) = &mut self.active else { return Progress::Done };
        let progress = if queue == RECEIVE { active.receive(&self.tap) } else { active.transmit(&self.tap) };
        progress.unwrap_or_else(|error| active.interrupt.give_up(KIND, &error))
    }

    fn watched(&self) -> Vec<Watched> {
        let hungry = self.active.as_ref().filter(|active| !active.starved && !active.dead);
        hungry.map(|_| Watched { fd: self.tap.as_raw_fd(), token: 0, read: true, write: false }).into_iter().collect()
    }

    fn ready(&mut self, _token: u32, events: EventSet) -> bool {
        let Some(active) = &mut self.active else { return true };
        if !events.contains(EventSet::IN) {
            // An error without anything to read: the interface was removed. The event would come for ever.
            active.dead = true;
        } else if let Err(error) = active.receive(&self.tap) {
            active.interrupt.give_up(KIND, &error);
        }
        active.starved || active.dead
    }

    fn queues(&self) -> Vec<QueueState> {
        self.active.iter().flat_map(|active| [active.receive.state(), active.transmit.state()]).collect()
    }

    fn save(&self) -> Vec<u8> {
        // A packet that is pending is lost, as packets are.
        super::encode(&self.mac)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        // The guest knows the address that it had.
        self.mac = postcard::from_bytes(state)?;
        Ok(())
    }
}

impl Active {
    /// Takes packets from the tap until it has none, the driver has no space, or the turn is over; then the tap is still
    /// ready, and the loop comes back.
    fn receive(&mut self, tap: &Tap) -> Result<Progress, QueueError> {
        for _ in 0..TURN_PACKETS {
            if self.pending == 0 {
                self.pending = match tap.read(&mut self.packet) {
                    Ok(bytes) if bytes >= HEADER_BYTES => bytes,
                    Ok(_) => break,
                    Err(error) => {
                        self.dead |= !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                        break;
                    }
                };
            }
            if !self.deliver()? {
                break;
            }
            self.pending = 0;
        }
        self.receive.signal(&self.memory, &self.interrupt)?;
        Ok(Progress::Done)
    }

    /// Gives the pending packet to the driver or, if it can never take it, to nobody. `false` if there are no buffers.
    fn deliver(&mut self) -> Result<bool, QueueError> {
        let Some(chains) = self.buffers()? else {
            return Ok(false);
        };
        let count = chains.len() as u16;
        self.packet[NUM_BUFFERS..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
        let mut rest = &self.packet[..self.pending];
        for mut chain in chains {
            let space = buffers::total(&chain.writable).min(rest.len() as u64);
            let (now, later) = rest.split_at(space as usize);
            buffers::take_front(&mut chain.writable, space)
                .and_then(|segments| buffers::write(&self.memory, &segments, now))
                .ok_or(QueueError::Chain(chain.head))?;
            self.receive.push(&self.memory, chain.head, now.len() as u32)?;
            rest = later;
        }
        Ok(true)
    }

    /// Buffers for the pending packet: one, or several if the driver can merge them. None, and all are left to the driver,
    /// if it has not enough yet; it will notify.
    fn buffers(&mut self) -> Result<Option<Vec<Chain>>, QueueError> {
        loop {
            let mut chains: Vec<Chain> = Vec::new();
            let mut space = 0;
            while space < self.pending as u64 && (chains.is_empty() || self.mergeable) {
                let Some(chain) = self.receive.pop(&self.memory)? else { break };
                space += buffers::total(&chain.writable);
                chains.push(chain);
            }
            if space >= self.pending as u64 {
                self.starved = false;
                self.receive.mute(&self.memory)?;
                return Ok(Some(chains));
            }
            let heads = chains.len();
            let head = chains.first().map_or(0, |chain| chain.head);
            if heads > 0 && !self.mergeable || heads >= usize::from(self.receive.size()) {
                // All that the driver can offer at once is too small: it breaks the rules (5.1.6.3.1).
                return Err(QueueError::Chain(head));
            }
            chains.iter().for_each(|_| self.receive.undo_pop());
            self.starved = true;
            self.receive.unmute(&self.memory)?;
            if !self.receive.has_more_than(&self.memory, heads)? {
                return Ok(None);
            }
        }
    }

    fn transmit(&mut self, tap: &Tap) -> Result<Progress, QueueError> {
        self.transmit.mute(&self.memory)?;
        let mut pieces = Vec::new();
        for _ in 0..self.transmit.size() {
            let Some(chain) = self.transmit.pop(&self.memory)? else { break };
            let bytes = buffers::total(&chain.readable);
            pieces.clear();
            buffers::host(&self.memory, &chain.readable, &mut pieces).ok_or(QueueError::Chain(chain.head))?;
            if bytes >= HEADER_BYTES as u64 && bytes <= PACKET_BYTES as u64 {
                tap.write(&pieces);
            }
            self.transmit.push(&self.memory, chain.head, 0)?;
        }
        let more = self.transmit.unmute(&self.memory)?;
        self.transmit.signal(&self.memory, &self.interrupt)?;
        Ok(if more { Progress::More } else { Progress::Done })
    }
}

#[cfg(test)]
mod tests;
