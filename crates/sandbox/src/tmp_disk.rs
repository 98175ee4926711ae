//! Disks for `/tmp`: their content counts against a size of their own, not against the memory of the sandbox.
//!
//! Owns images ([`TmpImages`]), loop devices and their detached mounts; does not attach them anywhere. The page cache of what is
//! written still belongs to the sandbox' memory, but the kernel can write it out and reuse it, as it cannot with tmpfs.
//!
//! Nothing has a name on the host, so nothing is left when the server is killed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use crate::host::Loss;
use crate::pool::Pool;

mod image;
mod mount;
mod root;

#[cfg(test)]
mod tests;

pub use image::TmpImages;
pub(crate) use image::copy_data;
use mount::Mounted;

/// The size that functions have unless they ask for more, in bytes: made once at the start, to see that it works.
const USUAL_BYTES: u64 = 512 << 20;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum TmpDiskError {
    /// A step of making it failed.
    #[error("could not make a disk for /tmp: {step}")]
    Step {
        /// What was being done, with the path concerned.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// [`TmpDisks`] is gone.
    #[error("no disks for /tmp are made any more")]
    Stopped,
}

/// How [`TmpDisks`] is set up.
#[derive(Debug, Clone)]
pub struct TmpDiskOptions {
    /// Directory for images, on a disk with room for what functions write to `/tmp`. Made if absent.
    pub dir: PathBuf,
    /// Disks kept ready of the size last asked for (4 is a good number).
    pub pool_size: usize,
}

/// Makes the disks of one server's sandboxes.
#[derive(Debug)]
pub struct TmpDisks {
    /// `None` where disks cannot be made; `loss` then says why.
    maker: Option<MakerHandle>,
    loss: Option<Loss>,
}

#[derive(Debug)]
struct MakerHandle {
    requests: mpsc::Sender<Request>,
    pool: Arc<Pool<u64, TmpDisk>>,
}

#[derive(Debug)]
enum Request {
    Make {
        bytes: u64,
        reply: oneshot::Sender<Result<TmpDisk, TmpDiskError>>,
    },
    /// One was taken from the pool.
    Refill,
    Stop,
}

impl TmpDisks {
    /// Prepares the directory and makes one disk, to see whether this host can. Blocks for some ten milliseconds.
    ///
    /// # Errors
    /// The directory cannot be made. Where disks cannot be made that is a loss, not an error.
    pub fn start(options: TmpDiskOptions) -> Result<TmpDisks, TmpDiskError> {
        let images = TmpImages::new(options.dir)?;
        let made = Maker::start(images, options.pool_size).and_then(|mut maker| {
            let first = maker.make(USUAL_BYTES)?;
            // Asking makes it the size that is kept ready.
            let _nothing_yet = maker.pool.take(&USUAL_BYTES);
            maker.pool.put(&USUAL_BYTES, first);
            Ok(maker)
        });
        let maker = match made {
            Ok(maker) => maker,
            Err(error) => {
                return Ok(TmpDisks { maker: None, loss: Some(loss(&error)) });
            }
        };
        let (requests, inbox) = mpsc::channel();
        let pool = Arc::clone(&maker.pool);
        let thread = std::thread::Builder::new().name("tmp-disks".to_owned());
        thread
            .spawn(move || maker.run(&inbox))
            .map_err(|source| TmpDiskError::Step { step: "start a thread".to_owned(), source })?;
        Ok(TmpDisks { maker: Some(MakerHandle { requests, pool }), loss: None })
    }

    /// What sandboxes go without here.
    pub fn loss(&self) -> Option<&Loss> {
        self.loss.as_ref()
    }

    /// An empty disk with room for `bytes` (up to 3 percent more).
    pub async fn acquire(&self, bytes: u64) -> Result<TmpDisk, TmpDiskError> {
        let Some(maker) = &self.maker else {
            return Ok(TmpDisk { mount: None, grave: None });
        };
        if let Some(disk) = maker.pool.take(&bytes) {
            // Without the maker there is no refill, and the next request finds that out.
            let _ = maker.requests.send(Request::Refill);
            return Ok(disk);
        }
        let (reply, made) = oneshot::channel();
        maker.requests.send(Request::Make { bytes, reply }).map_err(|_| TmpDiskError::Stopped)?;
        made.await.map_err(|_| TmpDiskError::Stopped)?
    }
}

impl Drop for TmpDisks {
    fn drop(&mut self) {
        if let Some(maker) = &self.maker {
            let _ = maker.requests.send(Request::Stop);
        }
    }
}

fn loss(error: &TmpDiskError) -> Loss {
    let reason = std::error::Error::source(error).map(|source| format!("{error}: {source}"));
    Loss {
        what: format!(
            "disks for /tmp: what functions write there counts against their memory ({})",
            reason.unwrap_or_else(|| error.to_string())
        ),
        remedy: "run as root, with loop devices (/dev/loop-control) and the package e2fsprogs".to_owned(),
    }
}

/// The thread that makes disks: requests first, then the pool.
struct Maker {
    images: TmpImages,
    pool: Arc<Pool<u64, TmpDisk>>,
    graves: mpsc::Sender<Mounted>,
}

impl Maker {
    fn start(images: TmpImages, pool_size: usize) -> Result<Maker, TmpDiskError> {
        let (graves, dead) = mpsc::channel::<Mounted>();
        // Unmounting may take a while; nobody should wait for it, least of all who wants a new disk.
        let bury = move || {
            for disk in dead {
                mount::discard(&disk);
            }
        };
        let thread = std::thread::Builder::new().name("tmp-disks-end".to_owned());
        thread.spawn(bury).map_err(|source| TmpDiskError::Step { step: "start a thread".to_owned(), source })?;
        let pool = Arc::new(Pool::new(pool_size));
        Ok(Maker { images, pool, graves })
    }

    fn run(mut self, requests: &mpsc::Receiver<Request>) {
        loop {
            let request = match requests.try_recv() {
                Ok(request) => request,
                Err(mpsc::TryRecvError::Disconnected) => break,
                Err(mpsc::TryRecvError::Empty) => {
                    if let Some(bytes) = self.pool.wanted() {
                        match self.make(bytes) {
                            Ok(disk) => {
                                self.pool.put(&bytes, disk);
                                continue;
                            }
                            // Not tried again before somebody asks.
                            Err(error) => {
                                tracing::warn!(%error, "could not prepare a disk for /tmp in advance")
                            }
                        }
                    }
                    match requests.recv() {
                        Ok(request) => request,
                        Err(mpsc::RecvError) => break,
                    }
                }
            };
            match request {
                // Whoever asked may have given up; then the disk is dropped.
                Request::Make { bytes, reply } => drop(reply.send(self.make(bytes))),
                Request::Refill => {}
                Request::Stop => break,
            }
        }
        self.pool.clear();
    }

    fn make(&mut self, bytes: u64) -> Result<TmpDisk, TmpDiskError> {
        let last = mount::mounted(&self.images.make(bytes)?)?;
        let mount = last
            .mount
            .try_clone()
            .map_err(|source| TmpDiskError::Step { step: "duplicate a descriptor".to_owned(), source })?;
        Ok(TmpDisk { mount: Some(mount), grave: Some(Grave { last: Some(last), graves: self.graves.clone() }) })
    }
}

/// One disk. Dropping it discards the content in the background: drop it when no process uses it any more, one that
/// does gets I/O errors.
#[derive(Debug)]
pub struct TmpDisk {
    /// A detached mount (mode 1777, nosuid, nodev) to attach with `move_mount`; `None` = mount a size-limited tmpfs
    /// instead.
    pub mount: Option<OwnedFd>,
    #[expect(dead_code, reason = "ends the disk when dropped")]
    grave: Option<Grave>,
}

/// Keeps a second descriptor, so that the one that ends the mount is closed where it may take its time.
#[derive(Debug)]
struct Grave {
    last: Option<Mounted>,
    graves: mpsc::Sender<Mounted>,
}

impl Drop for Grave {
    fn drop(&mut self) {
        if let Some(disk) = self.last.take() {
            // If that thread is gone the mount ends here and now.
            let _ = self.graves.send(disk);
        }
    }
}
