//! What a machine is made of, as plain data; the files behind it are descriptors that travel beside it.

use serde::{Deserialize, Serialize};

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 6;
/// Most drives of a machine.
pub const MAX_DRIVES: usize = 8;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// From 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Memory in MiB, 32 at least.
    pub memory_mib: u32,
    /// Back memory with huge pages (2 MiB); the host must have reserved them.
    pub huge_pages: bool,
    /// The kernel's command line; what the devices need is added.
    pub cmdline: String,
    /// Context id of the guest, at least 3.
    pub vsock_cid: u32,
    /// Block devices in order: `/dev/vda`, `/dev/vdb`, …
    pub drives: Vec<DriveConfig>,
    /// Network device, if there is one.
    pub net: Option<NetConfig>,
    /// Whether there is a balloon that reports free pages.
    pub balloon: bool,
    /// Whether there is a serial console; its output goes to a descriptor. For debugging only.
    pub serial: bool,
}

/// How a kernel is entered. A restored machine goes on where it was, whatever it began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BootProtocol {
    /// In 64-bit mode, with page tables, as Linux documents it. Every vmlinux can be entered so.
    #[default]
    Linux64,
    /// In 32-bit mode without paging, at the address in a note of the ELF file, as Xen documents it: other kernels than Linux, and
    /// a Linux with `CONFIG_PVH`.
    Pvh,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveConfig {
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Hardware address.
    pub mac: [u8; 6],
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// The guest asked for a reset or switched off, which for us is the same.
    Reset,
    /// The guest's kernel gave up (triple fault, shutdown event).
    Crashed(String),
    /// The VMM could not go on.
    Failed(String),
    /// The VMM process was killed or died.
    Killed,
}
