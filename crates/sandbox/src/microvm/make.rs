//! How a machine is made: cloned from a base or from a snapshot of a sandbox, given what is its own, and let go.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest::control::{CONTROL, FileSystem, Mount, Network, RUNTIME, Request, Step};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Host;
use super::agent::{Agent, AskError, Past};
use super::base::Base;
use super::live::{Live, Machine, PATIENCE, State};
use super::size::Size;
use super::snapshot::Stopped;
use crate::create::failed;
use crate::net::TapSlot;
use crate::{CreateError, Exit, Process, Restored, Sandbox as _, SandboxSpec};

/// Numbers of processes and streams that a base snapshot has used stay below this.
const FIRST_NUMBER: u32 = 1_000;

/// How long a machine whose agent is lost has to say that it has ended, and why.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The drives of every machine, in order.
pub(super) mod drive {
    /// The runtime's root file system.
    pub const ROOT: u8 = 0;
    /// What a sandbox has mounted beside it, in order: two at most.
    pub const MOUNTS: [u8; 2] = [1, 2];
    /// `/tmp`.
    pub const TMP: u8 = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// The disks of a sandbox, as far as a snapshot of it depends on them.
pub(super) struct Disks {
    pub images: Images,
    /// `/tmp`.
    pub tmp: File,
}

/// Which images a sandbox has: their names, which tell their content, and where they are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Images(Vec<(OsString, PathBuf)>);

impl Images {
    fn of(spec: &SandboxSpec) -> Result<Images, CreateError> {
        let root = (root_image(spec)?, Path::new("/"));
        let mounts = spec.mounts.iter().map(|mount| (mount.source.as_path(), mount.target.as_path()));
        let named = |(image, target): (&Path, &Path)| (image.file_name().unwrap_or_default().into(), target.into());
        Ok(Images([root].into_iter().chain(mounts).map(named).collect()))
    }

    /// To be written down; `None` where a name is no text.
    pub fn to_strings(&self) -> Option<Vec<(String, PathBuf)>> {
        self.0.iter().map(|(name, target)| Some((name.to_str()?.to_owned(), target.clone()))).collect()
    }

    /// What was written down.
    pub fn from_strings(images: Vec<(String, PathBuf)>) -> Images {
        Images(images.into_iter().map(|(name, target)| (name.into(), target)).collect())
    }
}

/// What a sandbox has of its own, made while its machine is.
struct Own {
    drives: Vec<File>,
    tap: Option<TapSlot>,
}

/// A machine that runs and has heard nothing yet.
struct Begun {
    machine: Machine,
    /// Lengths of its drives, in bytes.
    sizes: Vec<u64>,
    network: Option<Network>,
    /// Of the processes that run in it.
    exits: Vec<oneshot::Receiver<Exit>>,
}

/// Makes a machine and prepares it for its tenant.
pub(super) async fn create(host: &Arc<Host>, spec: SandboxSpec) -> Result<Machine, CreateError> {
    let began = Instant::now();
    let mut is_last = false;
    loop {
        let (base, own) = tokio::try_join!(host.bases.get(host, &spec), own(host, &spec, None))?;
        let prepared_us = began.elapsed().as_micros();
        let prestarted = spec.clonable().map(|process| process.argv.clone());
        let Begun { machine, sizes, network, .. } =
            begin(host, &spec, base, own, &Past::up_to(FIRST_NUMBER), prestarted).await?;
        match timeout(PATIENCE, machine.furnish(&spec, &sizes, network)).await {
            Ok(Ok(())) => {
                let ready_us = began.elapsed().as_micros();
                tracing::debug!(sandbox = machine.id, prepared_us, ready_us, "machine ready");
                return Ok(machine);
            }
            Ok(Err(AskError::Gone(_))) if !is_last => lose(machine).await,
            Ok(Err(error)) => return Err(failed("prepare it", error)),
            Err(_) => return Err(failed("prepare it", io::Error::from(io::ErrorKind::TimedOut))),
        }
        is_last = true;
    }
}

/// Makes a machine that goes on from a snapshot.
pub(super) async fn restore(kept: &Stopped, spec: SandboxSpec) -> Result<Restored, CreateError> {
    let began = Instant::now();
    let same = Images::of(&spec)? == kept.images && Size::of(spec.memory_bytes, spec.processors) == kept.base.size();
    if !same {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "its images or its size are not the snapshot's");
        return Err(failed("restore it from a snapshot", error));
    }
    let mut is_last = false;
    loop {
        let own = own(&kept.host, &spec, Some(&kept.tmp)).await?;
        let begun = begin(&kept.host, &spec, Arc::clone(&kept.base), own, &kept.past, kept.prestarted.clone());
        let Begun { machine, network, exits, .. } = begun.await?;
        match timeout(PATIENCE, machine.go_on(&spec, network, &kept.past, exits)).await {
            Ok(Ok(processes)) => {
                let ready_us = began.elapsed().as_micros();
                tracing::debug!(sandbox = machine.id, ready_us, "machine goes on from a snapshot");
                return Ok(Restored { sandbox: Box::new(machine), processes });
            }
            Ok(Err(error)) if !is_last && error.kind() == io::ErrorKind::NotConnected => lose(machine).await,
            Ok(Err(error)) => return Err(failed("let it go on", error)),
            Err(_) => return Err(failed("let it go on", io::Error::from(io::ErrorKind::TimedOut))),
        }
        is_last = true;
    }
}

