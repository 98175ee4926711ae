//! What is measured: a machine as the server makes them, with the agent in it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmm::config::{BootProtocol, DriveConfig, MachineConfig};
use vmm::host::{Attached, Jail, Kernel, Launcher, MicroVm, Options, Shell};

use crate::Result;

/// A tenant's 128 MiB and what kernel and agent need, as the server reckons.
pub const MEMORY_MIB: u32 = 196;
/// Root, code, layers, and a writable one.
pub const DRIVES: usize = 4;
/// Shells that are kept ready.
pub const POOL: usize = 2;

/// The port of the agent's control connection, see `guest::control`.
const CONTROL: u32 = 1;
/// How long anything in a guest may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What machines are made of.
#[derive(Clone)]
pub struct Rig {
    pub launcher: Launcher,
    kernel: PathBuf,
    agent: Arc<[u8]>,
}

impl Rig {
    pub fn new() -> Result<Rig> {
        let named = |variable: &str| {
            let path = std::env::var_os(variable).ok_or(format!("{variable} is not set; use scripts/bench-vmm"));
            path.map(PathBuf::from)
        };
        let jail = if rustix::process::geteuid().is_root() {
            let first = (1 << 30) + std::process::id() % 65_536 * 1024;
            Jail::with_users(first..first + 1024)
        } else {
            Jail::without_root()
        };
        let mut options = Options::new(jail);
        options.pool = [(1, POOL)].into();
        let agent = std::fs::read(named("FIRELET_GUEST_AGENT")?)?.into();
        Ok(Rig { launcher: Launcher::new(options)?, kernel: named("FIRELET_GUEST_KERNEL")?, agent })
    }

    pub async fn boot(&self, shell: Shell, protocol: BootProtocol) -> Result<MicroVm> {
        let config = MachineConfig {
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            huge_pages: false,
            cmdline: "quiet loglevel=0 panic=-1 random.trust_cpu=on".into(),
            vsock_cid: 3,
            drives: (1..=DRIVES).map(|at| DriveConfig { read_only: at < DRIVES }).collect(),
            net: None,
            balloon: true,
            serial: false,
        };
        let image = File::open(&self.kernel)?;
        let kernel = Kernel { image, protocol, initramfs: Some(self.initramfs()?) };
        Ok(shell.boot(&config, kernel, attached()?).await?)
    }

    /// Waits until the pool is full, so that its filling is not in the way of what is measured next.
    pub async fn pool_is_full(&self) {
        while self.launcher.pool().ready < POOL {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// An archive with the agent as `/init` (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).
    fn initramfs(&self) -> Result<File> {
        let mut archive = Vec::with_capacity(self.agent.len() + 512);
        for (name, mode, content) in [("init", 0o100_755, &self.agent[..]), ("TRAILER!!!", 0, &[])] {
            archive.extend_from_slice(b"070701");
            for field in [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
                write!(archive, "{field:08x}")?;
            }
            archive.extend_from_slice(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend_from_slice(content);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC)?);
        file.write_all(&archive)?;
        Ok(file)
    }
}

/// Files behind a machine's drives; nothing is read of them.
pub fn attached() -> Result<Attached> {
    let drive = |at| -> Result<File> {
        let file = File::from(memfd_create("drive", MemfdFlags::CLOEXEC)?);
        file.set_len(1 << 20)?;
        Ok(if at < DRIVES { File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))? } else { file })
    };
    let drives = (1..=DRIVES).map(drive).collect::<Result<_>>()?;
    Ok(Attached { drives, tap: None, serial: None })
}

/// Waits until the agent answers.
pub async fn greet(machine: &MicroVm) -> Result<()> {
    tokio::time::timeout(PATIENCE, async {
        while ask(machine, "hello").await.is_none() {
            if machine.has_ended() {
                return Err(format!("the machine has ended: {:?}", machine.exited().await).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    })
    .await?
}

/// Has the agent make itself ready for a snapshot.
pub async fn quiesce(machine: &MicroVm) -> Result<()> {
    let answer = tokio::time::timeout(PATIENCE, ask(machine, "quiesce")).await?.ok_or("the agent does not quiesce")?;
    if answer.contains("done") { Ok(()) } else { Err(format!("the agent does not quiesce: {answer}").into()) }
}

/// Asks over a connection of its own. `None` if nobody listens yet. The frame is `guest::frame`'s: two lengths, then JSON.
async fn ask(machine: &MicroVm, request: &str) -> Option<String> {
    let mut stream = machine.connect(CONTROL).await.ok()?;
    let request = format!(r#"{{"number":1,"ask":"{request}"}}"#);
    let mut frame = u32::try_from(request.len()).ok()?.to_le_bytes().to_vec();
    frame.extend([0; 4]);
    frame.extend(request.as_bytes());
    stream.write_all(&frame).await.ok()?;
    let header = stream.read_u32_le().await.ok()?;
    stream.read_u32_le().await.ok()?;
    let mut answer = vec![0; usize::try_from(header).ok()?.min(1 << 16)];
    stream.read_exact(&mut answer).await.ok()?;
    String::from_utf8(answer).ok()
}
