//! The system calls that each kind of thread may make; any other ends the process.
//!
//! ```text
//! device thread   event loop, host's socket, devices' files and sockets, memory of machine and allocator, KVM
//! vCPU threads    KVM_RUN and the state of a vCPU, waking the device thread, memory of the allocator
//! ```
//!
//! No call here opens, names or makes anything: paths, processes, sockets and namespaces are out of reach. Memory never
//! becomes executable.

use std::collections::BTreeMap;
use std::ffi::c_long;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::step::{Step, StepError};

struct Filters {
    device: BpfProgram,
    vcpu: BpfProgram,
}

/// Set once, before there is a second thread: vCPU threads find theirs here.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Calls of the C library and of std in every thread.
const EVERYWHERE: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Eventfds of devices and of the machine.
    libc::SYS_read,
    libc::SYS_write,
    // A vCPU that is not to run after all is closed by its thread.
    libc::SYS_close,
];

/// Calls of the device thread, whatever their arguments.
const DEVICE: &[c_long] = &[
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    // The host's socket, and the streams that it gave for connections of the guest.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Drives, kernels, memory files.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
    libc::SYS_mremap,
    libc::SYS_getrandom,
    // Devices are made when it is known which; what they watch is their own.
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Stopping a vCPU thread.
    libc::SYS_getpid,
    libc::SYS_tgkill,
];

/// `ioctl` requests of the device thread beside KVM's: which pages a machine has touched (`PAGEMAP_SCAN`, linux/fs.h), and
/// how packets look on a tap device (`TUNGETIFF`, `TUNSETOFFLOAD`, `TUNSETVNETHDRSZ`, linux/if_tun.h). None that makes a
/// descriptor block: the host reads from streams that this process may have kept.
const OTHER_REQUESTS: &[u64] = &[0xc060_6610, 0x8004_54d2, 0x4004_54d0, 0x4004_54d8];

/// Type and number of an `ioctl` request; the rest is the length of its argument, which may vary.
const REQUEST_MASK: u64 = 0xffff;

/// What the device thread asks of KVM, by type and number (`KVMIO`, linux/kvm.h).
const KVM_OF_DEVICE: &[u64] = &[
    0xae46, // SET_USER_MEMORY_REGION
    0xae62, // GET_IRQCHIP
    0xae63, // SET_IRQCHIP
    0xae76, // IRQFD
    0xae79, // IOEVENTFD
    0xae7b, // SET_CLOCK
    0xae7c, // GET_CLOCK
];

/// What a vCPU's thread asks of KVM.
const KVM_OF_VCPU: &[u64] = &[
    0xae80, // RUN
    0xae81, // GET_REGS
    0xae82, // SET_REGS
    0xae83, // GET_SREGS
    0xae84, // SET_SREGS
    0xae88, // GET_MSRS
    0xae89, // SET_MSRS
    0xae8e, // GET_LAPIC
    0xae8f, // SET_LAPIC
    0xae90, // SET_CPUID2
    0xae98, // GET_MP_STATE
    0xae99, // SET_MP_STATE
    0xae9f, // GET_VCPU_EVENTS
    0xaea0, // SET_VCPU_EVENTS
    0xaea1, // GET_DEBUGREGS
    0xaea2, // SET_DEBUGREGS, SET_TSC_KHZ
    0xaea3, // GET_TSC_KHZ
    0xaea4, // GET_XSAVE
    0xaea5, // SET_XSAVE
    0xaea6, // GET_XCRS
    0xaea7, // SET_XCRS
    0xaead, // KVMCLOCK_CTRL
];

/// Compiles the filters. With `audit`, they only write to the kernel's log what they would refuse.
pub(super) fn prepare(audit: bool) -> Result<(), StepError> {
    let filters = compile(audit).map_err(io::Error::other).step("compile the system call filters")?;
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Confines the calling thread to what the device thread needs.
pub(super) fn confine_device_thread() -> Result<(), StepError> {
    confine(|filters| &filters.device).step("install the system call filter")
}

/// Confines the calling thread to what vCPU threads need. Without it the process has no business to go on.
pub(super) fn confine_vcpu_thread() {
    if confine(|filters| &filters.vcpu).is_err() {
        std::process::abort();
    }
}

fn confine(which: impl Fn(&Filters) -> &BpfProgram) -> io::Result<()> {
    let filters = FILTERS.get().ok_or(io::ErrorKind::NotFound)?;
    apply_filter(which(filters)).map_err(io::Error::other)
}

fn compile(audit: bool) -> Result<Filters, seccompiler::BackendError> {
    let without_exec = |argument| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let exec = libc::PROT_EXEC as u64;
        Ok(vec![SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, Op::MaskedEq(exec), 0)?])?])
    };
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let rule = |&value| SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, Op::Eq, value)?]);
        values.iter().map(rule).collect()
    };
    let kvm = |requests: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let is = |&request| SeccompCondition::new(1, Len::Dword, Op::MaskedEq(REQUEST_MASK), request);
        requests.iter().map(|request| SeccompRule::new(vec![is(request)?])).collect()
    };

    let mut vcpu: BTreeMap<i64, Vec<SeccompRule>> = EVERYWHERE.iter().map(|&call| (call, Vec::new())).collect();
    vcpu.insert(libc::SYS_mmap, without_exec(2)?);
    vcpu.insert(libc::SYS_mprotect, without_exec(2)?);

    let mut device = vcpu.clone();
    vcpu.insert(libc::SYS_ioctl, kvm(KVM_OF_VCPU)?);
    // What std looks at before it closes a descriptor.
    vcpu.insert(libc::SYS_fcntl, one_of(1, &[libc::F_GETFD as u64])?);
    device.extend(DEVICE.iter().map(|&call| (call, Vec::new())));
    let mut requests = one_of(1, OTHER_REQUESTS)?;
    requests.extend(kvm(KVM_OF_DEVICE)?);
    device.insert(libc::SYS_ioctl, requests);
    // Connections that the guest opens.
    device.insert(libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?);
    device.insert(
        libc::SYS_fcntl,
        one_of(1, &[libc::F_GETFD as u64, libc::F_GETFL as u64, libc::F_DUPFD_CLOEXEC as u64])?,
    );

    let refuse = if audit { SeccompAction::Log } else { SeccompAction::KillProcess };
    let build = |rules| -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(rules, refuse.clone(), SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?.try_into()
    };
    Ok(Filters { device: build(device)?, vcpu: build(vcpu)? })
}

#[cfg(test)]
mod tests;
