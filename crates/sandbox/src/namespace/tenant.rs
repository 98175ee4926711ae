//! The way of a tenant process from init's fork to its program.
//!
//! It starts as root of the sandbox with every descriptor of init's, and loses all of it in an order in which each step is
//! still allowed. What fails is told through the status pipe, which the exec closes when all went well.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;

use super::init::{Group, Inside};
use super::step::{Step, StepError};
use super::sys;
use super::wire::Spawn;

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

/// What the status pipe says when the start failed. Encoded as the kind, the errno in four bytes, then the step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StartFailure {
    /// The program could not be executed.
    Exec(i32),
    /// The working directory could not be entered.
    Cwd(i32),
    /// Anything else.
    Step(String, i32),
}

impl StartFailure {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, errno, step) = match self {
            StartFailure::Exec(errno) => (0, errno, ""),
            StartFailure::Cwd(errno) => (1, errno, ""),
            StartFailure::Step(step, errno) => (2, errno, step.as_str()),
        };
        [&[kind], &errno.to_le_bytes()[..], step.as_bytes()].concat()
    }

    /// `None` if nothing was written, which is to say that the program runs.
    pub fn decode(bytes: &[u8]) -> Option<StartFailure> {
        let (kind, rest) = bytes.split_first()?;
        let Some((errno, step)) = rest.split_first_chunk() else {
            return Some(StartFailure::Step("read the status".into(), libc::EIO));
        };
        let errno = i32::from_le_bytes(*errno);
        Some(match kind {
            0 => StartFailure::Exec(errno),
            1 => StartFailure::Cwd(errno),
            _ => StartFailure::Step(String::from_utf8_lossy(step).into_owned(), errno),
        })
    }
}

impl From<StepError> for StartFailure {
    fn from(error: StepError) -> Self {
        StartFailure::Step(error.step, error.errno)
    }
}

/// The pipes of a new process, as they came with the `Spawn` message.
pub(super) struct Pipes {
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
pub(super) fn report(status: OwnedFd, failure: &StartFailure) {
    // If the server is gone there is nobody to tell.
    let _ = File::from(status).write_all(&failure.encode());
}

/// Becomes the program. Called in the forked child, never returns.
pub(super) fn run(inside: &Inside, spawn: &Spawn, pipes: Pipes) -> ! {
    let status = above_standard(&pipes.status);
    let Err(failure) = start(inside, spawn, pipes);
    if let Ok(status) = status {
        report(status, &failure);
    }
    sys::exit_now(127)
}

fn start(inside: &Inside, spawn: &Spawn, pipes: Pipes) -> Result<Infallible, StartFailure> {
    join_group(inside)?;
    // From here on the group is the root of what the process can see of control groups.
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
        .step(|| "enter a control group namespace".into())?;
    arrange_descriptors(inside, pipes)?;
    rustix::process::setsid().step(|| "start a session".into())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limit_resources(inside)?;
    drop_privileges(inside)?;
    // As the user that the program will run as: a directory it may not enter is an error now, not later.
    if let Err(error) = rustix::process::chdir(&spawn.cwd) {
        return Err(StartFailure::Cwd(error.raw_os_error()));
    }
    let (argv, env) = program(spawn)?;
    seccompiler::apply_filter(&inside.filter).map_err(io::Error::other).step(|| "install the call filter".into())?;
    sys::reset_signals();
    let error = sys::exec(&argv, &env);
    Err(StartFailure::Exec(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Enters the control group where the kernel has no clone into it.
fn join_group(inside: &Inside) -> Result<(), StepError> {
    if let Group::V1(procs) = &inside.group {
        for file in procs {
            rustix::io::write(file, b"0\n").step(|| "join the control group".into())?;
        }
    }
    Ok(())
}

fn arrange_descriptors(inside: &Inside, pipes: Pipes) -> Result<(), StepError> {
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
    let mut next = 0;
    for fd in &wanted {
        sys::dup_to(fd, next).step(failed)?;
        next += 1;
    }
    // The status pipe and what was init's go with the exec.
    sys::close_on_exec_from(next).step(failed)?;
    // The numbers that were theirs may be standard ones now.
    std::mem::forget(pipes);
    Ok(())
}

/// A duplicate whose number is none of those that a program starts with; closed on exec.
pub(super) fn above_standard(fd: &OwnedFd) -> io::Result<OwnedFd> {
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

fn program(spawn: &Spawn) -> Result<(Vec<CString>, Vec<CString>), StepError> {
    let string = |text: String| CString::new(text).step(|| "pass an argument or variable with a zero byte".into());
    let argv = spawn.argv.iter().cloned().map(string).collect::<Result<_, _>>()?;
    let log = spawn.log_fd_env.iter().map(|name| format!("{name}={LOG_FD}"));
    let socket = if spawn.log_fd_env.is_some() { LOG_FD + 1 } else { LOG_FD };
    let waits = spawn.waits.then(|| format!("{PRESTART_VARIABLE}={socket}"));
    let env = spawn.env.iter().map(|(name, value)| format!("{name}={value}")).chain(log).chain(waits);
    Ok((argv, env.map(string).collect::<Result<_, _>>()?))
}
