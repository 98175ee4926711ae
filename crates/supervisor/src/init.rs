//! The init of a sandbox: process 1 of its process namespace.
//!
//! ```text
//! forked by the supervisor -> prepared -> Build -> ready -> Spawn | Signal | KillAll | a child ended -> ...
//!                                 `-- the control socket closes, or the supervisor dies: exits; the kernel kills the rest
//! ```
//!
//! It is root (of its user namespace at least) and the only process of the sandbox that is: tenants can neither signal
//! nor trace it nor read its memory. It answers to the server alone, over its control socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use seccompiler::{BpfProgram, apply_filter};

use crate::seccomp::Filters;
use crate::serve::Interpreter;
use crate::step::{Step, StepError};
use crate::tenant::{self, Forked, Pipes};
use crate::title::Title;
use crate::wire::{FromInit, GroupEntry, Settle, Spawn, Timings, ToInit};
use crate::{Exit, MAPPED_UID, StartFailure, channel, landlock, loopback, root, sys};

/// Added to the score by which the kernel picks its victim when the host itself runs out of memory: functions first.
const OOM_SCORE: &str = "500";
/// What an init that was forked from an interpreter shows as its command line: what others show by themselves.
const COMMAND_LINE: &[u8] = b"firelet\0sandbox-supervisor\0";

/// What the processes of a sandbox are started with.
pub(crate) struct Inside {
    /// What init's own filter, which they inherit, does not refuse.
    pub filter: BpfProgram,
    /// The null device, as standard input.
    pub null: Option<OwnedFd>,
    /// User to become; `None` in a user namespace, where there is only one.
    pub uid: Option<u32>,
    pub max_tasks: Option<u32>,
    pub group: Group,
}

/// How processes get into the control group.
pub(crate) enum Group {
    None,
    V2(Unified),
    V1(Vec<OwnedFd>),
}

/// A group of the unified hierarchy.
pub(crate) struct Unified {
    /// For `CLONE_INTO_CGROUP`.
    pub dir: OwnedFd,
    /// Its `cgroup.procs`, for forks of an interpreter, which are not cloned into it. Open from the beginning: once init has
    /// restricted itself, no file that is not the sandbox's can be opened for writing.
    pub procs: Option<OwnedFd>,
}

impl Unified {
    pub fn new(dir: OwnedFd, for_forks: bool) -> Result<Unified, StepError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&dir, "cgroup.procs", flags, Mode::empty());
        let procs = for_forks.then(open).transpose().step(|| "open the control group".into())?;
        Ok(Unified { dir, procs })
    }
}

/// A user and a group of the outside, mapped into a user namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapped {
    pub uid: u32,
    pub gid: u32,
}

/// Runs the sandbox until it ends. Called in the child of the supervisor's clone; `mapped` if that made a user namespace.
/// Returns only in a process that waits in the sandbox as a fork of `interpreter`.
pub(crate) fn run(
    control: OwnedFd,
    filters: &Filters,
    mapped: Option<Mapped>,
    interpreter: Option<Interpreter>,
) -> Forked {
    let started = Instant::now();
    let settled = leave_interpreter(interpreter).and_then(|title| Ok((title, settle_down(control, mapped)?)));
    let (title, control) = match settled {
        Ok(settled) => settled,
        // The server sees the socket close.
        Err(_) => sys::exit_now(1),
    };
    match serve(&control, filters, title, started) {
        Ok(None) => sys::exit_now(0),
        Ok(Some(forked)) => forked,
        Err(error) => {
            let _ = tell(&control, &FromInit::Failed { step: error.step, errno: error.errno }, &[]);
            sys::exit_now(1)
        }
    }
}

/// Gives up the root and the looks of the interpreter that this process was forked from: it has its own copy of the host's
/// mounts then, as an init that the server's program has forked.
fn leave_interpreter(interpreter: Option<Interpreter>) -> io::Result<Option<Title>> {
    let Some(Interpreter { home, title }) = interpreter else { return Ok(None) };
    move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Mount))?;
    drop(home);
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    title.show(COMMAND_LINE);
    Ok(Some(title))
}

