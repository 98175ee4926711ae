//! Files that are empty ext4 file systems (`ext4(5)`): one is laid out per size by mkfs.ext4, all others are copies of
//! the few blocks that it consists of.
//!
//! A file has no name, so nothing is left when its last descriptor is closed. It serves a namespace sandbox behind a loop
//! device, and a microVM as the disk itself.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

use super::TmpDiskError;
use super::root::prepare_root;
use crate::net::rules::locate;

/// The program that makes the file system, once per size.
const MKFS: &str = "mkfs.ext4";

/// How many sizes are remembered; each takes some hundred KiB.
const MAX_TEMPLATES: usize = 16;

pub(super) fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> TmpDiskError {
    let step = step.into();
    move |source| TmpDiskError::Step { step, source }
}

/// Makes disks for `/tmp` as files that are attached and mounted nowhere.
#[derive(Debug)]
pub struct TmpImages {
    dir: PathBuf,
    templates: Mutex<HashMap<u64, Arc<Template>>>,
}

impl TmpImages {
    /// Makes files in `dir`, which is made if absent and lies on a disk with room for what functions write.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self, TmpDiskError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(step(format!("make directory {}", dir.display())))?;
        Ok(Self { dir, templates: Mutex::default() })
    }

    /// A sparse file without a name that is an ext4 file system with room for `bytes` (up to 3 percent more): empty, the
    /// root's mode 1777, without a journal. Takes a millisecond, and some ten for the first one of a size. Blocks.
    ///
    /// Whoever mounts it should say `noinit_itable`, or the kernel begins to fill the inode tables with zeros.
    ///
    /// # Errors
    /// The file system has no room or no files without names, or mkfs.ext4 (package e2fsprogs) is absent or fails.
    pub fn make(&self, bytes: u64) -> Result<File, TmpDiskError> {
        self.template(bytes)?.copy(&self.dir)
    }

    /// A file like `of`, which nobody may write to meanwhile. Where the file system can they share what is equal, and holes
    /// stay holes. Blocks.
    ///
    /// # Errors
    /// The file system has no room, or cannot read one of them.
    pub fn duplicate(&self, of: &File) -> Result<File, TmpDiskError> {
        let bytes = of.metadata().map_err(step("look at a disk"))?.len();
        let copy = sparse_file(&self.dir, bytes)?;
        copy_extents(of, &copy).map_err(step("copy a disk"))?;
        Ok(copy)
    }

    /// A file with the content of `of`, which may lie on any file system: holes stay holes. Blocks.
    ///
    /// # Errors
    /// As [`TmpImages::duplicate`].
    pub fn of_data(&self, of: &File) -> Result<File, TmpDiskError> {
        let bytes = of.metadata().map_err(step("look at a disk"))?.len();
        let copy = sparse_file(&self.dir, bytes)?;
        copy_data(of, &copy).map_err(step("copy a disk"))?;
        Ok(copy)
    }

    fn template(&self, bytes: u64) -> Result<Arc<Template>, TmpDiskError> {
        // Whoever comes second waits here for the one that is being laid out.
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = templates.get(&bytes) {
            return Ok(Arc::clone(template));
        }
        let template = Arc::new(Template::make(&self.dir, bytes)?);
        // Few sizes are in use at a time; one that comes back is laid out again.
        if templates.len() >= MAX_TEMPLATES {
            templates.clear();
        }
        templates.insert(bytes, Arc::clone(&template));
        Ok(template)
    }
}

/// The blocks that an empty file system of some size consists of; the rest of its file is a hole.
#[derive(Debug)]
struct Template {
    image_bytes: u64,
    extents: Vec<(u64, Vec<u8>)>,
}

impl Template {
    /// Lays out a file system with room for `bytes`, by way of a file in `dir`.
    fn make(dir: &Path, bytes: u64) -> Result<Template, TmpDiskError> {
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
        prepare_root(&file).map_err(step("prepare the root of the disk"))?;
        let extents = data_extents(&file).map_err(step("read the new file system"))?;
        Ok(Template { image_bytes, extents })
    }

    /// Makes a file system like it.
    fn copy(&self, dir: &Path) -> Result<File, TmpDiskError> {
        let file = sparse_file(dir, self.image_bytes)?;
        for (offset, data) in &self.extents {
            file.write_all_at(data, *offset).map_err(step("copy the empty file system"))?;
        }
        Ok(file)
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

/// Where the next data of a file from a position on begins, and where it ends; `None` where nothing but a hole follows.
fn data_from(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => Ok(Some((begin, seek(file, SeekFrom::Hole(begin))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies what is no hole. The position of `from`, which all who copy it have in common, is moved and never relied on.
fn copy_extents(from: &File, to: &File) -> io::Result<()> {
    let mut at = 0;
    while let Some((mut begin, end)) = data_from(from, at)? {
        at = end;
        let mut there = begin;
        while begin < at {
            let length = usize::try_from(at - begin).unwrap_or(usize::MAX);
            // Moves both offsets.
            match copy_file_range(from, Some(&mut begin), to, Some(&mut there), length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Copies what is no hole through memory, from any file system to any other. Moves the position of `from`.
pub(crate) fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while let Some((mut begin, end)) = data_from(from, at)? {
        at = end;
        while begin < at {
            let wanted = usize::try_from(at - begin).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..wanted], begin)?;
            to.write_all_at(&buffer[..wanted], begin)?;
            begin += wanted as u64;
        }
    }
    Ok(())
}

/// Everything in a file that is not a hole or zeros.
fn data_extents(file: &File) -> io::Result<Vec<(u64, Vec<u8>)>> {
    const BLOCK: usize = 4096;
    let mut extents: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut at = 0;
    while let Some((begin, end)) = data_from(file, at)? {
        at = end;
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
    Ok(extents)
}
