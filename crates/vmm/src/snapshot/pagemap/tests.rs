//! The page map of this process, by both ways of reading it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::*;
use crate::snapshot::{PAGE_BYTES, memory};

const PAGES: u64 = 4096;

/// A memory whose first half has data.
fn template() -> File {
    let file = File::from(memory(PAGES * PAGE_BYTES, false).unwrap());
    file.write_all_at(&vec![0x11; (PAGES * PAGE_BYTES / 2) as usize], 0).unwrap();
    file
}

fn clone_of(template: &File) -> Memory {
    let file = FileOffset::new(template.try_clone().unwrap(), 0);
    let (bytes, flags) = ((PAGES * PAGE_BYTES) as usize, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    let region = MmapRegion::build(Some(file), bytes, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap();
    Memory::from_regions(vec![GuestRegionMmap::new(region, GuestAddress(0)).unwrap()]).unwrap()
}

fn in_bytes(pages: Range<u64>) -> Range<u64> {
    pages.start * PAGE_BYTES..pages.end * PAGE_BYTES
}

#[test]
fn both_ways_find_the_same_pages() {
    let clone = clone_of(&template());
    let at = |page: u64| GuestAddress(page * PAGE_BYTES);
    // More separate ranges than a block holds, pages that were only read, neighbours across the blocks of the reader.
    for page in (0..2600).step_by(2) {
        clone.write_obj(0_u8, at(page)).unwrap();
    }
    for page in 3000..3100 {
        clone.read_obj::<u8>(at(page)).unwrap();
    }
    for page in 3060..3080 {
        clone.write_obj(1_u8, at(page)).unwrap();
    }
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let window = windows(&clone)[0];
    let all = |ranges: Ranges<'_>| ranges.map(|range| range.unwrap()).collect::<Vec<_>>();
    let private = all(Ranges::by_reading(pagemap.as_fd(), window, Wanted::Private));
    let written = (0..2600).step_by(2).map(|page| page..page + 1).chain(std::iter::once(3060..3080));
    assert_eq!(private, written.map(in_bytes).collect::<Vec<_>>());
    assert_eq!(all(Ranges::new(pagemap.as_fd(), window, Wanted::Private)), private);
    let present = all(Ranges::by_reading(pagemap.as_fd(), window, Wanted::Present));
    assert_eq!(all(Ranges::new(pagemap.as_fd(), window, Wanted::Present)), present);
    assert!(present.iter().map(|range| range.end - range.start).sum::<u64>() >= 1400 * PAGE_BYTES);
    assert!(present.windows(2).all(|pair| pair[0].end < pair[1].start));
}

#[test]
fn a_dump_has_the_changed_pages_and_nothing_else() {
    let clone = clone_of(&template());
    clone.write_slice(&[0x22; 10_000], GuestAddress(5 * PAGE_BYTES)).unwrap();
    // Zeros over data are a change as any other.
    clone.write_slice(&[0; 4096], GuestAddress(100 * PAGE_BYTES)).unwrap();
    clone.write_obj(7_u8, GuestAddress((PAGES - 1) * PAGE_BYTES)).unwrap();
    clone.read_obj::<u8>(GuestAddress(50 * PAGE_BYTES)).unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let out = File::from(memory(PAGES * PAGE_BYTES, false).unwrap());
    assert_eq!(dump_private(&clone, pagemap.as_fd(), out.as_fd()).unwrap(), 5 * PAGE_BYTES);
    let extents = crate::snapshot::memfd::extents(&out, PAGES * PAGE_BYTES).map(|extent| extent.unwrap());
    assert_eq!(extents.collect::<Vec<_>>(), [5..8, 100..101, PAGES - 1..PAGES].map(in_bytes));
    let mut page = [1; 4096];
    out.read_exact_at(&mut page, 7 * PAGE_BYTES).unwrap();
    assert_eq!((page[10_000 - 8192 - 1], page[10_000 - 8192]), (0x22, 0x11));
    out.read_exact_at(&mut page, 100 * PAGE_BYTES).unwrap();
    assert_eq!(page, [0; 4096]);
}

#[test]
fn what_is_no_page_map_is_an_error() {
    let file = File::from(memory(PAGE_BYTES, false).unwrap());
    let window = Window { address: 0x1000_0000, offset: 0, bytes: PAGES * PAGE_BYTES };
    for ranges in
        [Ranges::new(file.as_fd(), window, Wanted::Present), Ranges::by_reading(file.as_fd(), window, Wanted::Present)]
    {
        let all: Vec<_> = ranges.collect();
        assert!(matches!(&all[..], [Err(_)]), "{all:?}");
    }
}
