//! The transport as a driver sees it, with the device thread turned by hand.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::virtio::queue::Virtqueue;
use crate::devices::virtio::testing::{self, Driver};
use crate::devices::virtio::{ActivateError, EventSet, F_EVENT_IDX, F_VERSION_1, Progress, QueueState, Watched};
use crate::event_loop::EventLoop;

const KIND: u32 = 42;
const SIZES: [u16; 2] = [16, 8];
const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | 1;

/// A device that gives every chain back at once and counts what is done to it.
struct Echo {
    active: Option<(Memory, Vec<Virtqueue>, Interrupt)>,
    refuses: bool,
    /// One end of a pair, and what it is called.
    watched: Option<(UnixStream, u32)>,
    /// The other end.
    peer: Option<UnixStream>,
    woken: Vec<u32>,
    resets: usize,
    config: [u8; 8],
    note: u32,
}

impl Echo {
    fn new() -> Arc<Mutex<Echo>> {
        let config = *b"settings";
        let echo = Echo {
            active: None,
            refuses: false,
            watched: None,
            peer: None,
            woken: Vec::new(),
            resets: 0,
            config,
            note: 7,
        };
        Arc::new(Mutex::new(echo))
    }

    fn watch(&mut self, token: u32) {
        let (own, peer) = UnixStream::pair().unwrap();
        self.watched = Some((own, token));
        self.peer = Some(peer);
    }

    fn wake(&mut self) {
        self.peer.as_mut().unwrap().write_all(b"!").unwrap();
    }
}

impl VirtioDevice for Echo {
    fn kind(&self) -> u32 {
        KIND
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::devices::virtio::read_space(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(config)) = (offset, data.try_into()) {
            self.config = config;
        }
    }
    fn activate(&mut self, parts: Activation) -> Result<(), ActivateError> {
        assert!(self.active.is_none());
        if self.refuses {
            return Err(ActivateError::QueueMissing(0));
        }
        let queues = parts.queues.into_iter().map(Virtqueue::new).collect();
        self.active = Some((parts.memory, queues, parts.interrupt));
        Ok(())
    }
    fn reset(&mut self) {
        self.active = None;
        self.watched = None;
        self.resets += 1;
    }
    fn notified(&mut self, queue: usize) -> Progress {
        let (memory, queues, interrupt) = self.active.as_mut().unwrap();
        match queues[queue].pop(memory) {
            Ok(Some(chain)) => {
                queues[queue].push(memory, chain.head, 0).unwrap();
                queues[queue].signal(memory, interrupt).unwrap();
                Progress::More
            }
            Ok(None) => Progress::Done,
            Err(error) => interrupt.give_up(KIND, &error),
        }
    }
    fn watched(&self) -> Vec<Watched> {
        use std::os::fd::AsRawFd;
        let watched =
            |(fd, token): &(UnixStream, u32)| Watched { fd: fd.as_raw_fd(), token: *token, read: true, write: false };
        self.watched.iter().map(watched).collect()
    }
    fn ready(&mut self, token: u32, _events: EventSet) -> bool {
        self.woken.push(token);
        // Another one takes its place, most likely under the same number.
        self.watched = None;
        self.watch(token + 1);
        true
    }
    fn queues(&self) -> Vec<QueueState> {
        self.active.iter().flat_map(|(_, queues, _)| queues.iter().map(Virtqueue::state)).collect()
    }
    fn save(&self) -> Vec<u8> {
        self.note.to_le_bytes().to_vec()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let state = state.try_into().map_err(|_| StateError::Mismatch("length"))?;
        self.note = u32::from_le_bytes(state);
        Ok(())
    }
}

struct Machine {
    echo: Arc<Mutex<Echo>>,
    transport: Transport,
    events: EventLoop,
    irq: EventFd,
    drivers: [Driver; 2],
}

fn drivers(memory: &Memory) -> [Driver; 2] {
    [Driver::new(memory, 0, SIZES[0]), Driver::new(memory, 0x4000, SIZES[1])]
}

impl Machine {
    fn new() -> Machine {
        let memory = testing::memory(0x1_0000);
        let echo = Echo::new();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = Transport::new(echo.clone(), memory.clone(), irq.try_clone().unwrap(), Vec::new()).unwrap();
        Machine::with(echo, transport, irq, drivers(&memory))
    }

