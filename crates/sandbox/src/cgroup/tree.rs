//! Directories of a control group hierarchy: claiming one for this server, and removing those of dead servers.
//!
//! A server owns `PARENT/PID-N` in each hierarchy and holds an exclusive `flock` on it for as long as it lives. The
//! kernel drops the lock with the process, however it ends, so a directory that can be locked has no owner.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::CgroupError;

/// A directory that this process holds.
#[derive(Debug)]
pub(super) struct Claim {
    pub path: PathBuf,
    #[cfg_attr(not(test), expect(dead_code, reason = "held for its lock"))]
    lock: OwnedFd,
}

impl Claim {
    /// Gives the directory up as the end of the process does.
    #[cfg(test)]
    pub fn unlock(&self) {
        flock(&self.lock, FlockOperation::Unlock).expect("unlock");
    }
}

/// The name of a sandbox's group: prefixed, because the kernel's own files (`tasks`, `cgroup.procs`) lie beside it.
pub(super) fn group_name(id: &str) -> String {
    format!("sandbox-{id}")
}

/// Makes and locks one directory of the same name below each of `parents`.
pub(super) fn claim(parents: &[PathBuf]) -> Result<Vec<Claim>, CgroupError> {
    'name: for number in 0u32.. {
        let name = format!("{}-{number}", std::process::id());
        let mut claims: Vec<Claim> = Vec::with_capacity(parents.len());
        for parent in parents {
            let path = parent.join(&name);
            match claim_one(&path) {
                Ok(Some(lock)) => claims.push(Claim { path, lock }),
                Ok(None) => {
                    for claim in claims {
                        let _ = fs::remove_dir(&claim.path);
                    }
                    continue 'name;
                }
                Err(source) => {
                    return Err(CgroupError::File { action: "make", path, source });
                }
            }
        }
        return Ok(claims);
    }
    unreachable!("u32 names are not all taken")
}

/// The lock of a directory made now; `None` when the name is taken.
fn claim_one(path: &Path) -> io::Result<Option<OwnedFd>> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(error),
    }
    let Some(lock) = lock(path)? else {
        return Ok(None);
    };
    // A server that starts at this moment may have taken the directory for an abandoned one between the two calls.
    let ours = fs::File::from(lock.try_clone()?).metadata()?.ino();
    match fs::metadata(path) {
        Ok(there) if there.ino() == ours => Ok(Some(lock)),
        Ok(_replaced) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks a directory; `None` when another process holds it or it is gone.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let dir = match open_dir(path) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(dir)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory for use as a descriptor.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Removes every directory below `parent` that has no living owner, killing what still runs in it.
pub(super) fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for path in directories(entries) {
        if let Ok(Some(_lock)) = lock(&path) {
            tracing::info!(path = %path.display(), "removing the control groups of a server that is gone");
            remove_tree(&path, Duration::from_secs(2));
        }
    }
}

/// Kills all processes in a group and those below it, then removes them all; gives up after `patience`.
pub(super) fn remove_tree(path: &Path, patience: Duration) {
    if let Ok(entries) = fs::read_dir(path) {
        for below in directories(entries) {
            remove_tree(&below, patience);
        }
    }
    remove(path, patience);
}

/// Removes one group, killing what is in it, and tells the log when that fails.
pub(super) fn remove(path: &Path, patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(200);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                // A process that has died leaves its group a moment after its parent has heard of it.
                let _ = write(&path.join("freezer.state"), "THAWED");
                let _ = write(&path.join("cgroup.freeze"), "0");
                let _ = signal_all(path);
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not remove a control group");
                return;
            }
        }
    }
}

/// Sends SIGKILL to every process in a group; returns how many there were.
///
/// Each is held by a pidfd and looked up again before the signal is sent, so a number that the kernel has given to
/// somebody else in between is never hit.
pub(super) fn signal_all(path: &Path) -> io::Result<usize> {
    let members = || -> io::Result<Vec<i32>> {
        let text = fs::read_to_string(path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    };
    // Zero is how a process outside our pid namespace is shown; no one here can signal it.
    let held: Vec<(i32, OwnedFd)> = members()?
        .into_iter()
        .filter_map(|raw| Some((raw, pidfd_open(Pid::from_raw(raw)?, PidfdFlags::empty()).ok()?)))
        .collect();
    if held.is_empty() {
        return Ok(0);
    }
    let still: std::collections::HashSet<i32> = members()?.into_iter().collect();
    let mut sent = 0;
    for (raw, pidfd) in held {
        if still.contains(&raw) && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            sent += 1;
        }
    }
    Ok(sent)
}

/// Sends SIGKILL again and again until a group is empty, for a tenth of a second at most.
pub(super) fn signal_until_empty(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(100);
    while signal_all(path)? > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Writes one value to a control file, in one call as the kernel wants it.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    put(&file, value)
}

/// Writes one value to an open control file.
pub(super) fn put(file: &fs::File, value: &str) -> io::Result<()> {
    rustix::io::pwrite(file, value.as_bytes(), 0)?;
    Ok(())
}

fn directories(entries: fs::ReadDir) -> impl Iterator<Item = PathBuf> {
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}
