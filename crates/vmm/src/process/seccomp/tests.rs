//! The filters, each call in a process of its own that they may end.

use super::*;

/// Whether a call with these arguments survives `filter`, in a fork of this process.
fn survives(filter: &BpfProgram, call: c_long, arguments: [u64; 3]) -> bool {
    // SAFETY: the child makes system calls only, so that what other threads of this process held does not matter.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            if apply_filter(filter).is_ok() {
                libc::syscall(call, arguments[0], arguments[1], arguments[2], 0, 0, 0);
                libc::syscall(libc::SYS_exit_group, 7);
            }
            libc::_exit(1);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        if libc::WIFSIGNALED(status) {
            assert_eq!(libc::WTERMSIG(status), libc::SIGSYS);
            return false;
        }
        assert_eq!(libc::WEXITSTATUS(status), 7);
        true
    }
}

const NO_FD: u64 = u64::MAX;
const EXEC: u64 = libc::PROT_EXEC as u64;
const KVM_RUN: u64 = 0xae80;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
const KVM_CREATE_VM: u64 = 0xae01;
const KVM_CREATE_DEVICE: u64 = 0xc00c_aee0;

/// Calls that neither kind of thread may make.
const REFUSED: &[(c_long, [u64; 3])] = &[
    (libc::SYS_openat, [NO_FD, 0, 0]),
    (libc::SYS_execve, [0, 0, 0]),
    (libc::SYS_clone, [0, 0, 0]),
    (libc::SYS_socket, [1, 1, 0]),
    (libc::SYS_connect, [NO_FD, 0, 0]),
    (libc::SYS_ptrace, [NO_FD, 0, 0]),
    (libc::SYS_kill, [0, 0, 0]),
    (libc::SYS_mount, [0, 0, 0]),
    (libc::SYS_unshare, [0, 0, 0]),
    (libc::SYS_setns, [NO_FD, 0, 0]),
    (libc::SYS_setuid, [0, 0, 0]),
    (libc::SYS_io_uring_setup, [0, 0, 0]),
    (libc::SYS_bpf, [NO_FD, 0, 0]),
    (libc::SYS_userfaultfd, [0, 0, 0]),
    (libc::SYS_memfd_create, [0, 0, 0]),
    (libc::SYS_mmap, [0, 4096, EXEC]),
    (libc::SYS_mprotect, [0, 4096, EXEC | libc::PROT_READ as u64]),
    (libc::SYS_ioctl, [NO_FD, libc::TIOCSTI, 0]),
    (libc::SYS_ioctl, [NO_FD, KVM_CREATE_VM, 0]),
    (libc::SYS_ioctl, [NO_FD, KVM_CREATE_DEVICE, 0]),
    // Makes a stream block that the host reads from.
    (libc::SYS_ioctl, [NO_FD, libc::FIONBIO, 0]),
    (libc::SYS_fcntl, [NO_FD, libc::F_SETFL as u64, 0]),
];

#[test]
fn threads_can_do_their_work_and_nothing_else() {
    let filters = compile(false).unwrap();
    for filter in [&filters.device, &filters.vcpu] {
        for (call, arguments) in REFUSED {
            assert!(!survives(filter, *call, *arguments), "call {call} with {arguments:x?}");
        }
        assert!(survives(filter, libc::SYS_write, [NO_FD, 0, 0]));
        assert!(survives(filter, libc::SYS_mmap, [0, 4096, libc::PROT_READ as u64]));
    }
    assert!(survives(&filters.vcpu, libc::SYS_ioctl, [NO_FD, KVM_RUN, 0]));
    assert!(!survives(&filters.vcpu, libc::SYS_ioctl, [NO_FD, KVM_IOEVENTFD, 0]));
    assert!(survives(&filters.device, libc::SYS_ioctl, [NO_FD, KVM_IOEVENTFD, 0]));
    assert!(!survives(&filters.device, libc::SYS_ioctl, [NO_FD, KVM_RUN, 0]));
    assert!(survives(&filters.device, libc::SYS_recvmsg, [NO_FD, 0, 0]));
    assert!(!survives(&filters.vcpu, libc::SYS_recvmsg, [NO_FD, 0, 0]));
    assert!(!survives(&filters.vcpu, libc::SYS_pwrite64, [NO_FD, 0, 0]));
}

#[test]
fn an_audited_thread_may_do_everything() {
    let filters = compile(true).unwrap();
    assert!(survives(&filters.device, libc::SYS_socket, [1, 1, 0]));
}