    fn with(echo: Arc<Mutex<Echo>>, transport: Transport, irq: EventFd, drivers: [Driver; 2]) -> Machine {
        let mut events = EventLoop::new().unwrap();
        events.add(Box::new(transport.worker().unwrap()));
        Machine { echo, transport, events, irq, drivers }
    }

    /// The same machine after a snapshot and a restore.
    fn restored(self) -> Result<Machine, RestoreError> {
        let bytes = postcard::to_stdvec(&self.transport.save()).unwrap();
        let state: TransportState = postcard::from_bytes(&bytes).unwrap();
        let echo = Echo::new();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = self.drivers[0].memory.clone();
        let transport = Transport::restore(&state, echo.clone(), memory, irq.try_clone().unwrap(), Vec::new())?;
        assert_eq!(transport.save().registers, state.registers);
        Ok(Machine::with(echo, transport, irq, self.drivers))
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Turns the device thread until nothing is left to do.
    fn settle(&mut self) {
        let turns = (0..1000).take_while(|_| self.events.turn(Some(Duration::ZERO)).unwrap() > 0).count();
        assert!(turns < 1000, "the device thread does not come to rest");
    }

    fn negotiate(&mut self, features: u64) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        for half in [0, 1] {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
    }

    fn set_up(&mut self, queue: u32, state: QueueState) {
        self.write(0x30, queue);
        self.write(0x38, u32::from(state.size));
        for (offset, address) in [(0x80, state.descriptors), (0x90, state.available), (0xa0, state.used)] {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    fn start(&mut self) {
        self.negotiate(FEATURES);
        for queue in 0..2 {
            self.set_up(queue, self.drivers[queue as usize].state());
        }
        self.write(0x70, 15);
    }

    fn is_active(&self) -> bool {
        lock(&self.echo).active.is_some()
    }
}

#[test]
fn a_driver_finds_the_device() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(0x00), 0x7472_6976);
    assert_eq!(machine.read(0x04), 2);
    assert_eq!(machine.read(0x08), KIND);
    assert_eq!(machine.read(0x10), FEATURES as u32);
    machine.write(0x14, 1);
    assert_eq!(machine.read(0x10), (FEATURES >> 32) as u32);
    machine.write(0x14, 2);
    assert_eq!(machine.read(0x10), 0);
    for (queue, max) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        machine.write(0x30, queue);
        assert_eq!((machine.read(0x34), machine.read(0x44)), (max, 0));
    }
    assert_eq!((machine.read(0xb0), machine.read(0xb4)), (u32::MAX, u32::MAX));
    // A register is read whole; the configuration byte by byte if one likes.
    let mut byte = [0xaa];
    machine.transport.read(0, &mut byte);
    assert_eq!(byte, [0]);
    machine.transport.read(0x103, &mut byte);
    assert_eq!(&byte, b"t");
    let mut eight = [0; 8];
    machine.transport.write(0x100, b"SETTINGS");
    machine.transport.read(0x100, &mut eight);
    assert_eq!(&eight, b"SETTINGS");
}

#[test]
fn features_must_be_offered_and_the_version_taken() {
    for (features, accepted) in
        [(FEATURES, true), (F_VERSION_1, true), (1, false), (0, false), (FEATURES | 2, false), (u64::MAX, false)]
    {
        let mut machine = Machine::new();
        machine.negotiate(features);
        assert_eq!(machine.read(0x70), if accepted { 11 } else { 3 }, "{features:#x}");
        // Once taken they stay.
        machine.write(0x24, 0);
        machine.write(0x20, 0);
        assert_eq!(machine.transport.registers.accepted == features, accepted || features == 0);
    }
}

#[test]
fn the_status_only_grows_and_in_order() {
    let mut machine = Machine::new();
    for early in [2, 4, 8, 12] {
        machine.write(0x70, early);
        assert_eq!(machine.read(0x70), 0);
    }
    machine.write(0x70, 1);
    machine.write(0x70, 2);
    assert_eq!(machine.read(0x70), 3);
    machine.write(0x70, 4);
    assert_eq!(machine.read(0x70), 3);
    machine.write(0x70, 128);
    machine.write(0x70, 64);
    machine.write(0x70, 15);
    assert_eq!(machine.read(0x70), 131);
    machine.write(0x70, 0);
    assert_eq!(machine.read(0x70), 0);
}

