//! One sandbox as the server sees it, from the first order to the supervisor until nothing of it is left.

use std::io;
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::control::{Built, Control};
use super::identity::Identity;
use super::link::{Ended, Link};
use super::running::NamespaceSandbox;
use super::zygotes::Zygote;
use super::{Host, Roster};
use crate::cgroup::{Entry, Group, Limits, Version};
use crate::create::failed;
use crate::net::NetworkSlot;
use crate::tmp_disk::TmpDisk;
use crate::{CreateError, SandboxSpec};
use supervisor::channel;
use supervisor::wire::{Build, GroupEntry, Settle, Timings, ToInit, ToSupervisor};

/// When to complain that a killed sandbox does not end; it is waited for all the same.
const SLOW_END: Duration = Duration::from_secs(10);

/// What the host has of a sandbox. Shared between the sandbox and the backend, which buries what is left at its end.
#[derive(Debug)]
pub(super) struct Live {
    key: u64,
    /// To the supervisor that cloned its init.
    link: Arc<Link>,
    /// Where that is an interpreter: it lives as long as what was forked from it.
    _zygote: Option<Arc<Zygote>>,
    control: Arc<Control>,
    uid: Option<u32>,
    uid_inside: u32,
    hostname: String,
    group: RwLock<Option<Group>>,
    /// Taken when the sandbox is buried; whoever comes second waits for the lock.
    remains: tokio::sync::Mutex<Option<Remains>>,
}

#[derive(Debug)]
struct Remains {
    /// `None` once the end has been heard of.
    ended: Option<oneshot::Receiver<Ended>>,
    network: Option<NetworkSlot>,
    disk: Option<TmpDisk>,
    identity: Identity,
}

impl Live {
    /// Kills everything inside, waits until it is gone, and gives back what the sandbox had on the host.
    pub async fn bury(&self) {
        let mut remains = self.remains.lock().await;
        let Some(Remains { ended, network, disk, identity }) = remains.take() else { return };
        self.control.hang_up();
        // If the supervisor is gone there is nothing left to kill.
        let _ = self.link.order(&ToSupervisor::Kill { key: self.key }, &[]).await;
        let group = self.group.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(group) = &group {
            // On version 1, frozen processes die only when thawed. If this fails the removal below tries again.
            let _ = group.thaw();
        }
        if let Some(mut ended) = ended
            && tokio::time::timeout(SLOW_END, &mut ended).await.is_err()
        {
            tracing::warn!(key = self.key, "a killed sandbox takes long to end");
            // An error means that the supervisor is gone, and every sandbox with it.
            let _ = ended.await;
        }
        if let Some(group) = group {
            // Blocks for as long as the kernel takes to count the last process out.
            let _ = tokio::task::spawn_blocking(move || group.remove()).await;
        }
        let _ = self.link.order(&ToSupervisor::Forget { key: self.key }, &[]).await;
        drop((network, disk, identity));
    }
}

/// A sandbox that is being made or kept ready. Giving it up buries what there is of it.
#[derive(Debug)]
pub(super) struct Shell {
    roster: Arc<Roster>,
    live: Arc<Live>,
    runtime: tokio::runtime::Handle,
    built: Option<oneshot::Receiver<Built>>,
}

/// Makes everything that depends on nothing but the limits: namespaces, user, control group.
/// As a fork of an interpreter, if one is given.
pub(super) async fn shell(
    host: &Arc<Host>,
    limits: &Limits,
    zygote: Option<&Arc<Zygote>>,
) -> Result<Shell, CreateError> {
    let shell = Shell::order(host, zygote).await?;
    let group = {
        let (host, name, limits) = (Arc::clone(host), shell.live.key.to_string(), *limits);
        // Some thirty small writes to files of the kernel: a fraction of a millisecond, but all in one go.
        tokio::task::spawn_blocking(move || host.cgroups.create(&name, &limits)).await
    };
    let group = group.map_err(|error| failed("make the control group", error))?;
    let group = group.map_err(|error| failed("make the control group", error))?;
    shell.settle(group, host.cgroups.version() != Version::None, limits.max_tasks).await?;
    Ok(shell)
}

/// What a function's sandbox may use.
pub(super) fn limits(spec: &SandboxSpec) -> Limits {
    let cpu = spec.cpu_millis;
    Limits { memory_bytes: spec.memory_bytes, cpu_millis: cpu, cpu_share: cpu, max_tasks: spec.max_tasks }
}

