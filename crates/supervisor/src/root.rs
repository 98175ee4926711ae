//! The mount tree of a sandbox, built by its init.
//!
//! ```text
//! /        tmpfs, a few MiB, read-only at the end; directories, symlinks and small files of the specification
//! /...     the binds: clones of host mounts, recursively read-only, nosuid, nodev
//! /proc    of this process namespace, read-only; what tells about the host is covered
//! /dev     null zero full random urandom, and the links to standard streams; no shm, as on Lambda
//! /tmp     a disk or a tmpfs of the size asked for, mode 1777, nosuid, nodev
//! ```
//!
//! The host's paths are opened first, then the old root is detached, and only then is anything attached: paths and
//! links of the specification are resolved where there is nothing of the host's left to reach.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, fstat, statat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};

use crate::step::{Step, StepError};
use crate::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use crate::wire::Build;

/// Room on the root for its directories and links, in bytes, beside the files of the specification.
const ROOT_BYTES: u64 = 4 << 20;
/// Inodes on a `/tmp` that is a tmpfs: as many as ext4 would give per byte, and at least this many.
const TMP_INODES: u64 = 16 * 1024;

/// Device nodes bound from the host.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];
/// Links in `/dev`.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Directories of `/proc` that tell about the host's hardware, kernel or file systems; covered by an empty one.
const COVERED_DIRS: &[&str] = &["acpi", "asound", "bus", "driver", "firmware", "fs", "irq", "scsi"];
/// Files of `/proc` of the same kind, readable by everybody in some kernels; covered by the null device.
const COVERED_FILES: &[&str] = &[
    // Where in the host's control groups init is.
    "1/cgroup",
    // What the host was started with, which may hold secrets.
    "cmdline",
    "config.gz",
    // When keys are pressed and packets come, to the tick.
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    // Which files the host's programs and other sandboxes have locked.
    "locks",
    "modules",
    "sched_debug",
    "sysrq-trigger",
    "timer_list",
    "vmallocinfo",
];

/// The parts that are the same in every sandbox, not attached anywhere yet.
pub(crate) struct Prepared {
    proc: OwnedFd,
    devices: Vec<(PathBuf, OwnedFd)>,
    /// For the files of `/proc` that are there and to be covered.
    covers: Vec<(PathBuf, OwnedFd)>,
}

/// Makes what needs no specification. `/proc` is made while the host's is still visible, which the kernel wants to see
/// before it grants a new one without root.
pub(crate) fn prepare() -> Result<Prepared, StepError> {
    let proc = file_system("proc", &[], MountAttrFlags::empty()).step(|| "mount /proc".into())?;
    sys::mount_setattr(&proc, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, false)
        .step(|| "make /proc read-only".into())?;
    let mut devices = Vec::new();
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        let node = clone_of(&path, false).step(|| format!("open {}", path.display()))?;
        sys::mount_setattr(&node, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, false)
            .step(|| format!("restrict {}", path.display()))?;
        devices.push((path, node));
    }
    let mut covers = Vec::new();
    for name in COVERED_FILES {
        if statat(&proc, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let path = Path::new("/proc").join(name);
            let cover = cover(Path::new("/dev/null")).step(|| format!("cover {}", path.display()))?;
            covers.push((path, cover));
        }
    }
    Ok(Prepared { proc, devices, covers })
}

/// Makes the tree and moves this process into it. `tmp` is the disk for `/tmp`, if there is one.
pub(crate) fn enter(prepared: Prepared, build: &Build, tmp: Option<OwnedFd>) -> Result<(), StepError> {
    let mut binds = Vec::with_capacity(build.binds.len());
    for (source, target) in &build.binds {
        let tree = clone_of(source, true).step(|| format!("open {}", source.display()))?;
        sys::mount_setattr(&tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true)
            .step(|| format!("make {} read-only", source.display()))?;
        binds.push((target, tree));
    }
    let root = pivot(build)?;

    for dir in &build.dirs {
        make_dir(dir)?;
    }
    for (path, content) in &build.files {
        make_parent(path)?;
        std::fs::write(path, content).step(|| format!("write {}", path.display()))?;
    }
    for (path, target) in &build.symlinks {
        make_parent(path)?;
        symlink(target, path).step(|| format!("link {}", path.display()))?;
    }
    for (target, tree) in binds {
        attach_somewhere(&tree, target)?;
    }
    for (path, node) in &prepared.devices {
        attach_somewhere(node, path)?;
    }
    for (link, target) in DEVICE_LINKS {
        symlink(target, link).step(|| format!("link {link}"))?;
    }
    attach_proc(&prepared)?;
    attach_tmp(build.tmp_bytes, tmp)?;

    sys::mount_setattr(&root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, false).step(|| "make / read-only".into())
}

