//! Serves the event log by HTTP: events with long polls, exact snapshots, ingest, and on a listener of its own the
//! operator's commands.
//!
//! Invariants: P1 (a reply never tells a head below what it serves, and never mixes two log ids), P4 (the pages of one
//! walk are the state at its offset; a filter is a view), P7 (a slow or greedy reader costs bounded memory and no query
//! while it waits). Replies are built from the stored texts. Knows nothing of SQL, of brokers or of how a source works;
//! what it must ask of the running daemon goes through [`Control`].

mod admin;
mod auth;
mod context;
mod cursor;
mod entities;
mod events;
mod health;
mod ingest;
mod listeners;
mod metrics;
mod openapi;
mod problem;
mod query;
mod reply;
mod routes;
mod server;
mod settings;
mod stall;

use std::sync::Arc;

use async_trait::async_trait;
use catalog_bridge_api::{SinkName, SourceName};
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::store::Tail;
use crate::telemetry::StatusBoard;

pub use listeners::{Listeners, ServeError, answer_without_daemon};
pub use metrics::Metrics;
pub use openapi::document as openapi_document;
pub use problem::{Kind as ProblemKind, Problem};
pub use server::Http;
pub use settings::{Auth, BasePath, InvalidBasePath, Limits, Scope, Settings, Token};

/// What the running daemon does for the operator's routes.
#[async_trait]
pub trait Control: Send + Sync {
    /// The next messages that this sink would send, encoded as it sends them, at most `limit`; touches nothing.
    async fn preview(&self, sink: &SinkName, limit: usize) -> Result<Value, ControlError>;

    /// Has the source compare the catalog with the log now; `confirm` also lets held removals go. Answers what was begun.
    async fn reconcile(&self, source: &SourceName, confirm: bool) -> Result<Value, ControlError>;

    /// A sink's command was stored: its worker, if it is ours, looks at it now.
    fn commanded(&self);
}

/// Why the daemon did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no such source or sink, or it cannot do this at all.
    #[error("{0}")]
    NotFound(String),
    /// Not in this state, or not on this replica; the text says where or when.
    #[error("{0}")]
    Refused(String),
    /// Something remote is away: try again.
    #[error("{0}")]
    Unavailable(String),
}

/// What is served.
#[derive(Clone)]
pub struct Parts {
    /// The log.
    pub tail: Tail,
    /// The states of this process's sources and sinks.
    pub board: StatusBoard,
    /// Everything that `/metrics` shows.
    pub registry: Arc<Registry>,
    /// Our own part of it.
    pub metrics: Metrics,
    /// The running daemon.
    pub control: Arc<dyn Control>,
}

#[cfg(test)]
mod tests;
