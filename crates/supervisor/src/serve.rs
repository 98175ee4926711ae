//! The loop of a small single-threaded process that forks the init of every sandbox and buries it.
//!
//! It exists because the server cannot fork well: it has many threads and much memory. It knows nothing of what a sandbox
//! is made of; the init hears that from the server itself. It outlives the server only as long as it takes to clean up.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, setsid, wait};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use zeroize::Zeroize;

use crate::init::Mapped;
use crate::seccomp::Filters;
use crate::tenant::Forked;
use crate::title::Title;
use crate::wire::{FromSupervisor, ToSupervisor};
use crate::{channel, init, seccomp, sys};

/// What the supervisor remembers of a sandbox.
#[derive(Default)]
struct Child {
    /// Its init, until that has been waited for.
    pid: Option<Pid>,
    /// Its control groups, until the server has removed them.
    groups: Vec<PathBuf>,
}

impl Drop for Child {
    /// Leaves nothing of it in memory: forks of an interpreter have a copy of that.
    fn drop(&mut self) {
        for group in self.groups.drain(..) {
            group.into_os_string().into_vec().zeroize();
        }
    }
}

struct Supervisor {
    server: OwnedFd,
    /// Without root, every sandbox gets a user namespace of its own, in which this user is mapped.
    mapped: Option<Mapped>,
    /// Set in an interpreter.
    interpreter: Option<Interpreter>,
    filters: Filters,
    children: HashMap<u64, Child>,
}

/// The process that this code was loaded into, where that is an interpreter.
pub(crate) struct Interpreter {
    /// The mount namespace that sandboxes are made from: the interpreter itself lives in another one, with a root of its own.
    pub home: OwnedFd,
    pub title: Title,
}

/// What a process has become when the loop is over.
enum Over {
    /// The server is gone.
    Server,
    /// This is the init of a new sandbox, with its control socket.
    Init(OwnedFd),
}

/// Serves until the server closes `server` or dies, then kills every sandbox and returns. For the server's own program.
pub fn run(server: OwnedFd) -> io::Result<()> {
    // A session of its own: an interrupt typed at the server's terminal is the server's to handle.
    // Fails only for a process that leads one already, which is as good.
    let _ = setsid();
    rustix::thread::set_name(c"firelet-sandbox")?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mapped = (!uid.is_root()).then(|| Mapped { uid: uid.as_raw(), gid: gid.as_raw() });
    if mapped.is_none() {
        mounts_that_follow()?;
    }
    match serve(server, mapped, None)? {
        None => Ok(()),
        Some(_) => unreachable!("only interpreters are forked"),
    }
}

/// Enters own mounts that follow the host's: what is mounted there later can be bound, nothing done here shows there.
pub(crate) fn mounts_that_follow() -> io::Result<()> {
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", follow)?)
}

/// Serves until the server closes `server` or dies, then kills every sandbox and returns `None`. In an interpreter it also
/// returns in each process that waits inside a sandbox.
pub(crate) fn serve(
    server: OwnedFd,
    mapped: Option<Mapped>,
    interpreter: Option<Interpreter>,
) -> io::Result<Option<Forked>> {
    let signals = sys::child_signals()?;
    let filters = seccomp::filters().map_err(io::Error::other)?;
    let mut supervisor = Supervisor { server, mapped, interpreter, filters, children: HashMap::new() };
    match supervisor.serve(&signals) {
        Ok(Over::Init(control)) => {
            let Supervisor { server, mapped, interpreter, filters, children } = supervisor;
            drop(children);
            // Init closes them by their numbers, which may mean something else when this would.
            std::mem::forget((server, signals));
            Ok(Some(init::run(control, &filters, mapped, interpreter)))
        }
        result => {
            supervisor.bury_all();
            result.map(|_| None)
        }
    }
}

impl Supervisor {
    fn serve(&mut self, signals: &OwnedFd) -> io::Result<Over> {
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
                let Some((mut payload, fds)) = channel::receive(&self.server)? else { return Ok(Over::Server) };
                let request = ToSupervisor::decode(&payload).map_err(io::Error::other)?;
                // See `Child`.
                payload.as_mut_slice().zeroize();
                if let Some(control) = self.handle(request, fds)? {
                    return Ok(Over::Init(control));
                }
            }
        }
    }

    /// Returns something in a new init only: its control socket.
    fn handle(&mut self, request: ToSupervisor, fds: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
        match request {
            ToSupervisor::Create { key } => return self.create(key, fds),
            ToSupervisor::Groups { key, dirs } => self.children.entry(key).or_default().groups = dirs,
            ToSupervisor::Kill { key } => {
                if let Some(pid) = self.children.get(&key).and_then(|child| child.pid) {
                    // Not yet waited for, so the number still means this process.
                    let _ = kill_process(pid, Signal::KILL);
                } else {
                    // The server may have given up before the order to create went out; it waits for an answer all the same.
                    self.tell(&FromSupervisor::Exited { key })?;
                }
            }
            ToSupervisor::Forget { key } => {
                self.children.remove(&key);
            }
        }
        Ok(None)
    }

    fn create(&mut self, key: u64, fds: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
        let Some(control) = fds.into_iter().next() else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a sandbox without a control socket"));
        };
        let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if self.interpreter.is_none() {
            // An init that is forked from an interpreter goes home first, and copies the mounts there.
            flags |= libc::CLONE_NEWNS;
        }
        if self.mapped.is_some() {
            flags |= libc::CLONE_NEWUSER;
        }
        // Init stays in the server's control group: the limits, the freezer and the out-of-memory killer of the
        // sandbox are for the tenant's processes, which join the group one by one.
        match sys::clone3(flags, None) {
            Ok(sys::Forked::Child) => return Ok(Some(control)),
            Ok(sys::Forked::Parent(pid)) => self.children.entry(key).or_default().pid = Some(pid),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.tell(&FromSupervisor::CloneFailed { key, errno })?;
            }
        }
        Ok(None)
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
        if let Some(interpreter) = &self.interpreter {
            // Where the paths of control groups lead somewhere. Should it fail, the next server removes what is left.
            let _ = move_into_link_name_space(interpreter.home.as_fd(), Some(LinkNameSpaceType::Mount));
        }
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
