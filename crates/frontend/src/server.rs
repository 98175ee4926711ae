//! The HTTP server: accepts connections, gives each request to the dispatcher, and stops without cutting answers off.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_model::ApiError;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::Deps;
use crate::app::App;
use crate::local;
use crate::reply::{INTERNAL_ERROR, REQUEST_ID, Reply, api_error, request_id};

/// How long a connection may take to send the head of a request, idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Read buffer of a connection, which also bounds the head of a request. In bytes.
const MAX_BUFFER: usize = 256 * 1024;

/// Pause after an error of `accept` that only time can mend, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How the frontend listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where to listen. Port 0 takes any free one, see [`Frontend::local_addr`].
    pub listen: SocketAddr,
    /// Where to answer `GET /metrics`, and nothing else, without asking who it is.
    pub metrics: Option<SocketAddr>,
    /// After the shutdown signal, how long requests in flight may go on. Default: 15 s.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9000)), metrics: None, drain: Duration::from_secs(15) }
    }
}

/// A bound server that does not accept yet.
pub struct Frontend {
    listener: TcpListener,
    metrics: Option<TcpListener>,
    drain: Duration,
    app: Arc<App>,
}

impl Frontend {
    /// Binds the address.
    ///
    /// # Errors
    /// What the system says, most often that the address is in use.
    pub async fn bind(options: Options, deps: Deps) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let metrics = match options.metrics {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        Ok(Self { listener, metrics, drain: options.drain, app: Arc::new(App::new(deps)) })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// What the system says; it knows no reason to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves, then lets requests in flight end for [`Options::drain`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, metrics, drain, app } = self;
        app.resume();
        // Every connection holds a clone; receiving fails once the last one is gone.
        let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);
        let refresh = tokio::spawn({
            let app = Arc::clone(&app);
            async move {
                if let Some(auth) = &app.auth {
                    auth.refresh().await;
                }
            }
        });
        let figures = metrics.map(|listener| {
            let (app, alive) = (Arc::clone(&app), alive.clone());
            tokio::spawn(async move {
                loop {
                    let stream = accept(&listener).await;
                    tokio::spawn(connection(stream, Arc::clone(&app), Door::Metrics, alive.clone()));
                }
            })
        });
        let mut shutdown = pin!(shutdown);
        loop {
            let stream = tokio::select! {
                () = &mut shutdown => break,
                stream = accept(&listener) => stream,
            };
            tokio::spawn(connection(stream, Arc::clone(&app), Door::Everything, alive.clone()));
        }
        refresh.abort();
        if let Some(figures) = figures {
            figures.abort();
            // Its clone of `alive` goes with it.
            let _ = figures.await;
        }
        drop(listener);
        drop(alive);
        app.stop();
        if tokio::time::timeout(drain, all_gone.recv()).await.is_err() {
            tracing::warn!("requests still in flight are cut off");
        }
    }
}

/// What is answered behind a listening address.
#[derive(Debug, Clone, Copy)]
enum Door {
    Everything,
    Metrics,
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, app: Arc<App>, door: Door, _alive: mpsc::Sender<Infallible>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let stopping = app.stopping();
    let service = service_fn(move |request| answer(Arc::clone(&app), door, request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = stopping => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Answers one request; a bug in a handler costs that request only.
async fn answer(app: Arc<App>, door: Door, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let id = request_id();
    if let Door::Metrics = door {
        return Ok(local::only_metrics(&app, &request));
    }
    let mut reply = match Caught(pin!(app.dispatch(request, &id))).await {
        Some(reply) => reply,
        None => api_error(&ApiError::service(INTERNAL_ERROR)),
    };
    if !reply.headers().contains_key(REQUEST_ID)
        && let Ok(value) = HeaderValue::try_from(id)
    {
        reply.headers_mut().insert(REQUEST_ID, value);
    }
    Ok(reply)
}

/// Resolves to `None` when the future panics. It is not polled again, so a broken state is never seen.
struct Caught<'a, F>(Pin<&'a mut F>);

impl<F: Future> Future for Caught<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_caught() {
        let mut panics = pin!(async {
            tokio::task::yield_now().await;
            assert_eq!(1, 2, "on purpose");
        });
        assert_eq!(Caught(panics.as_mut()).await, None);
        let mut fine = pin!(async { 7 });
        assert_eq!(Caught(fine.as_mut()).await, Some(7));
    }
}
