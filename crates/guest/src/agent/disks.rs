//! The tenant's file systems: disks of the machine, and what every root has besides.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mknodat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::control::{FileSystem, Mount};

/// How long a drive that was exchanged may take to get its new size.
const PATIENCE: Duration = Duration::from_secs(60);
/// As long as this the agent looks again at once: the kernel hears of a new size right after the machine goes on.
const IMPATIENCE: Duration = Duration::from_millis(3);
/// Devices that programs expect: name, major and minor number (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
/// Links beside them.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts a disk below `root`, or as `root`, where `/proc` and `/dev` are then mounted too.
pub(super) async fn mount(request: &Mount, root: &Path) -> io::Result<()> {
    let letter = char::from(b'a'.checked_add(request.drive).filter(u8::is_ascii_lowercase).ok_or(libc_invalid())?);
    let drive = format!("vd{letter}");
    wait_for_size(&drive, request.bytes).await?;
    let source = format!("/dev/{drive}");
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mounted = match request.kind {
        FileSystem::Erofs => {
            let options = [("source", Some(source.as_str())), ("ro", None)];
            file_system("erofs", &options, restricted | MountAttrFlags::MOUNT_ATTR_RDONLY)?
        }
        FileSystem::Ext4 => file_system("ext4", &[("source", Some(source.as_str()))], restricted)?,
    };
    if request.target == "/" {
        std::fs::create_dir_all(root)?;
        attach(&mounted, &open(root, "/")?)?;
        return furnish(root);
    }
    attach(&mounted, &open(root, &request.target)?)
}

fn libc_invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Waits until the block device `drive` has this many bytes.
async fn wait_for_size(drive: &str, bytes: u64) -> io::Result<()> {
    let path = format!("/sys/block/{drive}/size");
    let began = Instant::now();
    loop {
        // In sectors of 512 bytes, whatever the device's own are.
        let sectors = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if sectors.is_some_and(|sectors| sectors.checked_mul(512) == Some(bytes)) {
            return Ok(());
        }
        match began.elapsed() {
            passed if passed < IMPATIENCE => std::thread::sleep(Duration::from_micros(20)),
            passed if passed < PATIENCE => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// `/proc`, where processes see those of their own user only, and `/dev`; each where the root has a place for it.
fn furnish(root: &Path) -> io::Result<()> {
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = restricted | MountAttrFlags::MOUNT_ATTR_RDONLY;
    if let Ok(place) = open(root, "/proc") {
        let options = [("hidepid", Some("invisible"))];
        attach(&file_system("proc", &options, read_only | MountAttrFlags::MOUNT_ATTR_NODEV)?, &place)?;
    }
    if let Ok(place) = open(root, "/dev") {
        let options = [("size", Some("64k")), ("nr_inodes", Some("32")), ("mode", Some("0755"))];
        // Writable for as long as it is not attached anywhere.
        let devices = file_system("tmpfs", &options, restricted)?;
        for (name, major, minor) in DEVICES {
            let mode = Mode::from_raw_mode(0o666);
            mknodat(&devices, name, FileType::CharacterDevice, mode, makedev(major, minor))?;
            // The mask of process 1 took its part.
            rustix::fs::chmodat(&devices, name, mode, rustix::fs::AtFlags::empty())?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &devices, name)?;
        }
        attach(&devices, &place)?;
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        let flags = flags | rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NOEXEC;
        rustix::mount::mount_remount(root.join("dev"), flags, c"")?;
    }
    Ok(())
}

/// Puts a file of the agent's over one of the tenant's root, if that is there.
pub(super) fn cover_file(root: &Path, target: &str, with: &Path) -> io::Result<()> {
    let place = match open(root, target) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let clone = open_tree(CWD, with, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    attach(&clone, &place)
}

/// A place in the tenant's root; links of its lead nowhere else.
fn open(root: &Path, target: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    Ok(openat2(&root, target, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

fn attach(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", place, c"", flags)?)
}

fn file_system(kind: &str, options: &[(&str, Option<&str>)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value)?,
            None => fsconfig_set_flag(&context, *key)?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