/// Swaps the host's root for a fresh tmpfs and detaches the host's.
fn pivot(build: &Build) -> Result<OwnedFd, StepError> {
    let bytes = ROOT_BYTES + build.files.iter().map(|(_, content)| content.len() as u64 + 4096).sum::<u64>();
    let root = file_system("tmpfs", &[("size", &bytes.to_string()), ("mode", "0755")], MountAttrFlags::empty())
        .step(|| "mount /".into())?;
    // Stacked on the old root, out of sight for paths, in sight for the descriptor. Then both swap places, which leaves
    // the old root stacked on the new one, and the topmost mount of "." is what is unmounted.
    attach(&root, Path::new("/")).step(|| "attach the new root".into())?;
    fchdir(&root).step(|| "enter the new root".into())?;
    pivot_root(".", ".").step(|| "swap the roots".into())?;
    unmount(".", UnmountFlags::DETACH).step(|| "detach the old root".into())?;
    rustix::process::chdir("/").step(|| "enter /".into())?;
    Ok(root)
}

fn attach_proc(prepared: &Prepared) -> Result<(), StepError> {
    attach_somewhere(&prepared.proc, Path::new("/proc"))?;
    // Of the standard directories, this one is there to be empty.
    let empty = Path::new("/mnt");
    make_dir(empty)?;
    for path in COVERED_DIRS.iter().map(|name| Path::new("/proc").join(name)).filter(|path| path.exists()) {
        let cover = cover(empty).step(|| format!("cover {}", path.display()))?;
        attach(&cover, &path).step(|| format!("cover {}", path.display()))?;
    }
    for (path, cover) in &prepared.covers {
        attach(cover, path).step(|| format!("cover {}", path.display()))?;
    }
    Ok(())
}

/// A mount to put over something that is not to be seen: nothing in it, and nothing to be done with it.
fn cover(with: &Path) -> io::Result<OwnedFd> {
    let cover = clone_of(with, false)?;
    sys::mount_setattr(&cover, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, false)?;
    Ok(cover)
}

fn attach_tmp(bytes: u64, disk: Option<OwnedFd>) -> Result<(), StepError> {
    let mount = match disk {
        Some(disk) => disk,
        None => {
            let inodes = (bytes / TMP_INODES).max(TMP_INODES).to_string();
            let options = [("size", bytes.to_string()), ("mode", "1777".to_owned()), ("nr_inodes", inodes)];
            let options = options.each_ref().map(|(key, value)| (*key, value.as_str()));
            file_system("tmpfs", &options, MountAttrFlags::empty()).step(|| "mount /tmp".into())?
        }
    };
    sys::mount_setattr(&mount, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, false).step(|| "restrict /tmp".into())?;
    attach_somewhere(&mount, Path::new("/tmp"))
}

/// A new mount of a file system type, detached.
fn file_system(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A detached clone of the mount at `path`, with those below it if `recursive`.
fn clone_of(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(CWD, path, flags)?)
}

fn attach(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a mount, making the file or directory to attach it to if it is not there.
fn attach_somewhere(mount: &OwnedFd, path: &Path) -> Result<(), StepError> {
    let status = fstat(mount).step(|| format!("look at what goes to {}", path.display()))?;
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        make_dir(path)?;
    } else if !path.exists() {
        make_parent(path)?;
        std::fs::write(path, b"").step(|| format!("make {}", path.display()))?;
    }
    attach(mount, path).step(|| format!("mount {}", path.display()))
}

fn make_parent(path: &Path) -> Result<(), StepError> {
    path.parent().map_or(Ok(()), make_dir)
}

fn make_dir(path: &Path) -> Result<(), StepError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).step(|| format!("make {}", path.display()))
}
