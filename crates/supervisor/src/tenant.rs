//! The way of a tenant process from init's fork to its program.
//!
//! It starts as root of the sandbox with every descriptor of init's, and loses all of it in an order in which each step is
//! still allowed. What fails is told through the status pipe, which the exec closes when all went well.
//!
//! A process that waits as a fork of an interpreter ([`stay`]) goes the same way, but for the last step: instead of an exec it gives
//! itself back what an exec would have given it, and returns to where the interpreter called this library.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;

use crate::init::{Group, Inside};
use crate::step::{Step, StepError};
use crate::title::Title;
use crate::wire::Spawn;
use crate::{StartFailure, sys};

/// Open files and sockets per process, as on Lambda.
const MAX_FILES: u64 = 1024;
/// Soft limit of the stack, in bytes.
const STACK: u64 = 8 << 20;
/// Memory that may be locked, in bytes.
const LOCKED: u64 = 64 << 10;
/// The descriptor number of the log pipe.
const LOG_FD: i32 = 3;
/// The highest number that a program may find open: the socket of one that waits, behind the log pipe.
const LAST_FD: i32 = 4;
/// The variable that tells a program that waits the number of its socket.
const PRESTART_VARIABLE: &str = "FIRELET_PRESTART_FD";
/// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock; KEEP_CAPS locked off. (linux/securebits.h)
const SECURE_BITS: libc::c_ulong = 0b1110_1111;

/// The pipes of a new process, as they came with the `Spawn` message.
pub(crate) struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub status: OwnedFd,
    pub log: Option<OwnedFd>,
    /// Over which its environment will come.
    pub prestart: Option<OwnedFd>,
}

impl Pipes {
    pub fn from_message(fds: Vec<OwnedFd>, spawn: &Spawn) -> Option<Pipes> {
        let mut fds = fds.into_iter();
        let (stdout, stderr, status) = (fds.next()?, fds.next()?, fds.next()?);
        let log = if spawn.log_fd_env.is_some() { Some(fds.next()?) } else { None };
        let prestart = if spawn.waits { Some(fds.next()?) } else { None };
        Some(Pipes { stdout, stderr, status, log, prestart })
    }
}

/// Tells why a process did not start.
pub(crate) fn report(status: OwnedFd, failure: &StartFailure) {
    // If the server is gone there is nobody to tell.
    let _ = File::from(status).write_all(&failure.encode());
}

/// Becomes the program. Called in the forked child, never returns.
pub(crate) fn run(inside: &Inside, spawn: &Spawn, pipes: Pipes) -> ! {
    let status = above_standard(&pipes.status);
    let Err(failure) = start(inside, spawn, pipes);
    if let Ok(status) = status {
        report(status, &failure);
    }
    sys::exit_now(127)
}

