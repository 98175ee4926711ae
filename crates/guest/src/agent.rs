//! The agent: process 1 of a microVM, and the only one in it that is not the tenant's.
//!
//! ```text
//!   boot      what only process 1 of a machine does: the first mounts, loopback, the kernel's switches
//!   service   the control connection: one request after the other
//!   process   starts, buries and signals the tenant's processes;  tenant: the way of one from the fork to its program
//!   unheard   their ends, until the host has heard of them
//!   streams   what they write, from their pipes to the host's connections
//!   group     their control group;  disks, network, clone: one request each
//!   sockets   where the host connects: vsock, or Unix sockets in tests
//!   sys       system calls that neither std nor rustix offers
//! ```
//!
//! It has one thread, so that it may fork, and everything that it does is bounded by what the host asked for: tenants can
//! make it work, but not grow. A panic of it ends the machine, as it must. The out-of-memory killer spares process 1, its
//! memory is never swapped (a microVM has no swap), and its program is in the initial file system, which stays in memory.

mod clone;
mod disks;
mod group;
mod network;
mod process;
mod service;
mod sockets;
mod streams;
mod sys;
mod tenant;
mod unheard;

pub mod boot;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::LocalSet;

use self::group::Group;
use self::process::Processes;
use self::sockets::Listener;
pub use self::sockets::Sockets;
use self::streams::Streams;
use crate::control::{CONTROL, RUNTIME, STREAMS};
use crate::runtime::{Slot, serve_owner};

/// Where the Runtime API listens, as on Lambda.
const API_PORT: u16 = 9001;
/// How long a stream's connection may take to say which stream it wants.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);

/// Where the agent works.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The tenant's root.
    pub root: PathBuf,
    /// The tenant's control group (version 2); made if it is not there.
    pub group: PathBuf,
    /// Where the host connects.
    pub sockets: Sockets,
    /// Whether this is process 1 of a machine, whose clock it may set and which it may end.
    pub machine: bool,
}

/// Why the agent could not begin.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}")]
pub struct AgentError {
    step: &'static str,
    source: io::Error,
}

fn at(step: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError { step, source }
}

/// All that the tasks share.
struct Agent {
    setup: Setup,
    group: Group,
    processes: Rc<Processes>,
}

/// Serves the host until the machine ends.
pub fn run(setup: Setup) -> Result<Infallible, AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(at("start"))?;
    LocalSet::new().block_on(&runtime, serve(setup))
}

async fn serve(setup: Setup) -> Result<Infallible, AgentError> {
    network::loopback_up().map_err(at("bring loopback up"))?;
    let listen = |port| Listener::bind(&setup.sockets, port).map_err(at("listen for the host"));
    let (control, streaming, owners) = (listen(CONTROL)?, listen(STREAMS)?, listen(RUNTIME)?);
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, API_PORT)).map_err(at("listen for the runtime"))?;
    let group = Group::make(&setup.group).map_err(at("make the tenant's control group"))?;
    let streams = Rc::new(Streams::default());
    let processes = Processes::new(Rc::clone(&streams)).map_err(at("watch over processes"))?;
    let agent = Rc::new(Agent { setup, group, processes: Rc::new(processes) });

    tokio::task::spawn_local(accept_streams(streaming, Rc::clone(&streams)));
    tokio::task::spawn_local(serve_owners(owners, Slot::new(api), streams));
    tokio::task::spawn_local(Rc::clone(&agent.processes).bury());
    latest(control, async |stream| service::serve(&agent, stream).await).await
}

/// Serves one connection at a time: a new one takes the place of the one before, which is dead then, whether the agent has
/// heard of it or not.
async fn latest(listener: Listener, mut serve: impl AsyncFnMut(UnixStream)) -> ! {
    let mut stream = listener.accept().await;
    loop {
        stream = tokio::select! {
            biased;
            next = listener.accept() => next,
            () = serve(stream) => listener.accept().await,
        };
    }
}

async fn serve_owners(listener: Listener, mut slot: Slot, streams: Rc<Streams>) {
    latest(listener, async |stream| {
        // What was written before an answer is on its way before the answer.
        if let Err(error) = serve_owner(stream, &mut slot, || streams.pump()).await {
            eprintln!("the owner of the runtime api: {error:?}");
        }
    })
    .await
}

async fn accept_streams(listener: Listener, streams: Rc<Streams>) {
    loop {
        let mut connection = listener.accept().await;
        let streams = Rc::clone(&streams);
        tokio::task::spawn_local(async move {
            if let Ok(Ok(number)) = tokio::time::timeout(STREAM_PATIENCE, connection.read_u64_le()).await {
                streams.connect(number, connection);
            }
        });
    }
}
