//! PVH: a kernel is entered in 32-bit mode without paging, and handed a start info. For kernels that Linux's protocol cannot
//! enter; a Linux has to make its first page tables itself then.
//!
//! Sources: Xen `docs/misc/pvh.pandoc` ("x86/HVM direct boot ABI") and `xen/include/public/arch-x86/hvm/start_info.h`.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::{COMMAND_LINE, CR0_EXTENSION, CR0_PROTECTED, Kind, Layout, START, Segment, segments, use_segments};

pub const SEGMENTS: [Segment; 3] = segments(Kind::Code32);

/// "xEn3", the first bit of the E set.
pub const MAGIC: u32 = 0x336e_c578;
/// The first with a memory map.
const VERSION: u32 = 1;
/// The start info's length; the list of modules follows it, and the memory map that.
pub const INFO_BYTES: u64 = 56;
pub const MODULE_BYTES: u64 = 32;

/// The start info with what it points to, for [`START`].
pub fn start_info(layout: &Layout) -> Vec<u8> {
    let Layout { initramfs, root, map, .. } = layout;
    let modules = u32::from(!initramfs.is_empty());
    let module_list = START + INFO_BYTES;
    let memory_map = module_list + MODULE_BYTES;
    let mut bytes = Vec::new();
    for word in [MAGIC, VERSION, 0, modules] {
        bytes.extend(word.to_le_bytes());
    }
    for address in [module_list, COMMAND_LINE, *root, memory_map] {
        bytes.extend(address.to_le_bytes());
    }
    for word in [map.len() as u32, 0] {
        bytes.extend(word.to_le_bytes());
    }
    // Of the module: address, length, no command line, reserved.
    for word in [initramfs.start, initramfs.end - initramfs.start, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for (range, kind) in map {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend((range.end - range.start).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
    }
    bytes
}

/// The mode that the protocol demands.
pub fn enter(sregs: &mut kvm_sregs, regs: &mut kvm_regs) {
    use_segments(sregs, &SEGMENTS);
    // The extension bit cannot be cleared on any processor of today.
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    regs.rbx = START;
}
