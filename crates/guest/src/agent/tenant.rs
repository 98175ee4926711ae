//! The way of a tenant process from the agent's fork to its program.
//!
//! It begins as root, in the tenant's control group, with all descriptors of the agent, and loses everything else in an order
//! in which each step is still allowed. What fails is told through the status pipe, which the exec closes if all went well.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::sys;
use crate::control::{Reply, Spawn, Step};

/// Lambda's `sbx_user1051`.
const UID: u32 = 993;
/// Its group.
const GID: u32 = 990;
/// As on Lambda.
const MAX_FILES: u64 = 1024;
/// Soft limit of the stack, in bytes.
const STACK: u64 = 8 << 20;
/// Memory that may be locked, in bytes.
const LOCKED: u64 = 64 << 10;
/// The kernel's out-of-memory killer takes these first.
const OOM_SCORE: &str = "500";
/// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE with their locks, KEEP_CAPS locked off (linux/securebits.h).
const SECURE_BITS: libc::c_ulong = 0b1110_1111;
/// The descriptor of the log pipe; the socket of a process that waits for its environment comes after it.
const LOG_FD: i32 = 3;
/// Above all descriptors that a program is started with.
const SAFE_FD: i32 = 5;

/// The ends that the new process gets.
pub(super) struct Ends {
    pub null: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub log: Option<OwnedFd>,
    /// Where it waits for its environment.
    pub prestart: Option<OwnedFd>,
    pub status: OwnedFd,
    /// Where it joins the control group, if it was not cloned into it.
    pub join: Option<File>,
}

/// Why a start failed, as it goes through the status pipe: kind, errno, then what was being done.
struct Failure {
    step: Step,
    what: String,
    errno: i32,
}

trait Doing<T> {
    fn doing(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let errno = error.into().raw_os_error().unwrap_or(0);
            Failure { step: Step::Other, what: what.to_owned(), errno }
        })
    }
}

/// What the status pipe said: nothing if the program runs.
pub(super) fn outcome(bytes: &[u8], spawn: &Spawn) -> Option<Reply> {
    let (kind, rest) = bytes.split_first()?;
    let (errno, what) = rest.split_first_chunk().unwrap_or((&[0; 4], rest));
    let errno = i32::from_le_bytes(*errno);
    let (step, what) = match kind {
        0 => (Step::Exec, spawn.argv.first().cloned().unwrap_or_default()),
        1 => (Step::Cwd, spawn.cwd.clone()),
        _ => (Step::Other, String::from_utf8_lossy(what).into_owned()),
    };
    Some(Reply::Failed { step, what, errno })
}

/// Becomes the program. Called in the forked child; never returns.
pub(super) fn run(root: &Path, spawn: &Spawn, max_tasks: Option<u32>, ends: Ends) -> ! {
    let status = above(&ends.status);
    let Err(failure) = start(root, spawn, max_tasks, ends);
    if let Ok(status) = status {
        let kind = match failure.step {
            Step::Exec => 0,
            Step::Cwd => 1,
            Step::Other => 2,
        };
        let bytes = [&[kind], &failure.errno.to_le_bytes()[..], failure.what.as_bytes()].concat();
        // The agent reads it, or has ended and with it the machine.
        let _ = File::from(status).write_all(&bytes);
    }
    sys::exit_now(127)
}

