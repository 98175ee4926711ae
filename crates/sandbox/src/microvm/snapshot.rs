//! Snapshots of sandboxes: a machine that is stopped in the middle of its tenant's life, as the model of others.

use std::fs::File;
use std::io;
use std::sync::Arc;

use guest::control::Request;
use tokio::time::timeout;
use vmm::host::Diff;
use vmm::snapshot::Template;

use super::Host;
use super::agent::Past;
use super::base::Base;
use super::live::{Machine, PATIENCE};
use super::make::{self, Images};
use crate::{BoxFuture, CreateError, KeepError, Restored, Sandbox, SandboxSpec, Snapshot, SnapshotError};

/// A stopped sandbox. Cheap to clone: what is large is shared.
#[derive(Clone)]
pub(super) struct Stopped {
    pub host: Arc<Host>,
    /// Its memory, over that of the base that it was cloned from.
    pub base: Arc<Base>,
    pub images: Images,
    /// `/tmp` as it was at that moment; what the machine had not written out is in its memory.
    pub tmp: Arc<File>,
    pub past: Past,
    pub prestarted: Option<Vec<String>>,
}

impl Snapshot for Stopped {
    fn restore<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Restored, CreateError>> {
        Box::pin(make::restore(self, spec))
    }

    fn memory_bytes(&self) -> u64 {
        self.base.template().data_bytes()
    }

    fn save<'a>(&'a self, name: &'a str, note: Vec<u8>) -> BoxFuture<'a, Result<(), KeepError>> {
        let (stopped, name) = (self.clone(), name.to_owned());
        Box::pin(async move {
            let saved = tokio::task::spawn_blocking(move || stopped.save_now(&name, note)).await;
            saved.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        })
    }
}

fn step<E: Into<Box<dyn std::error::Error + Send + Sync>>>(step: &'static str) -> impl FnOnce(E) -> SnapshotError {
    move |error| SnapshotError::Step { step, source: io::Error::other(error) }
}

/// Stops a machine for good and keeps what it was.
pub(super) async fn take(machine: Box<Machine>) -> Result<Arc<dyn Snapshot>, SnapshotError> {
    let stopped = match timeout(PATIENCE, stop(&machine)).await {
        Ok(stopped) => stopped,
        Err(error) => Err(step("stop it")(error)),
    };
    machine.host.dismiss(machine.key);
    machine.live.bury().await;
    let (diff, past, tmp) = stopped?;
    let model = machine.base.template();
    let flattened = tokio::task::spawn_blocking(move || Template::flatten(&model, diff.memory, diff.state));
    let template = flattened.await.map_err(step("keep its memory"))?.map_err(step("keep its memory"))?;
    tracing::debug!(
        sandbox = machine.id,
        changed_bytes = diff.bytes,
        bytes = template.data_bytes(),
        processes = past.running.len(),
        "snapshot taken"
    );
    Ok(Arc::new(Stopped {
        host: Arc::clone(&machine.host),
        base: Arc::new(Base::of_sandbox(&machine.id, machine.base.size(), template)),
        images: machine.disks.images.clone(),
        tmp: Arc::new(tmp),
        past,
        prestarted: machine.prestarted.clone(),
    }))
}

/// Has the agent stop the tenant, stops the machine, and copies what others will need while it stands still.
async fn stop(machine: &Machine) -> Result<(Diff, Past, File), SnapshotError> {
    machine.thaw().map_err(step("thaw it"))?;
    machine.agent.order(Request::Quiesce).await.map_err(step("stop its processes"))?;
    machine.live.vm.pause().await.map_err(step("stop it"))?;
    let diff = machine.live.vm.diff().await.map_err(step("read its memory"))?;
    // Read before the connection ends, which counts as the end of all processes.
    let past = machine.agent.past();
    let copied = {
        let host = Arc::clone(&machine.host);
        let tmp = machine.disks.tmp.try_clone().map_err(step("copy its /tmp"))?;
        tokio::task::spawn_blocking(move || host.tmp.duplicate(&tmp))
    };
    let tmp = copied.await.map_err(step("copy its /tmp"))?.map_err(step("copy its /tmp"))?;
    Ok((diff, past, tmp))
}