fn start(inside: &Inside, spawn: &Spawn, pipes: Pipes) -> Result<Infallible, StartFailure> {
    join_group(inside, true)?;
    let wanted = gather(inside, &pipes)?;
    let next = put_in_place(&wanted).step(|| "arrange the descriptors".into())?;
    // The status pipe and what was init's go with the exec.
    sys::close_on_exec_from(next).step(|| "arrange the descriptors".into())?;
    // The numbers that were theirs may be standard ones now.
    std::mem::forget(pipes);
    confine(inside, spawn)?;
    let (argv, env) = program(spawn)?;
    filter(inside)?;
    sys::reset_signals();
    let error = sys::exec(&argv, &env);
    Err(StartFailure::Exec(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// A confined process that still has all descriptors of init's.
pub(crate) struct Forked {
    wanted: Vec<OwnedFd>,
    status: OwnedFd,
}

/// Confines this process, a fork of the interpreter that `title` is of. Called in the forked child; returns when all is done
/// that can be done before the last descriptor of init's is closed.
pub(crate) fn stay(inside: &Inside, spawn: &Spawn, pipes: Pipes, title: &Title) -> Forked {
    let confined = confine_fork(inside, spawn, &pipes, title);
    match confined {
        Ok(wanted) => Forked { wanted, status: pipes.status },
        Err(failure) => {
            report(pipes.status, &failure);
            sys::exit_now(127)
        }
    }
}

fn confine_fork(inside: &Inside, spawn: &Spawn, pipes: &Pipes, title: &Title) -> Result<Vec<OwnedFd>, StartFailure> {
    join_group(inside, false)?;
    let wanted = gather(inside, pipes)?;
    confine(inside, spawn)?;
    title.restore().step(|| "give back the name".into())?;
    // An exec does this: becoming another user has made the process one that its own user may not look into.
    sys::prctl(libc::PR_SET_DUMPABLE, 1).step(|| "show its memory to its user".into())?;
    filter(inside)?;
    // As init, it was forked with all of them blocked. The dispositions are those of an interpreter that has started.
    sys::unblock_signals().step(|| "unblock signals".into())?;
    Ok(wanted)
}

impl Forked {
    /// Gives the descriptors their numbers and closes all others, whoever had them: the last step of a fork, which nothing of
    /// init's or the supervisor's may outlive. Ends the process if that fails.
    pub fn take_place(self) {
        let Forked { wanted, status } = self;
        let placed = put_in_place(&wanted);
        // Whatever their numbers mean by now, they are closed below. The end of the status pipe says that all went well.
        std::mem::forget((wanted, status));
        if placed.and_then(sys::close_from).is_err() {
            sys::exit_now(127);
        }
    }
}

/// Enters the control group, where the process was not cloned into it, and makes it the root of what the process can see of
/// control groups.
fn join_group(inside: &Inside, cloned_into: bool) -> Result<(), StepError> {
    let failed = || "join the control group".to_owned();
    match &inside.group {
        Group::V1(procs) => {
            for file in procs {
                rustix::io::write(file, b"0\n").step(failed)?;
            }
        }
        Group::V2(group) if !cloned_into => {
            let procs = group.procs.as_ref().ok_or(rustix::io::Errno::BADF).step(failed)?;
            rustix::io::write(procs, b"0\n").step(failed)?;
        }
        Group::V2(_) | Group::None => {}
    }
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }.step(|| "enter a control group namespace".into())
}

/// Takes everything from this process that a tenant may not have but the system calls and the descriptors.
fn confine(inside: &Inside, spawn: &Spawn) -> Result<(), StartFailure> {
    rustix::process::setsid().step(|| "start a session".into())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limit_resources(inside)?;
    drop_privileges(inside)?;
    // As the user that the program will run as: a directory it may not enter is an error now, not later.
    rustix::process::chdir(&spawn.cwd).map_err(|error| StartFailure::Cwd(error.raw_os_error()))
}

fn filter(inside: &Inside) -> Result<(), StepError> {
    seccompiler::apply_filter(&inside.filter).map_err(io::Error::other).step(|| "install the call filter".into())
}

/// The descriptors that the process is to have, in their order, none of which has a number that one of them will get.
fn gather(inside: &Inside, pipes: &Pipes) -> Result<Vec<OwnedFd>, StepError> {
    let failed = || "arrange the descriptors".to_owned();
    let null = inside.null.as_ref().ok_or(rustix::io::Errno::BADF).step(failed)?;
    let mut wanted = vec![above_standard(null), above_standard(&pipes.stdout), above_standard(&pipes.stderr)];
    wanted.extend(pipes.log.as_ref().map(above_standard));
    let outputs = 1..wanted.len();
    wanted.extend(pipes.prestart.as_ref().map(above_standard));
    let wanted = wanted.into_iter().collect::<io::Result<Vec<_>>>().step(failed)?;
    if let Some(uid) = inside.uid {
        // So that the program may open them again by name (/dev/stdout).
        for pipe in &wanted[outputs] {
            rustix::fs::fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid))).step(failed)?;
        }
    }
    Ok(wanted)
}

/// Gives them their numbers, and says which is the first that none of them has.
fn put_in_place(wanted: &[OwnedFd]) -> io::Result<RawFd> {
    let mut next = 0;
    for fd in wanted {
        sys::dup_to(fd, next)?;
        next += 1;
    }
    Ok(next)
}

