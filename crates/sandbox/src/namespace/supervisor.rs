//! The supervisor: a small single-threaded process that forks the init of every sandbox and buries it.
//!
//! It exists because the server cannot fork well: it has many threads and much memory. It knows nothing of what a sandbox
//! is made of; the init hears that from the server itself. It outlives the server only as long as it takes to clean up.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, setsid, wait};
use rustix::thread::UnshareFlags;

use super::init::Mapped;
use super::seccomp::Filters;
use super::wire::{FromSupervisor, ToSupervisor};
use super::{channel, init, seccomp, sys};

/// What the supervisor remembers of a sandbox.
#[derive(Default)]
struct Child {
    /// Its init, until that has been waited for.
    pid: Option<Pid>,
    /// Its control groups, until the server has removed them.
    groups: Vec<PathBuf>,
}

struct Supervisor {
    server: OwnedFd,
    /// Without root, every sandbox gets a user namespace of its own, in which this user is mapped.
    mapped: Option<Mapped>,
    filters: Filters,
    children: HashMap<u64, Child>,
}

/// Serves until the server closes `server` or dies, then kills every sandbox and returns.
pub(super) fn run(server: OwnedFd) -> io::Result<()> {
    // A session of its own: an interrupt typed at the server's terminal is the server's to handle.
    // Fails only for a process that leads one already, which is as good.
    let _ = setsid();
    rustix::thread::set_name(c"firelet-sandbox")?;
    let signals = sys::child_signals()?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mapped = (!uid.is_root()).then(|| Mapped { uid: uid.as_raw(), gid: gid.as_raw() });
    if mapped.is_none() {
        // Own mounts that follow the host's: what is mounted there later can be bound, nothing done here shows there.
        // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", follow)?;
    }
    let filters = seccomp::filters().map_err(io::Error::other)?;
    let mut supervisor = Supervisor { server, mapped, filters, children: HashMap::new() };
    let result = supervisor.serve(&signals);
    supervisor.bury_all();
    result
}

impl Supervisor {
    fn serve(&mut self, signals: &OwnedFd) -> io::Result<()> {
        loop {
            let mut ready = [PollFd::new(&self.server, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let (request, exited) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
            if exited {
                let mut record = [0; 128];
                // One record stands for any number of exits: the loop below finds them all.
                let _ = rustix::io::read(signals, &mut record);
                self.reap(WaitOptions::NOHANG);
            }
            if request {
                let Some((payload, fds)) = channel::receive(&self.server)? else { return Ok(()) };
                self.handle(ToSupervisor::decode(&payload).map_err(io::Error::other)?, fds)?;
            }
        }
    }

    fn handle(&mut self, request: ToSupervisor, fds: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            ToSupervisor::Create { key } => self.create(key, fds),
            ToSupervisor::Groups { key, dirs } => {
                self.children.entry(key).or_default().groups = dirs;
                Ok(())
            }
            ToSupervisor::Kill { key } => {
                if let Some(pid) = self.children.get(&key).and_then(|child| child.pid) {
                    // Not yet waited for, so the number still means this process.
                    let _ = kill_process(pid, Signal::KILL);
                    return Ok(());
                }
                // The server may have given up before the order to create went out; it waits for an answer all the same.
                self.tell(&FromSupervisor::Exited { key })
            }
            ToSupervisor::Forget { key } => {
                self.children.remove(&key);
                Ok(())
            }
        }
    }

    fn create(&mut self, key: u64, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Some(control) = fds.into_iter().next() else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a sandbox without a control socket"));
        };
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if self.mapped.is_some() {
            flags |= libc::CLONE_NEWUSER;
        }
        // Init stays in the server's control group: the limits, the freezer and the out-of-memory killer of the
        // sandbox are for the tenant's processes, which join the group one by one.
        match sys::clone3(flags, None) {
            Ok(sys::Forked::Child) => init::run(control, &self.filters, self.mapped),
            Ok(sys::Forked::Parent(pid)) => {
                self.children.entry(key).or_default().pid = Some(pid);
                Ok(())
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.tell(&FromSupervisor::CloneFailed { key, errno })
            }
        }
    }

    /// Waits for inits that have ended; the kernel ends one only after everything in its process namespace.
    fn reap(&mut self, options: WaitOptions) {
        while let Ok(Some((pid, _))) = wait(options) {
            let Some((&key, child)) = self.children.iter_mut().find(|(_, child)| child.pid == Some(pid)) else {
                continue;
            };
            child.pid = None;
            // A server that does not listen any more is noticed by `serve`.
            let _ = self.tell(&FromSupervisor::Exited { key });
        }
    }

    fn tell(&self, report: &FromSupervisor) -> io::Result<()> {
        channel::send(&self.server, &report.encode(), &[])
    }

    /// Leaves nothing: no process, no control group. Mounts, networks and disks go with the processes.
    fn bury_all(&mut self) {
        for child in self.children.values() {
            if let Some(pid) = child.pid {
                let _ = kill_process(pid, Signal::KILL);
            }
            for dir in &child.groups {
                // A frozen process dies only once it is thawed, in the first version of control groups.
                let _ = std::fs::write(dir.join("freezer.state"), "THAWED");
            }
        }
        self.reap(WaitOptions::empty());
        for dir in self.children.values().flat_map(|child| &child.groups) {
            // What still refuses is removed by the next server, which looks for the groups of dead ones.
            let _ = std::fs::remove_dir(dir);
        }
    }
}
