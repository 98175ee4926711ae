//! Templates: sealing, what counts as content, and overlaying a clone's changes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_get_seals, ftruncate};
use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion};
use vmm::snapshot::{PAGE_BYTES, Template, TemplateError, WorkingSet, memory};

use crate::support::{all, content, fill, template};

#[test]
fn nobody_can_change_a_template() {
    let file = File::from(memory(8 * PAGE_BYTES, false).unwrap());
    fill(&file, [1], 3);
    let kept = file.try_clone().unwrap();
    let template = Template::from_paused(OwnedFd::from(file), 8 * PAGE_BYTES, vec![1]).unwrap();
    assert!(kept.write_all_at(b"x", 0).is_err());
    assert!(ftruncate(&kept, 0).is_err());
    assert!(fallocate(&kept, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_err());
    let seals = fcntl_get_seals(template.memory()).unwrap();
    assert!(seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL));
    assert_eq!(&all(&template)[4096..8192], content(1, 3));
    let shared = FileOffset::new(kept, 0);
    let protection = libc_protection();
    assert!(MmapRegion::<()>::build(Some(shared), 4096, protection, 1).is_err(), "mapped shared and writable");
}

/// `PROT_READ | PROT_WRITE` of mman.h.
fn libc_protection() -> i32 {
    3
}

#[test]
fn memory_that_is_still_mapped_is_refused_and_left_alone() {
    let file = File::from(memory(8 * PAGE_BYTES, false).unwrap());
    let region: MmapRegion = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 8 * 4096).unwrap();
    let again = file.try_clone().unwrap();
    let refused = Template::from_paused(OwnedFd::from(file), 8 * PAGE_BYTES, vec![]).unwrap_err();
    assert!(matches!(refused, TemplateError::StillMapped), "{refused}");
    again.write_all_at(b"still writable", 0).unwrap();
    drop(region);
    Template::from_paused(OwnedFd::from(again), 8 * PAGE_BYTES, vec![]).unwrap();
}

/// Without reserved huge pages a touched one would kill the process: they are read with calls and never mapped.
#[test]
fn huge_pages_are_copied_into_ordinary_ones() {
    let Ok(huge) = memory(4 << 20, true) else {
        eprintln!("SKIPPED: the kernel has no huge pages");
        return;
    };
    let template = Template::from_paused(huge, 4 << 20, vec![1]).unwrap();
    assert_eq!(template.data_bytes(), 0);
    assert_eq!(template.identity(), template_of_zeros().identity());
    assert_eq!(rustix::fs::fstat(template.memory()).unwrap().st_blksize, 4096);
}

fn template_of_zeros() -> Template {
    template(1024, [], 0, &[1])
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let make = |file_bytes: u64, bytes: u64, state: usize| {
        Template::from_paused(memory(file_bytes, false).unwrap(), bytes, vec![0; state]).unwrap_err()
    };
    assert!(matches!(make(4096, 8192, 0), TemplateError::Size { expected: 8192, found: 4096 }));
    assert!(matches!(make(8192, 4096, 0), TemplateError::Size { .. }));
    assert!(matches!(make(5000, 5000, 0), TemplateError::Impossible { bytes: 5000 }));
    assert!(matches!(make(0, 0, 0), TemplateError::Impossible { .. }));
    assert!(matches!(make(1 << 40, 1 << 40, 0), TemplateError::Impossible { .. }));
    assert!(matches!(make(4096, 4096, (16 << 20) + 1), TemplateError::State { .. }));
    let plain = tempfile::tempfile().unwrap();
    plain.set_len(4096).unwrap();
    let refused = Template::from_paused(OwnedFd::from(plain), 4096, vec![]).unwrap_err();
    assert!(matches!(refused, TemplateError::Seal(_)));
}

#[test]
fn the_identity_is_that_of_the_content() {
    let of = |filled: &[u64], seed, state: &[u8]| template(700, filled.iter().copied(), seed, state).identity();
    let one = of(&[3, 600], 1, b"state");
    assert_eq!(of(&[3, 600], 1, b"state"), one);
    assert_ne!(of(&[3, 601], 1, b"state"), one);
    assert_ne!(of(&[3, 600], 2, b"state"), one);
    assert_ne!(of(&[3, 600], 1, b"State"), one);
    assert_ne!(template(701, [3, 600], 1, b"state").identity(), one);
    // Pages of zeros count as holes.
    let file = File::from(memory(700 * PAGE_BYTES, false).unwrap());
    file.write_all_at(&vec![0; 500 * 4096], 0).unwrap();
    fill(&file, [3, 600], 1);
    let with_zeros = Template::from_paused(OwnedFd::from(file), 700 * PAGE_BYTES, b"state".to_vec()).unwrap();
    assert_eq!(with_zeros.identity(), one);
    assert_eq!(with_zeros.data_bytes(), 2 * PAGE_BYTES);
    assert_eq!(one.to_string().len(), 64);
    let shown = format!("{with_zeros:?}");
    assert!(shown.contains("data_bytes: 8192") && !shown.contains("115"), "{shown}");
}

