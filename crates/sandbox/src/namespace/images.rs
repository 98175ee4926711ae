//! Images of processes as snapshots of sandboxes: a process of the publication's sandbox writes one of itself, and those that go on from it
//! wait in sandboxes like any others until they become it.
//!
//! ```text
//! runtime, initialized <- asked over its socket -> writes its memory and /tmp -> an image, sealed -> the sandbox ends
//!                                                                                   | mapped by each
//!                            a prepared sandbox of the same kind -> its waiting process becomes what is in there
//! ```
//!
//! The image is a tenant's from the first byte to the last, and nobody here looks into it: its length is limited, and it goes to nothing but
//! confined processes of the same function version. So neither making nor using one is a way to anything that a function has not anyway.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{SealFlags, fcntl_add_seals};
use supervisor::image::{self, TRAILER_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::kept::Keepsakes;
use super::prepared::ready;
use super::running::NamespaceSandbox;
use super::{Creating, Host};
use crate::{BoxFuture, CreateError, KeepError, Restored, Sandbox, SandboxSpec, Snapshot, SnapshotError};

/// How long a process may take to write itself out.
const PATIENCE: Duration = Duration::from_secs(120);
/// Room in an image beside the memory and the disk of the sandbox, in bytes: programs and libraries do not count as its memory.
const BESIDE: u64 = 512 << 20;
const PAGE: u64 = 4096;
const BLOCK: usize = 256 << 10;

/// What it takes to keep processes.
#[derive(Debug)]
pub(super) struct Images {
    /// The code that a process writes itself out by, and becomes another by.
    pub library: Arc<OwnedFd>,
    pub keepsakes: Keepsakes,
}

impl Images {
    /// With the images on the disk in `dir`. `None` where processes cannot be kept on this processor.
    pub fn open(dir: &Path, library: Arc<OwnedFd>) -> io::Result<Option<Images>> {
        if !image::IS_SUPPORTED {
            return Ok(None);
        }
        Ok(Some(Images { library, keepsakes: Keepsakes::open(dir)? }))
    }
}

/// Does what waits for the disk; without images, `otherwise` comes back.
pub(super) fn with<T: Send + 'static>(
    host: &Arc<Host>,
    otherwise: T,
    act: impl FnOnce(&Arc<Host>, &Images) -> T + Send + 'static,
) -> BoxFuture<'static, T> {
    let host = Arc::clone(host);
    Box::pin(async move {
        let acted = tokio::task::spawn_blocking(move || match &host.images {
            Some(images) => act(&host, images),
            None => otherwise,
        });
        acted.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    })
}

/// The way to a process that is to write itself out.
#[derive(Debug)]
pub(super) struct Keeping {
    pub host: Arc<Host>,
    /// What sandboxes that go on from its image are made of.
    spec: SandboxSpec,
    /// To the process, once it has been given its environment.
    pub socket: Option<UnixStream>,
}

impl Keeping {
    pub fn new(host: &Arc<Host>, spec: &SandboxSpec) -> Keeping {
        let spec = SandboxSpec { id: "proof".to_owned(), keep: false, ..spec.clone() };
        Keeping { host: Arc::clone(host), spec, socket: None }
    }
}

/// An image of a process.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub host: Arc<Host>,
    /// Sealed.
    pub memory: Arc<File>,
    pub bytes: u64,
}

impl Snapshot for Image {
    fn restore<'a>(&'a self, spec: SandboxSpec) -> BoxFuture<'a, Result<Restored, CreateError>> {
        Box::pin(async move {
            let creating = Creating::new(&self.host);
            let sandbox = ready(&self.host, spec).await?;
            let library = self.host.images.as_ref().map(|images| images.library.as_fd());
            let process = sandbox.become_image(&self.memory, library).await?;
            drop(creating);
            Ok(Restored { sandbox: Box::new(sandbox), processes: vec![process] })
        })
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    fn save<'a>(&'a self, name: &'a str, note: Vec<u8>) -> BoxFuture<'a, Result<(), KeepError>> {
        let (image, name) = (self.clone(), name.to_owned());
        Box::pin(async move {
            let saved = tokio::task::spawn_blocking(move || image.save_now(&name, note)).await;
            saved.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        })
    }
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Step { step, source }
}

/// Has the runtime of a sandbox write itself out, and ends the sandbox. An image counts when one process could go on from it: what a kernel
/// or a function makes impossible is found out here, and not by whoever calls the function.
pub(super) async fn take(sandbox: Box<NamespaceSandbox>) -> Result<Arc<dyn Snapshot>, SnapshotError> {
    let keeping = sandbox.take_keeping();
    let spec = keeping.as_ref().map(|keeping| keeping.spec.clone());
    let taken = match timeout(PATIENCE, leave(&sandbox, keeping)).await {
        Ok(taken) => taken,
        Err(_) => Err(step("have its runtime write itself out")(io::ErrorKind::TimedOut.into())),
    };
    sandbox.destroy().await;
    let image = taken?;
    if let Some(spec) = spec {
        let Restored { sandbox, .. } = image.restore(spec).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            SnapshotError::Unfit(format!("no process could go on from its image: {cause}"))
        })?;
        sandbox.destroy().await;
    }
    tracing::debug!(bytes = image.bytes, "image of a process taken");
    Ok(Arc::new(image))
}

