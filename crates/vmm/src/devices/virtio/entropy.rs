//! The entropy device (5.4): random bytes from the host's kernel.

use rustix::rand::{GetRandomFlags, getrandom};

use super::queue::{QueueError, Virtqueue};
use super::{
    ActivateError, Activation, EventSet, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt, Progress, QueueState,
    StateError, VirtioDevice, Watched, buffers,
};
use crate::memory::Memory;

/// Device type of an entropy source.
const KIND: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [8];
/// Most bytes that one request gets. A kernel asks for 64 at a time; whoever asks for more gets a part.
const REQUEST_BYTES: usize = 256;

/// A source of random bytes. It has no state: what it gives after a restore it never gave before.
#[derive(Default)]
pub struct Entropy {
    active: Option<Active>,
}

struct Active {
    memory: Memory,
    queue: Virtqueue,
    interrupt: Interrupt,
}

impl Entropy {
    /// A source.
    pub fn new() -> Entropy {
        Entropy::default()
    }
}

impl VirtioDevice for Entropy {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError> {
        let [queue] = super::queues(parts.queues)?;
        self.active = Some(Active { memory: parts.memory, queue: Virtqueue::new(queue), interrupt: parts.interrupt });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn notified(&mut self, _queue: usize) -> Progress {
        let Some(active) = &mut self.active else { return Progress::Done };
        active.serve().unwrap_or_else(|error| active.interrupt.give_up(KIND, &error))
    }

    fn watched(&self) -> Vec<Watched> {
        Vec::new()
    }

    fn ready(&mut self, _token: u32, _events: EventSet) -> bool {
        false
    }

    fn queues(&self) -> Vec<QueueState> {
        self.active.iter().map(|active| active.queue.state()).collect()
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.is_empty() { Ok(()) } else { Err(StateError::Mismatch("a source of entropy has no state")) }
    }
}

impl Active {
    fn serve(&mut self) -> Result<Progress, QueueError> {
        // As many requests as the queue holds; what is made available meanwhile has its turn later.
        for _ in 0..self.queue.size() {
            let Some(mut chain) = self.queue.pop(&self.memory)? else { break };
            let mut bytes = [0; REQUEST_BYTES];
            let len = buffers::total(&chain.writable).min(REQUEST_BYTES as u64);
            let bytes = &mut bytes[..len as usize];
            // Does not block: the host's generator was seeded before there were virtual machines on it. Should it fail, the
            // driver gets nothing and asks again.
            let filled = getrandom(&mut *bytes, GetRandomFlags::NONBLOCK).unwrap_or(0);
            let written = buffers::take_front(&mut chain.writable, filled as u64)
                .and_then(|segments| buffers::write(&self.memory, &segments, &bytes[..filled]));
            written.ok_or(QueueError::Chain(chain.head))?;
            self.queue.push(&self.memory, chain.head, filled as u32)?;
        }
        let more = self.queue.unmute(&self.memory)?;
        self.queue.signal(&self.memory, &self.interrupt)?;
        Ok(if more { Progress::More } else { Progress::Done })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::testing::{self, Driver, get, put};

    #[test]
    fn gives_what_is_asked_for_up_to_a_bound() {
        let mut entropy = Entropy::new();
        let mut driver = Driver::new(&testing::memory(0x2_0000), 0, 8);
        let (interrupt, _) = testing::activate(&mut entropy, &[&driver]);
        driver.submit(&[(0x8000, 40, true), (0x9000, 24, true)]);
        driver.submit(&[(0xa000, 0x4000, true)]);
        assert_eq!(entropy.notified(0), Progress::Done);
        assert_eq!(driver.used(), Some((0, 64)));
        assert_eq!(driver.used(), Some((2, 256)));
        assert_ne!(get(&driver.memory, 0x8000, 40), [0; 40]);
        assert_ne!(get(&driver.memory, 0x9000, 24), [0; 24]);
        assert_eq!(get(&driver.memory, 0xa100, 0x100), [0; 0x100]);
        assert_eq!(interrupt.status(), 1);

        entropy.reset();
        assert_eq!(entropy.queues(), []);
        assert_eq!(entropy.notified(0), Progress::Done);
        assert!(entropy.restore(&entropy.save()).is_ok());
        assert!(entropy.restore(&[1]).is_err());
    }

    #[test]
    fn a_buffer_outside_of_memory_breaks_the_device() {
        let mut entropy = Entropy::new();
        let mut driver = Driver::new(&testing::memory(0x1_0000), 0, 8);
        let (interrupt, _) = testing::activate(&mut entropy, &[&driver]);
        driver.submit(&[(0xfff0, 64, true)]);
        entropy.notified(0);
        assert!(interrupt.is_broken());
    }

    proptest! {
        #[test]
        fn hostile_memory_is_survived(contents in prop::collection::vec(any::<u8>(), 0..0x4000), ring in any::<u16>()) {
            let mut entropy = Entropy::new();
            let mut driver = Driver::new(&testing::memory(0x1_0000), 0, 8);
            let (interrupt, _) = testing::activate(&mut entropy, &[&driver]);
            put(&driver.memory, 0, &contents);
            driver.set_available(ring % 12);
            for _ in 0..3 {
                if !interrupt.is_broken() {
                    entropy.notified(0);
                }
            }
        }
    }
}
