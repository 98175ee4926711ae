use std::io::Write;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::memory;

const X86_64: u16 = 62;
const MIB: u64 = 1 << 20;
const ROOM: Range<u64> = MIB..32 * MIB;

struct Part {
    address: u64,
    contents: Vec<u8>,
    in_memory: u64,
}

fn part(address: u64, contents: &[u8], in_memory: u64) -> Part {
    Part { address, contents: contents.to_vec(), in_memory }
}

/// An ELF file of these parts.
fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
    elf_with(entry, parts, None)
}

/// An ELF file of these parts and perhaps these notes.
fn elf_with(entry: u64, parts: &[Part], notes: Option<&[u8]>) -> Vec<u8> {
    let headers = parts.len() + usize::from(notes.is_some());
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16] = 2;
    bytes[18] = X86_64 as u8;
    bytes[24..32].copy_from_slice(&entry.to_le_bytes());
    bytes[32] = HEADER_BYTES as u8;
    bytes[54] = SEGMENT_BYTES as u8;
    bytes[56] = headers as u8;
    let mut offset = (HEADER_BYTES + headers * SEGMENT_BYTES) as u64;
    for part in parts {
        let fields = [offset, part.address, part.address, part.contents.len() as u64, part.in_memory, 4096];
        bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        offset += part.contents.len() as u64;
    }
    if let Some(notes) = notes {
        bytes.extend([4, 0, 0, 0, 4, 0, 0, 0]);
        let length = notes.len() as u64;
        bytes.extend([offset, 0, 0, length, length, 4].iter().flat_map(|field| field.to_le_bytes()));
    }
    for part in parts {
        bytes.extend(&part.contents);
    }
    bytes.extend(notes.unwrap_or_default());
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn guest() -> Memory {
    let file = tempfile::tempfile().unwrap();
    file.set_len(memory::MIN_BYTES).unwrap();
    memory::shared(&file.into(), memory::MIN_BYTES, false).unwrap()
}

fn load(bytes: &[u8]) -> Result<Kernel, LoadError> {
    kernel(&guest(), &file(bytes), ROOM, X86_64)
}

#[test]
fn segments_land_at_their_physical_addresses() {
    let parts = [part(16 * MIB, b"code", 0x5000), part(2 * MIB, b"data", 4)];
    let memory = guest();
    let kernel = kernel(&memory, &file(&elf(16 * MIB + 2, &parts)), ROOM, X86_64).unwrap();
    assert_eq!(kernel, Kernel { entry: 16 * MIB + 2, pvh_entry: None, end: 16 * MIB + 0x5000 });
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(16 * MIB)).unwrap(), *b"code");
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(2 * MIB)).unwrap(), *b"data");
}

/// A note with its padding.
fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, content.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [name, content] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