/// Cuts the ties to the supervisor, but for the one that ends this process with it.
fn settle_down(control: OwnedFd, mapped: Option<Mapped>) -> io::Result<OwnedFd> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    rustix::thread::set_name(c"firelet-init")?;
    // Descriptor 0 is the supervisor's socket to the server; 1 and 2 stay, for the message of a panic.
    sys::dup_to(&control, 0)?;
    std::mem::forget(control);
    sys::close_from(3)?;
    // SAFETY: the duplicate just made, which nothing else owns.
    let control = unsafe { OwnedFd::from_raw_fd(0) };
    let above = tenant::above_standard(&control)?;
    sys::dup_to(std::fs::File::open("/dev/null")?, 0)?;
    // Now the null device, to stay.
    std::mem::forget(control);
    if let Some(Mapped { uid, gid }) = mapped {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{MAPPED_UID} {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{MAPPED_UID} {gid} 1"))?;
    }
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE)?;
    Ok(above)
}

fn serve(
    control: &OwnedFd,
    filters: &Filters,
    title: Option<Title>,
    started: Instant,
) -> Result<Option<Forked>, StepError> {
    apply_filter(&filters.init).map_err(io::Error::other).step(|| "install the call filter".into())?;
    let signals = sys::child_signals().step(|| "wait for signals".into())?;
    let prepared = root::prepare()?;
    let prepare = micros(started);

    let Some((ToInit::Settle(settle), fds)) = next(control)? else { return Ok(None) };
    let inside = Inside {
        filter: filters.tenant.clone(),
        null: None,
        uid: settle.uid,
        max_tasks: settle.max_tasks,
        group: group(settle, fds, title.is_some())?,
    };
    let mut init = Init { control, inside, title, processes: HashMap::new(), kills: 0 };

    let Some((ToInit::Build(build), fds)) = next(control)? else { return Ok(None) };
    let building = Instant::now();
    let mut fds = fds.into_iter();
    if build.has_netns
        && let Some(netns) = fds.next()
    {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .step(|| "enter the network namespace".into())?;
    }
    let listeners = match &build.own_network {
        Some(listen) => loopback::only_loopback(listen)?,
        None => Vec::new(),
    };
    let tmp = if build.has_tmp { fds.next() } else { None };
    rustix::system::sethostname(build.hostname.as_bytes()).step(|| "set the host name".into())?;
    let mounting = Instant::now();
    root::enter(prepared, &build, tmp)?;
    let mounts = micros(mounting);
    // By this the server attaches what it learns of only later, before anything of a tenant runs.
    let mounted = std::fs::File::open("/proc/self/ns/mnt").step(|| "name its mount namespace".into())?;
    init.inside.null = Some(std::fs::File::open("/dev/null").step(|| "open /dev/null".into())?.into());
    let binds = build.binds.iter().map(|(_, target)| target.as_path());
    if let Some(ruleset) = landlock::ruleset(binds).map_err(io::Error::other).step(|| "restrict paths".into())? {
        // Inherited by every process that is forked from here on: they are in one landlock domain and may look at each
        // other's `/proc` directories, as on Lambda.
        sys::landlock_restrict_self(ruleset.as_fd()).step(|| "restrict paths".into())?;
    }
    // For what init starts: it has its own capabilities already, and never execs.
    sys::drop_bounding_set().step(|| "drop the bounding set".into())?;
    // From now on nobody but root of the host can trace this process or look into its memory.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).step(|| "hide the memory of init".into())?;
    let ready = FromInit::Ready(Timings { prepare, mounts, build: micros(building) });
    let told: Vec<_> = std::iter::once(mounted.as_fd()).chain(listeners.iter().map(AsFd::as_fd)).collect();
    init.tell(&ready, &told)?;
    drop((mounted, listeners));
    init.serve(&signals)
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// The next request; `None` if the server has closed the socket or died, which ends the sandbox.
fn next(control: &OwnedFd) -> Result<Option<(ToInit, Vec<OwnedFd>)>, StepError> {
    let Some((payload, fds)) = channel::receive(control).step(|| "hear from the server".into())? else {
        return Ok(None);
    };
    let request = ToInit::decode(&payload).map_err(io::Error::other).step(|| "understand the server".into())?;
    Ok(Some((request, fds)))
}

fn tell(control: &OwnedFd, report: &FromInit, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    channel::send(control, &report.encode(), fds)
}

fn group(settle: Settle, fds: Vec<OwnedFd>, for_forks: bool) -> Result<Group, StepError> {
    Ok(match settle.group {
        GroupEntry::None => Group::None,
        GroupEntry::V2 => {
            let dir =
                fds.into_iter().next().ok_or(rustix::io::Errno::BADMSG).step(|| "take the control group".into())?;
            Group::V2(Unified::new(dir, for_forks)?)
        }
        GroupEntry::V1(_) => Group::V1(fds),
    })
}

/// A finished sandbox at work.
struct Init<'a> {
    control: &'a OwnedFd,
    inside: Inside,
    /// Of the interpreter that this process was forked from, if it was: processes that wait are forks of it too.
    title: Option<Title>,
    /// The server's numbers of the children that run its processes. Orphans of theirs are only buried.
    processes: HashMap<Pid, u32>,
    /// How often the server wants to hear that no child is left.
    kills: u32,
}

