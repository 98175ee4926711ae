//! Which model-specific registers make up the state of a vCPU.
//!
//! Numbers: Intel SDM volume 4; AMD APM volume 2, appendix A; Linux `arch/x86/include/uapi/asm/kvm_para.h`.

use std::ops::RangeInclusive;

/// The time-stamp counter.
pub const TSC: u32 = 0x10;
/// When the local APIC's timer fires, in the time-stamp counter's terms.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// General control of the processor; bit 0: fast string operations.
pub const MISC_ENABLE: u32 = 0x1a0;
/// The type of memory that no other register describes; bit 11: valid, 6: write-back.
pub const MTRR_DEFAULT: u32 = 0x2ff;

/// What KVM lists and a snapshot does without.
const LEFT_OUT: &[RangeInclusive<u32>] = &[
    // Writing the wall clock makes KVM write to the guest's memory; the old system time is not offered.
    0x11..=0x12,
    0x4b56_4d00..=0x4b56_4d00,
    // Page faults that the host resolves meanwhile; not offered.
    0x4b56_4d02..=0x4b56_4d02,
    0x4b56_4d06..=0x4b56_4d07,
    // Performance counters; not offered.
    0xc1..=0xc8,
    0x186..=0x18d,
    0x309..=0x30c,
    0x345..=0x345,
    0x38d..=0x392,
    0x3f1..=0x3f2,
    0x4c1..=0x4c8,
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020f,
    0xc000_0300..=0xc000_0302,
    // Virtualization of the guest's own; not offered.
    0x480..=0x493,
    0xc001_0114..=0xc001_0117,
    // System management mode; there is no firmware.
    0x9e..=0x9e,
    // Hyper-V's; not offered.
    0x4000_0000..=0x4000_01ff,
];

/// The registers of a vCPU's state among those that KVM lists, in the order in which they are restored: the counter first,
/// as the deadline depends on it, which is the last.
pub fn of_state(listed: &[u32]) -> Vec<u32> {
    let mut list: Vec<u32> =
        listed.iter().copied().filter(|index| !LEFT_OUT.iter().any(|range| range.contains(index))).collect();
    list.sort_by_key(|index| match *index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    });
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_comes_first_and_its_deadline_last() {
        let list = of_state(&[0x174, TSC_DEADLINE, 0xc1, 0x11, 0x4b56_4d01, TSC, 0xc000_0080]);
        assert_eq!(list, [TSC, 0x174, 0x4b56_4d01, 0xc000_0080, TSC_DEADLINE]);
    }
}
