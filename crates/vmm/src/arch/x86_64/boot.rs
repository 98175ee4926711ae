//! How a kernel is put into memory and entered: what both protocols share. [`linux`] and [`pvh`] differ in what they hand to the
//! kernel, and in the mode that the processor is in.
//!
//! ```text
//!   0x0500 GDT          0x7000 zero page, or start info     0x9000 page tables (3)    0x2_0000 command line
//!   0xe_0000 ACPI       0xf_f000 generation id              1 MiB kernel ... initramfs, end of low memory
//! ```

mod linux;
mod pvh;

use std::fs::File;
use std::ops::Range;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{KvmError, Slot, acpi, msr};
use crate::config::BootProtocol;
use crate::loader::{self, LoadError};
use crate::memory::{self, HIGH_START, LOW_END, Memory};

const GDT: u64 = 0x500;
/// What the kernel is handed.
const START: u64 = 0x7000;
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
    /// How it is entered.
    pub protocol: BootProtocol,
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

/// Where a kernel is entered, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    address: u64,
    protocol: BootProtocol,
}

/// What lies where in memory, to be told to the kernel.
struct Layout {
    initramfs: Range<u64>,
    cmdline_bytes: usize,
    /// Of ACPI's tables.
    root: u64,
    map: Vec<(Range<u64>, u32)>,
}

/// Fills memory, which must be zero, with everything that a kernel needs to start. Returns where it is entered.
pub fn load(memory: &Memory, parts: &BootParts<'_>) -> Result<Entry, LoadError> {
    let low_end = memory::bytes(memory).min(LOW_END);
    let kernel = loader::kernel(memory, parts.kernel, KERNEL..low_end, EM_X86_64)?;
    let address = match parts.protocol {
        BootProtocol::Linux64 => kernel.entry,
        BootProtocol::Pvh => kernel.pvh_entry.ok_or(LoadError::NoPvh)?.into(),
    };
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
    let map = memory_map(memory::bytes(memory));
    let layout = Layout { initramfs, cmdline_bytes: line.len(), root: tables.root, map };
    let write = |bytes: &[u8], address| memory.write_slice(bytes, GuestAddress(address));
    let write_all = || {
        write(line, COMMAND_LINE)?;
        write(&tables.bytes, ACPI.start)?;
        match parts.protocol {
            BootProtocol::Linux64 => {
                write(&linux::zero_page(&layout), START)?;
                write(&descriptors(&linux::SEGMENTS), GDT)?;
                write(&linux::page_tables(), PAGE_TABLES)
            }
            BootProtocol::Pvh => {
                write(&pvh::start_info(&layout), START)?;
                write(&descriptors(&pvh::SEGMENTS), GDT)
            }
        }
    };
    // All of it lies in the first MiB, and a machine has 32 at least.
    let result: Result<(), GuestMemoryError> = write_all();
    result.map_err(|_| LoadError::NoRoom { start: 0, end: KERNEL })?;
    Ok(Entry { address, protocol: parts.protocol })
}

/// What is memory (1) and what is reserved (2) below the end of memory.
fn memory_map(bytes: u64) -> Vec<(Range<u64>, u32)> {
    let mut map = vec![(0..LOW_MEMORY_END, 1), (LOW_MEMORY_END..KERNEL, 2), (KERNEL..bytes.min(LOW_END), 1)];
    if bytes > LOW_END {
        map.push((HIGH_START..HIGH_START + (bytes - LOW_END), 1));
    }
    map
}

/// A flat segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    selector: u16,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code64,
    Code32,
    Data,
    Task,
}

/// Code, data and task, with the selectors that Linux demands; PVH leaves them to us.
const fn segments(code: Kind) -> [Segment; 3] {
    [
        Segment { selector: 0x10, kind: code },
        Segment { selector: 0x18, kind: Kind::Data },
        Segment { selector: 0x20, kind: Kind::Task },
    ]
}

impl Segment {
    fn to_kvm(self) -> kvm_segment {
        let Segment { selector, kind } = self;
        let is_task = kind == Kind::Task;
        kvm_segment {
            base: 0,
            limit: if is_task { 0x67 } else { 0xffff_ffff },
            selector,
            // 0xb is code that was accessed (or a busy task), 3 data that was accessed.
            type_: if kind == Kind::Data { 3 } else { 0xb },
            present: 1,
            dpl: 0,
            db: u8::from(matches!(kind, Kind::Data | Kind::Code32)),
            s: u8::from(!is_task),
            l: u8::from(kind == Kind::Code64),
            g: u8::from(!is_task),
            ..Default::default()
        }
    }
}

/// The descriptors of segments, behind the two that nobody uses.
fn descriptors(segments: &[Segment; 3]) -> Vec<u8> {
    let used = segments.iter().map(|segment| descriptor(&segment.to_kvm()));
    [0, 0].into_iter().chain(used).flat_map(u64::to_le_bytes).collect()
}

/// The descriptor of a segment with base 0 (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.l << 1 | segment.db << 2 | segment.g << 3;
    limit & 0xffff | u64::from(access) << 40 | (limit >> 16 & 0xf) << 48 | u64::from(flags) << 52
}

/// Bits of control register 0.
const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION: u64 = 1 << 4;

/// Loads the registers of segments, and says where their descriptors are.
fn use_segments(sregs: &mut kvm_sregs, segments: &[Segment; 3]) {
    let [code, data, task] = segments.map(Segment::to_kvm);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, descriptors(segments).len() as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
}

/// Puts a fresh vCPU, the first, at the entry of a kernel that [`load`] has loaded. The others wait for the kernel to wake
/// them, in the state that KVM gave them.
pub fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::to("read system registers"))?;
    // Interrupts off; the kernel sets up a stack first thing.
    let mut regs = kvm_regs { rip: entry.address, rflags: 2, ..Default::default() };
    match entry.protocol {
        BootProtocol::Linux64 => linux::enter(&mut sregs, &mut regs),
        BootProtocol::Pvh => pvh::enter(&mut sregs, &mut regs),
    }
    vcpu.set_sregs(&sregs).map_err(KvmError::to("set system registers"))?;
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
