use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::context::Context;
use super::settings::Limits;
use super::stall::StallGuard;
use super::{Metrics, Parts, Settings, routes};

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept (no file descriptors): connections in the backlog are then still there.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({setting}): {source}; is another process using it?")]
pub struct ServeError {
    /// The key in the config.
    pub setting: &'static str,
    /// The address.
    pub address: String,
    /// Why.
    pub source: io::Error,
}

/// The listeners, open and not yet served.
pub struct Http {
    context: Arc<Context>,
    readers: TcpListener,
    operators: Option<TcpListener>,
}

impl Http {
    /// Opens the listeners. Requests wait until [`Http::run`].
    pub async fn bind(settings: Settings, parts: Parts) -> Result<Http, ServeError> {
        let readers = listen("http.listen", &settings.listen).await?;
        let operators = match &settings.admin {
            Some(address) => Some(listen("http.admin", address).await?),
            None => None,
        };
        let context = Arc::new(Context::new(settings, parts, CancellationToken::new()));
        Ok(Http { context, readers, operators })
    }

    /// The readers' address, with the port that was taken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.readers.local_addr()
    }

    /// The operator's address.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.operators.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`; then no connection is taken any more, long polls end at once, and requests that are being
    /// answered have `drain` to end. When this returns nothing of it runs.
    pub async fn run(self, shutdown: CancellationToken) {
        let Http { context, readers, operators } = self;
        let mut accepting = JoinSet::new();
        let reader_router = routes::reader_router(&context);
        accepting.spawn(accept(readers, reader_router, context.clone(), shutdown.clone()));
        if let Some(operators) = operators {
            let operator_router = routes::operator_router(&context);
            accepting.spawn(accept(operators, operator_router, context.clone(), shutdown.clone()));
        }
        shutdown.cancelled().await;
        context.closing.cancel();
        while accepting.join_next().await.is_some() {}
    }
}

async fn listen(setting: &'static str, address: &str) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServeError { setting, address: address.to_owned(), source })
}

/// Takes connections until `shutdown`, then waits for them. Dropped, it takes its connections with it.
async fn accept(listener: TcpListener, router: Router, context: Arc<Context>, shutdown: CancellationToken) {
    let limits = context.settings.limits.clone();
    let places = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept_one(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let served = serve_one(stream, router.clone(), limits.clone(), shutdown.clone());
                let open = OpenConnection::new(context.parts.metrics.clone());
                connections.spawn(async move {
                    served.await;
                    drop((place, open));
                });
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        warn!(connections = connections.len(), "requests were still under way when the daemon had to stop");
        connections.shutdown().await;
    }
}

async fn accept_one(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn serve_one(stream: TcpStream, router: Router, limits: Limits, shutdown: CancellationToken) {
    // Replies are written whole; waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(StallGuard::new(stream, limits.stall_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended");
    }
}

struct OpenConnection(Metrics);

impl OpenConnection {
    fn new(metrics: Metrics) -> Self {
        metrics.connections.inc();
        OpenConnection(metrics)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
