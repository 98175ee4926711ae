//! The jail: what a VMM process gives up before it makes a virtual machine.
//!
//! ```text
//! namespaces   process (by the clone that made it, as its process 1) and user (without root), mount, ipc, uts, cgroup, net
//! root         an empty, read-only tmpfs; the host's is detached
//! descriptors  the host's socket, the null device as standard output and error; more only by the socket
//! rights       a user of its own, no capability, none to be had again, no new privileges, no core dumps, untraceable
//! ```
//!
//! Comes first, while the process has a single thread: namespaces, users and capabilities belong to threads. KVM asks for
//! none of what is given up: its device arrives as an open descriptor.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, fchdir, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};
use rustix::{fs::Gid, fs::Uid};

use super::step::{Step, StepError};
use super::sys;

/// Most descriptors of a process: what a machine has, and one for each connection with its guest.
const MAX_OPEN_FILES: u64 = 4096;

/// Enters the jail, for good. `netns` is a network namespace to be in; without one it gets an empty one of its own.
/// `user` is who to become, unless a user namespace leaves no choice.
pub(super) fn enter(netns: Option<OwnedFd>, user: Option<u32>) -> Result<(), StepError> {
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    match &netns {
        Some(netns) => move_into_link_name_space(std::os::fd::AsFd::as_fd(netns), Some(LinkNameSpaceType::Network))
            .step("enter the network namespace")?,
        None => namespaces |= UnshareFlags::NEWNET,
    }
    drop(netns);
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { unshare_unsafe(namespaces) }.step("make namespaces")?;
    pivot().step("swap the root for an empty one")?;
    limit().step("limit its resources")?;
    sys::drop_bounding_set().step("drop the bounding set")?;
    if let Some(user) = user {
        become_user(user).step("become its user")?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .step("drop its capabilities")?;
    set_no_new_privs(true).step("refuse new privileges")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hide its memory")?;
    // Again: the kernel forgets it when a process changes its user.
    set_parent_process_death_signal(Some(Signal::KILL)).step("tie its life to the host process")
}

fn pivot() -> io::Result<()> {
    // What is mounted here from now on shows nowhere else.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4096"), ("nr_inodes", "1"), ("mode", "0555")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // Stacked on the old root, then both swap places, and the old one on top of the new is detached.
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(&root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn limit() -> io::Result<()> {
    let at_most = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Core, at_most(0))?;
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    setrlimit(Resource::Nofile, at_most(MAX_OPEN_FILES.min(hard)))?;
    Ok(())
}

fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}
