//! The control connection: requests are carried out one after the other, in the order in which they came, so that the host
//! may send many at once. Only those that wait for processes (`Prestart`, `KillAll`) are answered when they are done, while
//! others go on.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use rustix::time::{ClockId, clock_gettime};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{Agent, clone, disks, network};
use crate::control::{FromAgent, Numbered, Reply, Request, Step, VERSION};
use crate::frame::{self, ReadError};

type Replies = mpsc::UnboundedSender<FromAgent>;

fn done(what: &str, result: io::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            let what = if errno == 0 { format!("{what}: {error}") } else { what.to_owned() };
            Reply::Failed { step: Step::Other, what, errno }
        }
    }
}

/// Serves one connection to its end. May be dropped: the next one hears what the host has not heard.
pub(super) async fn serve(agent: &Rc<Agent>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut requests = frame::Reader::new(read, 0);
    // Unbounded, but the host asked for each.
    let (replies, mut answered) = mpsc::unbounded_channel();
    let mut told = 0;
    loop {
        let message = tokio::select! {
            biased;
            // First, so that `Spawned` comes before `Exited`.
            Some(reply) = answered.recv() => reply,
            (serial, event) = agent.processes.unheard().after(told) => {
                told = serial;
                FromAgent::Event(event)
            }
            request = requests.next::<Numbered<Request>>() => match request {
                Ok((Numbered { number, message }, _)) => {
                    handle(agent, number, message, &replies).await;
                    continue;
                }
                Err(ReadError::Ended) => return,
                Err(error) => return eprintln!("the control connection: {error}"),
            },
        };
        if frame::write(&mut write, &message, &[]).await.is_err() {
            return;
        }
    }
}

/// Carries a request out, or begins to, if it has to wait for processes.
async fn handle(agent: &Rc<Agent>, number: u64, request: Request, replies: &Replies) {
    let (waiting, later) = (Rc::clone(agent), replies.clone());
    let reply = match request {
        Request::Prestart(spawn) => {
            tokio::task::spawn_local(async move {
                let reply = waiting.processes.prestart(spawn, &waiting.setup.root, &waiting.group).await;
                // A connection that is gone does not want to know.
                let _ = later.send(FromAgent::Reply { number, reply });
            });
            return;
        }
        Request::KillAll => {
            tokio::task::spawn_local(async move {
                let reply = done("kill all processes", waiting.group.kill().await);
                let _ = later.send(FromAgent::Reply { number, reply });
            });
            return;
        }
        Request::Hello => welcome(),
        Request::Cloned { entropy, now_ns } if agent.setup.machine => {
            done("become another machine", clone::become_other(&entropy, now_ns))
        }
        Request::Cloned { .. } | Request::PowerOff if !agent.setup.machine => {
            done("touch a machine that is not the agent's", Err(io::ErrorKind::Unsupported.into()))
        }
        Request::Cloned { .. } => return,
        Request::Mount(mount) => {
            let what = format!("mount drive {} at {}", mount.drive, mount.target);
            done(&what, disks::mount(&mount, &agent.setup.root).await)
        }
        Request::Network(network) => done("set up the network", network::set_up(&network, &agent.setup.root)),
        Request::Limits { memory_bytes, max_tasks } => {
            agent.processes.limit(max_tasks);
            done("limit the tenant", agent.group.limit(memory_bytes, max_tasks))
        }
        Request::Spawn(spawn) => agent.processes.spawn(spawn, &agent.setup.root, &agent.group).await,
        Request::Signal { process, signal } => agent.processes.signal(process, signal),
        Request::Heard { processes } => {
            agent.processes.unheard().heard(&processes);
            Reply::Done
        }
        Request::Usage => agent.group.usage(),
        Request::ResetPeak => {
            agent.group.reset_peak();
            Reply::Done
        }
        Request::Quiesce => done("stop the tenant", quiesce(agent).await),
        Request::Wake => done("let the tenant go on", agent.group.thaw()),
        Request::PowerOff => {
            rustix::fs::sync();
            // "Power off" needs a firmware that this machine does not have; its end is a reset.
            let error = rustix::system::reboot(rustix::system::RebootCommand::Restart).err();
            done("end the machine", Err(error.map_or(io::ErrorKind::Other.into(), io::Error::from)))
        }
    };
    let _ = replies.send(FromAgent::Reply { number, reply });
}

fn welcome() -> Reply {
    let uptime = clock_gettime(ClockId::Boottime);
    let micros =
        u64::try_from(uptime.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(uptime.tv_nsec).unwrap_or(0) / 1_000;
    let memory = rustix::system::sysinfo();
    let facts = BTreeMap::from([
        ("agent".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("memory_bytes".to_owned(), (memory.totalram as u64 * u64::from(memory.mem_unit)).to_string()),
        ("free_bytes".to_owned(), (memory.freeram as u64 * u64::from(memory.mem_unit)).to_string()),
    ]);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Reply::Welcome { version: VERSION, kernel, uptime_us: micros, facts }
}

/// The page cache stays: a clone reads from it what the template has read, the interpreter first of all. What is free is moved
/// together, so that it can be reported to the host in large pieces.
async fn quiesce(agent: &Agent) -> io::Result<()> {
    agent.group.freeze().await?;
    if agent.setup.machine {
        rustix::fs::sync();
        // Absent in kernels without compaction.
        let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
    }
    Ok(())
}
