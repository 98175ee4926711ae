//! The Runtime API of an environment: served by this process, or by the agent in a machine of its own.

use guest::runtime::Remote;
use runtime_api::{
    Credentials, Event, Extensions, Invocation, InvokeRefused, Options, Outcome, RuntimeApi, ShutdownReason,
    TooManyExtensions,
};
use sandbox::Service;
use tokio::sync::{mpsc, oneshot};

use crate::host::StartError;

/// The owner's handle, wherever the API is.
pub(super) enum Api {
    /// In this process.
    Host(RuntimeApi),
    /// In the sandbox.
    Guest(Remote),
}

/// An API that is served.
pub(super) struct Served {
    pub(super) api: Api,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    /// Where its clients find it, `host:port`; `None` where the sandbox listens on the address that it was given.
    pub(super) address: Option<String>,
}

impl Api {
    /// Serves on what a sandbox listens with.
    pub(super) fn serve(service: Option<Service>, options: Options) -> Result<Served, StartError> {
        let broken = |error: std::io::Error| StartError::Sandbox(format!("the runtime api has no socket: {error}"));
        match service {
            Some(Service::Host(listeners)) => {
                let listener = listeners.into_iter().next();
                let listener = listener.ok_or_else(|| broken(std::io::ErrorKind::NotFound.into()))?;
                listener.set_nonblocking(true).map_err(broken)?;
                let address = listener.local_addr().map_err(broken)?.to_string();
                let listener = tokio::net::TcpListener::from_std(listener).map_err(broken)?;
                let (api, events) = RuntimeApi::serve(listener, options);
                Ok(Served { api: Api::Host(api), events, address: Some(address) })
            }
            Some(Service::Guest(stream)) => {
                stream.set_nonblocking(true).map_err(broken)?;
                let stream = tokio::net::UnixStream::from_std(stream).map_err(broken)?;
                let (api, events) = Remote::open(stream, options);
                Ok(Served { api: Api::Guest(api), events, address: None })
            }
            None => Err(broken(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Takes over what is served in a sandbox that goes on from a snapshot.
    pub(super) fn attach(service: Option<Service>) -> Result<(Api, mpsc::UnboundedReceiver<Event>), StartError> {
        let broken = |error: std::io::Error| StartError::Sandbox(format!("the runtime api is not reached: {error}"));
        match service {
            Some(Service::Guest(stream)) => {
                stream.set_nonblocking(true).map_err(broken)?;
                let stream = tokio::net::UnixStream::from_std(stream).map_err(broken)?;
                let (api, events) = Remote::attach(stream);
                Ok((Api::Guest(api), events))
            }
            // What the host serves has ended with the sandbox that it was served to.
            Some(Service::Host(_)) | None => Err(broken(std::io::ErrorKind::Unsupported.into())),
        }
    }

    /// See [`RuntimeApi::restore`]; a runtime that does not wait is heard of as a sandbox that has ended.
    pub(super) fn restore(&self) {
        match self {
            Api::Host(api) => {
                if let Err(error) = api.restore() {
                    tracing::debug!(%error, "nobody waits to be restored");
                }
            }
            Api::Guest(api) => api.restore(),
        }
    }

    /// See [`RuntimeApi::set_credentials`].
    pub(super) fn set_credentials(&self, credentials: Option<Credentials>) {
        match self {
            Api::Host(api) => api.set_credentials(credentials),
            Api::Guest(api) => api.set_credentials(credentials),
        }
    }

    /// See [`RuntimeApi::invoke`].
    pub(super) fn invoke(&self, invocation: Invocation) -> Result<oneshot::Receiver<Outcome>, InvokeRefused> {
        match self {
            Api::Host(api) => api.invoke(invocation),
            Api::Guest(api) => api.invoke(invocation),
        }
    }

    /// See [`RuntimeApi::abandon`].
    pub(super) fn abandon(&self) {
        match self {
            Api::Host(api) => api.abandon(),
            Api::Guest(api) => api.abandon(),
        }
    }

    /// See [`RuntimeApi::abandon_one`].
    pub(super) fn abandon_one(&self, request_id: &str) {
        match self {
            Api::Host(api) => api.abandon_one(request_id),
            Api::Guest(api) => api.abandon_one(request_id),
        }
    }

    /// See [`RuntimeApi::reset`].
    pub(super) fn reset(&self) {
        match self {
            Api::Host(api) => api.reset(),
            Api::Guest(api) => api.reset(),
        }
    }

    /// See [`RuntimeApi::expect_extensions`].
    pub(super) fn expect_extensions(&self, names: impl IntoIterator<Item = String>) -> Result<(), TooManyExtensions> {
        match self {
            Api::Host(api) => api.expect_extensions(names),
            Api::Guest(api) => api.expect_extensions(names),
        }
    }

    /// See [`RuntimeApi::shutdown_extensions`].
    pub(super) fn shutdown_extensions(&self, reason: ShutdownReason, deadline_ms: u64) -> usize {
        match self {
            Api::Host(api) => api.shutdown_extensions(reason, deadline_ms),
            Api::Guest(api) => api.shutdown_extensions(reason, deadline_ms),
        }
    }

    /// See [`RuntimeApi::extensions`].
    pub(super) fn extensions(&self) -> Extensions {
        match self {
            Api::Host(api) => api.extensions(),
            Api::Guest(api) => api.extensions(),
        }
    }

    /// Returns when all that was asked so far holds for processes that are started from now on. Where it never will,
    /// they will be told so by their connections.
    pub(super) async fn settled(&self) {
        if let Api::Guest(api) = self
            && let Err(error) = api.settled().await
        {
            tracing::debug!(%error, "processes are started without their runtime api");
        }
    }

    /// See [`RuntimeApi::close`].
    pub(super) fn close(&self) {
        match self {
            Api::Host(api) => api.close(),
            Api::Guest(api) => api.close(),
        }
    }
}
