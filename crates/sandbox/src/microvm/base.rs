//! Base snapshots: a booted machine with its agent, a root and perhaps an interpreter that waits, as the model of clones.
//!
//! Of each kind there is one. It is looked for in memory, then on disk, then made, by one of those who want it at a time.
//! What a clone touches until it has served its first invocation is recorded once, so that later clones have it at hand.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use guest::control::{CONTROL, FileSystem, Mount, Reply, Request, Spawn, VERSION};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmm::config::{BootProtocol, DriveConfig, MachineConfig};
use vmm::host::{Attached, Kernel, MicroVm};
use vmm::snapshot::{SnapshotStore, StoreError, Template};

use super::Host;
use super::agent::{Agent, AskError, Past};
use super::make::{disk_bytes, drive, nothing, open, root_image};
use super::size::Size;
use crate::create::failed;
use crate::{CreateError, ProcessSpec, SandboxSpec};

/// How long a machine may take from its start until it is a base.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a machine that boots is asked whether its agent is there.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Base snapshots that are kept in memory; each takes as much as its machine has used, mostly some 40 MiB.
const MAX_IN_MEMORY: usize = 24;
/// Hardware address of every machine: each is alone on its link.
const MAC: [u8; 6] = [0x02, 0xf1, 0x4e, 0x1e, 0x70, 0x01];
/// Context id of every machine; nobody but its own VMM sees it.
const CID: u32 = 3;
/// What the kernel is told beside what its devices need: nothing to write to, end when it gives up.
const CMDLINE: &str = "quiet loglevel=0 panic=-1 random.trust_cpu=on";

/// What tells one kind of base from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    /// Named after its content.
    root_image: PathBuf,
    size: Size,
    has_network: bool,
    /// What waits in it.
    prestart: Option<Prestart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Prestart {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    log_fd_env: Option<String>,
}

impl Kind {
    fn of(host: &Host, spec: &SandboxSpec) -> Result<Kind, CreateError> {
        let prestart = |process: &ProcessSpec| Prestart {
            argv: process.argv.clone(),
            env: process.env.clone(),
            log_fd_env: process.log_fd_env.clone(),
        };
        Ok(Kind {
            root_image: root_image(spec)?.to_owned(),
            size: Size::of(spec.memory_bytes, spec.processors),
            has_network: host.has_network(),
            prestart: spec.clonable().map(prestart),
        })
    }

    /// A name that no other kind has, nor this one with another kernel or agent.
    fn name(&self, host: &Host) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(host.kit_digest.as_bytes());
        // Which directory the image is in does not matter.
        let named = Kind { root_image: self.root_image.file_name().unwrap_or_default().into(), ..self.clone() };
        hash.update(format!("{named:?} {CMDLINE}").as_bytes());
        let name = hash.finalize().to_hex();
        format!("base-{}", &name[..32])
    }
}

/// All bases of a server.
pub(super) struct Bases {
    known: Mutex<HashMap<Kind, Known>>,
    shelf: Arc<Shelf>,
    uses: AtomicU64,
}

/// The bases on disk.
struct Shelf {
    store: SnapshotStore,
    /// What is being written.
    writing: Mutex<Vec<JoinHandle<()>>>,
}

struct Known {
    cell: Arc<OnceCell<Arc<Base>>>,
    last_use: u64,
}

/// A base.
pub(super) struct Base {
    name: String,
    size: Size,
    template: RwLock<Arc<Template>>,
    /// Where it is kept; a snapshot of a sandbox is not.
    shelf: Option<Arc<Shelf>>,
    /// Whether somebody has recorded, or is recording, what clones touch.
    recorded: AtomicBool,
}

impl Bases {
    pub fn new(store: SnapshotStore) -> Bases {
        let shelf = Arc::new(Shelf { store, writing: Mutex::default() });
        Bases { known: Mutex::default(), shelf, uses: AtomicU64::new(0) }
    }

    /// Where snapshots are on the disk.
    pub fn store(&self) -> &SnapshotStore {
        &self.shelf.store
    }

    /// Waits until all that was made is on the disk.
    pub async fn saved(&self) {
        let writing = std::mem::take(&mut *self.shelf.writing.lock().unwrap_or_else(PoisonError::into_inner));
        for write in writing {
            // One that failed has said so.
            let _ = write.await;
        }
    }

