//! Any bytes as rings, descriptors and requests of a disk: it answers or asks for a reset, and its file keeps its length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::virtio::block::Block;
use vmm::devices::virtio::{Activation, Interrupt, QueueState, VirtioDevice};
use vmm::memory::Memory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 0x1_0000;
const DISK: u64 = 8 * 512;

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (available, read_only, contents) = input;
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("a small mapping");
    let contents = &contents[..contents.len().min(MEMORY)];
    memory.write_slice(contents, GuestAddress(0)).expect("fits");
    // Whatever the ring says, there is something to look at.
    memory.write_obj(available % 18, GuestAddress(0x102)).expect("fits");

    let file = tempfile::tempfile().expect("a file");
    file.set_len(DISK).expect("a length");
    let mut block = Block::new(file.try_clone().expect("a descriptor"), read_only).expect("whole sectors");
    let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let state =
        QueueState { size: 16, ready: true, descriptors: 0, available: 0x100, used: 0x200, ..QueueState::default() };
    let queue = state.build(256, block.features(), &memory).expect("lies in memory");
    let features = block.features();
    let parts = Activation { memory, queues: vec![queue], interrupt: interrupt.clone(), features };
    block.activate(parts).expect("one queue is all it needs");
    for _ in 0..3 {
        if !interrupt.is_broken() {
            block.notified(0);
        }
    }
    let saved = block.save();
    block.reset();
    block.restore(&saved).expect("what it saved itself");
    let _ = block.restore(contents);
    assert_eq!(file.metadata().expect("metadata").len(), DISK);
});
