//! The table of processes: how they are started, taken from those that wait, signalled and buried.
//!
//! ```text
//!   Starting --the program runs--> Running --it ends, its output is handed over--> Exited is told
//!      |  '--it ends first: told after the answer to `Spawn`
//!      '--the program cannot run: forgotten, the answer says why
//!   Waiting (started before it is known for whom) --taken--> Running
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};

use super::group::{self, Group};
use super::streams::Streams;
use super::sys;
use super::tenant::{self, Ends};
use super::unheard::Unheard;
use crate::control::{Event, Reply, Spawn, Step};

/// How long an interpreter may take until it waits for its environment.
const PRESTART_PATIENCE: Duration = Duration::from_secs(240);
/// How long the host may take to fetch what a process that has ended left in its pipes, before it hears of the end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Processes {
    streams: Rc<Streams>,
    table: RefCell<HashMap<Pid, Entry>>,
    waiting: RefCell<Option<Waiting>>,
    max_tasks: Cell<Option<u32>>,
    children: RefCell<Option<tokio::signal::unix::Signal>>,
    unheard: Rc<Unheard>,
}

/// A child that runs the tenant's program. Others are orphans of the tenant's, and only buried.
struct Entry {
    process: u32,
    streams: [u64; 3],
    state: State,
}

enum State {
    Starting,
    Ended(WaitStatus),
    Running,
}

/// A process that was started before it is known for whom.
struct Waiting {
    pid: Pid,
    argv: Vec<String>,
    socket: UnixStream,
    outputs: Outputs,
}

/// The read ends of a process's pipes.
struct Outputs {
    stdout: OwnedFd,
    stderr: OwnedFd,
    log: Option<OwnedFd>,
}

fn other(what: &str, error: &io::Error) -> Reply {
    Reply::Failed { step: Step::Other, what: what.to_owned(), errno: error.raw_os_error().unwrap_or(0) }
}

impl Processes {
    pub(super) fn new(streams: Rc<Streams>) -> io::Result<Self> {
        Ok(Self {
            streams,
            table: RefCell::default(),
            waiting: RefCell::default(),
            max_tasks: Cell::default(),
            children: RefCell::new(Some(signal(SignalKind::child())?)),
            unheard: Rc::default(),
        })
    }

    /// What the host has not heard of.
    pub(super) fn unheard(&self) -> &Unheard {
        &self.unheard
    }

    pub(super) fn limit(&self, max_tasks: u32) {
        self.max_tasks.set(Some(max_tasks));
    }

    pub(super) async fn spawn(&self, spawn: Spawn, root: &Path, group: &Group) -> Reply {
        if spawn.prestarted
            && let Some(reply) = self.take_waiting(&spawn).await
        {
            return reply;
        }
        let (pid, outputs, status) = match self.fork(&spawn, root, group, None) {
            Ok(forked) => forked,
            Err(error) => return other("start a process", &error),
        };
        let entry = Entry { process: spawn.process, streams: spawn.streams, state: State::Starting };
        self.table.borrow_mut().insert(pid, entry);
        if let Err(error) = self.register(&spawn, outputs) {
            self.table.borrow_mut().remove(&pid);
            let _ = kill_process(pid, Signal::KILL);
            return other("read what a process writes", &error);
        }
        let failed = match read_status(status).await {
            Ok(bytes) => tenant::outcome(&bytes, &spawn),
            Err(error) => Some(other("hear how a process started", &error)),
        };
        if let Some(failed) = failed {
            self.table.borrow_mut().remove(&pid);
            spawn.streams.iter().for_each(|number| self.streams.forget(*number));
            return failed;
        }
        let ended = self.table.borrow_mut().get_mut(&pid).and_then(|entry| {
            match std::mem::replace(&mut entry.state, State::Running) {
                State::Ended(status) => Some(status),
                State::Starting | State::Running => None,
            }
        });
        if let Some(status) = ended {
            self.ended(pid, status);
        }
        Reply::Spawned { prestarted: false }
    }

    /// Starts a process that waits; answers when it does.
    pub(super) async fn prestart(&self, spawn: Spawn, root: &Path, group: &Group) -> Reply {
        self.dismiss_waiting();
        let (ours, theirs) = match socket_pair() {
            Ok(pair) => pair,
            Err(error) => return other("make a socket for the environment", &error),
        };
        let (pid, outputs, status) = match self.fork(&spawn, root, group, Some(theirs)) {
            Ok(forked) => forked,
            Err(error) => return other("start a process", &error),
        };
        let mut socket = ours;
        let ready = async {
            let bytes = read_status(status).await.map_err(|error| other("hear how a process started", &error))?;
            if let Some(failed) = tenant::outcome(&bytes, &spawn) {
                return Err(failed);
            }
            socket.read_u8().await.map_err(|error| other("wait for the interpreter, which ended", &error))
        };
        let ready = tokio::time::timeout(PRESTART_PATIENCE, ready).await;
        match ready.unwrap_or_else(|_| Err(other("wait for the interpreter", &io::ErrorKind::TimedOut.into()))) {
            Ok(_byte) => {
                *self.waiting.borrow_mut() = Some(Waiting { pid, argv: spawn.argv, socket, outputs });
                Reply::Done
            }
            Err(failed) => {
                // It may have ended and been buried: then the number means nobody, for none was started since that
                // could have got it without the numbers having gone all the way round.
                let _ = kill_process(pid, Signal::KILL);
                failed
            }
        }
    }