    /// The base for a sandbox.
    pub async fn get(&self, host: &Arc<Host>, spec: &SandboxSpec) -> Result<Arc<Base>, CreateError> {
        let kind = Kind::of(host, spec)?;
        let cell = self.cell(&kind);
        let base = cell.get_or_try_init(|| self.find_or_make(host, &kind)).await?;
        Ok(Arc::clone(base))
    }

    fn cell(&self, kind: &Kind) -> Arc<OnceCell<Arc<Base>>> {
        let last_use = self.uses.fetch_add(1, Ordering::Relaxed);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get_mut(kind) {
            found.last_use = last_use;
            return Arc::clone(&found.cell);
        }
        if known.len() >= MAX_IN_MEMORY
            && let Some(oldest) = known.iter().min_by_key(|(_, known)| known.last_use).map(|(kind, _)| kind.clone())
        {
            // Whoever uses it keeps it; the file stays.
            known.remove(&oldest);
        }
        let cell = Arc::default();
        known.insert(kind.clone(), Known { cell: Arc::clone(&cell), last_use });
        cell
    }

    async fn find_or_make(&self, host: &Arc<Host>, kind: &Kind) -> Result<Arc<Base>, CreateError> {
        let name = kind.name(host);
        let began = Instant::now();
        let (template, origin) = match self.shelf.load(&name).await {
            Some(template) => (template, "loaded"),
            None => {
                let made = timeout(PATIENCE, boot(host, kind)).await;
                let made =
                    made.map_err(|_| failed("boot a base machine", io::Error::from(io::ErrorKind::TimedOut)))??;
                let template = Arc::new(made);
                self.shelf.save(&name, &template);
                (template, "made")
            }
        };
        let milliseconds = began.elapsed().as_millis();
        tracing::info!(base = name, root = %kind.root_image.display(), milliseconds, "base snapshot {origin}");
        let recorded = AtomicBool::new(!template.working_set().is_empty());
        let shelf = Some(Arc::clone(&self.shelf));
        Ok(Arc::new(Base { name, size: kind.size, template: RwLock::new(template), shelf, recorded }))
    }
}

impl Shelf {
    /// A base from the disk; one that cannot be used is taken off it.
    async fn load(self: &Arc<Self>, name: &str) -> Option<Arc<Template>> {
        let (shelf, name) = (Arc::clone(self), name.to_owned());
        let loaded = tokio::task::spawn_blocking(move || {
            let error = match shelf.store.load(&name) {
                Ok(template) => return Some(template),
                Err(StoreError::NotFound { .. }) => return None,
                Err(error) => error,
            };
            tracing::warn!(base = name, %error, reason = error.source(), "a base snapshot is of no use and is made again");
            if let Err(error) = shelf.store.delete(&name) {
                tracing::warn!(base = name, %error, "a base snapshot cannot be deleted");
            }
            None
        });
        loaded.await.ok().flatten()
    }

    /// Writes a base to the disk in the background: the next server need not boot it.
    fn save(self: &Arc<Self>, name: &str, template: &Arc<Template>) {
        let (shelf, name, template) = (Arc::clone(self), name.to_owned(), Arc::clone(template));
        let write = tokio::task::spawn_blocking(move || {
            if let Err(error) = shelf.store.save(&name, &template) {
                tracing::warn!(base = name, %error, reason = error.source(), "a base snapshot is not kept");
            }
        });
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.retain(|write| !write.is_finished());
        writing.push(write);
    }
}

