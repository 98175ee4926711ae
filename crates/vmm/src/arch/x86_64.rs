//! x86-64: a machine with local APICs and one I/O APIC, without PCI, PIT or BIOS, described by ACPI.

mod acpi;
mod boot;
mod cpuid;
mod msr;
mod state;

use kvm_bindings::{CpuId, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

pub use self::boot::{BootParts, enter, load};
pub use self::state::{StateError, VcpuState, VmState};
use super::{KvmError, Slot};

/// The version of the KVM interface that we speak; there is no other.
const API_VERSION: i32 = 12;

/// Where KVM keeps what it needs for old Intel processors: three pages and one, in the gap below 4 GiB.
const TSS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// First window of a virtio device.
const WINDOWS: u64 = 0xd000_0000;
/// Distance between windows.
const WINDOW_STEP: u64 = 0x1000;
/// Interrupt of the first virtio device.
const FIRST_GSI: u32 = 5;
/// Most virtio devices: the interrupts from [`FIRST_GSI`] to the I/O APIC's last but one.
const MAX_SLOTS: usize = 18;

/// Interrupt of the device that says that the machine was cloned: the I/O APIC's last.
pub const GENERATION_GSI: u32 = 23;
/// The generation id's guest-physical address, in reserved memory.
pub const GENERATION_ID: u64 = 0xf_f000;
/// First port of the serial console and the number of its ports.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Interrupt of the serial console.
pub const SERIAL_GSI: u32 = 4;
/// Port of the keyboard controller's commands, one of which is a reset.
pub const RESET_PORT: u64 = 0x64;
/// The command.
pub const RESET_VALUE: u8 = 0xfe;
/// Port of the ACPI sleep control register; the status register follows.
pub const SLEEP_PORT: u64 = 0x600;
/// The bit of it that begins the sleep (`SLP_EN`). The only sleep that there is, is switched off.
pub const SLEEP_ENABLE: u8 = 1 << 5;

/// The place of the virtio device of this number. `None` if there are no more.
pub fn slot(index: usize) -> Option<Slot> {
    (index < MAX_SLOTS).then(|| Slot { base: WINDOWS + index as u64 * WINDOW_STEP, gsi: FIRST_GSI + index as u32 })
}

/// What KVM on this host offers to machines.
pub struct Host {
    cpuid: CpuId,
    /// The registers that make up a vCPU's state.
    msrs: Vec<u32>,
    has_deadline_timer: bool,
    can_scale_tsc: bool,
}

impl Host {
    /// Asks KVM.
    pub fn probe(kvm: &Kvm) -> Result<Host, HostError> {
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(HostError::Version(version));
        }
        let needed = [
            (Cap::Irqchip, "interrupt controllers"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::AdjustClock, "setting the clock"),
            (Cap::Xsave, "xsave"),
            (Cap::Xcrs, "xcrs"),
            (Cap::VcpuEvents, "vcpu events"),
        ];
        if let Some((_, name)) = needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HostError::Missing(name));
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::to("list cpu features"))?;
        let msrs = kvm.get_msr_index_list().map_err(KvmError::to("list registers"))?;
        Ok(Host {
            cpuid,
            msrs: msr::of_state(msrs.as_slice()),
            has_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
            can_scale_tsc: kvm.check_extension(Cap::TscControl),
        })
    }

    /// A digest of what the guest's only vCPU is shown: the same on every processor of one machine, and on every other
    /// machine that can go on with its state.
    pub fn shown(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for entry in cpuid::of_vcpu(&self.cpuid, 0, 1, self.has_deadline_timer).as_slice() {
            for word in [entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx] {
                hash.update(&word.to_le_bytes());
            }
        }
        hash.finalize().into()
    }
}

/// Why this host cannot run machines.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A KVM of another time.
    #[error("the host's kvm speaks version {0}, not 12")]
    Version(i32),
    /// Something that every KVM since Linux 4.12 has.
    #[error("the host's kvm lacks {0}, use a newer kernel")]
    Missing(&'static str),
    /// A question was not answered.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// A virtual machine with interrupt controllers, without vCPUs and memory. The controllers are all in the kernel: with
/// virtio over MMIO every interrupt comes by the I/O APIC, and one of our own would cost an exit for each.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(KvmError::to("create a virtual machine"))?;
    vm.set_identity_map_address(IDENTITY_MAP).map_err(KvmError::to("place the identity map"))?;
    vm.set_tss_address(TSS).map_err(KvmError::to("place the task state"))?;
    vm.create_irq_chip().map_err(KvmError::to("create interrupt controllers"))?;
    // Performance counters make vCPUs heavier and tell a guest about its neighbours. Old kernels cannot take them away
    // wholly; the guest does not see them then either, as CPUID does not announce them.
    let mut without_pmu = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    without_pmu.args[0] = u64::from(KVM_PMU_CAP_DISABLE);
    if let Err(error) = vm.enable_cap(&without_pmu) {
        tracing::debug!(%error, "kvm keeps its performance counters");
    }
    Ok(vm)
}

/// Tells a new vCPU what it is.
pub fn prepare_vcpu(vcpu: &VcpuFd, index: u8, count: u8, host: &Host) -> Result<(), KvmError> {
    let cpuid = cpuid::of_vcpu(&host.cpuid, index, count, host.has_deadline_timer);
    vcpu.set_cpuid2(&cpuid).map_err(KvmError::to("set cpu features"))
}

/// Tells the guest, if its clock is KVM's, that it stood still.
pub fn stood_still(vcpu: &VcpuFd) {
    if let Err(error) = vcpu.kvmclock_ctrl() {
        tracing::debug!(%error, "the guest's clock cannot be told that it stood still");
    }
}

/// Where a vCPU is in its program, as far as that is known.
pub fn program_counter(vcpu: &VcpuFd) -> Option<u64> {
    vcpu.get_regs().ok().map(|regs| regs.rip)
}
