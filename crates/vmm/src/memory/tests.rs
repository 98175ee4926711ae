use std::io::Seek;
use std::os::unix::fs::FileExt;

use vm_memory::Bytes;

use super::*;

const GIB: u64 = 1 << 30;

fn file(bytes: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file.into()
}

#[test]
fn what_fits_below_three_gib_is_one_region() {
    assert_eq!(regions(GIB), [Region { start: 0, bytes: GIB, file_offset: 0 }]);
    assert_eq!(regions(LOW_END), [Region { start: 0, bytes: LOW_END, file_offset: 0 }]);
}

#[test]
fn the_rest_lies_above_four_gib_and_follows_in_the_file() {
    let expected = [
        Region { start: 0, bytes: LOW_END, file_offset: 0 },
        Region { start: HIGH_START, bytes: 2 * GIB, file_offset: LOW_END },
    ];
    assert_eq!(regions(5 * GIB), expected);
    assert_eq!(file_offset(5 * GIB, 17), Some(17));
    assert_eq!(file_offset(5 * GIB, LOW_END), None);
    assert_eq!(file_offset(5 * GIB, HIGH_START + 5), Some(LOW_END + 5));
    assert_eq!(file_offset(5 * GIB, HIGH_START + 2 * GIB), None);
}

#[test]
fn shared_memory_is_the_file() {
    let fd = file(5 * GIB);
    let memory = shared(&fd, 5 * GIB, false).unwrap();
    assert_eq!(bytes(&memory), 5 * GIB);
    memory.write_obj(0x1234_5678_u32, GuestAddress(HIGH_START + 4096)).unwrap();
    let mut read = [0; 4];
    File::from(fd).read_exact_at(&mut read, LOW_END + 4096).unwrap();
    assert_eq!(u32::from_le_bytes(read), 0x1234_5678);
}

#[test]
fn private_memory_leaves_the_file_alone() {
    let fd = file(MIN_BYTES);
    let memory = private(&fd, MIN_BYTES).unwrap();
    memory.write_obj(1u64, GuestAddress(4096)).unwrap();
    let mut file = File::from(fd);
    let mut read = [0; 8];
    file.rewind().unwrap();
    file.read_exact_at(&mut read, 4096).unwrap();
    assert_eq!(read, [0; 8]);
}

#[test]
fn impossible_sizes_are_refused() {
    let fd = file(MIN_BYTES);
    assert!(matches!(private(&fd, 0), Err(MemoryError::Size(0))));
    assert!(matches!(private(&fd, MIN_BYTES + 1), Err(MemoryError::Size(_))));
    assert!(matches!(private(&fd, !4095), Err(MemoryError::Size(_))));
    assert!(matches!(shared(&fd, MIN_BYTES + 4096, true), Err(MemoryError::Size(_))));
    assert!(matches!(shared(&fd, 2 * MIN_BYTES, false), Err(MemoryError::Short { .. })));
}

#[test]
fn low_memory_fills_the_room_that_was_set_aside() {
    let fd = file(LOW_END + MIN_BYTES);
    let room = Room::new().unwrap();
    assert!(room.address().is_multiple_of(HUGE_PAGE));
    let memory = room.private(&fd, LOW_END + MIN_BYTES).unwrap();
    let low = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
    let high = memory.get_host_address(GuestAddress(HIGH_START)).unwrap() as u64;
    assert_eq!(low, room.address());
    assert!(!(low..low + LOW_END).contains(&high));
    memory.write_obj(7u8, GuestAddress(LOW_END - 1)).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(LOW_END - 1)).unwrap(), 7);
    drop(memory);
    // Filled anew, it has nothing of what was there.
    let memory = room.shared(&fd, MIN_BYTES, false).unwrap();
    assert_eq!(bytes(&memory), MIN_BYTES);
}