/// Boots a machine of this kind up to the point from which its clones go on.
async fn boot(host: &Arc<Host>, kind: &Kind) -> Result<Template, CreateError> {
    let unmade = |error: io::Error| failed("make a base machine", error);
    let root = open(&kind.root_image)?;
    let root_bytes = disk_bytes(&root).map_err(unmade)?;
    let mut drives = vec![root];
    for at in 1..drive::COUNT {
        drives.push(nothing(at == usize::from(drive::TMP)).map_err(unmade)?);
    }
    let tap = host.tap().await?;
    let config = MachineConfig {
        vcpus: kind.size.vcpus,
        memory_mib: kind.size.memory_mib,
        huge_pages: false,
        cmdline: CMDLINE.to_owned(),
        vsock_cid: CID,
        drives: (0..drive::COUNT).map(|at| DriveConfig { read_only: at != usize::from(drive::TMP) }).collect(),
        net: tap.as_ref().map(|_| vmm::config::NetConfig { mac: MAC }),
        balloon: true,
        serial: false,
    };
    let shell = host.fresh_shell(kind.size.vcpus).await?;
    let kernel = Kernel { image: host.kernel()?, protocol: BootProtocol::Linux64, initramfs: Some(host.initramfs()?) };
    let tap = tap.as_ref().map(|slot| slot.tap.try_clone()).transpose().map_err(unmade)?;
    let vm = shell.boot(&config, kernel, Attached { drives, tap, serial: None }).await;
    let vm = vm.map_err(|error| failed("boot a base machine", error))?;
    let agent = greet(&vm).await?;
    let unready = |error| failed("prepare a base machine", error);
    let target = "/".to_owned();
    let mount = Mount { drive: drive::ROOT, target, kind: FileSystem::Erofs, bytes: root_bytes };
    agent.order(Request::Mount(mount)).await.map_err(unready)?;
    if let Some(process) = &kind.prestart {
        let spawn = Spawn {
            process: 1,
            argv: process.argv.clone(),
            env: process.env.clone(),
            cwd: "/".to_owned(),
            streams: [1, 2, if process.log_fd_env.is_some() { 3 } else { 0 }],
            log_fd_env: process.log_fd_env.clone(),
            prestarted: false,
        };
        agent.order(Request::Prestart(spawn)).await.map_err(unready)?;
    }
    agent.order(Request::Quiesce).await.map_err(unready)?;
    drop(agent);
    vm.snapshot().await.map_err(|error| failed("take a base snapshot", error))
}

/// Waits until the agent of a machine that boots is there.
async fn greet(vm: &MicroVm) -> Result<Agent, CreateError> {
    let unreachable = |error: io::Error| failed("boot a base machine", error);
    loop {
        let stream = match vm.connect(CONTROL).await {
            Ok(stream) => stream,
            Err(_) => {
                let end = vm.exited().await;
                return Err(unreachable(io::Error::other(format!("it ended: {end:?}"))));
            }
        };
        let (agent, _nothing_runs) = Agent::new(stream, &Past::up_to(0));
        match agent.ask(Request::Hello).await {
            Ok(Reply::Welcome { version: VERSION, kernel, uptime_us, .. }) => {
                tracing::debug!(kernel, uptime_us, "a base machine is up");
                return Ok(agent);
            }
            Ok(other) => {
                let error = format!("its agent says {other:?} and should be of version {VERSION}");
                return Err(unreachable(io::Error::other(error)));
            }
            // Nobody listens there yet.
            Err(AskError::Gone(_)) => tokio::time::sleep(ASK_AGAIN).await,
            Err(error) => return Err(failed("boot a base machine", error)),
        }
    }
}

impl Base {
    /// What a sandbox had become, as the model of others; kept in memory only.
    pub fn of_sandbox(id: &str, size: Size, template: Template) -> Base {
        let (name, template) = (format!("snapshot-{id}"), RwLock::new(Arc::new(template)));
        Base { name, size, template, shelf: None, recorded: AtomicBool::new(false) }
    }

    pub fn size(&self) -> Size {
        self.size
    }

    /// What clones are made of.
    pub fn template(&self) -> Arc<Template> {
        Arc::clone(&self.template.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// To be told when a clone has served its first invocation: what it has touched by then, others will too.
    pub async fn used_once(&self, vm: &MicroVm) {
        if self.recorded.swap(true, Ordering::AcqRel) {
            return;
        }
        match vm.working_set().await {
            Ok(touched) => {
                let with = Arc::new(self.template().with_working_set(touched));
                tracing::debug!(base = self.name, bytes = with.working_set().bytes(), "working set recorded");
                *self.template.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&with);
                if let Some(shelf) = &self.shelf {
                    shelf.save(&self.name, &with);
                }
            }
            Err(error) => tracing::debug!(%error, base = self.name, "the working set was not recorded"),
        }
    }
}
