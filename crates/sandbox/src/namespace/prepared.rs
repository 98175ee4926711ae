//! Sandboxes that are made before anybody asks for them, with the runtime's process started and waiting.
//!
//! ```text
//! made for a Kind -> waiting in the stock -> assigned: limits, mounts, a name -> its process gets its environment
//!      |                    `-- its process or its init ended: discarded
//!      `-- failed: the kind rests for a while
//! ```
//!
//! What one is made of is its [`Kind`], and all that a function adds comes when it is assigned. No sandbox is ever given to
//! a second function.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Host;
use super::live::{self, Finished};
use super::running::NamespaceSandbox;
use super::waiting::Demand;
use super::zygotes::{Model, Zygote};
use crate::cgroup::Limits;
use crate::create::failed;
use crate::{CreateError, Prestart, ProcessSpec, RootFs, SandboxSpec};

/// What a prepared sandbox may use until it is assigned: what runs in it is the platform's. One that nobody waits for takes what
/// processor time the functions leave.
const LIMITS: Limits = Limits { memory_bytes: 512 << 20, cpu_millis: 4_000, cpu_share: 4_000, max_tasks: 0 };
const SHARE_IN_BACKGROUND: u32 = 50;
/// `/tmp` of functions that do not say, in bytes.
const USUAL_TMP: u64 = 512 << 20;
/// How long an interpreter may take to make a sandbox, from its own start on.
const PATIENCE: Duration = Duration::from_secs(30);

/// What prepared sandboxes have in common with each other, and with the specification that they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    root: RootFs,
    process: ProcessSpec,
    clonable: bool,
    max_tasks: u32,
    tmp_bytes: u64,
    listen: Vec<SocketAddrV4>,
}

impl Kind {
    /// The kind that a specification asks for. `None` if its process cannot be started ahead, or its mounts need what only a
    /// root made for them has.
    pub fn of(spec: &SandboxSpec) -> Option<Kind> {
        let Prestart { process, clonable } = spec.prestart.clone()?;
        let has_place =
            |target| spec.root.dirs.contains(target) && !spec.root.binds.iter().any(|b| b.target == *target);
        if !spec.mounts.iter().all(|mount| has_place(&mount.target) && mount.source.is_dir()) {
            return None;
        }
        let tmp_bytes = if spec.tmp_bytes == 0 { USUAL_TMP } else { spec.tmp_bytes };
        let (root, listen) = (spec.root.clone(), spec.listen.clone());
        Some(Kind { root, process, clonable, max_tasks: spec.max_tasks, tmp_bytes, listen })
    }

    /// The interpreter that it can be forked from, if it can.
    fn model(&self) -> Option<Model> {
        self.clonable.then(|| Model { root: self.root.clone(), process: self.process.clone() })
    }

    fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            id: "prepared".into(),
            root: self.root.clone(),
            root_image: None,
            mounts: Vec::new(),
            tmp_bytes: self.tmp_bytes,
            memory_bytes: LIMITS.memory_bytes,
            cpu_millis: LIMITS.cpu_millis,
            processors: 1,
            max_tasks: self.max_tasks,
            listen: self.listen.clone(),
            prestart: None,
            keep: false,
        }
    }
}

/// A sandbox that waits for a function.
#[derive(Debug)]
pub(super) struct Prepared {
    sandbox: NamespaceSandbox,
    mounted: OwnedFd,
}

impl Prepared {
    /// Whether it can be given to somebody.
    pub fn is_waiting(&self) -> bool {
        self.sandbox.is_waiting()
    }

    /// Memory that it uses, in bytes; an estimate where it is not measured.
    pub fn bytes(&self) -> u64 {
        const UNMEASURED: u64 = 16 << 20;
        self.sandbox.shell().group().as_ref().map_or(UNMEASURED, |group| group.usage().memory_bytes.max(1 << 20))
    }

