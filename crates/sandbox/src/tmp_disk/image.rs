//! An ext4 file system in a file without a name, behind a loop device, mounted nowhere.
//!
//! Interfaces: `loop(4)`, `fsopen(2)`, `ext4(5)`. Nothing of it outlives its descriptors: the file was never linked
//! into a directory, the loop device clears itself, and a mount that is attached nowhere ends with its last descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, chmodat, openat, seek, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
};

use super::TmpDiskError;
use crate::net::rules::locate;

/// The program that makes the file system, once per size.
pub(super) const MKFS: &str = "mkfs.ext4";
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

fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> TmpDiskError {
    let step = step.into();
    move |source| TmpDiskError::Step { step, source }
}

/// The blocks that an empty file system of some size consists of; the rest of its file is a hole.
#[derive(Debug)]
pub(super) struct Template {
    image_bytes: u64,
    extents: Vec<(u64, Vec<u8>)>,
}

impl Template {
    /// Lays out a file system with room for `bytes`, by way of a file in `dir`.
    pub fn make(dir: &Path, bytes: u64) -> Result<Template, TmpDiskError> {
        // Inode tables and bitmaps take 1.6 percent, and a little more in small ones. Another 2 percent, at most
        // 16 MiB, are what ext4 keeps back for itself.
        let overhead = bytes / 50 + (bytes / 45).min(17 << 20) + (2 << 20);
        let image_bytes = (bytes + overhead).next_multiple_of(1 << 20);
        let file = sparse_file(dir, image_bytes)?;
        let mkfs = locate(MKFS)
            .ok_or_else(|| step(format!("find {MKFS} (package e2fsprogs)"))(io::ErrorKind::NotFound.into()))?;
        let output = Command::new(mkfs)
            .args(["-q", "-F", "-b", "4096", "-m", "0", "-i", "16384", "-I", "256"])
            // A disk that is never mounted twice needs neither a journal nor a way to grow; checksums would cost
            // time only. Uninitialized groups keep the inode tables out of the file.
            .args(["-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg"])
            .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .arg(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
            .stdin(Stdio::null())
            .output()
            .map_err(step(format!("run {MKFS}")))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(step(format!("run {MKFS}"))(io::Error::other(message)));
        }
        let extents = data_extents(&file).map_err(step("read the new file system"))?;
        Ok(Template { image_bytes, extents })
    }

    /// Makes a file system like it, as a detached mount.
    pub fn mount(&self, dir: &Path) -> Result<OwnedFd, TmpDiskError> {
        let file = sparse_file(dir, self.image_bytes)?;
        for (offset, data) in &self.extents {
            file.write_all_at(data, *offset).map_err(step("copy the empty file system"))?;
        }
        let (_device, path) = attach(&file)?;
        let mount = mount(&path)?;
        // The template is as mkfs made it; these cost microseconds, mounting it once more to change it would not.
        let finish = || {
            unlinkat(&mount, "lost+found", AtFlags::REMOVEDIR)?;
            chmodat(&mount, ".", Mode::from_raw_mode(0o1777), AtFlags::empty())
        };
        finish().map_err(|error: Errno| step("prepare the root of the disk")(error.into()))?;
        Ok(mount)
    }
}

/// A file without a name that is one hole.
fn sparse_file(dir: &Path, bytes: u64) -> Result<File, TmpDiskError> {
    let make = || {
        let file = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)?;
        file.set_len(bytes)?;
        Ok(file)
    };
    make().map_err(step(format!("make a file in {}", dir.display())))
}

/// Everything in a file that is not a hole or zeros.
fn data_extents(file: &File) -> io::Result<Vec<(u64, Vec<u8>)>> {
    const BLOCK: usize = 4096;
    let mut extents: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut at = 0;
    loop {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(extents),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(begin))?;
        let mut block = [0u8; BLOCK];
        for offset in (begin..at).step_by(BLOCK) {
            file.read_exact_at(&mut block, offset)?;
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            match extents.last_mut() {
                Some((start, data)) if *start + data.len() as u64 == offset => data.extend_from_slice(&block),
                _apart => extents.push((offset, block.to_vec())),
            }
        }
    }
}

/// Puts a file behind a free loop device; the device lives as long as it is open or mounted.
fn attach(file: &File) -> Result<(File, String), TmpDiskError> {
    let control =
        OpenOptions::new().read(true).write(true).open(LOOP_CONTROL).map_err(step(format!("open {LOOP_CONTROL}")))?;
    // Others look for a free device too; whoever configures it first has it.
    for _attempt in 0..64 {
        // SAFETY: this request takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(step("find a free loop device")(io::Error::last_os_error()));
        }
        let path = format!("/dev/loop{number}");
        let device = OpenOptions::new().read(true).write(true).open(&path).map_err(step(format!("open {path}")))?;
        match configure(&device, file.as_raw_fd()) {
            Ok(()) => return Ok((device, path)),
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
pub(super) fn discard(mount: BorrowedFd<'_>) {
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
