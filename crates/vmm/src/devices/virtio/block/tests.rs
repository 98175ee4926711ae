//! Disks as an honest driver sees them, and what they answer to a dishonest one.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::testing::{self, Driver, NEXT, Part, get, put};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x1_0000;
const MEMORY: usize = 0x4_0000;
const UNTOUCHED: u8 = 0xee;

struct Disk {
    block: Block,
    driver: Driver,
    interrupt: Interrupt,
    file: File,
}

/// A disk of `sectors` sectors, each filled with its own number.
fn file(sectors: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..sectors {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    file
}

fn disk(sectors: u64, read_only: bool) -> Disk {
    let file = file(sectors);
    let mut block = Block::new(file.try_clone().unwrap(), read_only).unwrap();
    let driver = Driver::new(&testing::memory(MEMORY), 0, 16);
    let (interrupt, _) = testing::activate(&mut block, &[&driver]);
    Disk { block, driver, interrupt, file }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

impl Disk {
    /// One request with the given data segments: its status and the length in the used ring.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        put(&self.driver.memory, HEADER, &header(kind, sector));
        put(&self.driver.memory, STATUS, &[UNTOUCHED]);
        let mut parts = vec![(HEADER, 16, false)];
        parts.extend(data);
        parts.push((STATUS, 1, true));
        let head = self.driver.submit(&parts);
        assert_eq!(self.block.notified(0), Progress::Done);
        assert!(!self.interrupt.is_broken());
        let (used, len) = self.driver.used().unwrap();
        assert_eq!(used, head);
        (get(&self.driver.memory, STATUS, 1)[0], len)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        put(&self.driver.memory, DATA, &bytes);
        self.request(kind, 0, &[(DATA, bytes.len() as u32, false)]).0
    }
}

#[test]
fn reads_and_writes_whole_sectors() {
    let mut disk = disk(8, false);
    assert_eq!(disk.request(0, 3, &[(DATA, 512, true), (DATA + 0x1000, 512, true)]), (0, 1025));
    assert_eq!(get(&disk.driver.memory, DATA, 512), [3; 512]);
    assert_eq!(get(&disk.driver.memory, DATA + 0x1000, 512), [4; 512]);

    put(&disk.driver.memory, DATA, &[0xaa; 512]);
    assert_eq!(disk.request(1, 7, &[(DATA, 512, false)]), (0, 1));
    assert_eq!(disk.request(4, 0, &[]), (0, 1));
    let mut sector = [0; 512];
    disk.file.read_exact_at(&mut sector, 7 * 512).unwrap();
    assert_eq!(sector, [0xaa; 512]);
    assert_eq!(disk.interrupt.status(), 1);
}

#[test]
fn the_bounds_of_the_disk_are_kept() {
    let mut disk = disk(8, false);
    for (kind, writable) in [(0, true), (1, false)] {
        for (sector, len) in
            [(8, 512), (7, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (0, 4608), (1 << 55, 512)]
        {
            assert_eq!(disk.request(kind, sector, &[(DATA, len, writable)]), (1, 0), "{kind} {sector} {len}");
        }
    }
    assert_eq!(disk.file.metadata().unwrap().len(), 8 * 512);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut disk = disk(8, true);
    assert_eq!(disk.block.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
    assert_eq!(disk.request(1, 0, &[(DATA, 512, false)]).0, 1);
    assert_eq!(disk.ranges(11, &[(0, 8, 0)]), 1);
    assert_eq!(disk.ranges(13, &[(0, 8, 1)]), 1);
    assert_eq!(disk.request(4, 0, &[]).0, 0);
    let mut sector = [7; 512];
    disk.file.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [0; 512]);
}

#[test]
fn discarding_gives_space_back_and_reads_as_zeros() {
    let sectors = 1024;
    let mut disk = disk(sectors, false);
    let before = disk.file.metadata().unwrap().blocks();
    assert_eq!(disk.ranges(11, &[(8, 504, 0), (512, 512, 0)]), 0);
    assert!(disk.file.metadata().unwrap().blocks() < before);
    assert_eq!(disk.file.metadata().unwrap().len(), sectors * 512);
    assert_eq!(disk.request(0, 9, &[(DATA, 512, true)]).0, 0);
    assert_eq!(get(&disk.driver.memory, DATA, 512), [0; 512]);
    assert_eq!(disk.request(0, 7, &[(DATA, 512, true)]).0, 0);
    assert_eq!(get(&disk.driver.memory, DATA, 512), [7; 512]);
}

#[test]
fn ranges_are_checked_before_any_is_touched() {
    let mut disk = disk(16, false);
    assert_eq!(disk.ranges(11, &[(0, 8, 0), (15, 2, 0)]), 1);
    assert_eq!(disk.ranges(13, &[(0, 8, 1), (u64::MAX, 2, 1)]), 1);
    assert_eq!(disk.ranges(11, &[(0, 8, 1)]), 2);
    assert_eq!(disk.ranges(13, &[(0, 8, 6)]), 2);
    assert_eq!(disk.ranges(11, &[(0, 1, 0); 65]), 1);
    assert_eq!(disk.request(11, 0, &[(DATA, 15, false)]).0, 1);
    assert_eq!(disk.request(0, 1, &[(DATA, 512, true)]).0, 0);
    assert_eq!(get(&disk.driver.memory, DATA, 512), [1; 512]);
    assert_eq!(disk.ranges(13, &[(1, 1, 1), (2, 0, 1)]), 0);
    assert_eq!(disk.request(0, 1, &[(DATA, 512, true)]).0, 0);
    assert_eq!(get(&disk.driver.memory, DATA, 512), [0; 512]);
}

#[test]
fn zeroing_may_keep_the_space() {
    let mut disk = disk(16, false);
    let status = disk.ranges(13, &[(8, 8, 0)]);
    // Not every file system can do it; the driver writes zeros itself then.
    let byte = match status {
        0 => 0,
        2 => 9,
        other => panic!("status {other}"),
    };
    assert_eq!(disk.request(0, 9, &[(DATA, 512, true)]).0, 0);
    assert_eq!(get(&disk.driver.memory, DATA, 512), [byte; 512]);
}

#[test]
fn it_has_a_name_and_refuses_what_it_does_not_know() {
    let mut disk = disk(1, true);
    assert_eq!(disk.request(8, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(&get(&disk.driver.memory, DATA, 8), b"firelet\0");
    assert_eq!(disk.request(8, 0, &[(DATA, 3, true)]), (0, 4));
    assert_eq!(disk.request(77, 0, &[]), (2, 0));
}

#[test]
fn the_host_failing_is_an_error_of_the_request() {
    // Opened without the right to write: as good as a disk that fails.
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(4096).unwrap();
    let mut block = Block::new(File::open(named.path()).unwrap(), false).unwrap();
    let driver = Driver::new(&testing::memory(MEMORY), 0, 16);
    let (interrupt, _) = testing::activate(&mut block, &[&driver]);
    let mut disk = Disk { block, driver, interrupt, file: named.reopen().unwrap() };
    assert_eq!(disk.request(1, 0, &[(DATA, 512, false)]), (1, 0));
    assert_eq!(disk.ranges(11, &[(0, 8, 0)]), 1);
    // The file is cut behind our back.
    named.as_file().set_len(512).unwrap();
    assert_eq!(disk.request(0, 0, &[(DATA, 1024, true)]), (1, 0));
    assert_eq!(disk.request(0, 0, &[(DATA, 512, true)]), (0, 513));
}

#[test]
fn a_full_host_is_an_error_of_the_request() {
    let Ok(full) = File::options().read(true).write(true).open("/dev/full") else {
        eprintln!("SKIPPED: no /dev/full here");
        return;
    };
    let backing = Backing::new(full, false);
    // It has no length, so that nothing lies within it; the transfer alone is what is tried.
    let backing = backing.unwrap();
    let mut data = [0u8; 16];
    let piece = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    assert_eq!(backing.write(0, vec![piece]), Err(backing::Failure::Io));
}

#[test]
fn data_outside_of_memory_is_an_error_of_the_request() {
    let mut disk = disk(8, false);
    assert_eq!(disk.request(0, 0, &[(MEMORY as u64 - 256, 512, true)]), (1, 0));
    assert_eq!(disk.request(1, 0, &[(u64::MAX - 16, 512, false)]), (1, 0));
    assert_eq!(disk.request(8, 0, &[(u64::MAX - 16, 20, true)]), (1, 0));
}

#[test]
fn a_queue_that_cannot_be_right_breaks_the_device_and_nothing_else() {
    // A loop; a next that leads out of the table; no status byte; no header; a status nowhere; a ring that runs ahead.
    let wrongs: [fn(&mut Driver); 6] = [
        |driver| {
            driver.descriptor(0, 0, HEADER, 16, NEXT, 0);
            driver.offer(0);
        },
        |driver| {
            driver.descriptor(0, 0, HEADER, 16, NEXT, 999);
            driver.offer(0);
        },
        |driver| {
            driver.submit(&[(HEADER, 16, false)]);
        },
        |driver| {
            driver.submit(&[(HEADER, 15, false), (STATUS, 1, true)]);
        },
        |driver| {
            driver.submit(&[(HEADER, 16, false), (MEMORY as u64, 1, true)]);
        },
        |driver| driver.set_available(17),
    ];
    for (number, wrong) in wrongs.iter().enumerate() {
        let mut disk = disk(8, false);
        wrong(&mut disk.driver);
        assert_eq!(disk.block.notified(0), Progress::Done);
        assert!(disk.interrupt.is_broken(), "{number}");
        assert_eq!(disk.driver.used(), None, "{number}");
    }
}

#[test]
fn a_turn_is_bounded_and_goes_on() {
    let mut disk = disk(8, true);
    put(&disk.driver.memory, HEADER, &header(0, 0));
    for _ in 0..5 {
        disk.driver.submit(&[(HEADER, 16, false), (DATA, 4096, true), (STATUS, 1, true)]);
    }
    assert_eq!(disk.block.notified(0), Progress::Done);
    assert_eq!(std::iter::from_fn(|| disk.driver.used()).count(), 5);
    // As many as the queue holds, and there could be more meanwhile.
    for _ in 0..16 {
        disk.driver.offer(0);
    }
    assert_eq!(disk.block.notified(0), Progress::More);
    assert_eq!(std::iter::from_fn(|| disk.driver.used()).count(), 16);
    assert_eq!(disk.block.notified(0), Progress::Done);
}

#[test]
fn another_file_is_told_to_the_driver() {
    let mut disk = disk(0, true);
    let capacity = |block: &Block| {
        let mut sectors = [0; 8];
        block.read_config(0, &mut sectors);
        u64::from_le_bytes(sectors)
    };
    assert_eq!(capacity(&disk.block), 0);
    disk.block.exchange(file(5)).unwrap();
    assert_eq!(capacity(&disk.block), 5);
    assert_eq!((disk.interrupt.status(), disk.interrupt.generation()), (2, 1));
    assert_eq!(disk.request(0, 4, &[(DATA, 512, true)]).0, 0);
    assert_eq!(get(&disk.driver.memory, DATA, 512), [4; 512]);

    let odd = tempfile::tempfile().unwrap();
    odd.set_len(700).unwrap();
    let error = disk.block.exchange(odd).unwrap_err();
    assert_eq!(error.to_string(), "a disk's length must be a multiple of 512 bytes, and 700 is not");
    assert_eq!(capacity(&disk.block), 5);
}

#[test]
fn a_restored_driver_hears_of_another_capacity() {
    let original = disk(4, true);
    let saved = original.block.save();
    for (sectors, status) in [(4, 0), (9, 2)] {
        let mut block = Block::new(file(sectors), true).unwrap();
        block.restore(&saved).unwrap();
        assert_eq!(block.save(), saved);
        let driver = Driver::new(&testing::memory(MEMORY), 0, 16);
        let (interrupt, _) = testing::activate(&mut block, &[&driver]);
        assert_eq!(interrupt.status(), status);
    }
    let mut writable = Block::new(file(4), false).unwrap();
    assert!(matches!(writable.restore(&saved), Err(StateError::Mismatch(_))));
    assert!(matches!(writable.restore(&[0xff]), Err(StateError::Decode(_))));
}

#[test]
fn its_configuration_can_be_read_at_any_offset() {
    let disk = disk(4, false);
    for offset in [0, 1, 59, 60, 61, u64::MAX] {
        for len in [1, 2, 4, 8] {
            disk.block.read_config(offset, &mut vec![0; len]);
        }
    }
    let mut word = [0; 4];
    disk.block.read_config(12, &mut word);
    assert_eq!(u32::from_le_bytes(word), SEGMENTS);
}

/// Cuts `parts` in pieces of `sizes`, over and over.
fn cut(parts: &[Part], sizes: &[u32]) -> Vec<Part> {
    let mut sizes = sizes.iter().cycle();
    let mut pieces = Vec::new();
    for (mut address, mut len, writable) in parts.iter().copied() {
        while len > 0 {
            let now = len.min(*sizes.next().unwrap());
            pieces.push((address, now, writable));
            address += u64::from(now);
            len -= now;
        }
    }
    pieces
}

#[derive(Debug, Clone)]
enum Step {
    Read { sector: u64, sectors: u32 },
    Write { sector: u64, sectors: u32, with: u8 },
    Zero { sector: u64, sectors: u32 },
    Discard { sector: u64, sectors: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extent = (0u64..20, 0u32..20);
    let step = prop_oneof![
        extent.clone().prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        (extent.clone(), 1u8..).prop_map(|((sector, sectors), with)| Step::Write { sector, sectors, with }),
        extent.clone().prop_map(|(sector, sectors)| Step::Zero { sector, sectors }),
        extent.prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the shape of the chains, direct or indirect, a disk is an array of bytes.
    #[test]
    fn a_disk_is_an_array(steps in steps(), sizes in prop::collection::vec(700u32..5000, 1..4), small in 2u32..20, indirect: bool) {
        const SECTORS: u64 = 16;
        let mut disk = disk(SECTORS, false);
        let mut model: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8; 512]).collect();
        for step in steps {
            let (kind, sector, sectors) = match step {
                Step::Read { sector, sectors } => (0, sector, sectors),
                Step::Write { sector, sectors, .. } => (1, sector, sectors),
                Step::Zero { sector, sectors, .. } => (13, sector, sectors),
                Step::Discard { sector, sectors } => (11, sector, sectors),
            };
            let bytes = sectors * 512;
            let inside = sector + u64::from(sectors) <= SECTORS;
            let at = if inside { sector as usize * 512..(sector as usize * 512 + bytes as usize) } else { 0..0 };
            let memory = disk.driver.memory.clone();
            put(&memory, HEADER, &header(kind, sector));
            put(&memory, STATUS, &[UNTOUCHED]);
            let data = match step {
                Step::Read { .. } => (DATA, bytes, true),
                Step::Write { with, .. } => {
                    put(&memory, DATA, &vec![with; bytes as usize]);
                    model[at.clone()].fill(with);
                    (DATA, bytes, false)
                }
                Step::Zero { .. } => {
                    put(&memory, DATA, &[&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[1, 0, 0, 0]].concat());
                    model[at.clone()].fill(0);
                    (DATA, 16, false)
                }
                Step::Discard { .. } => {
                    put(&memory, DATA, &[&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat());
                    model[at.clone()].fill(0);
                    (DATA, 16, false)
                }
            };
            // Header and data in pieces of any length, the status byte with the data's last piece or on its own.
            let mut parts = cut(&[(HEADER, 16, false)], &[small]);
            let pieces = cut(&[data], &sizes);
            parts.extend(if parts.len() + pieces.len() < 16 { pieces } else { vec![data] });
            parts.push((STATUS, 1, true));
            if indirect {
                disk.driver.submit_indirect(0x9000, &parts);
            } else {
                disk.driver.submit(&parts);
            }
            disk.block.notified(0);
            prop_assert!(!disk.interrupt.is_broken());
            let (_, len) = disk.driver.used().unwrap();
            prop_assert_eq!(get(&memory, STATUS, 1)[0], u8::from(!inside));
            if let (Step::Read { .. }, true) = (step, inside) {
                prop_assert_eq!(len, bytes + 1);
                prop_assert!(get(&memory, DATA, bytes as usize) == model[at]);
            }
        }
        let mut contents = vec![0; model.len()];
        disk.file.read_exact_at(&mut contents, 0).unwrap();
        prop_assert!(contents == model);
    }

    /// Whatever lies in the rings and tables, the device answers or asks for a reset, and what is not its own stays.
    #[test]
    fn hostile_memory_is_survived(contents in prop::collection::vec(any::<u8>(), 0..0x4000), ring in any::<u16>(), near: bool) {
        let mut disk = disk(4, false);
        let memory = disk.driver.memory.clone();
        let mut contents = contents;
        if near {
            // Nearer to what could be: small lengths and addresses, chains that lead somewhere.
            for descriptor in contents.chunks_exact_mut(16) {
                descriptor[2] &= 3;
                descriptor[3..8].fill(0);
                descriptor[10..12].fill(0);
                descriptor[12] &= 7;
                descriptor[13] = 0;
                descriptor[14] &= 15;
                descriptor[15] = 0;
            }
        }
        put(&memory, 0, &contents);
        disk.driver.set_available(ring % 20);
        for _ in 0..3 {
            if !disk.interrupt.is_broken() {
                disk.block.notified(0);
            }
        }
        prop_assert_eq!(disk.file.metadata().unwrap().len(), 4 * 512);
    }
}
