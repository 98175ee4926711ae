//! Working sets as sets, and what they do to this process's own page table.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::*;
use crate::snapshot::{Ranges, memory, windows};

const MEMORY: u64 = 4 << 20;

fn granules(set: &WorkingSet) -> BTreeSet<u64> {
    set.ranges().iter().flat_map(|range| range.start / GRANULE_BYTES..range.end.div_ceil(GRANULE_BYTES)).collect()
}

fn model(ranges: &[Range<u64>], memory: u64) -> BTreeSet<u64> {
    let bytes = ranges.iter().filter(|range| range.start < memory).map(|range| range.start..range.end.min(memory));
    bytes.flat_map(|range| range.start / GRANULE_BYTES..=(range.end - 1) / GRANULE_BYTES).collect()
}

fn some_ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    prop::collection::vec((0_u64..6 << 20, 1_u64..900_000).prop_map(|(start, length)| start..start + length), 0..20)
}

proptest! {
    #[test]
    fn it_is_the_set_of_touched_granules(pages in 1_u64..1500, ranges in some_ranges(), others in some_ranges()) {
        let memory = pages * PAGE_BYTES;
        let set = WorkingSet::from_ranges(ranges.clone(), memory);
        let other = WorkingSet::from_ranges(others.clone(), memory);
        prop_assert_eq!(granules(&set), model(&ranges, memory));
        prop_assert!(set.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert!(set.ranges().iter().all(|range| range.start % GRANULE_BYTES == 0 && range.end <= memory));
        prop_assert_eq!(WorkingSet::from_granules(&set.to_granules(memory), memory), set.clone());
        let both = set.intersect(&other);
        prop_assert_eq!(granules(&both), model(&ranges, memory).intersection(&model(&others, memory)).copied().collect());
        prop_assert!(both.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
    }
}

#[test]
fn ranges_from_a_hostile_process_are_cut_to_the_memory() {
    #[expect(clippy::reversed_empty_ranges)]
    let hostile = [u64::MAX - 1..u64::MAX, 100..50, 0..u64::MAX, MEMORY..MEMORY + 1];
    assert_eq!(WorkingSet::from_ranges(hostile, MEMORY).ranges(), std::slice::from_ref(&(0..MEMORY)));
    assert!(WorkingSet::from_ranges(std::iter::once(MEMORY..u64::MAX), MEMORY).is_empty());
}

fn template() -> File {
    let file = File::from(memory(MEMORY, false).unwrap());
    for page in 0..MEMORY / PAGE_BYTES {
        file.write_all_at(&[page as u8 | 1; 4096], page * PAGE_BYTES).unwrap();
    }
    file
}

/// Two regions, as a machine with more than 3 GiB has them, mapped privately.
fn clone_of(template: &File) -> Memory {
    let region = |address, offset, bytes| {
        let file = FileOffset::new(template.try_clone().unwrap(), offset);
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let region = MmapRegion::build(Some(file), bytes, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap();
        GuestRegionMmap::new(region, GuestAddress(address)).unwrap()
    };
    Memory::from_regions(vec![region(0, 0, 3 << 20), region(4 << 30, 3 << 20, 1 << 20)]).unwrap()
}

fn bytes(memory: &Memory, wanted: Wanted) -> u64 {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let all = windows(memory).into_iter().flat_map(|window| Ranges::new(pagemap.as_fd(), window, wanted));
    all.map(|range| range.unwrap()).map(|range| range.end - range.start).sum()
}

#[test]
fn a_recorded_working_set_is_populated_in_the_next_clone() {
    let file = template();
    let first = clone_of(&file);
    assert_eq!(bytes(&first, Wanted::Present), 0);
    first.write_obj(1_u8, GuestAddress(GRANULE_BYTES * 3 + 5)).unwrap();
    first.write_obj(1_u8, GuestAddress((4 << 30) + GRANULE_BYTES * 2)).unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let recorded = WorkingSet::from_pagemap(pagemap.as_fd(), &windows(&first)).unwrap();
    let high = (3 << 20) + GRANULE_BYTES * 2;
    assert_eq!(recorded.ranges(), [GRANULE_BYTES * 3..GRANULE_BYTES * 4, high..high + GRANULE_BYTES]);

    let second = clone_of(&file);
    assert_eq!(recorded.populate(&second, Access::Read).unwrap(), recorded.bytes());
    assert!(bytes(&second, Wanted::Present) >= recorded.bytes());
    assert_eq!(bytes(&second, Wanted::Private), 0);
    let third = clone_of(&file);
    assert_eq!(recorded.populate(&third, Access::Write).unwrap(), recorded.bytes());
    assert_eq!(bytes(&third, Wanted::Private), recorded.bytes());
    assert_eq!(third.read_obj::<u8>(GuestAddress(GRANULE_BYTES * 3 + 5)).unwrap(), 49);
}

#[test]
fn without_the_system_call_pages_are_touched() {
    let file = template();
    let clone = clone_of(&file);
    let window = windows(&clone)[0];
    // SAFETY: two granules of the mapped window.
    unsafe { touch(window.address, 2 * GRANULE_BYTES, Access::Read) };
    assert!(bytes(&clone, Wanted::Present) >= 2 * GRANULE_BYTES);
    assert_eq!(bytes(&clone, Wanted::Private), 0);
    // SAFETY: the same.
    unsafe { touch(window.address, 2 * GRANULE_BYTES, Access::Write) };
    assert_eq!(bytes(&clone, Wanted::Private), 2 * GRANULE_BYTES);
    assert_eq!(clone.read_obj::<u8>(GuestAddress(4096 * 3)).unwrap(), 3);
}