    /// Makes it the sandbox that was asked for.
    pub async fn assign(self, host: &Host, spec: SandboxSpec) -> Result<NamespaceSandbox, CreateError> {
        let Prepared { mut sandbox, mounted } = self;
        sandbox.shell().limit(&live::limits(&spec))?;
        host.attacher.attach(mounted, &spec.mounts).await?;
        sandbox.name(spec.id);
        Ok(sandbox)
    }
}

/// Makes one of a kind for later, as a fork of an interpreter where that works.
async fn make(host: &Arc<Host>, kind: &Kind) -> Result<Prepared, CreateError> {
    while let Some(model) = kind.model()
        && let Some(zygote) = host.zygotes.get(&model)
    {
        match make_from(host, kind, Some(&zygote), Demand::Later).await {
            Ok(prepared) => {
                host.zygotes.worked(&model, &zygote);
                renew(host, kind, model);
                return Ok(prepared);
            }
            Err(error) if host.is_shut_down() => return Err(error),
            // The next one is new; should it fail too, there is none after it.
            Err(error) => give_up(host, &model, &zygote, &error),
        }
    }
    make_from(host, kind, None, Demand::Later).await
}

/// Makes one at once for somebody who waits for it: only where it takes no longer than to make it without an interpreter.
async fn make_now(host: &Arc<Host>, kind: &Kind) -> Option<Prepared> {
    let model = kind.model()?;
    let zygote = host.zygotes.proven(&model)?;
    match make_from(host, kind, Some(&zygote), Demand::Waiting).await {
        Ok(prepared) => {
            renew(host, kind, model);
            Some(prepared)
        }
        Err(error) => {
            if !host.is_shut_down() {
                give_up(host, &model, &zygote, &error);
            }
            None
        }
    }
}

fn give_up(host: &Host, model: &Model, zygote: &Arc<Zygote>, error: &CreateError) {
    let (reason, complaint) = (chain(error), zygote.complaint());
    tracing::warn!(%error, reason, complaint, "cannot fork an interpreter; trying again later");
    host.zygotes.failed(model, zygote);
}

/// Has an interpreter that has served enough replaced, once another one works.
fn renew(host: &Arc<Host>, kind: &Kind, model: Model) {
    let Some(zygote) = host.zygotes.successor(&model) else { return };
    let (host, kind) = (Arc::downgrade(host), kind.clone());
    tokio::spawn(async move {
        let Some(host) = host.upgrade() else { return };
        match make_from(&host, &kind, Some(&zygote), Demand::Later).await {
            Ok(prepared) => {
                host.zygotes.worked(&model, &zygote);
                host.zygotes.replace(&model, &zygote);
                let bytes = prepared.bytes();
                let refused = host.stock().put(&kind, prepared, bytes);
                drop(refused);
            }
            Err(_) if host.is_shut_down() => {}
            // The old one goes with it: the next is started when one is wanted again.
            Err(error) => {
                let old = host.zygotes.proven(&model);
                give_up(&host, &model, old.as_ref().unwrap_or(&zygote), &error);
            }
        }
    });
}

/// From an interpreter that has to start first, it takes no longer than a program may until it waits.
async fn make_from(
    host: &Arc<Host>,
    kind: &Kind,
    zygote: Option<&Arc<Zygote>>,
    demand: Demand,
) -> Result<Prepared, CreateError> {
    let making = make_one(host, kind, zygote, demand);
    if zygote.is_none() {
        return making.await;
    }
    let slow = |_| failed("fork an interpreter", io::Error::from(io::ErrorKind::TimedOut));
    tokio::time::timeout(PATIENCE, making).await.map_err(slow)?
}