/// A duplicate whose number is none of those that a program starts with; closed on exec.
pub(crate) fn above_standard(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, LAST_FD + 1)?)
}

fn limit_resources(inside: &Inside) -> Result<(), StepError> {
    let failed = || "set the resource limits".to_owned();
    set_limit(Resource::Nofile, MAX_FILES).step(failed)?;
    // No core files, and with 1 instead of 0 none for a handler of the host's either (core(5), "piping").
    set_limit(Resource::Core, 1).step(failed)?;
    set_limit(Resource::Memlock, LOCKED).step(failed)?;
    let stack = getrlimit(Resource::Stack);
    let soft = STACK.min(stack.maximum.unwrap_or(STACK));
    setrlimit(Resource::Stack, Rlimit { current: Some(soft), ..stack }).step(failed)?;
    if let Some(limit) = inside.max_tasks {
        // Counts by user: the user is the sandbox's own, in a user namespace of its own if there is no root.
        set_limit(Resource::Nproc, limit.into()).step(failed)?;
    }
    Ok(())
}

fn set_limit(resource: Resource, limit: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
}

fn drop_privileges(inside: &Inside) -> Result<(), StepError> {
    let failed = || "drop the privileges".to_owned();
    // The bounding set is empty: init's is.
    rustix::thread::clear_ambient_capability_set().step(failed)?;
    // User 0 means nothing any more, and none of this can be undone.
    sys::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS).step(failed)?;
    if let Some(uid) = inside.uid {
        sys::become_user(uid).step(|| format!("become user {uid}"))?;
    }
    sys::drop_capabilities().step(failed)?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step(failed)
}

pub(crate) fn program(spawn: &Spawn) -> Result<(Vec<CString>, Vec<CString>), StepError> {
    let string = |text: String| CString::new(text).step(|| "pass an argument or variable with a zero byte".into());
    let argv = spawn.argv.iter().cloned().map(string).collect::<Result<_, _>>()?;
    let log = spawn.log_fd_env.iter().map(|name| format!("{name}={LOG_FD}"));
    let socket = if spawn.log_fd_env.is_some() { LOG_FD + 1 } else { LOG_FD };
    let waits = spawn.waits.then(|| format!("{PRESTART_VARIABLE}={socket}"));
    let env = spawn.env.iter().map(|(name, value)| format!("{name}={value}")).chain(log).chain(waits);
    Ok((argv, env.map(string).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

    use std::os::fd::AsFd;

    use super::*;
    use crate::init::Unified;
    use crate::landlock;
    use crate::testing::UnifiedGroup;

    #[test]
    fn a_fork_enters_a_group_of_the_unified_hierarchy_by_itself() {
        let Some(own) = UnifiedGroup::make("join") else { return };
        let group = Group::V2(Unified::new(own.dir().into(), true).unwrap());
        let inside = Inside { filter: Vec::new(), null: None, uid: None, max_tasks: None, group };
        let ruleset = landlock::ruleset(std::iter::empty()).unwrap();
        match sys::clone3(0, None).unwrap() {
            sys::Forked::Child => {
                // As init is by the time it forks.
                let restricted = ruleset.is_none_or(|ruleset| {
                    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).is_ok()
                        && sys::landlock_restrict_self(ruleset.as_fd()).is_ok()
                });
                if !restricted || join_group(&inside, false).is_err() {
                    sys::exit_now(1);
                }
                loop {
                    // SAFETY: waits for the signal that ends this process; nothing of the other threads is touched.
                    unsafe { libc::pause() };
                }
            }
            sys::Forked::Parent(pid) => {
                let deadline = Instant::now() + Duration::from_secs(30);
                let members = loop {
                    let members = own.processes();
                    if !members.is_empty() || Instant::now() > deadline {
                        break members;
                    }
                    std::thread::yield_now();
                };
                kill_process(pid, Signal::KILL).unwrap();
                waitpid(Some(pid), WaitOptions::empty()).unwrap();
                assert_eq!(members.trim(), pid.as_raw_nonzero().to_string());
            }
        }
    }
}
