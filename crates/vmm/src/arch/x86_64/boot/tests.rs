use vm_memory::GuestMemoryBackend;

use super::*;

const MIB: u64 = 1 << 20;

fn guest(bytes: u64) -> Memory {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    memory::shared(&file.into(), bytes, false).unwrap()
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
}

fn layout() -> Layout {
    Layout { initramfs: 40 * MIB..41 * MIB, cmdline_bytes: 7, root: 0xe_1234, map: memory_map(64 * MIB) }
}

#[test]
fn the_zero_page_says_where_everything_is() {
    let page = linux::zero_page(&layout());
    assert_eq!(u64_at(&page, 0x70), 0xe_1234);
    assert_eq!(u32_at(&page, 0x218), 40 << 20);
    assert_eq!(u32_at(&page, 0x21c), 1 << 20);
    assert_eq!(u32_at(&page, 0x228), COMMAND_LINE as u32);
    assert_eq!(page[0x1e8], 3);
    assert_eq!(u64_at(&page, 0x2d0 + 40), MIB);
    assert_eq!(u64_at(&page, 0x2d0 + 48), 63 * MIB);
    assert_eq!(u32_at(&page, 0x2d0 + 56), 1);
}

#[test]
fn the_start_info_says_where_everything_is() {
    let info = pvh::start_info(&layout());
    // Addresses in it are the guest's, and all of them lie in it or are the layout's.
    let at = |address: u64| (address - START) as usize;
    assert_eq!((u32_at(&info, 0), u32_at(&info, 4)), (pvh::MAGIC, 1));
    assert_eq!(u32_at(&info, 12), 1);
    let module = at(u64_at(&info, 16));
    assert_eq!((u64_at(&info, module), u64_at(&info, module + 8)), (40 * MIB, MIB));
    assert_eq!((u64_at(&info, 24), u64_at(&info, 32)), (COMMAND_LINE, 0xe_1234));
    let (map, entries) = (at(u64_at(&info, 40)), u32_at(&info, 48));
    assert_eq!((map, entries), ((pvh::INFO_BYTES + pvh::MODULE_BYTES) as usize, 3));
    let last = map + 2 * 24;
    assert_eq!((u64_at(&info, last), u64_at(&info, last + 8), u32_at(&info, last + 16)), (MIB, 63 * MIB, 1));
    assert_eq!(info.len(), last + 24);

    let without = pvh::start_info(&Layout { initramfs: 0..0, ..layout() });
    assert_eq!(u32_at(&without, 12), 0);
}

#[test]
fn the_memory_map_has_a_gap_below_four_gib() {
    let map = memory_map(LOW_END + 512 * MIB);
    assert_eq!(map[2], (MIB..LOW_END, 1));
    assert_eq!(map[3], (HIGH_START..HIGH_START + 512 * MIB, 1));
    // Neither the tables nor the generation id lie in what the kernel may use.
    for address in [ACPI.start, ACPI.end - 1, super::super::GENERATION_ID] {
        assert!(map.iter().any(|(range, kind)| range.contains(&address) && *kind == 2), "{address:#x}");
    }
}

#[test]
fn descriptors_are_those_of_flat_segments() {
    for (segments, code) in [(linux::SEGMENTS, 0x00af_9b00_0000_ffff), (pvh::SEGMENTS, 0x00cf_9b00_0000_ffff)] {
        let words = descriptors(&segments);
        let words: Vec<u64> =
            words.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(words[2..], [code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
    }
}

#[test]
fn what_is_loaded_can_be_entered_and_its_command_line_ends() {
    let mut elf = vec![0; 120];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2), (18, 62), (32, 64), (54, 56), (56, 1), (64, 1)] {
        elf[at] = value;
    }
    for (at, value) in [(24, 2 * MIB), (88, 2 * MIB), (96, 120), (104, 120)] {
        elf[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    let mut kernel = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut kernel, &elf).unwrap();
    let memory = guest(64 * MIB);
    let attempt_by = |protocol, cmdline: &str| {
        let (slots, initramfs) = (&[], Some(&kernel));
        let parts = BootParts { kernel: &kernel, protocol, initramfs, cmdline, vcpus: 1, slots, serial: false };
        load(&memory, &parts)
    };
    let attempt = |cmdline: &str| attempt_by(BootProtocol::Linux64, cmdline);
    assert_eq!(attempt("panic=-1").unwrap(), Entry { address: 2 * MIB, protocol: BootProtocol::Linux64 });
    assert!(matches!(attempt_by(BootProtocol::Pvh, ""), Err(LoadError::NoPvh)));
    let line: [u8; 9] = memory.read_obj(GuestAddress(COMMAND_LINE)).unwrap();
    assert_eq!(&line, b"panic=-1\0");
    assert!(memory.check_range(GuestAddress(ACPI.start), 8));
    assert!(matches!(attempt(&"x".repeat(2048)), Err(LoadError::CommandLine { .. })));
    assert!(matches!(attempt("a\0b"), Err(LoadError::CommandLine { .. })));
}
