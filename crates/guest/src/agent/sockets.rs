//! Where the host connects: vsock ports, or Unix sockets where there is no machine around the agent.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};

use super::sys;

/// The kind of sockets.
#[derive(Debug, Clone)]
pub enum Sockets {
    /// vsock, from the host only.
    Vsock,
    /// `DIR/PORT`.
    Unix(PathBuf),
}

pub(super) enum Listener {
    Vsock(AsyncFd<OwnedFd>),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn bind(sockets: &Sockets, port: u32) -> io::Result<Self> {
        Ok(match sockets {
            // SAFETY: the descriptor is owned, and nothing closes or replaces it while it is in here.
            Sockets::Vsock => Self::Vsock(unsafe { AsyncFd::register(sys::listen_vsock(port)?) }?),
            Sockets::Unix(dir) => Self::Unix(UnixListener::bind(dir.join(port.to_string()))?),
        })
    }

    /// The next connection. The stream is a Unix one by its type alone: read(2), write(2), shutdown(2) and epoll are all that
    /// the type uses, and they mean the same on a vsock stream.
    pub(super) async fn accept(&self) -> UnixStream {
        loop {
            let accepted = match self {
                Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Some(stream)),
                Self::Vsock(listener) => match listener.readable().await {
                    Ok(mut ready) => match ready.try_io(sys::accept_vsock) {
                        Ok(accepted) => accepted.and_then(|socket| socket.map(stream).transpose()),
                        Err(_not_yet) => continue,
                    },
                    Err(error) => Err(error),
                },
            };
            match accepted {
                Ok(Some(stream)) => return stream,
                Ok(None) => {}
                Err(error) => {
                    eprintln!("cannot accept a connection of the host's: {error}");
                    // Short of descriptors or memory, which passes.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

fn stream(socket: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(socket.into())
}
