//! Puts a disk's file behind a loop device and mounts it nowhere.
//!
//! Interfaces: `loop(4)`, `fsopen(2)`. Nothing of it outlives its descriptors: the loop device clears itself, and a mount
//! that is attached nowhere ends with its last descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
};

use super::TmpDiskError;
use super::image::step;

const LOOP_CONTROL: &str = "/dev/loop-control";

// <linux/loop.h>
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LOOP_BLOCK_BYTES: u32 = 4096;
// <linux/ext4.h>: _IOR('X', 125, __u32), and "do not write anything any more".
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587D_u32 as libc::Ioctl;
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// What may wait to be written to a disk before its writer has to wait, in bytes. With control groups of version 1 the kernel
/// slows a writer down only by what the whole host has not written yet: one with little memory would be killed before.
const MOST_UNWRITTEN: u64 = 8 << 20;

/// A mounted disk.
#[derive(Debug)]
pub(super) struct Mounted {
    pub mount: OwnedFd,
    /// Number of its loop device.
    pub number: i32,
}

/// Mounts a disk.
pub(super) fn mounted(file: &File) -> Result<Mounted, TmpDiskError> {
    let (_device, number) = attach(file)?;
    let mount = mount(&device_path(number))?;
    hold_writers_back(number, true);
    Ok(Mounted { mount, number })
}

fn device_path(number: i32) -> String {
    format!("/dev/loop{number}")
}

/// Limits what may wait to be written, or takes the limit back: it is the device's and would outlive the disk.
fn hold_writers_back(number: i32, limit: bool) {
    let unwritten = MOST_UNWRITTEN.to_string();
    let settings: [(&str, &str); 2] = if limit {
        [("max_bytes", &unwritten), ("strict_limit", "1")]
    } else {
        [("strict_limit", "0"), ("max_ratio", "100")]
    };
    for (name, value) in settings {
        let path = format!("/sys/block/loop{number}/bdi/{name}");
        // Kernels before 6.2 have no such limit.
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(path, %error, "cannot limit what waits to be written to a disk for /tmp");
        }
    }
}

/// Puts a file behind a free loop device; the device lives as long as it is open or mounted.
fn attach(file: &File) -> Result<(File, i32), TmpDiskError> {
    let control =
        OpenOptions::new().read(true).write(true).open(LOOP_CONTROL).map_err(step(format!("open {LOOP_CONTROL}")))?;
    // Others look for a free device too; whoever configures it first has it.
    for _attempt in 0..64 {
        // SAFETY: this request takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(step("find a free loop device")(io::Error::last_os_error()));
        }
        let path = device_path(number);
        let device = OpenOptions::new().read(true).write(true).open(&path).map_err(step(format!("open {path}")))?;
        match configure(&device, file.as_raw_fd()) {
            Ok(()) => return Ok((device, number)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(step(format!("configure {path}"))(error)),
        }
    }
    Err(step("find a free loop device")(io::ErrorKind::ResourceBusy.into()))
}

fn configure(device: &File, file: RawFd) -> io::Result<()> {
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        // Not direct: mounting then reads what was just written from the cache, 1 ms instead of 10, and what a
        // function deletes soon never reaches the host's disk. The price is a second copy of what is cached.
        flags: LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(file).map_err(|_| io::ErrorKind::InvalidInput)?;
    let config = LoopConfig { fd, block_size: LOOP_BLOCK_BYTES, info, reserved: [0; 8] };
    // SAFETY: the kernel reads a `struct loop_config`, which `config` has the layout of and which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts a block device nowhere.
fn mount(path: &str) -> Result<OwnedFd, TmpDiskError> {
    let make = || {
        let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", path)?;
        // Nothing here must survive a crash, and nobody would look at it after one.
        fsconfig_set_string(context.as_fd(), "errors", "continue")?;
        fsconfig_set_flag(context.as_fd(), "nobarrier")?;
        fsconfig_set_flag(context.as_fd(), "noinit_itable")?;
        // What a function deletes goes back to the host's disk.
        fsconfig_set_flag(context.as_fd(), "discard")?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(|error: Errno| step(format!("mount {path}"))(error.into()))
}

/// Forgets what has not been written to the image yet, so that ending the mount does not wait for the host's disk.
pub(super) fn discard(mounted: &Mounted) {
    shut_down(mounted.mount.as_fd());
    hold_writers_back(mounted.number, false);
}

fn shut_down(mount: BorrowedFd<'_>) {
    let Ok(root) = openat(mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
    // SAFETY: the kernel reads a `__u32`, which outlives the call.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the disk is written out before it is removed");
    }
}
