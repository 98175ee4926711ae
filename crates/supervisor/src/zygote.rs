//! A supervisor that is an interpreter: a fork of it inside a sandbox need not start the interpreter again.
//!
//! ```text
//! server -- starts --> launcher: two mount namespaces, the host's (home) and the runtime's root, in which it stays
//!                         | exec
//!                      interpreter: imports what it will need, loads this library
//!                         | import firelet_zygote, which does not return here
//!                      the loop of `serve` -- clone --> init: home again, then as any other init
//!                                                          | fork
//!                                                       tenant: confined as any other, and the import returns
//! ```
//!
//! Nothing of a tenant is ever in the interpreter: it runs the runtime's own files until the import, and this library from then on.
//! Nothing of the interpreter's descriptors, directories or mounts is in a tenant's reach.
//!
//! The library is the interpreter's extension module only in name. Its initialization fails in the tenant, on purpose: the
//! interpreter answers that with an exception and leaves nothing behind. So no part of Python's interface is needed but two
//! functions for forks, which are looked up by name.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::setsid;

use crate::serve::{self, Interpreter};
use crate::step::{Step, StepError};
use crate::tenant::{self, Forked};
use crate::title::Title;
use crate::wire::{Spawn, ToInit};
use crate::{channel, root, sys};

/// Tells an interpreter that it is to be a zygote, and the file that it is to load as the extension module `firelet_zygote`.
const VARIABLE: &str = "FIRELET_ZYGOTE";
/// The socket to the server, in the interpreter; above what tenants have.
const SERVER: RawFd = 5;
/// The mount namespace that sandboxes are made from.
const HOME: RawFd = 6;
/// This library.
const LIBRARY: RawFd = 7;

/// Why an interpreter did not become a zygote; told on its standard error.
#[derive(Debug, thiserror::Error)]
enum ZygoteError {
    #[error("it was not started by firelet")]
    Descriptors,
    #[error("it has more than one thread")]
    Threads,
    #[error("it has no function {}", .0.to_string_lossy())]
    Symbol(&'static CStr),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Becomes the interpreter that the server describes with the two messages that an init gets too: the root with `Build`, and the program
/// with `Spawn`, as the program will wait in sandboxes. Descriptors of the latter: standard output, standard error, the library.
///
/// Runs as root. Returns only if something failed.
pub fn launch(server: OwnedFd) -> io::Result<Infallible> {
    // Fails only for a process that leads one already, which is as good.
    let _ = setsid();
    rustix::thread::set_name(c"firelet-zygote")?;
    serve::mounts_that_follow()?;
    let home: OwnedFd = std::fs::File::open("/proc/self/ns/mnt")?.into();
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the server does not say which interpreter to start");
    let (ToInit::Build(build), _) = next(&server)? else { return Err(malformed()) };
    let (ToInit::Spawn(spawn), fds) = next(&server)? else { return Err(malformed()) };
    let Ok([stdout, stderr, library]) = <[OwnedFd; 3]>::try_from(fds) else { return Err(malformed()) };

    // SAFETY: only descriptor tables are unsafe to unshare, and this does not.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    let entered = root::prepare().and_then(|prepared| root::enter(prepared, &build, None));
    entered.map_err(told)?;
    let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
    place(&[(&null, 0), (&stdout, 1), (&stderr, 2), (&server, SERVER), (&home, HOME), (&library, LIBRARY)])?;
    // Whatever their numbers mean by now: what is not in place goes with the exec.
    std::mem::forget((null, stdout, stderr, server, home, library));
    Err(exec(&spawn))
}

/// The next message of the server's.
fn next(server: &OwnedFd) -> io::Result<(ToInit, Vec<OwnedFd>)> {
    let (payload, fds) = channel::receive(server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((ToInit::decode(&payload).map_err(io::Error::other)?, fds))
}

fn told(error: StepError) -> io::Error {
    io::Error::other(format!("{}: {}", error.step, io::Error::from_raw_os_error(error.errno)))
}

/// Gives descriptors their numbers, and has all others closed by the exec.
fn place(wanted: &[(&OwnedFd, RawFd)]) -> io::Result<()> {
    let above = wanted.iter().map(|(fd, number)| {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, LIBRARY + 1)?;
        Ok((fd, *number))
    });
    let above = above.collect::<io::Result<Vec<_>>>()?;
    sys::close_on_exec_from(0)?;
    for (fd, number) in &above {
        sys::dup_to(fd, *number)?;
    }
    // `dup_to` may have closed what these were before they were duplicated, but not the duplicates.
    drop(above);
    Ok(())
}

fn exec(spawn: &Spawn) -> io::Error {
    let started = || -> Result<io::Error, StepError> {
        rustix::process::chdir(&spawn.cwd).step(|| format!("enter {}", spawn.cwd.display()))?;
        // As it will be in the tenants, but for this one variable, which the interpreter takes away.
        let (argv, mut env) = tenant::program(spawn)?;
        let variable = format!("{VARIABLE}=/proc/self/fd/{LIBRARY}");
        env.push(CString::new(variable).step(|| "name the library".into())?);
        sys::reset_signals();
        Ok(sys::exec(&argv, &env))
    };
    started().unwrap_or_else(told)
}

/// The initialization of the extension module `firelet_zygote`: returns in each process that waits in a sandbox, always null.
///
/// Python takes null without an exception for a failure (`SystemError`), which the runtime catches and ignores.
#[unsafe(no_mangle)]
pub extern "C" fn PyInit_firelet_zygote() -> *mut c_void {
    match work() {
        Ok(Some(())) => std::ptr::null_mut(),
        Ok(None) => sys::exit_now(0),
        Err(error) => {
            eprintln!("firelet: this interpreter cannot be a zygote: {error}");
            sys::exit_now(1)
        }
    }
}

/// Serves until the server is gone, or returns `Some` in a tenant.
fn work() -> Result<Option<()>, ZygoteError> {
    let [server, home, library] = [SERVER, HOME, LIBRARY].map(inherited);
    let (server, home) = (server.ok_or(ZygoteError::Descriptors)?, home.ok_or(ZygoteError::Descriptors)?);
    // It is loaded already.
    drop(library);
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(ZygoteError::Threads);
    }
    let (before, after) = (function(c"PyOS_BeforeFork")?, function(c"PyOS_AfterFork_Child")?);
    let title = Title::of_this_process()?;
    title.show(b"firelet\0sandbox-zygote\0");
    rustix::thread::set_name(c"firelet-zygote").map_err(io::Error::from)?;
    // SAFETY: a function of no arguments and no result (Python's C interface, 3.7 and later); this thread has the interpreter's
    // lock, since it runs the initialization of a module. Called once although there will be many forks: here, the interpreter
    // does not go on.
    unsafe { before() };
    let Some(forked) = serve::serve(server, None, Some(Interpreter { home, title }))? else { return Ok(None) };
    Forked::take_place(forked);
    // SAFETY: as above; this is a forked child of the process that made the call above.
    unsafe { after() };
    Ok(Some(()))
}

/// A descriptor that the launcher has left here.
fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the number is only looked at; nothing else is done with it before it is known to be open.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: the launcher has put it there for this library, and the interpreter knows nothing of it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    debug_assert_eq!(fd.as_raw_fd(), number);
    Some(fd)
}

/// A function of the interpreter.
fn function(name: &'static CStr) -> Result<unsafe extern "C" fn(), ZygoteError> {
    // SAFETY: a C string, and the handle that means every object in this process.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if address.is_null() {
        return Err(ZygoteError::Symbol(name));
    }
    // SAFETY: both functions that are asked for have this type.
    Ok(unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(address) })
}
