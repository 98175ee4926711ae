//! Mounts that are attached to a sandbox after it was made: the code of a function that was not known then.
//!
//! Init cannot do it: it is restricted by Landlock, as all that it starts, and whoever is may not change mounts. One thread
//! of the server can: it shares its file system context with no other thread, enters the sandbox' mount namespace, attaches,
//! and goes back. Nothing of a tenant has run in a sandbox when that is done, so every path in it leads where it was built to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::{Bind, CreateError};
use supervisor::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Attacher {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    namespace: OwnedFd,
    mounts: Vec<(OwnedFd, PathBuf)>,
    reply: oneshot::Sender<Result<(), CreateError>>,
}

fn failed(step: impl Into<String>, source: impl Into<io::Error>) -> CreateError {
    CreateError::Step { step: step.into(), source: source.into() }
}

impl Attacher {
    /// Starts the thread.
    pub fn start() -> io::Result<Attacher> {
        let (requests, inbox) = mpsc::channel();
        let home = File::open("/proc/self/ns/mnt")?;
        std::thread::Builder::new().name("sandbox-mounts".to_owned()).spawn(move || serve(&inbox, &home))?;
        Ok(Attacher { requests })
    }

    /// Attaches host directories, read-only, nosuid and nodev all the way down, at directories that are there. `namespace` is
    /// the mount namespace of a sandbox in which nothing of a tenant has run.
    pub async fn attach(&self, namespace: OwnedFd, binds: &[Bind]) -> Result<(), CreateError> {
        if binds.is_empty() {
            return Ok(());
        }
        let mounts = binds.iter().map(|bind| Ok((detached(bind)?, bind.target.clone()))).collect::<Result<_, _>>()?;
        let (reply, attached) = oneshot::channel();
        let request = Request { namespace, mounts, reply };
        let gone = || failed("attach mounts: the thread that does it has ended", io::ErrorKind::NotConnected);
        self.requests.send(request).map_err(|_| gone())?;
        attached.await.map_err(|_| gone())?
    }
}

/// A read-only clone of what is to be bound, attached nowhere.
fn detached(bind: &Bind) -> Result<OwnedFd, CreateError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let source = bind.source.display();
    let tree = open_tree(CWD, &bind.source, flags).map_err(|error| failed(format!("open {source}"), error))?;
    sys::mount_setattr(&tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true)
        .map_err(|error| failed(format!("make {source} read-only"), error))?;
    Ok(tree)
}

fn serve(requests: &mpsc::Receiver<Request>, home: &File) {
    // SAFETY: only descriptor tables are unsafe to unshare, and this does not. A namespace of mounts can be entered only by a
    // thread whose root and working directory are its own.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) };
    while let Ok(Request { namespace, mounts, reply }) = requests.recv() {
        let attached = match unshared {
            Ok(()) => attach(namespace, mounts),
            Err(error) => Err(failed("leave the server's root", error)),
        };
        // At home nothing is looked up: what this thread needs comes as descriptors.
        let back = move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Mount));
        // Nobody waits for a sandbox whose creation was given up.
        let _ = reply.send(attached);
        if let Err(error) = back {
            // It would keep the mounts of that sandbox alive, no more; but who knows what else is wrong.
            tracing::error!(%error, "the thread that attaches mounts cannot get back out of a sandbox, and ends");
            return;
        }
    }
}

fn attach(namespace: OwnedFd, mounts: Vec<(OwnedFd, PathBuf)>) -> Result<(), CreateError> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|error| failed("enter its mount namespace", error))?;
    drop(namespace);
    for (tree, target) in mounts {
        move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| failed(format!("mount {}", target.display()), error))?;
    }
    Ok(())
}
