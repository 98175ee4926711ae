//! Any register accesses in any order, with the device thread's turns and snapshots in between: no panic, and a state that
//! was saved can be restored.

#![no_main]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::bus::BusDevice;
use vmm::devices::virtio::entropy::Entropy;
use vmm::devices::virtio::mmio::Transport;
use vmm::event_loop::EventLoop;
use vmm::memory::Memory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 0x8000;

fn irq() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

fn events(transport: &Transport) -> EventLoop {
    let mut events = EventLoop::new().expect("an epoll instance");
    events.add(Box::new(transport.worker().expect("an epoll instance")));
    events
}

fuzz_target!(|input: (Vec<(u8, u16, u32)>, &[u8])| {
    let (steps, contents) = input;
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("a small mapping");
    memory.write_slice(&contents[..contents.len().min(MEMORY)], GuestAddress(0)).expect("fits");
    let device = Arc::new(Mutex::new(Entropy::new()));
    let mut transport = Transport::new(device, memory.clone(), irq(), Vec::new()).expect("eventfds");
    let mut thread = events(&transport);
    for (kind, offset, value) in steps.into_iter().take(200) {
        let bytes = value.to_le_bytes();
        match kind % 16 {
            0 => transport.read(u64::from(offset), &mut [0; 8][..usize::from(kind / 32)]),
            1 => transport.write(u64::from(offset), &bytes[..usize::from(kind / 64)]),
            2 => {
                let turns =
                    (0..1000).take_while(|_| thread.turn(Some(Duration::ZERO)).expect("epoll works") > 0).count();
                assert!(turns < 1000, "the device thread does not come to rest");
            }
            3 => {
                let state = transport.save();
                let device = Arc::new(Mutex::new(Entropy::new()));
                transport = Transport::restore(&state, device, memory.clone(), irq(), Vec::new()).expect("what it saved itself");
                thread = events(&transport);
            }
            // An honest driver's steps, so that the fuzzer need not find them all.
            4 => transport.write(0x70, &[[0, 1, 3, 11, 15][usize::from(offset) % 5], 0, 0, 0]),
            5 => {
                transport.write(0x24, &1u32.to_le_bytes());
                transport.write(0x20, &1u32.to_le_bytes());
            }
            _ => transport.write(u64::from(offset) % 0x100 / 4 * 4, &bytes),
        }
    }
});
