//! One execution environment and the task that owns it.
//!
//! The task is the only one that touches the environment's [machine](crate::lifecycle), its sandbox, its Runtime API
//! and its pipes: events come in through channels, the machine decides, the task carries out. Others hold an
//! [`Environment`], which is a sender.

mod api;
pub(crate) mod compile;
mod launch;
mod owner;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::host::{Inner, StartError};
use crate::snapshots::Taken;
use crate::spec::{EnvironmentSpec, InvokeReply, InvokeRequest};
use telemetry::lines::InitType;

/// What an environment tells whoever started it. Sent from the environment's own task, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The first initialization is over. Where it failed, an invocation will try again.
    Ready {
        /// Whether it succeeded.
        initialized: bool,
    },
    /// The caller has its answer; the environment will soon be free.
    Settling,
    /// The environment takes the next invocation.
    Idle,
    /// The environment has ended and takes nothing any more.
    Gone {
        /// Why, where it did not end because it was told to.
        error: Option<StartError>,
    },
}

/// Where an invocation's answer goes.
pub type Reply = oneshot::Sender<Result<InvokeReply, StartError>>;

/// The observer of an environment.
pub(crate) type Observer = Box<dyn Fn(Notice) + Send + Sync>;

/// What is asked of an environment.
pub(crate) enum Command {
    Invoke(InvokeRequest, Reply),
    Snapshot(oneshot::Sender<Taken>),
    Retire,
}

/// A running environment. Dropping every handle retires it.
#[derive(Clone)]
pub struct Environment {
    commands: mpsc::UnboundedSender<Command>,
}

impl Environment {
    /// Hands in an invocation. One at a time, and only after [`Notice::Ready`] or [`Notice::Idle`]. The invocation runs
    /// to its end even if nobody waits for the answer; `reply` is dropped unused only if the environment broke.
    pub fn invoke(&self, request: InvokeRequest, reply: Reply) {
        // If the environment is gone the reply is dropped, which its receiver sees.
        let _ = self.commands.send(Command::Invoke(request, reply));
    }

    /// Has an environment that was started to be kept, and has told [`Notice::Ready`], become a snapshot. It ends with that,
    /// also where it cannot.
    pub(crate) fn snapshot(&self, reply: oneshot::Sender<Taken>) {
        let _ = self.commands.send(Command::Snapshot(reply));
    }

    /// Ends the environment: extensions and runtime get their time to shut down, then everything is killed.
    pub fn retire(&self) {
        let _ = self.commands.send(Command::Retire);
    }
}

/// Starts an environment; see [`crate::Worker::start`]. One of [`InitType::SnapStart`] is initialized to be kept.
pub(crate) fn start(
    host: Arc<Inner>,
    spec: Arc<EnvironmentSpec>,
    initialization_type: InitType,
    observer: Observer,
) -> Environment {
    // Unbounded, but never longer than one invocation, one snapshot and one retirement.
    let (commands, receiver) = mpsc::unbounded_channel();
    tokio::spawn(owner::run(host, spec, initialization_type, observer, receiver));
    Environment { commands }
}

/// Whether an environment of a version might be kept in a snapshot, on a backend that has some. Cheap, and only true says little.
pub(crate) async fn can_be_kept(host: &Arc<Inner>, spec: &EnvironmentSpec) -> bool {
    launch::can_be_kept(host, spec).await
}

/// Names the root of a runtime's sandboxes by its content, for a backend that takes images.
pub(crate) async fn root_name(host: &Arc<Inner>, resolved: &runtimes::Resolved) -> Result<Option<String>, StartError> {
    launch::root_name(host, resolved).await
}

/// See [`crate::Worker::prepare_runtime`].
pub(crate) async fn prepare(host: &Arc<Inner>, runtime: &str, memory_mb: u32) -> Result<(), StartError> {
    launch::prepare(host, runtime, memory_mb).await
}

#[cfg(test)]
mod tests;
