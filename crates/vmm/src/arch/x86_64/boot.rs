//! How a kernel is entered: the 64-bit boot protocol of Linux, which every vmlinux understands (PVH would need an option of
//! the kernel, and would only make it build its own page tables first).
//!
//! ```text
//!   0x0500 GDT          0x7000 zero page     0x9000 page tables (3)    0x2_0000 command line
//!   0xe_0000 ACPI       0xf_f000 generation id                         1 MiB kernel ... initramfs, end of low memory
//! ```
//!
//! Sources: Linux `Documentation/arch/x86/boot.rst` ("64-bit Boot Protocol") and `zero-page.rst`; Intel SDM volume 3.

use std::fs::File;
use std::ops::Range;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{KvmError, Slot, acpi, msr};
use crate::loader::{self, LoadError};
use crate::memory::{self, HIGH_START, LOW_END, Memory};

const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// What an x86 kernel takes (`COMMAND_LINE_SIZE`), with the final zero.
const COMMAND_LINE_BYTES: usize = 2048;
/// Memory above this and below 1 MiB is reserved.
const LOW_MEMORY_END: u64 = 0x9_fc00;
const ACPI: Range<u64> = 0xe_0000..super::GENERATION_ID;
const KERNEL: u64 = 0x10_0000;

/// ELF's number of the architecture.
const EM_X86_64: u16 = 62;

/// What a machine boots.
pub struct BootParts<'a> {
    /// An ELF kernel.
    pub kernel: &'a File,
    /// Its initial file system, as it wants it (a cpio archive, perhaps packed).
    pub initramfs: Option<&'a File>,
    /// Its command line.
    pub cmdline: &'a str,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The virtio devices.
    pub slots: &'a [Slot],
    /// Whether there is a serial console.
    pub serial: bool,
}

/// Fills memory, which must be zero, with everything that a kernel needs to start. Returns where it is entered.
pub fn load(memory: &Memory, parts: &BootParts<'_>) -> Result<u64, LoadError> {
    let low_end = memory::bytes(memory).min(LOW_END);
    let kernel = loader::kernel(memory, parts.kernel, KERNEL..low_end, EM_X86_64)?;
    let initramfs = match parts.initramfs {
        Some(file) => loader::initramfs(memory, file, kernel.end..low_end)?,
        None => 0..0,
    };
    let line = parts.cmdline.as_bytes();
    if line.len() >= COMMAND_LINE_BYTES || line.contains(&0) {
        return Err(LoadError::CommandLine { max: COMMAND_LINE_BYTES });
    }
    let tables = acpi::tables(ACPI.start, parts.vcpus, parts.slots, parts.serial);
    if tables.bytes.len() as u64 > ACPI.end - ACPI.start {
        return Err(LoadError::Tables(ACPI.end - ACPI.start));
    }
    let write = |bytes: &[u8], address| memory.write_slice(bytes, GuestAddress(address));
    let write_all = || {
        write(line, COMMAND_LINE)?;
        write(&tables.bytes, ACPI.start)?;
        write(&zero_page(memory, &initramfs, line.len(), tables.root), ZERO_PAGE)?;
        write(&gdt(), GDT)?;
        write(&page_tables(), PAGE_TABLES)
    };
    // All of it lies in the first MiB, and a machine has 32 at least.
    let result: Result<(), GuestMemoryError> = write_all();
    result.map_err(|_| LoadError::NoRoom { start: 0, end: KERNEL })?;
    Ok(kernel.entry)
}

/// The `boot_params` that the kernel is handed.
fn zero_page(memory: &Memory, initramfs: &Range<u64>, cmdline_bytes: usize, rsdp: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x070, &rsdp.to_le_bytes());
    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS"); // header
    put(0x206, &0x20f_u16.to_le_bytes()); // version of the protocol
    put(0x210, &[0xff]); // type_of_loader: one without a number
    put(0x211, &[1]); // loadflags: loaded high
    // Addresses below LOW_END, which fit into 32 bits.
    put(0x218, &(initramfs.start as u32).to_le_bytes());
    put(0x21c, &((initramfs.end - initramfs.start) as u32).to_le_bytes());
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    put(0x238, &(cmdline_bytes as u32).to_le_bytes());
    let map = memory_map(memory::bytes(memory));
    put(0x1e8, &[map.len() as u8]);
    for (index, (range, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    page
}

/// What is memory (1) and what is reserved (2) below the end of memory.
fn memory_map(bytes: u64) -> Vec<(Range<u64>, u32)> {
    let mut map = vec![(0..LOW_MEMORY_END, 1), (LOW_MEMORY_END..KERNEL, 2), (KERNEL..bytes.min(LOW_END), 1)];
    if bytes > LOW_END {
        map.push((HIGH_START..HIGH_START + (bytes - LOW_END), 1));
    }
    map
}

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// The three segments that the protocol demands, as descriptors.
fn gdt() -> Vec<u8> {
    [0, 0, descriptor(&segment(CODE, 0xb)), descriptor(&segment(DATA, 3)), descriptor(&segment(TASK, 0xb))]
        .iter()
        .flat_map(|entry: &u64| entry.to_le_bytes())
        .collect()
}

/// A flat segment. `kind` 0xb is code that was accessed (or a busy task), 3 data that was accessed.
fn segment(selector: u16, kind: u8) -> kvm_segment {
    let is_task = selector == TASK;
    kvm_segment {
        base: 0,
        limit: if is_task { 0x67 } else { 0xffff_ffff },
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(selector == DATA),
        s: u8::from(!is_task),
        l: u8::from(selector == CODE),
        g: u8::from(!is_task),
        ..Default::default()
    }
}

/// The descriptor of a segment with base 0 (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.l << 1 | segment.db << 2 | segment.g << 3;
    limit & 0xffff | u64::from(access) << 40 | (limit >> 16 & 0xf) << 48 | u64::from(flags) << 52
}

/// The first GiB mapped to itself, in pages of 2 MiB.
fn page_tables() -> Vec<u8> {
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

/// Puts a fresh vCPU, the first, at the entry of a kernel that [`load`] has loaded. The others wait for the kernel to wake
/// them, in the state that KVM gave them.
pub fn enter(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    const CR0_PROTECTED: u64 = 1;
    const CR0_EXTENSION: u64 = 1 << 4;
    const CR0_PAGING: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LONG_ENABLED: u64 = 1 << 8;
    const EFER_LONG_ACTIVE: u64 = 1 << 10;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::to("read system registers"))?;
    sregs.cs = segment(CODE, 0xb);
    let data = segment(DATA, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TASK, 0xb);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, gdt().len() as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION | CR0_PAGING;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LONG_ENABLED | EFER_LONG_ACTIVE;
    vcpu.set_sregs(&sregs).map_err(KvmError::to("set system registers"))?;
    // Interrupts off; the kernel sets up a stack first thing.
    let regs = kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(KvmError::to("set registers"))?;
    let defaults = [(msr::MISC_ENABLE, 1), (msr::MTRR_DEFAULT, 1 << 11 | 6)];
    let entries = defaults.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let set = match Msrs::from_entries(&entries) {
        Ok(msrs) => vcpu.set_msrs(&msrs).map_err(KvmError::to("set model-specific registers"))?,
        Err(_) => 0,
    };
    if set < entries.len() {
        tracing::warn!(set, "kvm refused a model-specific register of a vcpu that boots");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