#[test]
fn queues_are_set_up_only_when_it_is_time() {
    let mut machine = Machine::new();
    let state = machine.drivers[0].state();
    machine.set_up(0, state);
    assert_eq!(machine.read(0x44), 0);
    machine.negotiate(FEATURES);
    machine.set_up(0, state);
    assert_eq!(machine.read(0x44), 1);
    // Ready is ready.
    machine.write(0x80, 0x7777_0000);
    machine.write(0x70, 15);
    machine.write(0x44, 0);
    assert_eq!(machine.read(0x44), 1);
    machine.settle();
    assert!(machine.is_active());
    assert_eq!(lock(&machine.echo).queues()[0], state);
    assert!(!lock(&machine.echo).queues()[1].ready);
}

#[test]
fn a_driver_is_served() {
    let mut machine = Machine::new();
    machine.start();
    assert!(!machine.is_active());
    machine.settle();
    assert!(machine.is_active());
    for queue in 0..2u32 {
        let head = machine.drivers[queue as usize].submit(&[(0x8000, 16, true)]);
        machine.drivers[queue as usize].submit(&[(0x8000, 16, true)]);
        machine.transport.notifiers()[queue as usize].write(1).unwrap();
        machine.settle();
        assert_eq!(machine.drivers[queue as usize].used(), Some((head, 0)));
        assert!(machine.drivers[queue as usize].used().is_some());
        assert_eq!(machine.irq.read().unwrap(), 1);
        assert_eq!(machine.read(0x60), 1);
        machine.write(0x64, 1);
        assert_eq!(machine.read(0x60), 0);
    }
    // Without an ioeventfd the register does the same.
    machine.drivers[0].submit(&[(0x8000, 16, true)]);
    machine.write(0x50, 0);
    machine.write(0x50, 2);
    machine.settle();
    assert!(machine.drivers[0].used().is_some());
}

#[test]
fn what_was_made_available_before_the_start_is_found() {
    let mut machine = Machine::new();
    machine.drivers[1].submit(&[(0x8000, 16, true)]);
    machine.transport.notifiers()[1].write(1).unwrap();
    machine.settle();
    machine.start();
    machine.settle();
    assert!(machine.drivers[1].used().is_some());
}

#[test]
fn a_queue_that_cannot_be_needs_a_reset() {
    let good = Driver::new(&testing::memory(0x1_0000), 0, 16).state();
    let wrongs = [
        QueueState { size: 17, ..good },
        QueueState { size: 32, ..good },
        QueueState { size: 0, ..good },
        QueueState { descriptors: 8, ..good },
        QueueState { available: 1, ..good },
        QueueState { used: 2, ..good },
        QueueState { descriptors: 0xfff0, ..good },
        QueueState { available: u64::MAX - 1, ..good },
        QueueState { used: 0xffff_ffff_ffff_fffc, ..good },
    ];
    for wrong in wrongs {
        let mut machine = Machine::new();
        machine.negotiate(FEATURES);
        machine.set_up(0, wrong);
        machine.write(0x70, 15);
        machine.settle();
        assert!(!machine.is_active(), "{wrong:?}");
        assert_eq!(machine.read(0x70), 15 | 64);
        assert_eq!(machine.read(0x60), 2);
        machine.write(0x70, 0);
        assert_eq!((machine.read(0x70), machine.read(0x60)), (0, 0));
        machine.start();
        machine.settle();
        assert!(machine.is_active());
    }
}

#[test]
fn a_broken_queue_is_not_served_until_reset() {
    let mut machine = Machine::new();
    machine.start();
    machine.settle();
    machine.drivers[0].set_available(17);
    machine.transport.notifiers()[0].write(1).unwrap();
    machine.settle();
    assert_eq!(machine.read(0x70), 15 | 64);
    machine.drivers[1].submit(&[(0x8000, 16, true)]);
    machine.transport.notifiers()[1].write(1).unwrap();
    machine.settle();
    assert_eq!(machine.drivers[1].used(), None);

    // A snapshot of it is as broken.
    let mut machine = machine.restored().unwrap();
    machine.settle();
    assert_eq!(machine.read(0x70), 15 | 64);
    assert!(!machine.is_active());
    machine.write(0x70, 0);
    let memory = testing::memory(0x1_0000);
    machine.transport.memory = memory.clone();
    machine.drivers = drivers(&memory);
    machine.start();
    machine.settle();
    assert!(machine.is_active());
}

#[test]
fn an_activation_that_fails_needs_a_reset() {
    let mut machine = Machine::new();
    lock(&machine.echo).refuses = true;
    machine.start();
    machine.settle();
    assert_eq!(machine.read(0x70), 15 | 64);
    lock(&machine.echo).refuses = false;
    machine.write(0x70, 0);
    machine.start();
    machine.settle();
    assert!(machine.is_active());
}

