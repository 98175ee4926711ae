//! What a vCPU says of itself (`CPUID`): what KVM supports, less what a microVM has no use for, with a topology of one
//! package of single-threaded cores.
//!
//! Leaves: Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E; KVM's own: Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

// Bits of leaf 1.
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_DEADLINE_TIMER: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

// Bits of leaf 0x8000_0001.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_SVM: u32 = 1 << 2;
/// Performance counters of cores, of the northbridge, and of the last-level cache.
const ECX_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// KVM's features that are of no use: the old clock, and page faults that the host resolves meanwhile (three bits). A
/// clone's pages come from the page cache, so that there is nothing to wait for, and their state cannot be saved safely.
const KVM_UNUSED: u32 = 1 << 0 | 1 << 4 | 1 << 10 | 1 << 14;

/// The answers of vCPU `index` of `count`.
pub fn of_vcpu(supported: &CpuId, index: u8, count: u8, deadline_timer: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let id = u32::from(index);
    // Topology leaves are written anew below.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    let mut max_leaf = 0;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0 => max_leaf = entry.eax,
            1 => {
                entry.ecx &= !(ECX_VMX | ECX_PDCM | ECX_DEADLINE_TIMER);
                entry.ecx |= ECX_HYPERVISOR | if deadline_timer { ECX_DEADLINE_TIMER } else { 0 };
                entry.ebx = entry.ebx & 0xffff | id << 24 | u32::from(count) << 16;
                entry.edx = entry.edx & !EDX_HTT | if count > 1 { EDX_HTT } else { 0 };
            }
            4 | 0x8000_001d => share_cache(entry, count),
            // Performance counters, in the manner of Intel and of AMD; nested virtualization.
            0xa | 0x8000_0022 | 0x8000_000a => clear(entry),
            0x4000_0001 => entry.eax &= !KVM_UNUSED,
            0x8000_0001 => {
                entry.ecx &= !(ECX_SVM | ECX_COUNTERS | ECX_CMP_LEGACY);
                entry.ecx |= if count > 1 { ECX_CMP_LEGACY } else { 0 };
            }
            0x8000_0008 => entry.ecx = id_bits(count) << 12 | u32::from(count - 1),
            // Extended id, core (of one thread), node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    for function in [0xb, 0x1f].into_iter().filter(|function| *function <= max_leaf) {
        for entry in topology(function, id, count) {
            // The list has room: KVM returns far less than it takes, and two entries of each leaf at least went.
            if cpuid.push(entry).is_err() {
                tracing::warn!(function, "no room for the topology of a vcpu");
            }
        }
    }
    cpuid
}

/// How many bits number the cores of a package.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

/// First and second caches belong to one core, the third to all.
fn share_cache(entry: &mut kvm_cpuid_entry2, count: u8) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { u32::from(count - 1) } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14;
    if entry.function == 4 {
        entry.eax |= (id_bits_all(count) - 1) << 26;
    }
}

/// How many ids a package has room for.
fn id_bits_all(count: u8) -> u32 {
    1 << id_bits(count)
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Level 0: one thread in a core; level 1: all cores in the package.
fn topology(function: u32, id: u32, count: u8) -> [kvm_cpuid_entry2; 2] {
    let entry = |index, shift, number: u8, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: u32::from(number),
        ecx: index | kind << 8,
        edx: id,
        padding: [0; 3],
    };
    [entry(0, 0, 1, 1), entry(1, id_bits(count), count, 2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn every_vcpu_has_its_own_place() {
        let all = [entry(0, [0x16, 0, 0, 0]), entry(1, [0, 0x0800, 0, 0]), entry(0xb, [9, 9, 9, 9])];
        let supported = CpuId::from_entries(&all).unwrap();
        for index in 0..6 {
            let cpuid = of_vcpu(&supported, index, 6, true);
            assert_eq!(find(&cpuid, 1, 0).ebx, u32::from(index) << 24 | 6 << 16 | 0x0800);
            assert_eq!(find(&cpuid, 0xb, 0).edx, u32::from(index));
            let cores = find(&cpuid, 0xb, 1);
            assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 1 | 2 << 8));
            assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x1f));
        }
    }

    #[test]
    fn a_guest_sees_no_virtualization_of_its_own_and_no_counters() {
        let all = [entry(1, [0, 0, !0, !0]), entry(0xa, [1, 2, 3, 4]), entry(0x8000_0001, [0, 0, !0, 0])];
        let cpuid = of_vcpu(&CpuId::from_entries(&all).unwrap(), 0, 1, false);
        assert_eq!(find(&cpuid, 1, 0).ecx & (ECX_VMX | ECX_DEADLINE_TIMER), 0);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & (ECX_SVM | ECX_COUNTERS), 0);
        assert_eq!(find(&cpuid, 1, 0).edx & EDX_HTT, 0);
    }

    #[test]
    fn only_the_last_cache_is_shared() {
        let cache = |level: u32| kvm_cpuid_entry2 { index: level, ..entry(4, [1 | level << 5 | 7 << 14, 0, 0, 0]) };
        let cpuid = of_vcpu(&CpuId::from_entries(&[cache(1), cache(3)]).unwrap(), 0, 4, false);
        assert_eq!(find(&cpuid, 4, 1).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&cpuid, 4, 3).eax >> 14 & 0xfff, 3);
        assert_eq!(find(&cpuid, 4, 3).eax >> 26, 3);
    }
}
