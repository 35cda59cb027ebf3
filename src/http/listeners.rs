use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::health;
use super::problem::{Kind, Problem};
use super::{Settings, server};

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

/// The listeners, open from the start of the process to its end.
pub struct Listeners {
    pub(super) readers: TcpListener,
    pub(super) operators: Option<TcpListener>,
    limits: super::Limits,
}

impl Listeners {
    /// Opens them. Requests wait until [`super::Http::run`] or [`Listeners::answer_not_ready`].
    pub async fn bind(settings: &Settings) -> Result<Listeners, ServeError> {
        let readers = listen("http.listen", &settings.listen).await?;
        let operators = match &settings.admin {
            Some(address) => Some(listen("http.admin", address).await?),
            None => None,
        };
        Ok(Listeners { readers, operators, limits: settings.limits.clone() })
    }

    /// The readers' address, with the port that was taken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.readers.local_addr()
    }

    /// The operator's address.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.operators.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Answers while there is no log yet: alive, metrics, and 503 with `Retry-After` to everything else; operators are told
    /// why. Goes on until it is dropped; then its connections are closed, and what connects afterwards waits for who serves
    /// next.
    pub async fn answer_not_ready(&self, registry: &Arc<Registry>, why: &str) {
        let serve = |listener, detail: String| {
            server::accept(listener, early(registry, detail, 1), &self.limits, None, CancellationToken::new())
        };
        let not_yet = "the event log cannot be reached yet";
        let readers = serve(&self.readers, not_yet.to_owned());
        match &self.operators {
            Some(operators) => drop(tokio::join!(readers, serve(operators, format!("{not_yet}: {why}")))),
            None => drop(readers.await),
        }
    }
}

/// Answers while no daemon runs, in a pod that must stay ready: alive, metrics, and 503 to everything else. Why it does not run is
/// for the log alone, as anybody may ask here. Goes on until it is dropped.
pub async fn answer_without_daemon(address: SocketAddr, registry: &Arc<Registry>) {
    match TcpListener::bind(address).await {
        Ok(listener) => {
            let router = early(registry, "the daemon cannot run; its log says why".to_owned(), 60);
            server::accept(&listener, router, &super::Limits::default(), None, CancellationToken::new()).await;
        }
        Err(error) => {
            tracing::warn!(%address, %error, "probes cannot be answered");
            std::future::pending::<()>().await;
        }
    }
}

/// What is answered before there is a log: alive, metrics, and 503 with this detail to everything else.
fn early(registry: &Arc<Registry>, detail: String, retry_after_seconds: u32) -> Router {
    let refusal = move || Problem::new(Kind::StoreUnavailable, detail.clone()).retry_after(retry_after_seconds);
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/metrics", get(health::early_metrics))
        .with_state(Arc::clone(registry))
        .fallback(move || std::future::ready(refusal()))
}

async fn listen(setting: &'static str, address: &str) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServeError { setting, address: address.to_owned(), source })
}