#[test]
fn a_reset_reaches_the_device_before_the_next_start() {
    let mut machine = Machine::new();
    machine.start();
    machine.settle();
    // The driver is quicker than the device thread.
    machine.write(0x70, 0);
    assert_eq!((machine.read(0x44), machine.read(0x70)), (0, 0));
    machine.start();
    machine.write(0x70, 0);
    machine.start();
    assert_eq!(lock(&machine.echo).resets, 0);
    machine.settle();
    assert!(machine.is_active());
    assert_eq!(lock(&machine.echo).resets, 1);
    // And one that never came to the device leaves it alone.
    let mut machine = Machine::new();
    machine.start();
    machine.write(0x70, 0);
    machine.settle();
    assert!(!machine.is_active());
    assert_eq!(lock(&machine.echo).resets, 0);
}

#[test]
fn after_a_reset_the_memory_is_left_alone() {
    let mut machine = Machine::new();
    machine.start();
    machine.settle();
    machine.drivers[0].submit(&[(0x8000, 16, true)]);
    machine.write(0x70, 0);
    machine.transport.notifiers()[0].write(1).unwrap();
    machine.settle();
    assert_eq!(machine.drivers[0].used(), None);
}

#[test]
fn a_device_s_own_descriptors_are_watched_while_it_is_active() {
    let mut machine = Machine::new();
    lock(&machine.echo).watch(1);
    lock(&machine.echo).wake();
    machine.transport.poke();
    machine.settle();
    assert_eq!(lock(&machine.echo).woken, [] as [u32; 0]);

    machine.start();
    machine.settle();
    assert_eq!(lock(&machine.echo).woken, [1]);
    // The one that took its place, closed and opened by the device itself.
    lock(&machine.echo).wake();
    machine.settle();
    assert_eq!(lock(&machine.echo).woken, [1, 2]);

    lock(&machine.echo).wake();
    machine.write(0x70, 0);
    machine.settle();
    assert_eq!(lock(&machine.echo).woken, [1, 2]);
}

#[test]
fn the_configuration_has_a_generation() {
    let mut machine = Machine::new();
    let before = machine.read(0xfc);
    machine.transport.interrupt().config();
    assert_ne!(machine.read(0xfc), before);
    assert_eq!(machine.read(0x60), 2);
    assert_eq!(machine.irq.read().unwrap(), 1);
}

#[test]
fn a_restored_device_goes_on_where_it_was() {
    let mut machine = Machine::new();
    machine.start();
    machine.settle();
    for _ in 0..5 {
        machine.drivers[0].submit(&[(0x8000, 16, true)]);
    }
    machine.transport.notifiers()[0].write(1).unwrap();
    machine.settle();
    // This one the device has not heard of when the snapshot is taken.
    machine.drivers[0].submit(&[(0x8000, 16, true)]);
    lock(&machine.echo).note = 99;
    machine.irq.read().unwrap();

    let mut machine = machine.restored().unwrap();
    assert_eq!(lock(&machine.echo).note, 99);
    assert_eq!(machine.read(0x70), 15);
    // An interrupt that was pending is raised again.
    assert_eq!((machine.read(0x60), machine.irq.read().unwrap()), (1, 1));
    machine.settle();
    assert_eq!(std::iter::from_fn(|| machine.drivers[0].used()).count(), 6);
    machine.drivers[0].submit(&[(0x8000, 16, true)]);
    machine.transport.notifiers()[0].write(1).unwrap();
    machine.settle();
    assert_eq!(std::iter::from_fn(|| machine.drivers[0].used()).count(), 1);
}

#[test]
fn a_device_can_be_restored_before_its_driver_is_ready() {
    let mut machine = Machine::new();
    machine.negotiate(F_VERSION_1);
    machine.set_up(0, machine.drivers[0].state());
    let mut machine = machine.restored().unwrap();
    machine.settle();
    assert!(!machine.is_active());
    machine.write(0x70, 15);
    machine.settle();
    assert!(machine.is_active());
    assert_eq!(machine.transport.save().registers.accepted, F_VERSION_1);

    // Ready, but the device thread has not noticed.
    let mut machine = Machine::new();
    machine.start();
    let mut machine = machine.restored().unwrap();
    machine.settle();
    assert!(machine.is_active());
}