async fn make_one(
    host: &Arc<Host>,
    kind: &Kind,
    zygote: Option<&Arc<Zygote>>,
    demand: Demand,
) -> Result<Prepared, CreateError> {
    let started = Instant::now();
    let cpu_share = if demand == Demand::Later { SHARE_IN_BACKGROUND } else { LIMITS.cpu_share };
    let limits = Limits { max_tasks: kind.max_tasks, cpu_share, ..LIMITS };
    let (shell, network, disk) = tokio::join!(
        live::shell(host, &limits, zygote),
        live::network(host, &kind.listen),
        host.disks.acquire(kind.tmp_bytes)
    );
    let (shell, network) = (shell?, network?);
    let disk = disk.map_err(|error| failed("make a disk for /tmp", error))?;
    let acquired = started.elapsed();
    let Finished { sandbox, mounted, timings } = shell.build(kind.spec(), network, disk).await?;
    let built = started.elapsed();
    sandbox.prestart(kind.process.clone(), demand).await.map_err(|error| failed("start its process ahead", error))?;
    tracing::debug!(
        forked = zygote.is_some(),
        acquired_us = acquired.as_micros(),
        built_us = built.as_micros(),
        ready_us = started.elapsed().as_micros(),
        init_prepare_us = timings.prepare,
        init_build_us = timings.build,
        "sandbox prepared"
    );
    Ok(Prepared { sandbox, mounted })
}

/// What is behind an error.
fn chain(error: &CreateError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// One from the stock or forked at once, made what was asked for. `None` if there is none that can be.
pub(super) async fn take(host: &Arc<Host>, spec: &SandboxSpec) -> Option<NamespaceSandbox> {
    if !host.prepares {
        return None;
    }
    let kind = Kind::of(spec)?;
    let started = Instant::now();
    let prepared = loop {
        let taken = host.stock().take(&kind, Instant::now());
        match taken {
            Some(taken) if taken.is_waiting() => break taken,
            Some(_) => tracing::warn!("a prepared sandbox has ended and is discarded"),
            None => break make_now(host, &kind).await?,
        }
    };
    match prepared.assign(host, spec.clone()).await {
        Ok(sandbox) => {
            tracing::debug!(
                sandbox = sandbox.id(),
                ready_us = started.elapsed().as_micros(),
                "prepared sandbox assigned"
            );
            Some(sandbox)
        }
        Err(error) => {
            tracing::warn!(%error, "a prepared sandbox could not be assigned and is discarded");
            None
        }
    }
}

/// A sandbox in which the first process waits for its environment: prepared, or made now.
pub(super) async fn ready(host: &Arc<Host>, spec: SandboxSpec) -> Result<NamespaceSandbox, CreateError> {
    if let Some(sandbox) = take(host, &spec).await {
        return Ok(sandbox);
    }
    let process = spec.clonable().cloned();
    let sandbox = live::create(host, spec).await?;
    if let Some(process) = process {
        sandbox.prestart(process, Demand::Waiting).await.map_err(|error| failed("start its process ahead", error))?;
    }
    Ok(sandbox)
}

/// Makes one more if one is wanted, and says whether it did.
pub(super) async fn restock(host: &Arc<Host>) -> bool {
    let now = Instant::now();
    let (dead, (wanted, given_up), models) = {
        let mut stock = host.stock();
        let (dead, wanted) = (stock.sift(|prepared| prepared.is_waiting()), stock.wanted(now, |kind| kind.clonable));
        (dead, wanted, stock.kinds().filter_map(Kind::model).collect::<Vec<_>>())
    };
    host.zygotes.keep(&models);
    if !dead.is_empty() {
        tracing::warn!(count = dead.len(), "prepared sandboxes have ended and are discarded");
    }
    drop((dead, given_up));
    let Some(kind) = wanted else { return false };
    match make(host, &kind).await {
        Ok(prepared) => {
            let bytes = prepared.bytes();
            let refused = host.stock().put(&kind, prepared, bytes);
            drop(refused);
        }
        // Taken down under its hands.
        Err(_) if host.is_shut_down() => {}
        Err(error) => {
            let (reason, program) = (chain(&error), kind.process.argv.first());
            tracing::warn!(%error, reason, program, "cannot keep sandboxes prepared; trying again later");
            host.stock().rest(&kind, Instant::now());
        }
    }
    true
}
