//! The 64-bit boot protocol of Linux, which every vmlinux understands: long mode, page tables, a zero page.
//!
//! Sources: Linux `Documentation/arch/x86/boot.rst` ("64-bit Boot Protocol") and `zero-page.rst`; Intel SDM volume 3.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::{
    COMMAND_LINE, CR0_EXTENSION, CR0_PROTECTED, Kind, Layout, PAGE_TABLES, START, Segment, segments, use_segments,
};

pub const SEGMENTS: [Segment; 3] = segments(Kind::Code64);

/// The `boot_params` that the kernel is handed.
pub fn zero_page(layout: &Layout) -> Vec<u8> {
    let Layout { initramfs, cmdline_bytes, root, map } = layout;
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x070, &root.to_le_bytes());
    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS"); // header
    put(0x206, &0x20f_u16.to_le_bytes()); // version of the protocol
    put(0x210, &[0xff]); // type_of_loader: one without a number
    put(0x211, &[1]); // loadflags: loaded high
    // Addresses below LOW_END, which fit into 32 bits.
    put(0x218, &(initramfs.start as u32).to_le_bytes());
    put(0x21c, &((initramfs.end - initramfs.start) as u32).to_le_bytes());
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    put(0x238, &(*cmdline_bytes as u32).to_le_bytes());
    put(0x1e8, &[map.len() as u8]);
    for (index, (range, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    page
}

/// The first GiB mapped to itself, in pages of 2 MiB.
pub fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let mut tables = vec![0u64; 3 * 512];
    tables[0] = (PAGE_TABLES + 0x1000) | PRESENT_WRITABLE;
    tables[512] = (PAGE_TABLES + 0x2000) | PRESENT_WRITABLE;
    for (index, entry) in (0u64..).zip(&mut tables[1024..]) {
        *entry = index << 21 | LARGE | PRESENT_WRITABLE;
    }
    tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// The mode that the protocol demands.
pub fn enter(sregs: &mut kvm_sregs, regs: &mut kvm_regs) {
    const CR0_PAGING: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LONG_ENABLED: u64 = 1 << 8;
    const EFER_LONG_ACTIVE: u64 = 1 << 10;
    use_segments(sregs, &SEGMENTS);
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION | CR0_PAGING;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LONG_ENABLED | EFER_LONG_ACTIVE;
    regs.rsi = START;
}