    /// The answer if there is a process that waits and can be used; one that cannot is dismissed.
    async fn take_waiting(&self, spawn: &Spawn) -> Option<Reply> {
        let fits = |waiting: &mut Waiting| {
            waiting.argv == spawn.argv && waiting.outputs.log.is_some() == spawn.log_fd_env.is_some()
        };
        let Some(mut waiting) = self.waiting.borrow_mut().take_if(fits) else {
            self.dismiss_waiting();
            return None;
        };
        // In the table before it can end.
        let entry = Entry { process: spawn.process, streams: spawn.streams, state: State::Running };
        self.table.borrow_mut().insert(waiting.pid, entry);
        let given = async {
            waiting.socket.write_all(&tenant::environment(spawn)).await?;
            waiting.socket.shutdown().await
        };
        if given.await.is_err() {
            // It has ended.
            self.table.borrow_mut().remove(&waiting.pid);
            let _ = kill_process(waiting.pid, Signal::KILL);
            return None;
        }
        if let Err(error) = self.register(spawn, waiting.outputs) {
            self.table.borrow_mut().remove(&waiting.pid);
            let _ = kill_process(waiting.pid, Signal::KILL);
            return Some(other("read what a process writes", &error));
        }
        Some(Reply::Spawned { prestarted: true })
    }

    fn dismiss_waiting(&self) {
        if let Some(waiting) = self.waiting.borrow_mut().take() {
            let _ = kill_process(waiting.pid, Signal::KILL);
        }
    }

    pub(super) fn signal(&self, process: u32, number: i32) -> Reply {
        let signal = match number {
            libc::SIGTERM => Signal::TERM,
            libc::SIGKILL => Signal::KILL,
            _ => return other("send another signal than SIGTERM or SIGKILL", &io::ErrorKind::InvalidInput.into()),
        };
        if let Some((pid, _)) = self.table.borrow().iter().find(|(_, entry)| entry.process == process) {
            // Not buried yet, so that the number still means this process.
            let _ = kill_process(*pid, signal);
        }
        Reply::Done
    }

    fn fork(
        &self,
        spawn: &Spawn,
        root: &Path,
        group: &Group,
        prestart: Option<OwnedFd>,
    ) -> io::Result<(Pid, Outputs, Receiver)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (stdout, stderr, status) = (pipe()?, pipe()?, pipe()?);
        let log = spawn.log_fd_env.as_ref().map(|_| pipe()).transpose()?;
        let (log_read, log_write) = log.unzip();
        let null = std::fs::File::open("/dev/null")?.into();
        let outputs = Outputs { stdout: stdout.0, stderr: stderr.0, log: log_read };
        let status_read = Receiver::from_owned_fd({
            rustix::io::ioctl_fionbio(&status.0, true)?;
            status.0
        })?;
        let (into, join) = match group.entry()? {
            group::Entry::Clone(dir) => (Some(dir), None),
            group::Entry::Join(procs) => (None, Some(procs)),
        };
        let ends = Ends { null, stdout: stdout.1, stderr: stderr.1, log: log_write, prestart, status: status.1, join };
        match sys::fork_into(into)? {
            sys::Forked::Child => tenant::run(root, spawn, self.max_tasks.get(), ends),
            sys::Forked::Parent(pid) => Ok((pid, outputs, status_read)),
        }
    }

    fn register(&self, spawn: &Spawn, outputs: Outputs) -> io::Result<()> {
        let [stdout, stderr, log] = spawn.streams;
        for (number, pipe) in [(stdout, Some(outputs.stdout)), (stderr, Some(outputs.stderr)), (log, outputs.log)] {
            if let Some(pipe) = pipe {
                rustix::io::ioctl_fionbio(&pipe, true)?;
                self.streams.add(number, pipe)?;
            }
        }
        Ok(())
    }

    /// Buries children as they end, for ever.
    pub(super) async fn bury(self: Rc<Self>) {
        let Some(mut children) = self.children.borrow_mut().take() else { return };
        loop {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                self.buried(pid, status);
            }
            // None only if the runtime ends.
            if children.recv().await.is_none() {
                return;
            }
        }
    }

    fn buried(&self, pid: Pid, status: WaitStatus) {
        if let Some(waiting) = self.waiting.borrow_mut().take_if(|waiting| waiting.pid == pid) {
            drop(waiting);
        }
        if let Some(entry) = self.table.borrow_mut().get_mut(&pid)
            && matches!(entry.state, State::Starting)
        {
            entry.state = State::Ended(status);
            return;
        }
        self.ended(pid, status);
    }

    /// Tells the host, after what the process wrote.
    fn ended(&self, pid: Pid, status: WaitStatus) {
        let Some(entry) = self.table.borrow_mut().remove(&pid) else { return };
        let (streams, unheard) = (Rc::clone(&self.streams), Rc::clone(&self.unheard));
        tokio::task::spawn_local(async move {
            let drained = async {
                for number in entry.streams {
                    streams.drain(number).await;
                }
            };
            // In vain only if the host does not fetch it.
            let _ = tokio::time::timeout(DRAIN_PATIENCE, drained).await;
            let (code, signal) = (status.exit_status(), status.terminating_signal());
            unheard.add(Event::Exited { process: entry.process, code, signal });
        });
    }
}

async fn read_status(mut status: Receiver) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    status.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The agent's end and the process's, which blocks.
fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}
