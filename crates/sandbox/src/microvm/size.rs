//! How large a machine is made for a sandbox.
//!
//! A machine's memory cannot grow after its snapshot was taken, so each size needs a base snapshot of its own. The limit of a
//! sandbox is enforced by a control group inside; the machine is of the next size above it, and memory that nobody touches
//! costs nothing.

use vmm::config::MAX_VCPUS;

/// Sizes of tenants' memory, in MiB.
const CLASSES_MIB: [u32; 10] = [128, 256, 512, 1_024, 2_048, 3_072, 4_096, 6_144, 8_192, 10_240];

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Size {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory, in MiB: the tenants', and what kernel and agent take.
    pub memory_mib: u32,
}

impl Size {
    /// The smallest machine that holds tenants of so many bytes and shows so many processors; more than the largest is cut.
    pub fn of(memory_bytes: u64, processors: u32) -> Size {
        let wanted = u32::try_from(memory_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let [.., largest] = CLASSES_MIB;
        let class = CLASSES_MIB.into_iter().find(|class| *class >= wanted).unwrap_or(largest);
        let vcpus = u8::try_from(processors).unwrap_or(MAX_VCPUS).clamp(1, MAX_VCPUS);
        // The kernel keeps 1.6 percent for its page table of the machine; the rest is for itself, the agent and slack.
        Size { vcpus, memory_mib: class + 64 + class / 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_holds_its_tenants_and_sizes_are_few() {
        let mib = |mib: u64| Size::of(mib << 20, 1).memory_mib;
        assert_eq!([mib(0), mib(128), mib(129)], [196, 196, 328]);
        assert_eq!(mib(10_240), 10_240 + 64 + 320);
        assert_eq!(Size::of(u64::MAX, 0), Size { vcpus: 1, memory_mib: mib(10_240) });
        assert_eq!(Size::of(1, 64).vcpus, MAX_VCPUS);
        for wanted in 128..=10_240 {
            assert!(u64::from(mib(wanted)) >= wanted + 64);
        }
    }
}
