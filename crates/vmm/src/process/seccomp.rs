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
    libc::SYS_close,
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
/// how packets look on a tap device (`TUNSETOFFLOAD`, `TUNSETVNETHDRSZ`, linux/if_tun.h).
const OTHER_REQUESTS: &[u64] = &[0xc060_6610, 0x4004_54d0, 0x4004_54d8];

/// `ioctl` requests: all of KVM's have this type (`KVMIO`, linux/kvm.h).
const KVM_TYPE: u64 = 0xae00;
const TYPE_MASK: u64 = 0xff00;

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
    let kvm = SeccompRule::new(vec![SeccompCondition::new(1, Len::Dword, Op::MaskedEq(TYPE_MASK), KVM_TYPE)?])?;

    let mut vcpu: BTreeMap<i64, Vec<SeccompRule>> = EVERYWHERE.iter().map(|&call| (call, Vec::new())).collect();
    vcpu.insert(libc::SYS_mmap, without_exec(2)?);
    vcpu.insert(libc::SYS_mprotect, without_exec(2)?);
    vcpu.insert(libc::SYS_ioctl, vec![kvm.clone()]);

    let mut device = vcpu.clone();
    device.extend(DEVICE.iter().map(|&call| (call, Vec::new())));
    let mut requests = one_of(1, OTHER_REQUESTS)?;
    requests.push(kvm);
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
