//! The state of a virtual machine and its vCPUs: taken out of KVM for a snapshot, and put into a fresh one.
//!
//! The order matters. Out: the multiprocessor state first, since asking for it makes KVM act on pending events. In: system
//! registers before the local APIC, whose mode they hold; the local APIC before its timer's deadline; the time-stamp
//! counter before that, and the same for all vCPUs, so that KVM takes them for synchronized.
//! Source: Linux `Documentation/virt/kvm/api.rst`.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_MSR_ENTRIES, Msrs, kvm_clock_data,
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{Host, KvmError, msr};

/// The interrupt controllers outside of the vCPUs.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
/// How far the time-stamp counters' frequencies of two hosts may differ, in millionths: what a guest's clock bears.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Why a state cannot be put into a machine.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refused a part.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// There is a register in it that is not part of a state.
    #[error("the state holds the register {0:#x}, which this host does not save, take a new snapshot here")]
    Register(u32),
    /// KVM does not take the value of a register.
    #[error("kvm refuses the state's value of the register {0:#x}, take a new snapshot here")]
    Value(u32),
    /// The frequency cannot be had here.
    #[error("the state's time-stamp counter runs at {found} kHz, this host's at {expected}, take a new snapshot here")]
    Frequency {
        /// The host's.
        expected: u32,
        /// The state's.
        found: u32,
    },
}

/// The state of what belongs to no vCPU.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    chips: [kvm_irqchip; 3],
    /// Nanoseconds of the guest's monotonic clock.
    clock: u64,
}

impl VmState {
    /// Takes it from a machine whose vCPUs stand still.
    pub fn save(vm: &VmFd) -> Result<VmState, KvmError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(KvmError::to("read an interrupt controller"))?;
        }
        let clock = vm.get_clock().map_err(KvmError::to("read the clock"))?.clock;
        Ok(VmState { chips, clock })
    }

    /// Puts the interrupt controllers into a fresh machine.
    pub fn restore_chips(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (chip, chip_id) in self.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip { chip_id, ..*chip };
            vm.set_irqchip(&chip).map_err(KvmError::to("set an interrupt controller"))?;
        }
        Ok(())
    }

    /// Lets the guest's clock go on from where it was: as if no time had passed.
    pub fn restore_clock(&self, vm: &VmFd) -> Result<(), KvmError> {
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(KvmError::to("set the clock"))
    }
}

/// The state of a vCPU.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    /// Frequency of the time-stamp counter in kHz.
    tsc_khz: u32,
}

impl VcpuState {
    /// Takes it from a vCPU that stands still and has no access to a device under way.
    pub fn save(vcpu: &VcpuFd, host: &Host) -> Result<VcpuState, KvmError> {
        Ok(VcpuState {
            mp_state: vcpu.get_mp_state().map_err(KvmError::to("read a multiprocessor state"))?,
            regs: vcpu.get_regs().map_err(KvmError::to("read registers"))?,
            sregs: vcpu.get_sregs().map_err(KvmError::to("read system registers"))?,
            xcrs: vcpu.get_xcrs().map_err(KvmError::to("read extended control registers"))?,
            xsave: vcpu.get_xsave().map_err(KvmError::to("read extended registers"))?,
            lapic: vcpu.get_lapic().map_err(KvmError::to("read a local apic"))?,
            msrs: read_msrs(vcpu, &host.msrs)?,
            events: vcpu.get_vcpu_events().map_err(KvmError::to("read pending events"))?,
            debug: vcpu.get_debug_regs().map_err(KvmError::to("read debug registers"))?,
            tsc_khz: vcpu.get_tsc_khz().map_err(KvmError::to("read a frequency"))?,
        })
    }

    /// The time-stamp counter.
    pub fn tsc(&self) -> u64 {
        self.msrs.iter().find(|(index, _)| *index == msr::TSC).map_or(0, |(_, value)| *value)
    }

    /// Sets the time-stamp counter.
    pub fn set_tsc(&mut self, tsc: u64) {
        for (_, value) in self.msrs.iter_mut().filter(|(index, _)| *index == msr::TSC) {
            *value = tsc;
        }
    }

    /// Puts it into a fresh vCPU whose machine has its memory and interrupt controllers. The guest is told that it stood
    /// still, so that its watchdogs do not bark.
    pub fn restore(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), StateError> {
        self.set_frequency(vcpu, host)?;
        vcpu.set_sregs(&self.sregs).map_err(KvmError::to("set system registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(KvmError::to("set extended control registers"))?;
        // SAFETY: KVM reads more than `kvm_xsave` only for features that a process must ask for first, which we do not.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(KvmError::to("set extended registers"))?;
        vcpu.set_regs(&self.regs).map_err(KvmError::to("set registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(KvmError::to("set a local apic"))?;
        self.write_msrs(vcpu, host)?;
        vcpu.set_vcpu_events(&self.events).map_err(KvmError::to("set pending events"))?;
        vcpu.set_debug_regs(&self.debug).map_err(KvmError::to("set debug registers"))?;
        vcpu.set_mp_state(self.mp_state).map_err(KvmError::to("set a multiprocessor state"))?;
        super::stood_still(vcpu);
        Ok(())
    }

    fn set_frequency(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), StateError> {
        let expected = vcpu.get_tsc_khz().map_err(KvmError::to("read a frequency"))?;
        let found = self.tsc_khz;
        let tolerated = u64::from(expected) * TSC_TOLERANCE_PPM / 1_000_000;
        if u64::from(expected.abs_diff(found)) <= tolerated {
            return Ok(());
        }
        if !host.can_scale_tsc {
            return Err(StateError::Frequency { expected, found });
        }
        vcpu.set_tsc_khz(found).map_err(|_| StateError::Frequency { expected, found })
    }

    fn write_msrs(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), StateError> {
        if let Some((index, _)) = self.msrs.iter().find(|(index, _)| !host.msrs.contains(index)) {
            return Err(StateError::Register(*index));
        }
        for chunk in self.msrs.chunks(KVM_MAX_MSR_ENTRIES) {
            let entry = |(index, data): &(u32, u64)| kvm_msr_entry { index: *index, data: *data, ..Default::default() };
            let entries: Vec<_> = chunk.iter().map(entry).collect();
            let Ok(msrs) = Msrs::from_entries(&entries) else { continue };
            let set = vcpu.set_msrs(&msrs).map_err(KvmError::to("set model-specific registers"))?;
            if let Some(refused) = entries.get(set) {
                return Err(StateError::Value(refused.index));
            }
        }
        Ok(())
    }
}

/// The values of those of `list` that the vCPU has.
fn read_msrs(vcpu: &VcpuFd, list: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut values = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = chunk.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let Ok(mut msrs) = Msrs::from_entries(&entries) else { break };
        let read = vcpu.get_msrs(&mut msrs).map_err(KvmError::to("read model-specific registers"))?;
        values.extend(msrs.as_slice()[..read].iter().map(|entry| (entry.index, entry.data)));
        // KVM stops at the first that this vCPU has not; the others may be there.
        rest = &rest[(read + usize::from(read < chunk.len()))..];
    }
    Ok(values)
}