async fn leave(sandbox: &NamespaceSandbox, keeping: Option<Keeping>) -> Result<Image, SnapshotError> {
    let unfit = |reason: &str| SnapshotError::Unfit(reason.to_owned());
    let Some(Keeping { host, spec, socket: Some(mut socket) }) = keeping else {
        return Err(unfit(
            "only a Python runtime can be, and only where no variable, wrapper or library of the function has a part in its start",
        ));
    };
    if sandbox.shell().control().processes() > 1 {
        return Err(unfit("external extensions run beside its runtime"));
    }
    sandbox.thaw().map_err(|error| SnapshotError::Step { step: "thaw it", source: io::Error::other(error) })?;
    socket.write_all(b"k").await.map_err(step("ask its runtime for its image"))?;
    let most = spec.memory_bytes.saturating_add(spec.tmp_bytes).saturating_add(BESIDE);
    let memory = File::from(vmm::snapshot::memory(0, false).map_err(step("make a memory file"))?);
    let mut bytes = 0;
    let mut block = vec![0; BLOCK];
    loop {
        let count = socket.read(&mut block).await.map_err(step("read the image of its runtime"))?;
        if count == 0 {
            break;
        }
        if bytes + count as u64 > most {
            return Err(SnapshotError::Unfit(format!("its image would have more than {} MiB", most >> 20)));
        }
        memory.write_all_at(&block[..count], bytes).map_err(step("keep the image of its runtime"))?;
        bytes += count as u64;
    }
    let bytes =
        whole(&memory, bytes).map_err(step("look at the image of its runtime"))?.map_err(SnapshotError::Unfit)?;
    memory.set_len(bytes).map_err(step("keep the image of its runtime"))?;
    seal(&memory).map_err(step("seal the image of its runtime"))?;
    Ok(Image { host, memory: Arc::new(memory), bytes })
}

/// The length of the image that came, or why there is none.
fn whole(memory: &File, bytes: u64) -> io::Result<Result<u64, String>> {
    let Some(end) = bytes.checked_sub(TRAILER_BYTES as u64) else {
        return Ok(Err("its runtime ended before its image was whole".to_owned()));
    };
    let mut trailer = [0; TRAILER_BYTES];
    memory.read_exact_at(&mut trailer, end)?;
    Ok(match image::read_trailer(&trailer) {
        Ok(()) if end > 0 && end.is_multiple_of(PAGE) => Ok(end),
        Ok(()) => Err("its image is no row of pages".to_owned()),
        Err(reason) => Err(reason),
    })
}

/// From here on nobody can change it, who has it open or mapped.
pub(super) fn seal(memory: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?)
}

/// The same file once more, to be read only, and with a position of its own.
pub(super) fn again(memory: BorrowedFd<'_>) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))
}

/// What a process says that was to become another one.
pub(super) fn understand(word: &[u8]) -> Result<(), String> {
    if word == b"k" {
        return Ok(());
    }
    if let Ok(call) = <[u8; 64]>::try_from(word) {
        let number = |at: usize| call[at * 8..].first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
        let errno = number(7).checked_neg().and_then(|errno| i32::try_from(errno).ok()).unwrap_or(libc::EIO);
        let error = io::Error::from_raw_os_error(errno);
        return Err(format!("system call {} on {:#x}, {:#x}: {error}", number(0), number(1), number(2)));
    }
    let printable = |letter: char| if letter.is_control() { '?' } else { letter };
    Err(match word {
        [] => "it ended".to_owned(),
        said => String::from_utf8_lossy(said).chars().map(printable).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_counts_only_when_it_is_whole() {
        let file = |bytes: &[u8]| {
            let file = File::from(vmm::snapshot::memory(0, false).unwrap());
            file.write_all_at(bytes, 0).unwrap();
            (file, bytes.len() as u64)
        };
        let look = |bytes: &[u8]| {
            let (file, length) = file(bytes);
            whole(&file, length).unwrap()
        };
        let mut trailer = b"FIRETAIL\0".to_vec();
        trailer.resize(TRAILER_BYTES, 0);
        let good = [vec![7; 8192], trailer.clone()].concat();
        assert_eq!(look(&good), Ok(8192));
        assert!(look(&good[1..]).unwrap_err().contains("row of pages"));
        assert!(look(&good[..good.len() - 1]).unwrap_err().contains("before its image was whole"));
        assert!(look(&trailer).unwrap_err().contains("row of pages"));
        assert!(look(&trailer[..100]).unwrap_err().contains("before its image was whole"));
        trailer[8] = 1;
        trailer[9..12].copy_from_slice(b"why");
        assert_eq!(look(&[vec![7; 4096], trailer].concat()), Err("why".to_owned()));
    }

    #[test]
    fn what_a_process_says_is_told_without_its_control_characters() {
        assert_eq!(understand(b"k"), Ok(()));
        assert_eq!(understand(b""), Err("it ended".to_owned()));
        assert_eq!(understand(b"OSError: \x1b[1m no\n"), Err("OSError: ?[1m no?".to_owned()));
        let mut call = [0; 64];
        call[0] = 9;
        call[56..].copy_from_slice(&(-12i64).to_le_bytes());
        assert!(understand(&call).unwrap_err().starts_with("system call 9 on 0x0, 0x0: Cannot allocate memory"));
        // A number that is no error of the kernel's.
        call[56..].copy_from_slice(&i64::MIN.to_le_bytes());
        assert!(understand(&call).is_err());
    }
}