/// Makes a sandbox, from a shell of the pool if there is one.
pub(super) async fn create(host: &Arc<Host>, spec: SandboxSpec) -> Result<NamespaceSandbox, CreateError> {
    let started = Instant::now();
    let limits = limits(&spec);
    let pooled = std::iter::from_fn(|| host.pool.take(&limits.max_tasks)).find(Shell::is_alive);
    let was_pooled = pooled.is_some();
    let shell = async {
        match pooled {
            Some(shell) => shell.limit(&limits).map(|()| shell),
            None => shell(host, &limits, None).await,
        }
    };
    let (shell, network, disk) = tokio::join!(shell, network(host, &spec.listen), host.disks.acquire(spec.tmp_bytes));
    let (shell, network) = (shell?, network?);
    let disk = disk.map_err(|error| failed("make a disk for /tmp", error))?;
    let acquired = started.elapsed();

    let key = shell.live.key;
    let Finished { sandbox, timings, .. } = shell.build(spec, network, disk).await?;
    tracing::debug!(
        sandbox = sandbox.id(),
        key,
        was_pooled,
        acquired_us = acquired.as_micros(),
        ready_us = started.elapsed().as_micros(),
        init_prepare_us = timings.prepare,
        init_mounts_us = timings.mounts,
        init_build_us = timings.build,
        "sandbox ready"
    );
    Ok(sandbox)
}

/// The network of a sandbox, where it does not make its own.
pub(super) async fn network(host: &Host, listen: &[SocketAddrV4]) -> Result<Option<NetworkSlot>, CreateError> {
    match &host.networks {
        Some(networks) => networks.acquire(listen).await.map(Some).map_err(|error| failed("set up the network", error)),
        None => Ok(None),
    }
}

/// What a shell has become.
pub(super) struct Finished {
    pub sandbox: NamespaceSandbox,
    /// Its mount namespace, by which mounts can be added until something of a tenant runs in it.
    pub mounted: OwnedFd,
    pub timings: Timings,
}

