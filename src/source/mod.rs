//! Where changes come from: Backstage's database, files, HTTP ingest.
//!
//! Invariants: P3 (nothing that the catalog committed is missed), P9 (one owner per source, its appends carry the epoch),
//! P10 (the catalog does not feel it). A source states "this entity is now so" or "this ref is gone"; the log decides what
//! that means. One loop per source: incremental capture, sweep and reconcile are steps of that loop, never concurrent.
//! Knows nothing of HTTP, sinks and brokers.

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::SourceName;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use crate::telemetry::StatusBoard;

pub mod backstage_db;
pub mod entity;
pub mod files;
mod handle;
mod metrics;
mod owner;
mod report;
mod runner;
#[cfg(test)]
mod testing;

pub use entity::{EntityError, ParsedEntity, parse_entity};
pub use handle::{CommandError, Handle};
pub use metrics::Metrics;

/// One configured source.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name in the config; refs belong to it by this name.
    pub name: SourceName,
    /// What it reads.
    pub kind: SourceKind,
}

/// The kinds of sources, with their resolved settings.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// Backstage's catalog database, read-only.
    BackstageDb(backstage_db::Settings),
    /// A directory of `catalog-info.yaml` files.
    Files(files::Settings),
    /// `POST …/sources/{source}/changes`: the route is in `http`, which appends by itself; here it is only a name.
    Ingest,
}

impl SourceKind {
    /// The key that chooses it in the config.
    pub const fn protocol(&self) -> &'static str {
        match self {
            SourceKind::BackstageDb(_) => "backstage-db",
            SourceKind::Files(_) => "files",
            SourceKind::Ingest => "ingest",
        }
    }
}

/// What all sources of a process share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This process, unique per start; shown as the owner of leases.
    pub owner: String,
    /// How long a lease lasts without renewal.
    pub lease: Duration,
}

/// The sources of one process, not yet running.
pub struct Sources {
    sources: Vec<Source>,
    settings: Settings,
    store: Arc<dyn Store>,
    board: StatusBoard,
    metrics: Metrics,
    handle: Handle,
}

impl Sources {
    /// Puts them together; nothing runs yet.
    pub fn new(
        sources: Vec<Source>,
        settings: Settings,
        store: Arc<dyn Store>,
        board: StatusBoard,
        metrics: Metrics,
    ) -> Self {
        let handle = Handle::new(&sources);
        Sources { sources, settings, store, board, metrics, handle }
    }

    /// For commands (`source reconcile`, `--confirm`).
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs all sources until `shutdown`; then gives the leases up and returns. Nothing of it runs afterwards.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        for source in self.sources {
            let Some(commands) = self.handle.commands(&source.name) else { continue };
            let runner = runner::Runner {
                settings: self.settings.clone(),
                store: Arc::clone(&self.store),
                board: self.board.clone(),
                metrics: self.metrics.clone(),
                commands,
                source,
            };
            tasks.spawn(runner.run(shutdown.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(error = %error, "a source's task ended by a panic; restart catalog-bridge and report it");
            }
        }
    }
}