#[test]
fn holes_are_the_long_ranges_of_zeros() {
    let template = template(1000, [0, 100, 101, 999], 1, b"");
    let pages = |from: u64, to: u64| from * PAGE_BYTES..to * PAGE_BYTES;
    assert_eq!(template.holes(0), [pages(1, 100), pages(102, 999)]);
    assert_eq!(template.holes(500 * PAGE_BYTES), [pages(102, 999)]);
    assert!(template.holes(1 << 40).is_empty());
}

#[test]
fn a_working_set_is_cut_to_the_memory_and_shares_it() {
    let template = template(20, [1], 1, b"");
    let with = template.with_working_set(WorkingSet::from_ranges([0..1, 70_000..1 << 30], 1 << 30));
    assert_eq!(with.working_set().ranges(), std::slice::from_ref(&(0..20 * PAGE_BYTES)));
    assert_eq!(with.identity(), template.identity());
    assert!(template.working_set().is_empty());
}

#[test]
fn a_diff_ends_with_its_last_page_and_never_beyond_the_memory() {
    let base = template(20, [1, 7], 1, b"");
    let flat = |bytes: u64| {
        let diff = File::from(memory(bytes, false).unwrap());
        if bytes >= 3 * PAGE_BYTES {
            fill(&diff, [2], 9);
        }
        Template::flatten(&base, &diff, vec![])
    };
    assert_eq!(all(&flat(0).unwrap()), all(&base));
    let changed = flat(3 * PAGE_BYTES).unwrap();
    assert_eq!(all(&changed)[2 * 4096..3 * 4096], content(2, 9));
    assert_eq!(all(&changed)[7 * 4096..8 * 4096], content(7, 1));
    assert!(matches!(flat(21 * PAGE_BYTES), Err(TemplateError::Size { .. })));
    // Half a page at the end is nothing that a clone's process writes.
    let diff = memory(0, false).unwrap();
    File::from(diff.try_clone().unwrap()).write_all_at(&[1; 100], PAGE_BYTES).unwrap();
    assert!(matches!(Template::flatten(&base, &diff, vec![]), Err(TemplateError::Copy(_))));
}

#[test]
fn a_clone_of_a_template_is_private() {
    let template = template(16, 0..16, 1, b"");
    let before = all(&template);
    let file = File::from(template.memory().try_clone_to_owned().unwrap());
    let region: MmapRegion =
        MmapRegion::build(Some(FileOffset::new(file, 0)), 16 * 4096, libc_protection(), 2).unwrap();
    let clone = vm_memory::GuestMemoryMmap::<()>::from_regions(vec![
        vm_memory::GuestRegionMmap::new(region, GuestAddress(0)).unwrap(),
    ]);
    clone.unwrap().write_slice(&[0xee; 8192], GuestAddress(100)).unwrap();
    assert_eq!(all(&template), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Flattening is writing the diff's data over the base.
    #[test]
    fn flattening_overlays_the_base(pages in 1_u64..600, base in prop::collection::btree_set(0_u64..600, 0..200),
                                    changed in prop::collection::btree_map(0_u64..600, any::<bool>(), 0..200)) {
        let base_pages = base.into_iter().filter(|page| *page < pages);
        let base = template(pages, base_pages, 1, b"base");
        let mut expected = all(&base);
        let diff = File::from(memory(pages * PAGE_BYTES, false).unwrap());
        for (page, zero) in changed.into_iter().filter(|(page, _)| *page < pages) {
            let bytes = if zero { vec![0; 4096] } else { content(page, 2) };
            diff.write_all_at(&bytes, page * PAGE_BYTES).unwrap();
            expected[(page * PAGE_BYTES) as usize..][..4096].copy_from_slice(&bytes);
        }
        let flat = Template::flatten(&base, diff.as_fd(), b"clone".to_vec()).unwrap();
        prop_assert!(all(&flat) == expected);
        prop_assert_eq!(flat.base(), Some(base.identity()));
        prop_assert_eq!(flat.state(), b"clone");
        let data = expected.chunks(4096).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64;
        prop_assert_eq!(flat.data_bytes(), data * PAGE_BYTES);
        // No page of zeros takes memory.
        let stat = rustix::fs::fstat(flat.memory()).unwrap();
        prop_assert!(stat.st_blocks as u64 * 512 <= data * PAGE_BYTES);
    }
}