impl Shell {
    /// Orders an init from the supervisor or an interpreter, without waiting for it.
    async fn order(host: &Host, zygote: Option<&Arc<Zygote>>) -> Result<Shell, CreateError> {
        let no_room = || CreateError::NoRoom("as many sandboxes as there are users for them are alive".into());
        let identity = host.identities.take().ok_or_else(no_room)?;
        let connect = |error: io::Error| failed("connect to its init", error);
        let (ours, theirs) = channel::pair().map_err(connect)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| connect(error.into()))?;
        let (control, built) = Control::new(ours).map_err(connect)?;
        let (link, key, ended) = host.announce(zygote)?;
        let live = Arc::new(Live {
            key,
            link,
            _zygote: zygote.cloned(),
            control,
            uid: identity.uid(),
            uid_inside: identity.uid_inside(),
            hostname: identity.hostname(),
            group: RwLock::new(None),
            remains: tokio::sync::Mutex::new(Some(Remains { ended: Some(ended), network: None, disk: None, identity })),
        });
        let roster = Arc::clone(&host.roster);
        roster.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&live));
        let shell = Shell { roster, live, runtime: tokio::runtime::Handle::current(), built: Some(built) };
        let ordered = shell.live.link.order(&ToSupervisor::Create { key }, &[theirs.as_fd()]).await;
        ordered.map_err(|_| CreateError::SupervisorGone)?;
        Ok(shell)
    }

    /// Gives init the control group, and the supervisor the names by which to remove it.
    async fn settle(&self, group: Group, limited: bool, max_tasks: u32) -> Result<(), CreateError> {
        let (entry, fds) = match group.entry() {
            Entry::None => (GroupEntry::None, Vec::new()),
            Entry::V2 { dir } => (GroupEntry::V2, vec![dir]),
            Entry::V1 { procs } => (GroupEntry::V1(procs.len() as u32), procs),
        };
        let settle = Settle { uid: self.live.uid, max_tasks: (!limited).then_some(max_tasks), group: entry };
        let dirs = fds.iter().filter_map(|fd| group_dir(*fd)).collect();
        let asked = self.live.control.ask(&ToInit::Settle(settle), &fds).await;
        *self.live.group.write().unwrap_or_else(PoisonError::into_inner) = Some(group);
        if asked.is_err() {
            return Err(self.why_init_ended().await);
        }
        let order = ToSupervisor::Groups { key: self.live.key, dirs };
        self.live.link.order(&order, &[]).await.map_err(|_| CreateError::SupervisorGone)
    }

    /// Gives a shell that was kept ready the limits that are wanted now.
    pub fn limit(&self, limits: &Limits) -> Result<(), CreateError> {
        match self.group().as_ref() {
            Some(group) => group.set_limits(limits).map_err(|error| failed("limit the control group", error)),
            None => Err(CreateError::SupervisorGone),
        }
    }

    /// Has init make the root and enter the network.
    pub async fn build(
        mut self,
        spec: SandboxSpec,
        network: Option<NetworkSlot>,
        mut disk: TmpDisk,
    ) -> Result<Finished, CreateError> {
        let id = spec.id.clone();
        let tmp_mount = disk.mount.take();
        let netns = network.as_ref().and_then(|slot| slot.netns.as_ref());
        let build = self.build_message(spec, network.as_ref(), netns.is_some(), tmp_mount.is_some());
        let fds: Vec<BorrowedFd<'_>> = netns.into_iter().chain(&tmp_mount).map(AsFd::as_fd).collect();
        let sent = self.live.control.ask(&ToInit::Build(Box::new(build)), &fds).await;
        // A mount that nobody has attached goes with the last descriptor of it.
        drop(tmp_mount);
        let mut network = network;
        let mut listeners = network.as_mut().map(|slot| std::mem::take(&mut slot.listeners)).unwrap_or_default();
        if let Some(remains) = self.live.remains.lock().await.as_mut() {
            remains.network = network;
            remains.disk = Some(disk);
        }
        let built = match (sent, self.built.take()) {
            (Ok(()), Some(built)) => built.await.ok(),
            _ => None,
        };
        match built {
            Some(Built::Ready { timings, mounted, listeners: own }) => {
                for listener in own.into_iter().map(TcpListener::from) {
                    // As those of `NetworkSlot` are.
                    listener.set_nonblocking(true).map_err(|error| failed("take its sockets", error))?;
                    listeners.push(listener);
                }
                Ok(Finished { sandbox: NamespaceSandbox::new(id, self, listeners), mounted, timings })
            }
            Some(Built::Failed { step, errno }) => Err(failed(&step, io::Error::from_raw_os_error(errno))),
            None => Err(self.why_init_ended().await),
        }
    }

    /// The specification in the form that init takes it, with the files that only this backend can know.
    fn build_message(&self, spec: SandboxSpec, network: Option<&NetworkSlot>, has_netns: bool, has_tmp: bool) -> Build {
        let (uid, hostname) = (self.live.uid_inside, self.live.hostname.clone());
        let mut files = spec.root.files;
        let mut put = |path: &str, content: Vec<u8>| files.insert(PathBuf::from(path), content);
        put("/etc/passwd", passwd(uid).into_bytes());
        put("/etc/group", format!("root:x:0:\nsbx_user1051:x:{uid}:\n").into_bytes());
        put("/etc/hostname", format!("{hostname}\n").into_bytes());
        if let Some(slot) = network.filter(|slot| !slot.resolv_conf.is_empty()) {
            put("/etc/resolv.conf", slot.resolv_conf.clone());
        }
        Build {
            hostname,
            has_netns,
            own_network: network.is_none().then_some(spec.listen),
            has_tmp,
            tmp_bytes: spec.tmp_bytes,
            binds: spec.root.binds.into_iter().chain(spec.mounts).map(|bind| (bind.source, bind.target)).collect(),
            dirs: spec.root.dirs,
            files: files.into_iter().collect(),
            symlinks: spec.root.symlinks.into_iter().collect(),
        }
    }

    /// The reason behind a control socket that closed before the sandbox was made.
    async fn why_init_ended(&self) -> CreateError {
        let mut remains = self.live.remains.lock().await;
        let Some(remains) = remains.as_mut() else { return CreateError::SupervisorGone };
        let Some(ended) = remains.ended.take() else { return CreateError::SupervisorGone };
        match ended.await {
            Ok(Ended::NotCloned { errno }) => failed("clone its init", io::Error::from_raw_os_error(errno)),
            Ok(Ended::Exited) => failed("start its init", io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(Ended::SupervisorGone) | Err(_) => CreateError::SupervisorGone,
        }
    }

    pub fn is_alive(&self) -> bool {
        self.live.control.is_open()
    }

    /// To init.
    pub fn control(&self) -> &Control {
        &self.live.control
    }

    pub fn group(&self) -> RwLockReadGuard<'_, Option<Group>> {
        self.live.group.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it and waits until nothing of it is left on the host.
    pub async fn bury(&self) {
        self.leave();
        self.live.bury().await;
    }

    /// Takes the sandbox off the list of those that the backend would bury.
    fn leave(&self) {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.live.key);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // This much even if the runtime has no time left for the rest.
        self.live.control.hang_up();
        self.leave();
        let live = Arc::clone(&self.live);
        self.runtime.spawn(async move { live.bury().await });
    }
}

/// The directory of a control group, by a descriptor of it or of a file in it.
fn group_dir(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string())).ok()?;
    if path.is_dir() { Some(path) } else { path.parent().map(Path::to_path_buf) }
}

fn passwd(uid: u32) -> String {
    // Name and home directory as on Lambda.
    format!("root:x:0:0:root:/root:/sbin/nologin\nsbx_user1051:x:{uid}:{uid}::/home/sbx_user1051:/sbin/nologin\n")
}