impl Init<'_> {
    /// Returns `Some` in a process that waits, as a fork of the interpreter.
    fn serve(&mut self, signals: &OwnedFd) -> Result<Option<Forked>, StepError> {
        loop {
            let mut ready = [PollFd::new(self.control, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                error => error.map(drop).step(|| "wait for something to do".into())?,
            }
            let (request, ended) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
            if ended {
                let mut record = [0; 128];
                // One record stands for any number of exits: the loop below finds them all.
                let _ = rustix::io::read(signals, &mut record);
                self.reap()?;
            }
            if request {
                let Some((request, fds)) = next(self.control)? else { return Ok(None) };
                if let Some(forked) = self.handle(request, fds)? {
                    return Ok(Some(forked));
                }
            }
        }
    }

    fn handle(&mut self, request: ToInit, fds: Vec<OwnedFd>) -> Result<Option<Forked>, StepError> {
        match request {
            ToInit::Spawn(spawn) => {
                let pipes = Pipes::from_message(fds, &spawn).ok_or(rustix::io::Errno::BADMSG);
                return self.spawn(&spawn, pipes.step(|| "take the pipes of a process".into())?);
            }
            ToInit::Signal { process, signal } => {
                let signal = if signal == libc::SIGKILL { Signal::KILL } else { Signal::TERM };
                if let Some((&pid, _)) = self.processes.iter().find(|(_, number)| **number == process) {
                    // Not yet waited for, so the number still means this process.
                    let _ = kill_process(pid, signal);
                }
            }
            ToInit::KillAll => {
                self.kills += 1;
                // Everything in the process namespace but this process, in one step that no fork can outrun.
                let _ = sys::signal_everything(libc::SIGKILL);
                self.reap()?;
            }
            ToInit::Stop { stop } => {
                // Fails only if there is no process, which is as good.
                let _ = sys::signal_everything(if stop { libc::SIGSTOP } else { libc::SIGCONT });
            }
            ToInit::Settle(_) | ToInit::Build(_) => {
                return Err(rustix::io::Errno::BADMSG).step(|| "make a sandbox a second time".into());
            }
        }
        Ok(None)
    }

    fn spawn(&mut self, spawn: &Spawn, pipes: Pipes) -> Result<Option<Forked>, StepError> {
        let stays = self.title.as_ref().filter(|_| spawn.waits);
        let group = match &self.inside.group {
            Group::V2(group) => Some(group.dir.as_fd()),
            Group::V1(_) | Group::None => None,
        };
        let forked = match stays {
            Some(_) => sys::fork(),
            None => sys::clone3(0, group),
        };
        match forked {
            Ok(sys::Forked::Child) => match stays {
                Some(title) => return Ok(Some(tenant::stay(&self.inside, spawn, pipes, title))),
                None => tenant::run(&self.inside, spawn, pipes),
            },
            Ok(sys::Forked::Parent(pid)) => {
                self.processes.insert(pid, spawn.process);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                tenant::report(pipes.status, &StartFailure::Step("fork".into(), errno));
                let exit = Exit::Signal(libc::SIGKILL);
                self.tell(&FromInit::Exit { process: spawn.process, exit }, &[])?;
            }
        }
        Ok(None)
    }

    fn reap(&mut self) -> Result<(), StepError> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let Some(process) = self.processes.remove(&pid) else { continue };
                    let exit = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Exit::Code(code),
                        (None, signal) => Exit::Signal(signal.unwrap_or(libc::SIGKILL)),
                    };
                    self.tell(&FromInit::Exit { process, exit }, &[])?;
                }
                Ok(None) => return Ok(()),
                Err(_) => {
                    for _ in 0..std::mem::take(&mut self.kills) {
                        self.tell(&FromInit::AllKilled, &[])?;
                    }
                    return Ok(());
                }
            }
        }
    }

    fn tell(&self, report: &FromInit, fds: &[BorrowedFd<'_>]) -> Result<(), StepError> {
        tell(self.control, report, fds).step(|| "report to the server".into())
    }
}
