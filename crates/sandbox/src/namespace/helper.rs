//! How supervisors come to run: the server starts its own program again, which finds out here what it is to be.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::{env, io};

use supervisor::{channel, serve, zygote};

/// Tells a program that it was started as something else than the server, on descriptor 0 of which is the socket to the server.
const ROLE: &str = "FIRELET_SANDBOX_ROLE";
const SUPERVISOR: &str = "supervisor";
const ZYGOTE: &str = "zygote";

/// What the program is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The supervisor.
    Supervisor,
    /// An interpreter that sandboxes are forked from, with which it replaces itself.
    Zygote,
}

/// The program that serves as the supervisor: one whose `main` begins with [`run_if_helper`].
#[derive(Debug, Clone)]
pub struct Helper {
    /// The program; `/proc/self/exe` is this one, even after an update has replaced its file.
    pub program: PathBuf,
    /// Arguments, for people who read process lists and for test programs that must be led to [`run_if_helper`].
    pub args: Vec<String>,
}

impl Default for Helper {
    fn default() -> Self {
        Helper { program: "/proc/self/exe".into(), args: vec!["sandbox-supervisor".into()] }
    }
}

impl Helper {
    /// Starts it; the socket is non-blocking.
    pub(super) fn start(&self, role: Role) -> io::Result<(Child, OwnedFd)> {
        let role = match role {
            Role::Supervisor => SUPERVISOR,
            Role::Zygote => ZYGOTE,
        };
        let (ours, theirs) = channel::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let child = Command::new(&self.program)
            // Readable by tenants as the command line of their process 1, so no path of the host.
            .arg0("firelet")
            .args(&self.args)
            .env_clear()
            .env(ROLE, role)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok((child, ours))
    }
}

/// Does the work of a sandbox process and exits, if this process was started for that; returns otherwise. Every program
/// that starts a [`Namespace`](super::Namespace) backend calls it first thing in `main`, before any thread is there.
pub fn run_if_helper() {
    let Some(role) = env::var_os(ROLE) else { return };
    let socket = || io::stdin().as_fd().try_clone_to_owned();
    let done = match role.to_str() {
        Some(SUPERVISOR) => socket().and_then(serve::run),
        Some(ZYGOTE) => socket().and_then(zygote::launch).map(|never| match never {}),
        _ => return,
    };
    let code = match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("firelet: the sandbox supervisor failed: {error}");
            1
        }
    };
    std::process::exit(code)
}