fn start(root: &Path, spawn: &Spawn, max_tasks: Option<u32>, ends: Ends) -> Result<Infallible, Failure> {
    let (argv, env) = program(spawn, ends.prestart.as_ref().map(|_| prestart_fd(spawn)))?;
    if let Some(mut procs) = ends.join.as_ref() {
        procs.write_all(b"0").doing("join the control group")?;
    }
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).doing("offer the process to the out-of-memory killer")?;
    let normal = rustix::process::setpriority_process(None, 0);
    normal.doing("set the priority")?;
    arrange_descriptors(&ends).doing("arrange the descriptors")?;
    // Their numbers may mean other files now.
    std::mem::forget(ends);
    rustix::process::setsid().doing("start a session")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limit_resources(max_tasks).doing("set the resource limits")?;
    rustix::process::chroot(root).doing("enter the root")?;
    rustix::process::chdir("/").doing("enter the root")?;
    drop_privileges().doing("drop the privileges")?;
    // As the user of the program: a directory that it may not enter is an error now, not later.
    rustix::process::chdir(spawn.cwd.as_str()).map_err(|errno| Failure {
        step: Step::Cwd,
        what: String::new(),
        errno: errno.raw_os_error(),
    })?;
    sys::reset_signals();
    let errno = sys::exec(&argv, &env).raw_os_error().unwrap_or(0);
    Err(Failure { step: Step::Exec, what: String::new(), errno })
}

/// A duplicate above all numbers that are about to be given away; closed on exec.
fn above(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, SAFE_FD)?)
}

fn prestart_fd(spawn: &Spawn) -> i32 {
    if spawn.log_fd_env.is_some() { LOG_FD + 1 } else { LOG_FD }
}

fn arrange_descriptors(ends: &Ends) -> io::Result<()> {
    let given = [Some(&ends.null), Some(&ends.stdout), Some(&ends.stderr), ends.log.as_ref(), ends.prestart.as_ref()];
    let wanted = given.into_iter().flatten().map(above).collect::<io::Result<Vec<_>>>()?;
    for pipe in &wanted[1..] {
        // So that the program may open them again by name (/dev/stdout).
        rustix::fs::fchown(pipe, Some(Uid::from_raw(UID)), Some(Gid::from_raw(GID)))?;
    }
    for (number, fd) in (0..).zip(&wanted) {
        sys::dup_to(fd, number)?;
    }
    sys::close_on_exec_from(wanted.len() as i32)
}

fn limit_resources(max_tasks: Option<u32>) -> io::Result<()> {
    let set = |resource, limit| setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) });
    set(Resource::Nofile, MAX_FILES)?;
    // 1 and not 0: no core file, and none for a handler either (core(5), "piping").
    set(Resource::Core, 1)?;
    set(Resource::Memlock, LOCKED)?;
    let stack = getrlimit(Resource::Stack);
    setrlimit(Resource::Stack, Rlimit { current: Some(STACK.min(stack.maximum.unwrap_or(STACK))), ..stack })?;
    if let Some(limit) = max_tasks {
        set(Resource::Nproc, limit.into())?;
    }
    Ok(())
}

fn drop_privileges() -> io::Result<()> {
    sys::drop_bounding_set()?;
    rustix::thread::clear_ambient_capability_set()?;
    sys::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS)?;
    sys::become_user(UID, GID)?;
    sys::drop_capabilities()?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn program(spawn: &Spawn, prestart: Option<i32>) -> Result<(Vec<CString>, Vec<CString>), Failure> {
    let string = |text: String| {
        let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
        CString::new(text).map_err(invalid).doing("pass an argument or variable with a zero byte")
    };
    let argv = spawn.argv.iter().cloned().map(string).collect::<Result<_, _>>()?;
    let given = spawn.env.iter().map(|(name, value)| format!("{name}={value}"));
    let log = spawn.log_fd_env.iter().map(|name| format!("{name}={LOG_FD}"));
    let prestart = prestart.into_iter().map(|fd| format!("FIRELET_PRESTART_FD={fd}"));
    Ok((argv, given.chain(log).chain(prestart).map(string).collect::<Result<_, _>>()?))
}

/// What a process that waits is given: one JSON object.
pub(super) fn environment(spawn: &Spawn) -> Vec<u8> {
    let log = spawn.log_fd_env.iter().map(|name| (name.clone(), LOG_FD.to_string()));
    let env: Vec<_> = spawn.env.iter().cloned().chain(log).collect();
    serde_json::json!({ "env": env, "cwd": spawn.cwd }).to_string().into_bytes()
}
