//! The headers and notes of a kernel: no panic, nothing is loaded outside of its room, and no entry leads out of it. The input is
//! tried as it is and behind a head that is right, because hardly any input would get past that.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmm::loader;
use vmm::memory::{self, Memory};

const X86_64: u8 = 62;
/// Length of an ELF header, and of one that describes a segment.
const HEAD: usize = 64;
const SEGMENT: usize = 56;
const ROOM: Range<u64> = 1 << 20..memory::MIN_BYTES;

static GUEST: LazyLock<Memory> = LazyLock::new(|| {
    let file = file(&[]);
    file.set_len(memory::MIN_BYTES).expect("the guest's memory");
    memory::shared(&OwnedFd::from(file), memory::MIN_BYTES, false).expect("the guest's memory")
});

fuzz_target!(|input: &[u8]| {
    check(input);
    let Some((entry, rest)) = input.split_first_chunk::<8>() else { return };
    let mut head = [0; HEAD];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    head[24..32].copy_from_slice(entry);
    for (at, value) in
        [(16, 2), (18, X86_64), (32, HEAD as u8), (54, SEGMENT as u8), (56, (rest.len() / SEGMENT).clamp(1, 3) as u8)]
    {
        head[at] = value;
    }
    check(&[&head[..], rest].concat());
});

fn check(bytes: &[u8]) {
    if let Ok(kernel) = loader::kernel(&GUEST, &file(bytes), ROOM, X86_64.into()) {
        assert!(ROOM.contains(&kernel.entry) && kernel.end <= ROOM.end);
        assert!(kernel.pvh_entry.is_none_or(|entry| ROOM.contains(&entry.into())));
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("a file takes bytes");
    file
}
