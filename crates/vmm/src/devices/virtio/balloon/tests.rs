//! Balloons over memory of both kinds: shared files and private copies of them.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::*;
use crate::devices::virtio::testing::{self, Driver, get, put};

const BYTES: usize = 64 * 4096;
const LIST: u64 = 0x7000;

fn memfd() -> File {
    let file = File::from(memfd_create("balloon-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(BYTES as u64).unwrap();
    file
}

/// The file as the guest's memory in two regions with a gap between them: pages 0 to 31 and 64 to 95.
fn mapped(file: &File, flags: i32) -> Memory {
    let half = BYTES / 2;
    let region = |base: u64, offset: u64| {
        let mapping = MmapRegionBuilder::new(half)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .with_file_offset(FileOffset::new(file.try_clone().unwrap(), offset))
            .build()
            .unwrap();
        GuestRegionMmap::new(mapping, GuestAddress(base)).unwrap()
    };
    Memory::from_regions(vec![region(0, 0), region(BYTES as u64, half as u64)]).unwrap()
}

struct Machine {
    balloon: Balloon,
    drivers: [Driver; 3],
    interrupt: Interrupt,
    memory: Memory,
}

fn machine(memory: Memory) -> Machine {
    let mut balloon = Balloon::new();
    let drivers = [Driver::new(&memory, 0, 16), Driver::new(&memory, 0x4_0000, 16), Driver::new(&memory, 0x4_8000, 32)];
    let (interrupt, _) = testing::activate(&mut balloon, &[&drivers[0], &drivers[1], &drivers[2]]);
    Machine { balloon, drivers, interrupt, memory }
}

impl Machine {
    fn pages(&mut self, queue: usize, pages: &[u32]) {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        put(&self.memory, LIST, &list);
        self.drivers[queue].submit(&[(LIST, list.len() as u32, false)]);
        assert_eq!(self.balloon.notified(queue), Progress::Done);
    }
}

fn blocks(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512 / PAGE
}

#[test]
fn inflating_a_shared_file_punches_holes_into_it() {
    let file = memfd();
    let mut machine = machine(mapped(&file, libc::MAP_SHARED));
    for page in [16, 17, 18, 20, 64 + 20] {
        put(&machine.memory, page * PAGE, &[7; 4096]);
    }
    // Touches the rings and the list, and releases nothing.
    machine.pages(INFLATE, &[8]);
    assert!(machine.drivers[0].used().is_some());
    let before = blocks(&file);
    machine.pages(INFLATE, &[17, 16, 64 + 20]);
    assert!(machine.drivers[0].used().is_some());
    assert_eq!(blocks(&file), before - 3);
    assert_eq!(get(&machine.memory, 17 * PAGE, 4096), [0; 4096]);
    assert_eq!(get(&machine.memory, 18 * PAGE, 4096), [7; 4096]);
    assert_eq!(get(&machine.memory, (64 + 20) * PAGE, 4096), [0; 4096]);
    assert_eq!(machine.interrupt.status(), 1);

    machine.pages(1, &[16, 17]);
    assert!(machine.drivers[1].used().is_some());
    put(&machine.memory, 17 * PAGE, &[9; 4096]);
    assert_eq!(get(&machine.memory, 17 * PAGE, 4096), [9; 4096]);
}

#[test]
fn inflating_a_private_copy_leaves_the_file_alone() {
    let file = memfd();
    file.write_all_at(&[5; 4096], 16 * PAGE).unwrap();
    let mut machine = machine(mapped(&file, libc::MAP_PRIVATE));
    put(&machine.memory, 16 * PAGE, &[7; 4096]);
    machine.pages(INFLATE, &[16]);
    // The copy is gone; what shows is the file's page, which the guest had before.
    assert_eq!(get(&machine.memory, 16 * PAGE, 4096), [5; 4096]);
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 16 * PAGE).unwrap();
    assert_eq!(page, [5; 4096]);
}

#[test]
fn reported_pages_are_released_as_far_as_they_are_whole() {
    let file = memfd();
    let mut machine = machine(mapped(&file, libc::MAP_SHARED));
    for page in 16..24 {
        put(&machine.memory, page * PAGE, &[7; 4096]);
    }
    machine.drivers[REPORT].submit(&[(16 * PAGE, 2 * 4096, true), (20 * PAGE + 1, 2 * 4096, true)]);
    assert_eq!(machine.balloon.notified(REPORT), Progress::Done);
    assert!(machine.drivers[REPORT].used().is_some());
    for (page, byte) in [(15, 0), (16, 0), (17, 0), (18, 7), (19, 7), (20, 7), (21, 0), (22, 7)] {
        assert_eq!(get(&machine.memory, page * PAGE, 4096), [byte; 4096], "page {page}");
    }
}

#[test]
fn pages_that_do_not_exist_break_the_device() {
    for page in [32, 63, 96, u32::MAX] {
        let mut machine = machine(mapped(&memfd(), libc::MAP_SHARED));
        put(&machine.memory, 31 * PAGE, &[7; 4096]);
        machine.pages(INFLATE, &[page]);
        assert!(machine.interrupt.is_broken(), "{page}");
    }
    for (address, len) in [(31 * PAGE, 2 * 4096), (u64::MAX - 4095, 4096), (40 * PAGE, 4096)] {
        let mut machine = machine(mapped(&memfd(), libc::MAP_SHARED));
        put(&machine.memory, 31 * PAGE, &[7; 4096]);
        machine.drivers[REPORT].submit(&[(address, len, true)]);
        machine.balloon.notified(REPORT);
        assert!(machine.interrupt.is_broken());
        assert_eq!(get(&machine.memory, 31 * PAGE, 1), [7]);
    }
    // An odd list, and one that is too long.
    for len in [3, 4 * 4096 + 4] {
        let mut machine = machine(mapped(&memfd(), libc::MAP_SHARED));
        machine.drivers[INFLATE].submit(&[(LIST, len, false)]);
        machine.balloon.notified(INFLATE);
        assert!(machine.interrupt.is_broken());
    }
}

#[test]
fn the_host_sets_a_target_and_hears_what_became_of_it() {
    let mut machine = machine(testing::memory(0x8_0000));
    machine.balloon.set_target(77);
    assert_eq!(machine.interrupt.status(), 2);
    let mut word = [0; 4];
    machine.balloon.read_config(0, &mut word);
    assert_eq!(u32::from_le_bytes(word), 77);
    machine.balloon.write_config(0, &[1; 4]);
    machine.balloon.write_config(4, &[1; 3]);
    machine.balloon.write_config(4, &76u32.to_le_bytes());
    assert_eq!((machine.balloon.actual(), machine.balloon.pages.target), (76, 77));

    let mut other = Balloon::new();
    other.restore(&machine.balloon.save()).unwrap();
    assert_eq!(other.pages, machine.balloon.pages);
    assert!(other.restore(&[0xff]).is_err());
    machine.balloon.reset();
    assert_eq!((machine.balloon.actual(), machine.balloon.queues()), (0, Vec::new()));
}

#[test]
fn queues_may_be_left_out() {
    let memory = testing::memory(0x1_0000);
    let driver = Driver::new(&memory, 0, 16);
    let mut balloon = Balloon::new();
    testing::activate_with(&mut balloon, &[&driver], F_VERSION_1);
    assert_eq!(balloon.notified(REPORT), Progress::Done);
    assert_eq!(balloon.queues().len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any pages: those named read as zeros afterwards, all others as before.
    #[test]
    fn exactly_the_named_pages_go(pages in prop::collection::btree_set(prop_oneof![8u32..32, 80u32..96], 0..20), order: bool) {
        let mut machine = machine(mapped(&memfd(), libc::MAP_SHARED));
        let all = || (8u64..32).chain(80..96);
        for page in all() {
            put(&machine.memory, page * PAGE, &[page as u8; 4096]);
        }
        let mut list: Vec<u32> = pages.iter().copied().collect();
        if order {
            list.reverse();
        }
        machine.pages(INFLATE, &list);
        prop_assert!(!machine.interrupt.is_broken());
        for page in all() {
            let byte = if pages.contains(&(page as u32)) { 0 } else { page as u8 };
            prop_assert_eq!(get(&machine.memory, page * PAGE, 1), vec![byte]);
        }
    }

    #[test]
    fn hostile_memory_is_survived(contents in prop::collection::vec(any::<u8>(), 0..0x4000), ring in any::<u16>(), queue in 0usize..3) {
        let mut machine = machine(mapped(&memfd(), libc::MAP_PRIVATE));
        let base = machine.drivers[queue].state().descriptors;
        put(&machine.memory, base, &contents);
        machine.drivers[queue].set_available(ring % 40);
        for _ in 0..3 {
            if !machine.interrupt.is_broken() {
                machine.balloon.notified(queue);
            }
        }
    }
}