#[test]
fn a_forged_state_is_refused() {
    let mut machine = Machine::new();
    machine.start();
    machine.settle();
    let good = machine.transport.save();
    let forge = |change: &dyn Fn(&mut TransportState)| {
        let mut state = good.clone();
        change(&mut state);
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        Transport::restore(&state, Echo::new(), testing::memory(0x1_0000), irq, Vec::new()).err()
    };
    assert!(forge(&|_| {}).is_none());
    assert!(matches!(forge(&|state| state.kind = 1), Some(RestoreError::Kind { expected: KIND, found: 1 })));
    assert!(matches!(forge(&|state| state.device = vec![1]), Some(RestoreError::Device { .. })));
    let registers: [&dyn Fn(&mut TransportState); 6] = [
        &|state| state.registers.queues.clear(),
        &|state| state.registers.queues[0].size = 3,
        &|state| state.registers.queues[1].used = u64::MAX,
        &|state| state.registers.accepted = u64::MAX,
        &|state| state.registers.accepted = 0,
        &|state| state.registers.kind = 1,
    ];
    for (number, change) in registers.iter().enumerate() {
        assert!(matches!(forge(change), Some(RestoreError::Registers(KIND))), "{number}");
    }
}

#[test]
fn a_start_on_a_vcpu_s_thread_wakes_the_device_thread() {
    let mut machine = Machine::new();
    let turns = Arc::new(AtomicUsize::new(0));
    let mut events = std::mem::replace(&mut machine.events, EventLoop::new().unwrap());
    let (echo, counted) = (machine.echo.clone(), turns.clone());
    let device_thread = std::thread::spawn(move || {
        while lock(&echo).active.is_none() {
            assert!(events.turn(Some(Duration::from_secs(20))).unwrap() > 0, "nobody woke the device thread");
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    machine.start();
    device_thread.join().unwrap();
    assert!(turns.load(Ordering::SeqCst) > 0);
}

#[derive(Debug, Clone)]
enum Step {
    Write { offset: u64, value: u32 },
    Bytes { offset: u64, data: Vec<u8> },
    Read { offset: u64, len: usize },
    Settle,
    Snapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = prop_oneof![8 => (0u64..0x40).prop_map(|word| word * 4), 1 => 0u64..0x1000];
    let value = prop_oneof![3 => 0u32..20, 2 => prop::sample::select(vec![0x4000, 0x2000, 0x3000, 64, 128, 0x2000_0001]), 1 => any::<u32>()];
    // What an honest driver does, too, so that all of the machine is reached.
    let status = prop::sample::select(vec![0u32, 1, 3, 11, 15, 15, 15]);
    let step = prop_oneof![
        8 => (offset.clone(), value).prop_map(|(offset, value)| Step::Write { offset, value }),
        6 => status.prop_map(|value| Step::Write { offset: 0x70, value }),
        3 => Just(Step::Write { offset: 0x24, value: 1 }),
        3 => Just(Step::Write { offset: 0x20, value: 1 }),
        1 => (offset.clone(), prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(offset, data)| Step::Bytes { offset, data }),
        2 => (offset, 0usize..9).prop_map(|(offset, len)| Step::Read { offset, len }),
        3 => Just(Step::Settle),
        1 => Just(Step::Snapshot),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// Any writes in any order: no panic, a device that is active only under a driver that is ready, and a state that can
    /// always be restored.
    #[test]
    fn any_driver_is_survived(steps in steps(), memory in prop::collection::vec(any::<u8>(), 0..0x100)) {
        let mut machine = Machine::new();
        testing::put(&machine.drivers[0].memory, 0x2000, &memory);
        for step in steps {
            match step {
                Step::Write { offset, value } => machine.write(offset, value),
                Step::Bytes { offset, data } => machine.transport.write(offset, &data),
                Step::Read { offset, len } => machine.transport.read(offset, &mut vec![0; len]),
                Step::Settle => {
                    machine.settle();
                    let status = machine.read(0x70);
                    if status & (4 | 64) == 4 {
                        prop_assert!(machine.is_active());
                    } else if status & 4 == 0 {
                        prop_assert!(!machine.is_active());
                    }
                }
                Step::Snapshot => machine = machine.restored().map_err(|error| TestCaseError::fail(error.to_string()))?,
            }
        }
        let status = machine.read(0x70);
        prop_assert!(status & 8 == 0 || machine.transport.registers.accepted & F_VERSION_1 != 0);
    }
}