/// Takes apart a clone whose agent was lost before any tenant was in it: another one takes its place.
async fn lose(machine: Machine) {
    // Where the machine itself has ended, the word of it may come after that of the connection.
    let exit = timeout(LAST_WORDS, machine.live.vm.exited()).await.ok();
    tracing::warn!(sandbox = machine.id, ?exit, "the agent of a new machine was lost, another one is made");
    Box::new(machine).destroy().await;
}

/// Clones a machine and connects to its agent.
async fn begin(
    host: &Arc<Host>,
    spec: &SandboxSpec,
    base: Arc<Base>,
    own: Own,
    past: &Past,
    prestarted: Option<Vec<String>>,
) -> Result<Begun, CreateError> {
    let began = Instant::now();
    let look = |error| failed("look at its disks", error);
    let sizes = own.drives.iter().map(disk_bytes).collect::<io::Result<Vec<u64>>>().map_err(look)?;
    let tmp = own.drives[usize::from(drive::TMP)].try_clone().map_err(look)?;
    let disks = Disks { images: Images::of(spec)?, tmp };
    let (shell, group) = host.shell(base.size(), spec).await?;
    let shell_us = began.elapsed().as_micros();
    let Own { drives, tap } = own;
    let network = tap.as_ref().map(network);
    let vm = host.restore(shell, &base, drives, tap.as_ref()).await?;
    tracing::debug!(sandbox = spec.id, shell_us, restored_us = began.elapsed().as_micros(), "machine restored");
    let live = Arc::new(Live::new(vm, group, tap));
    let Some(key) = host.enroll(&live) else {
        live.bury().await;
        return Err(CreateError::SupervisorGone);
    };
    let connected = async {
        let control = live.vm.connect(CONTROL);
        let service = live.vm.connect(RUNTIME);
        let (control, service) = tokio::try_join!(control, service).map_err(io::Error::other)?;
        io::Result::Ok((control, service.into_std()?))
    };
    let (control, service) = match connected.await {
        Ok(connected) => connected,
        Err(error) => {
            host.dismiss(key);
            live.bury().await;
            return Err(failed("reach its agent", error));
        }
    };
    let (agent, exits) = Agent::new(control, past);
    let machine = Machine {
        id: spec.id.clone(),
        key,
        host: Arc::clone(host),
        live,
        agent,
        service: Some(service),
        prestarted,
        base,
        disks,
        state: State::new(),
    };
    Ok(Begun { machine, sizes, network, exits })
}

