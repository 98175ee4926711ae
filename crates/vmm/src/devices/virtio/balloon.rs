//! The balloon (5.5): memory that the guest does not use goes back to the host, by order of the host (inflating) or
//! because the guest has none for it (free page reporting).
//!
//! Without statistics, without hints, and without poison: a page that was given back may read as anything, and a guest
//! that could not bear that does not take the reporting feature (5.5.6.7).

mod release;

use serde::{Deserialize, Serialize};

use super::queue::{Chain, QueueError, Virtqueue};
use super::{
    ActivateError, Activation, EventSet, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt, Progress, QueueState,
    StateError, VirtioDevice, Watched, buffers,
};
use crate::memory::Memory;

/// Device type of a balloon.
const KIND: u32 = 5;
/// Feature: the guest may take pages back when it would run out of memory otherwise.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Feature: the guest reports free pages.
const F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, report. The numbers of queues that are left out, statistics and hints, are not skipped by drivers.
/// A Linux driver reports only if that queue has at least 32 descriptors.
const QUEUE_SIZES: [u16; 3] = [16, 16, 32];
const INFLATE: usize = 0;
const REPORT: usize = 2;

/// Bytes in a page of the balloon, whatever the guest's pages are.
pub const PAGE: u64 = 4096;
/// Most pages of one request; a Linux driver sends 256.
const REQUEST_PAGES: u64 = 4096;

/// A balloon.
#[derive(Default)]
pub struct Balloon {
    pages: Pages,
    active: Option<Active>,
}

/// How large it is, in pages of [`PAGE`] bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pages {
    /// As the host wants it.
    target: u32,
    /// As the guest says that it is.
    actual: u32,
}

struct Active {
    memory: Memory,
    queues: Vec<Virtqueue>,
    interrupt: Interrupt,
}

impl Balloon {
    /// An empty balloon.
    pub fn new() -> Balloon {
        Balloon::default()
    }

    /// Asks the guest to give `pages` pages in all to the balloon. It does so when it likes, as far as it can.
    pub fn set_target(&mut self, pages: u32) {
        self.pages.target = pages;
        if let Some(active) = &self.active {
            active.interrupt.config();
        }
    }

    /// The number of pages in the balloon, as the guest says.
    pub fn actual(&self) -> u32 {
        self.pages.actual
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 16];
        space[..4].copy_from_slice(&self.pages.target.to_le_bytes());
        space[4..8].copy_from_slice(&self.pages.actual.to_le_bytes());
        super::read_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.pages.actual = u32::from_le_bytes(actual);
        }
    }

    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError> {
        let queues = parts.queues.into_iter().map(Virtqueue::new).collect();
        self.active = Some(Active { memory: parts.memory, queues, interrupt: parts.interrupt });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.pages.actual = 0;
    }

    fn notified(&mut self, queue: usize) -> Progress {
        let Some(active) = &mut self.active else { return Progress::Done };
        active.serve(queue).unwrap_or_else(|error| active.interrupt.give_up(KIND, &error))
    }

    fn watched(&self) -> Vec<Watched> {
        Vec::new()
    }

    fn ready(&mut self, _token: u32, _events: EventSet) -> bool {
        false
    }

    fn queues(&self) -> Vec<QueueState> {
        self.active.iter().flat_map(|active| active.queues.iter().map(Virtqueue::state)).collect()
    }

    fn save(&self) -> Vec<u8> {
        super::encode(&self.pages)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.pages = postcard::from_bytes(state)?;
        Ok(())
    }
}

impl Active {
    fn serve(&mut self, index: usize) -> Result<Progress, QueueError> {
        let Some(queue) = self.queues.get_mut(index) else { return Ok(Progress::Done) };
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop(&self.memory)? else { break };
            let done = match index {
                INFLATE => inflate(&self.memory, &chain),
                REPORT => report(&self.memory, &chain),
                // Pages taken back come by themselves when they are touched.
                _ => Some(()),
            };
            done.ok_or(QueueError::Chain(chain.head))?;
            queue.push(&self.memory, chain.head, 0)?;
        }
        let more = queue.unmute(&self.memory)?;
        queue.signal(&self.memory, &self.interrupt)?;
        Ok(if more { Progress::More } else { Progress::Done })
    }
}

/// Releases the pages whose numbers the driver has written. `None` if it names pages that do not exist.
fn inflate(memory: &Memory, chain: &Chain) -> Option<()> {
    let bytes = buffers::total(&chain.readable);
    if bytes > REQUEST_PAGES * 4 || !bytes.is_multiple_of(4) {
        return None;
    }
    let mut numbers = vec![0; bytes as usize];
    buffers::read(memory, &chain.readable, &mut numbers)?;
    let mut pages: Vec<u64> = numbers
        .chunks_exact(4)
        .map(|number| u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]])))
        .collect();
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|page, next| page + 1 == *next) {
        release::release(memory, run[0] * PAGE, run.len() as u64 * PAGE)?;
    }
    Some(())
}

/// Releases the buffers themselves: that is how free pages are reported.
fn report(memory: &Memory, chain: &Chain) -> Option<()> {
    chain.writable.iter().try_for_each(|segment| release::release(memory, segment.address.0, u64::from(segment.len)))
}

#[cfg(test)]
mod tests;