#[test]
fn the_entry_of_pvh_is_found_among_the_notes() {
    let entry = (MIB as u32 + 4).to_le_bytes();
    let wide = (MIB + 4).to_le_bytes();
    let others = [note(b"GNU\0", 18, &[1; 7]), note(b"Xen\0", 6, b"linux"), note(b"", 18, &[])].concat();
    let pvh_entry = |notes: &[u8]| {
        load(&elf_with(MIB, &[part(MIB, b"code and more", 64)], Some(notes))).map(|kernel| kernel.pvh_entry)
    };
    for content in [&entry[..], &wide] {
        let notes = [&others[..], &note(b"Xen\0", 18, content)].concat();
        assert_eq!(pvh_entry(&notes).unwrap(), Some(MIB as u32 + 4));
        // A note that is cut off, or whose length lies, is none.
        for length in 0..notes.len() {
            assert_eq!(pvh_entry(&notes[..length]).unwrap(), None, "{length}");
        }
        for at in [0, 4] {
            let mut lies = note(b"Xen\0", 18, content);
            lies[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert_eq!(pvh_entry(&lies).unwrap(), None);
        }
    }
    for none in [others, note(b"Xen", 18, &entry), note(b"Xen\0", 18, &entry[..2]), note(b"Xen\0", 18, &[0xff; 8])] {
        assert_eq!(pvh_entry(&none).unwrap(), None);
    }
    let outside = pvh_entry(&note(b"Xen\0", 18, &(MIB as u32 + 13).to_le_bytes()));
    assert!(matches!(outside, Err(LoadError::Damaged("the entry of PVH lies outside of the segments"))));
    assert!(matches!(pvh_entry(&vec![0; 65 << 10]), Err(LoadError::Damaged(_))));
}

#[test]
fn what_is_no_kernel_of_this_architecture_is_refused() {
    let good = elf(MIB, &[part(MIB, b"code", 4)]);
    assert!(load(&good).is_ok());
    for (at, value) in [(0, 0), (4, 1), (5, 2), (16, 1), (18, 183)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(matches!(load(&bad), Err(LoadError::NotAKernel)), "{at}");
    }
    assert!(matches!(load(b"#!/bin/sh"), Err(LoadError::NotAKernel)));
}

#[test]
fn segments_stay_in_their_room_and_apart() {
    for (address, in_memory) in [(0, 4), (MIB - 1, 4), (32 * MIB - 3, 4), (u64::MAX - 1, 4), (2 * MIB, 31 * MIB)] {
        let bytes = elf(MIB, &[part(MIB, b"code", 4), part(address, b"data", in_memory)]);
        assert!(matches!(load(&bytes), Err(LoadError::NoRoom { .. })), "{address:#x}");
    }
    let bytes = elf(MIB, &[part(MIB, b"code", 0x2000), part(MIB + 0x1fff, b"data", 4)]);
    assert!(matches!(load(&bytes), Err(LoadError::Damaged("two segments overlap"))));
    let bytes = elf(MIB + 4, &[part(MIB, b"code", 8)]);
    assert!(matches!(load(&bytes), Err(LoadError::Damaged("the entry lies outside of the segments"))));
    let bytes = elf(MIB, &[part(MIB, b"code", 3)]);
    assert!(matches!(load(&bytes), Err(LoadError::Damaged(_))));
}

#[test]
fn a_truncated_kernel_is_refused() {
    let good = elf(MIB, &[part(MIB, b"code", 4)]);
    for length in 0..good.len() {
        assert!(load(&good[..length]).is_err(), "{length}");
    }
}

#[test]
fn the_initramfs_lies_as_high_as_it_can() {
    let memory = guest();
    let place = initramfs(&memory, &file(&[7; 5000]), 20 * MIB..32 * MIB).unwrap();
    assert_eq!(place, 32 * MIB - 8192..32 * MIB - 8192 + 5000);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(place.end - 1)).unwrap(), 7);
    let error = initramfs(&memory, &file(&[7; 5000]), 32 * MIB - 8191..32 * MIB).unwrap_err();
    assert!(matches!(error, LoadError::InitramfsTooLarge { bytes: 5000 }));
}

proptest! {
    #[test]
    fn mutated_headers_never_break_the_loader(
        mutations in proptest::collection::vec((0usize..HEADER_BYTES + 3 * SEGMENT_BYTES, any::<u8>()), 0..24),
        words in proptest::collection::vec((0usize..(HEADER_BYTES + 3 * SEGMENT_BYTES) / 8, any::<u64>()), 0..2),
        notes in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let notes = [note(b"Xen\0", 18, &notes), notes].concat();
        let mut bytes = elf_with(MIB, &[part(MIB, b"code", 0x1000), part(4 * MIB, b"data", 8)], Some(&notes));
        for (at, value) in mutations {
            bytes[at] = value;
        }
        for (at, value) in words {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(kernel) = load(&bytes) {
            prop_assert!(ROOM.contains(&kernel.entry));
            prop_assert!(kernel.end <= ROOM.end);
            prop_assert!(kernel.pvh_entry.is_none_or(|entry| ROOM.contains(&entry.into())));
        }
    }
}
