use std::io;
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
use super::{Listeners, Metrics, Parts, Settings, routes};

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept (no file descriptors): connections in the backlog are then still there.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The routes on their listeners, not yet served.
pub struct Http {
    context: Arc<Context>,
    listeners: Listeners,
}

impl Http {
    /// Puts routes and listeners together.
    pub fn new(listeners: Listeners, settings: Settings, parts: Parts) -> Http {
        Http { context: Arc::new(Context::new(settings, parts, CancellationToken::new())), listeners }
    }

    /// Serves until `shutdown`; then no connection is taken any more, long polls end at once, and requests that are being
    /// answered have `drain` to end. When this returns nothing of it runs.
    pub async fn run(self, shutdown: CancellationToken) {
        let Http { context, listeners: Listeners { readers, operators, .. } } = self;
        let mut accepting = JoinSet::new();
        let router = routes::reader_router(&context, is_loopback(&readers));
        accepting.spawn(serve(readers, router, context.clone(), shutdown.clone()));
        if let Some(operators) = operators {
            let router = routes::operator_router(&context, is_loopback(&operators));
            accepting.spawn(serve(operators, router, context.clone(), shutdown.clone()));
        }
        shutdown.cancelled().await;
        context.closing.cancel();
        while accepting.join_next().await.is_some() {}
    }
}

fn is_loopback(listener: &TcpListener) -> bool {
    listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
}

/// Takes connections until `shutdown`, then waits for them. Dropped, it takes its connections with it.
async fn serve(listener: TcpListener, router: Router, context: Arc<Context>, shutdown: CancellationToken) {
    let limits = &context.settings.limits;
    let mut connections = accept(&listener, router, limits, Some(&context.parts.metrics), shutdown).await;
    drop(listener);
    let drained = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        warn!(connections = connections.len(), "requests were still under way when the daemon had to stop");
        connections.shutdown().await;
    }
}

/// Takes connections until `shutdown`; returns those that are still open. Dropped, it takes its connections with it.
pub(super) async fn accept(
    listener: &TcpListener,
    router: Router,
    limits: &Limits,
    metrics: Option<&Metrics>,
    shutdown: CancellationToken,
) -> JoinSet<()> {
    let places = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return connections,
            Some(_) = connections.join_next() => continue,
            accepted = accept_one(listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let served = serve_one(stream, router.clone(), limits.clone(), shutdown.clone());
                let open = metrics.cloned().map(OpenConnection::new);
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
