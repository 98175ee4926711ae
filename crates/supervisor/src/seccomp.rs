//! The system calls that tenant processes may not make.
//!
//! A deny list on top of no-new-privileges, an own user and no capabilities: what container runtimes refuse because it
//! widens the kernel's attack surface. Calls newer than this file are answered ENOSYS, as an older kernel would. io_uring
//! is refused the same way: it does file and network operations past this filter, and its users fall back. So is its
//! predecessor, `io_submit` and company: all of the host shares 65,536 places (`fs.aio-max-nr`), and one process can take them.

use std::collections::BTreeMap;
use std::ffi::c_long;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};

/// The filter could not be compiled: a mistake in this file, or an architecture without a table.
#[derive(Debug, thiserror::Error)]
#[error("could not compile the system call filter")]
pub(crate) struct FilterError(#[from] BackendError);

/// The two filters of a tenant process. The kernel spends a few hundred microseconds on a long filter when it is
/// installed, so most of it is installed once, in init, and inherited.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    /// What init can do without as well.
    pub init: BpfProgram,
    /// What init needs to make a sandbox and start processes in it.
    pub tenant: BpfProgram,
}

/// Refused to tenants whatever the arguments.
const DENIED_TO_TENANTS: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_sethostname,
];

/// Refused to init and tenants whatever the arguments.
const DENIED: &[c_long] = &[
    // File systems and handles of files in them.
    STATMOUNT,
    LISTMOUNT,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    LSM_SET_SELF_ATTR,
    // Keys are not separated by namespaces.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // The host's name and clock.
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];

/// Those of this architecture alone.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[c_long] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[];

/// Answered as by a kernel that does not have them.
const ABSENT: &[c_long] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The rest of its family is of no use without this one.
    libc::SYS_io_setup,
];
/// The same for tenants. The flags of `clone3` lie in memory, where a filter cannot look; C libraries fall back to `clone`.
const ABSENT_TO_TENANTS: &[c_long] = &[libc::SYS_clone3];

// Numbers that libc does not name on every architecture; the same everywhere (linux/scripts/syscall.tbl).
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const LSM_SET_SELF_ATTR: c_long = 460;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: c_long = 294;

/// The newest call that this file has an opinion on: `removexattrat`, Linux 6.13.
const NEWEST: u32 = 466;

/// Flags of `clone` and `unshare` that make namespaces: mnt, cgroup, uts, ipc, user, pid, net, and time.
const NAMESPACE_FLAGS: &[u64] =
    &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// Only `unshare` takes it: in `clone`, the bit belongs to the exit signal.
const CLONE_NEWTIME: u64 = 0x80;

/// Socket families: local, IPv4, IPv6, and netlink for the list of interfaces.
const FAMILIES: &[u64] = &[1, 2, 10, 16];
const AF_NETLINK: u64 = 16;
const NETLINK_ROUTE: u64 = 0;

/// Personalities without effect on security: Linux with and without an old version number, and "tell me".
const PERSONALITIES: &[u64] = &[0, 0x0002_0000, 0xffff_ffff];

/// `ioctl` requests that write into a terminal's input.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// The compiled programs for this architecture.
pub(crate) fn filters() -> Result<Filters, FilterError> {
    let mut init: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(DENIED_HERE).map(|&call| (call, Vec::new())).collect();
    let is_none_of = |argument, values: &[u64]| -> Result<SeccompRule, BackendError> {
        SeccompRule::new(values.iter().map(|&value| condition(argument, Op::Ne, value)).collect::<Result<_, _>>()?)
    };
    let other_netlink =
        SeccompRule::new(vec![condition(0, Op::Eq, AF_NETLINK)?, condition(2, Op::Ne, NETLINK_ROUTE)?])?;
    init.insert(libc::SYS_socket, vec![is_none_of(0, FAMILIES)?, other_netlink]);
    init.insert(libc::SYS_personality, vec![is_none_of(0, PERSONALITIES)?]);
    let input_of_terminals = |request| SeccompRule::new(vec![condition(1, Op::Eq, request)?]);
    init.insert(libc::SYS_ioctl, vec![input_of_terminals(TIOCSTI)?, input_of_terminals(TIOCLINUX)?]);

    let mut tenant: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED_TO_TENANTS.iter().map(|&call| (call, Vec::new())).collect();
    let has = |flag| SeccompRule::new(vec![condition(0, Op::MaskedEq(flag), flag)?]);
    let clone = NAMESPACE_FLAGS.iter().map(|&flag| has(flag)).collect::<Result<Vec<_>, _>>()?;
    let unshare = clone.iter().cloned().chain([has(CLONE_NEWTIME)?]).collect();
    tenant.insert(libc::SYS_clone, clone);
    tenant.insert(libc::SYS_unshare, unshare);
    Ok(Filters { init: compile(ABSENT, init)?, tenant: compile(ABSENT_TO_TENANTS, tenant)? })
}

fn compile(absent: &[c_long], denied: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, FilterError> {
    let deny = SeccompAction::Errno(libc::EPERM as u32);
    let denied: BpfProgram =
        SeccompFilter::new(denied, SeccompAction::Allow, deny, std::env::consts::ARCH.try_into()?)?.try_into()?;
    let mut program = preamble(absent);
    program.extend(denied);
    Ok(program)
}

fn condition(argument: u8, operator: Op, value: u64) -> Result<SeccompCondition, BackendError> {
    // The kernel looks at the lower half of each of these arguments only.
    SeccompCondition::new(argument, Len::Dword, operator, value)
}

/// What seccompiler has no words for: calls by number range and a second error. Falls through to what follows.
/// The architecture is checked there, which is in time: this part only refuses.
fn preamble(absent: &[c_long]) -> BpfProgram {
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const JUMP_IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut program = vec![
        step(LOAD_WORD, 0, 0, 0), // seccomp_data.nr
        // Catches the x32 interface too, which is a high bit in the number.
        step(JUMP_IF_GREATER, 0, 1, NEWEST),
        step(RETURN, 0, 0, ENOSYS),
    ];
    for &call in absent {
        program.extend([step(JUMP_IF_EQUAL, 0, 1, call as u32), step(RETURN, 0, 0, ENOSYS)]);
    }
    program
}
