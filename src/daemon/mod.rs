//! Puts the rooms together: build, run until told to stop, drained.
//!
//! A remote that is away is never a reason to end: a store that cannot be reached at start is tried again for ever, while the
//! listeners already answer (alive, and not ready). What ends the daemon is a wrong setting or a port that is taken.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use catalog_bridge_api::{SinkName, SourceName};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::metrics::{metrics_page, registry_without_daemon};

use self::metrics::Metrics;
use crate::config::Config;
use crate::http::{Control, ControlError, Http, Listeners, Parts};
use crate::source::{CommandError, Handle, Sources};
use crate::store::{Store, StoreError, Tail};
use crate::telemetry::{self, StatusBoard};
use crate::{delivery, source, store};

/// Longest pause between two attempts to open the store.
const STORE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Pause between two passes of retention.
const RETENTION_INTERVAL: Duration = Duration::from_secs(30);

/// Runs the daemon until `shutdown`; when it returns, nothing of it runs: what was in flight is flushed, checkpoints are saved
/// and leases given up.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let owner = instance_name();
    let mut registry = telemetry::metrics::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let registry = Arc::new(registry.into_registered());
    let listeners = Listeners::bind(&config.http).await?;
    info!(address = %listeners.address()?, admin = ?listeners.admin_address(), "listening");

    let Some(store) = open_store(&config, &metrics, &listeners, &registry, &shutdown).await? else { return Ok(()) };
    let board = StatusBoard::default();
    let tail = Tail::new(Arc::clone(&store), config.store.tail_bytes_max);
    let nudge = delivery::Nudge::new();
    let lease = config.store.lease;
    let sources = Sources::new(
        config.sources,
        source::Settings { owner: owner.clone(), lease },
        Arc::clone(&store),
        board.clone(),
        metrics.source,
    );
    let control =
        Running { sinks: config.sinks.clone(), tail: tail.clone(), handle: sources.handle(), nudge: nudge.clone() };
    let parts =
        Parts { tail: tail.clone(), board: board.clone(), registry, metrics: metrics.http, control: Arc::new(control) };
    let serving = Http::new(listeners, config.http, parts);
    let settings = delivery::Settings { lease, ..delivery::Settings::new(owner) };

    // Readers are served until sources and sinks are drained, so that a load balancer sees the end last.
    let readers = CancellationToken::new();
    let readers_end = readers.clone();
    let working = async {
        tokio::join!(
            sources.run(shutdown.clone()),
            delivery::run(config.sinks, tail.clone(), board, metrics.delivery, nudge, settings, shutdown.clone()),
            shutdown.run_until_cancelled(store::retention::run(store.as_ref(), &config.retention, RETENTION_INTERVAL)),
        );
        readers_end.cancel();
    };
    tokio::join!(working, serving.run(readers));
    info!("stopped");
    Ok(())
}

/// This process, unique per start: where it runs, and something that no other start has.
fn instance_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".to_owned());
    let start = uuid::Uuid::new_v4().simple().to_string();
    format!("{}/{}/{}", host.trim(), std::process::id(), &start[..8])
}

/// Opens the store; while it is away the listeners answer 503. `None`: told to stop meanwhile.
async fn open_store(
    config: &Config,
    metrics: &Metrics,
    listeners: &Listeners,
    registry: &Arc<Registry>,
    shutdown: &CancellationToken,
) -> Result<Option<Arc<dyn Store>>> {
    let mut pause = Duration::from_millis(200);
    let mut why = "it is being opened".to_owned();
    loop {
        let opened = tokio::select! {
            opened = store::open(&config.store, metrics.store.clone()) => opened,
            () = listeners.answer_not_ready(registry, &why) => unreachable!("it answers until it is dropped"),
            () = shutdown.cancelled() => return Ok(None),
        };
        let error = match opened {
            Ok(store) => return Ok(Some(store)),
            Err(error @ StoreError::Unavailable { .. }) => error,
            Err(error) => return Err(error).context("opening the log"),
        };
        warn!(%error, retry_in = ?pause, "the log cannot be reached; it is tried again");
        why = error.to_string();
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
            () = listeners.answer_not_ready(registry, &why) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
        pause = (pause * 2).min(STORE_PAUSE_MAX);
    }
}

/// What the operator's routes reach.
struct Running {
    sinks: Vec<delivery::Sink>,
    tail: Tail,
    handle: Handle,
    nudge: delivery::Nudge,
}

#[async_trait]
impl Control for Running {
    async fn preview(&self, sink: &SinkName, limit: usize) -> Result<Value, ControlError> {
        let Some(sink) = self.sinks.iter().find(|known| known.name == *sink) else {
            return Err(ControlError::NotFound(format!("there is no sink \"{sink}\" in the config")));
        };
        delivery::preview(sink, &self.tail, limit).await.map_err(|error| match error {
            StoreError::Expired { .. } => ControlError::Refused(error.to_string()),
            other => ControlError::Unavailable(other.to_string()),
        })
    }

    async fn reconcile(&self, source: &SourceName, confirm: bool) -> Result<Value, ControlError> {
        let begun = if confirm {
            self.handle.confirm_removals(source.as_str()).map(|count| json!({ "confirmedRemovals": count }))
        } else {
            self.handle.reconcile(source.as_str()).map(|()| json!({ "begun": true }))
        };
        begun.map_err(|error| match error {
            CommandError::Unknown { .. } => ControlError::NotFound(error.to_string()),
            other => ControlError::Refused(other.to_string()),
        })
    }

    fn commanded(&self) {
        self.nudge.ring();
    }
}
