//! How a VMM process comes to be: one thread of the host process, which never ends, clones and execs them all.
//!
//! One thread, because a VMM dies with the *thread* that made it (`PR_SET_PDEATHSIG`), and threads of a runtime come and go.
//! Cloned, not forked: the host process may be large, and a clone that shares its memory until the exec costs the same
//! however large it is. The namespaces that only a clone can give are given here: process, and user without root.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{OnceLock, PoisonError};

use tokio::sync::oneshot;

use crate::process;

/// The program that a VMM process runs: one whose `main` begins with [`run_if_vmm`](crate::run_if_vmm).
#[derive(Debug, Clone)]
pub struct Program {
    /// The program; `/proc/self/exe` is this one, even after an update has replaced its file.
    pub path: PathBuf,
    /// Arguments, for people who read process lists and for test programs that must be led to
    /// [`run_if_vmm`](crate::run_if_vmm).
    pub args: Vec<String>,
}

impl Default for Program {
    fn default() -> Self {
        Program { path: "/proc/self/exe".into(), args: vec!["microvm".into()] }
    }
}

/// A process that was made.
#[derive(Debug)]
pub(super) struct Spawned {
    /// Its number in the namespace of the host process.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Bytes of stack for what happens between clone and exec.
const STACK_BYTES: usize = 64 * 1024;

struct Job {
    program: Program,
    socket: OwnedFd,
    user_namespace: bool,
    done: oneshot::Sender<io::Result<Spawned>>,
}

/// Starts a process with `socket` as descriptor 0 and nothing else of this one, but for standard error.
pub(super) async fn spawn(program: Program, socket: OwnedFd, user_namespace: bool) -> io::Result<Spawned> {
    let (done, result) = oneshot::channel();
    let job = Job { program, socket, user_namespace, done };
    spawner()?.send(job).map_err(|_| io::Error::other("the thread that starts VMM processes has ended"))?;
    result.await.map_err(|_| io::Error::other("the thread that starts VMM processes has ended"))?
}

fn spawner() -> io::Result<Sender<Job>> {
    static SPAWNER: OnceLock<std::sync::Mutex<Option<Sender<Job>>>> = OnceLock::new();
    let mut spawner = SPAWNER.get_or_init(Default::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = &*spawner {
        return Ok(sender.clone());
    }
    let (sender, jobs) = channel::<Job>();
    std::thread::Builder::new().name("vmm-spawner".into()).stack_size(256 * 1024).spawn(move || {
        let mut stack = Stack::new();
        for job in jobs {
            let spawned = clone(&job, &mut stack);
            // Nobody waits any more: the socket's other end is gone as well, which ends the process.
            let _ = job.done.send(spawned);
        }
    })?;
    *spawner = Some(sender.clone());
    Ok(sender)
}

/// Memory with the alignment of a stack.
struct Stack(Vec<u128>);

impl Stack {
    fn new() -> Stack {
        Stack(vec![0; STACK_BYTES / size_of::<u128>()])
    }

    fn top(&mut self) -> *mut c_void {
        self.0.as_mut_ptr_range().end.cast()
    }
}

/// Everything that the child needs, made before there is one: it may not allocate.
struct Child {
    program: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    socket: RawFd,
    /// Files of `/proc` to write, in order, with what goes into them.
    maps: Vec<(&'static CStr, String)>,
    /// Why it did not come to the exec.
    errno: c_int,
}

fn clone(job: &Job, stack: &mut Stack) -> io::Result<Spawned> {
    let nul = |_| io::Error::new(io::ErrorKind::InvalidInput, "the program's name or an argument holds a zero byte");
    let program = CString::new(job.program.path.clone().into_os_string().into_vec()).map_err(nul)?;
    // The name that people see, in place of a path of the host.
    let names = std::iter::once(Ok(CString::from(c"firelet")))
        .chain(job.program.args.iter().map(|argument| CString::new(argument.as_str())))
        .collect::<Result<Vec<_>, _>>()
        .map_err(nul)?;
    let role = CString::new(format!("{}={}", process::ROLE, process::VMM)).map_err(nul)?;
    let maps = if job.user_namespace {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        vec![
            (c"/proc/self/setgroups", "deny".to_owned()),
            (c"/proc/self/uid_map", format!("0 {uid} 1")),
            (c"/proc/self/gid_map", format!("0 {gid} 1")),
        ]
    } else {
        Vec::new()
    };
    let mut child = Child {
        program,
        argv: names.iter().map(|name| name.as_ptr()).chain([std::ptr::null()]).collect(),
        envp: vec![role.as_ptr(), std::ptr::null()],
        socket: job.socket.as_raw_fd(),
        maps,
        errno: 0,
    };
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::CLONE_NEWPID | libc::SIGCHLD;
    if job.user_namespace {
        flags |= libc::CLONE_NEWUSER;
    }
    let mut pidfd: c_int = -1;
    // SAFETY: the sets are written before they are read. The child runs on a stack of its own while this thread waits for
    // its exec or exit (CLONE_VFORK), so that what it borrows stays, and with all signals blocked, so that no handler of
    // this process runs in it. `become_program` calls nothing that allocates or locks.
    let pid = unsafe {
        let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        let pid = libc::clone(become_program, stack.top(), flags, (&raw mut child).cast(), &raw mut pidfd);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        if pid < 0 {
            return Err(error);
        }
        pid
    };
    // SAFETY: the kernel has just made it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if child.errno != 0 {
        // It has ended already; nobody else waits for it.
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
            rustix::process::WaitIdOptions::EXITED,
        );
        return Err(io::Error::from_raw_os_error(child.errno));
    }
    Ok(Spawned { pid, pidfd })
}

/// The child, from clone to exec. Shares memory with the host process: no allocation, no lock, no panic.
extern "C" fn become_program(child: *mut c_void) -> c_int {
    // SAFETY: `clone` passes a `Child` that outlives the call and that nobody else looks at meanwhile. The pointers in it
    // point to C strings and end with null.
    unsafe {
        let child = &mut *child.cast::<Child>();
        for (path, text) in &child.maps {
            let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 || libc::write(file, text.as_ptr().cast(), text.len()) < 0 {
                child.errno = *libc::__errno_location();
                libc::_exit(1);
            }
            libc::close(file);
        }
        if libc::dup2(child.socket, 0) == 0 {
            libc::execve(child.program.as_ptr(), child.argv.as_ptr(), child.envp.as_ptr());
        }
        child.errno = *libc::__errno_location();
        libc::_exit(1)
    }
}
