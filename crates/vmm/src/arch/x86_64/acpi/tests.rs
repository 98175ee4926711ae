use super::*;

const BASE: u64 = 0xe_0000;

/// The table at `address`, after its checksum was checked.
fn table(tables: &Tables, address: u64) -> &[u8] {
    let bytes = &tables.bytes[(address - BASE) as usize..];
    let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    assert_eq!(bytes[..length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum of {address:#x}");
    &bytes[..length]
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

fn slots(count: usize) -> Vec<Slot> {
    (0..count).filter_map(super::super::slot).collect()
}

#[test]
fn the_root_leads_to_every_table() {
    let tables = tables(BASE, 6, &slots(12), true);
    let root = &tables.bytes[(tables.root - BASE) as usize..][..36];
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!(tables.root % 16, 0);
    assert_eq!(root.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(root[..20].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let xsdt = table(&tables, u64_at(root, 24));
    assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 16));
    let fadt = table(&tables, u64_at(xsdt, 36));
    assert_eq!(&fadt[..4], b"FACP");
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
    let dsdt = table(&tables, u64_at(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    assert_eq!(count(dsdt, b"LNRO0005"), 12);
    assert_eq!(count(dsdt, b"VMGENCTR"), 1);
    let madt = table(&tables, u64_at(xsdt, 44));
    assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 44 + 6 * 8 + 12));
}

#[test]
fn devices_stand_at_their_slots() {
    let tables = tables(BASE, 1, &slots(2), false);
    for slot in slots(2) {
        let mut window = vec![0x86, 9, 0, 1];
        window.extend((slot.base as u32).to_le_bytes());
        window.extend(0x1000u32.to_le_bytes());
        let mut interrupt = vec![0x89, 6, 0, 3, 1];
        interrupt.extend(slot.gsi.to_le_bytes());
        assert_eq!(count(&tables.bytes, &window), 1);
        assert_eq!(count(&tables.bytes, &interrupt), 1);
    }
    assert_eq!(count(&tables.bytes, b"COM1"), 0);
}

#[test]
fn the_largest_machine_fits_below_the_generation_id() {
    let tables = tables(BASE, 6, &slots(super::super::MAX_SLOTS), true);
    assert!((tables.bytes.len() as u64) < GENERATION_ID - BASE);
    assert!(tables.bytes.len() < 4096, "the tables take {} bytes", tables.bytes.len());
    assert!(super::super::slot(super::super::MAX_SLOTS).is_none());
}
