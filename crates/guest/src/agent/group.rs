//! The control group of all tenant processes (version 2): limits, freezing, killing, and what was used.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::Reply;

/// How long killed or frozen processes may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);

/// See [`Group::entry`].
pub(super) enum Entry<'a> {
    /// The child is cloned into this directory.
    Clone(BorrowedFd<'a>),
    /// The child writes itself into this file.
    Join(File),
}

#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    dir: File,
    /// Since `cgroup.kill` was used: see [`Group::entry`].
    killed: Cell<bool>,
    peak: RefCell<Peak>,
}

/// The highest memory use of a measurement. `memory.peak` came with Linux 5.19, and can be begun anew since 6.12, by each
/// descriptor for itself. Where that cannot be had, a new maximum of all time is known exactly, and otherwise what was seen.
#[derive(Debug)]
struct Peak {
    file: Option<File>,
    /// The maximum of all time when the measurement began.
    before: u64,
    seen: u64,
}

impl Group {
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            for controller in ["memory", "pids", "cpu"] {
                // Without one, what it limits is limited by the machine's size.
                if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")) {
                    eprintln!("no {controller} controller: {error}");
                }
            }
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _made_or_there => {}
        }
        let peak_path = path.join("memory.peak");
        let file = OpenOptions::new().read(true).write(true).open(&peak_path).or_else(|_| File::open(&peak_path)).ok();
        let peak = Peak { file, before: 0, seen: 0 }.into();
        Ok(Self { path: path.to_owned(), dir: File::open(path)?, killed: Cell::default(), peak })
    }

    /// How a new process gets in. To be cloned into the group is quickest. But kernels that got "cgroup: fix race between fork
    /// and cgroup.kill" (6.14, and earlier lines since) compare the count of kills of the group that the parent is in with that
    /// of the group that the child is cloned into, and kill the child where they differ: from the first kill on.
    pub(super) fn entry(&self) -> io::Result<Entry<'_>> {
        if !self.killed.get() {
            return Ok(Entry::Clone(self.dir.as_fd()));
        }
        Ok(Entry::Join(OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?))
    }

    pub(super) fn limit(&self, memory_bytes: u64, max_tasks: u32) -> io::Result<()> {
        self.write("memory.max", &memory_bytes.to_string())?;
        self.write("pids.max", &max_tasks.to_string())?;
        // Of kernels that have no swap, or no such file: there is nothing to forbid.
        let _ = self.write("memory.swap.max", "0");
        // A function that ran out of memory is ended as a whole: half of its processes are of no use.
        let _ = self.write("memory.oom.group", "1");
        Ok(())
    }

    pub(super) async fn freeze(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "1")?;
        self.until("frozen 1").await
    }

    pub(super) fn thaw(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Kills all, frozen ones too; none can fork away from it.
    pub(super) async fn kill(&self) -> io::Result<()> {
        self.killed.set(true);
        self.write("cgroup.kill", "1")?;
        self.until("populated 0").await
    }

    pub(super) fn usage(&self) -> Reply {
        let memory_bytes = self.number("memory.current").unwrap_or(0);
        let mut peak = self.peak.borrow_mut();
        peak.seen = peak.seen.max(memory_bytes);
        let ever = peak.read();
        Reply::Usage {
            memory_peak_bytes: if ever > peak.before { ever } else { peak.seen },
            memory_bytes,
            cpu_us: self.key("cpu.stat", "usage_usec").unwrap_or(0),
            oom_kills: self.key("memory.events", "oom_kill").unwrap_or(0),
        }
    }

    pub(super) fn reset_peak(&self) {
        let memory_bytes = self.number("memory.current").unwrap_or(0);
        let mut peak = self.peak.borrow_mut();
        let reset = peak.file.as_mut().is_some_and(|file| file.write_all(b"reset").is_ok());
        peak.before = if reset { 0 } else { peak.read() };
        peak.seen = memory_bytes;
    }

    async fn until(&self, line: &str) -> io::Result<()> {
        let done = async {
            while !fs::read_to_string(self.path.join("cgroup.events"))?.lines().any(|there| there == line) {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(name), value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.path.join(name)).ok()?.trim().parse().ok()
    }

    fn key(&self, name: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    }
}

impl Peak {
    fn read(&mut self) -> u64 {
        let Some(file) = &mut self.file else { return 0 };
        let mut text = String::new();
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
    }
}