/// The disks and the cable of one sandbox; `/tmp` is a copy of `tmp`, or empty.
async fn own(host: &Arc<Host>, spec: &SandboxSpec, tmp: Option<&Arc<File>>) -> Result<Own, CreateError> {
    if spec.mounts.len() > drive::MOUNTS.len() {
        return Err(failed("mount more than two directories", io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let tap = async { host.tap().await };
    let drives = async {
        let (host, root, tmp) = (Arc::clone(host), root_image(spec)?.to_owned(), tmp.map(Arc::clone));
        let mounts: Vec<_> = spec.mounts.iter().map(|mount| mount.source.clone()).collect();
        let tmp_bytes = spec.tmp_bytes;
        let opened = tokio::task::spawn_blocking(move || {
            let mut drives = vec![open(&root)?];
            for at in 0..drive::MOUNTS.len() {
                drives.push(match mounts.get(at) {
                    Some(image) => open(image)?,
                    None => nothing(false).map_err(|error| failed("make an empty disk", error))?,
                });
            }
            let tmp = match tmp {
                Some(tmp) => host.tmp.duplicate(&tmp),
                None => host.tmp.make(tmp_bytes),
            };
            drives.push(tmp.map_err(|error| failed("make a disk for /tmp", error))?);
            Ok(drives)
        });
        opened.await.unwrap_or_else(|panic| Err(failed("open its disks", io::Error::other(panic))))
    };
    let (tap, drives) = tokio::try_join!(tap, drives)?;
    Ok(Own { drives, tap })
}

/// The image that the machine has as its root.
pub(super) fn root_image(spec: &SandboxSpec) -> Result<&Path, CreateError> {
    spec.root_image
        .as_deref()
        .ok_or_else(|| failed("find the image of its root", io::Error::from(io::ErrorKind::NotFound)))
}

/// Opens an image for reading.
pub(super) fn open(image: &Path) -> Result<File, CreateError> {
    File::open(image).map_err(|error| failed(&format!("open the image {}", image.display()), error))
}

/// A drive without content, in the place of one that comes later or not at all.
pub(super) fn nothing(writable: bool) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC)?);
    if writable { Ok(file) } else { File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) }
}

/// Length of a drive in bytes; what is not a whole sector at its end cannot be read.
pub(super) fn disk_bytes(drive: &File) -> io::Result<u64> {
    Ok(drive.metadata()?.len() / 512 * 512)
}

fn network(tap: &TapSlot) -> Network {
    Network {
        address: tap.address,
        prefix: 32,
        gateway: tap.gateway,
        resolv_conf: String::from_utf8_lossy(&tap.resolv_conf).into_owned(),
    }
}

impl Machine {
    /// Makes a clone this sandbox's own, and lets its processes run.
    async fn furnish(&self, spec: &SandboxSpec, sizes: &[u64], network: Option<Network>) -> Result<(), AskError> {
        // Before anything else: two clones must not draw the same numbers.
        self.agent.order(cloned()?).await?;
        let limits = Request::Limits { memory_bytes: spec.memory_bytes, max_tasks: spec.max_tasks };
        let mounts = spec
            .mounts
            .iter()
            .zip(drive::MOUNTS)
            .map(|(mount, drive)| (drive, mount.target.as_path(), FileSystem::Erofs));
        let tmp = (drive::TMP, Path::new("/tmp"), FileSystem::Ext4);
        let mut orders = vec![self.agent.order(limits)];
        for (drive, target, kind) in mounts.chain([tmp]) {
            let bytes = sizes.get(usize::from(drive)).copied().unwrap_or_default();
            let target = target.to_string_lossy().into_owned();
            orders.push(self.agent.order(Request::Mount(Mount { drive, target, kind, bytes })));
        }
        orders.extend(network.map(|network| self.agent.order(Request::Network(network))));
        for order in orders {
            order.await?;
        }
        self.agent.order(Request::Wake).await
    }

    /// Makes a clone of a sandbox another one, and lets the processes in it go on. What is mounted is in the snapshot.
    async fn go_on(
        &self,
        spec: &SandboxSpec,
        network: Option<Network>,
        past: &Past,
        exits: Vec<oneshot::Receiver<Exit>>,
    ) -> io::Result<Vec<Process>> {
        self.agent.order(cloned()?).await?;
        let limits = Request::Limits { memory_bytes: spec.memory_bytes, max_tasks: spec.max_tasks };
        let mut orders = vec![self.agent.order(limits)];
        orders.extend(network.map(|network| self.agent.order(Request::Network(network))));
        for order in orders {
            order.await?;
        }
        let mut processes = Vec::with_capacity(exits.len());
        for ((id, streams), exit) in past.running.iter().zip(exits) {
            let [stdout, stderr, log] = streams.map(|stream| self.output(stream));
            let (stdout, stderr, log) = tokio::try_join!(stdout, stderr, log)?;
            let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            processes.push(Process { id: *id, stdout, stderr, log, exit });
        }
        self.agent.order(Request::Wake).await?;
        Ok(processes)
    }
}

/// Makes a clone differ from all others.
fn cloned() -> Result<Request, AskError> {
    let mut entropy = [0; 64];
    let filled = rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty());
    let unfilled =
        |source: io::Error| AskError::Failed { step: Step::Other, what: "draw random numbers".to_owned(), source };
    if filled.map_err(|error| unfilled(error.into()))? != entropy.len() {
        return Err(unfilled(io::ErrorKind::UnexpectedEof.into()));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Request::Cloned {
        entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
        now_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
    })
}
