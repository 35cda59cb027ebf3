//! Drives the sinks: one worker per sink reads the log, offers messages to its connector and moves the checkpoint.
//!
//! Invariants: P5 (first deliveries in offset order per entity or over all; the checkpoint is the end of the acknowledged
//! prefix), P6 (after a crash at most the window and what was acknowledged since the last checkpoint is repeated, with
//! identical ids and bytes), P7 (a sink's trouble, a panic included, stays in its worker), P8 (a refused event blocks the
//! sink or is skipped with a record, never dropped), P9 (nothing is offered without the lease; checkpoints are saved by
//! compare-and-set on epoch and generation). Knows nothing of any broker's protocol, of SQL or of HTTP.

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{Connector, Encoding, Event, Ordering, SinkName};
use tokio::sync::watch;

use crate::store::{LogEntry, Start};

/// One configured sink, resolved: defaults filled, secrets at hand, the connector built.
#[derive(Clone)]
pub struct Sink {
    /// Its name in the config.
    pub name: SinkName,
    /// The connector's kind, such as `kafka`.
    pub protocol: &'static str,
    /// Built once; dials nothing before it is asked.
    pub connector: Arc<dyn Connector>,
    /// Filter and `changes`.
    pub view: Arc<dyn View>,
    /// Paths that are left out of entities, such as `spec.definition`.
    pub omit: Vec<String>,
    /// Where it begins when it is new.
    pub start: Start,
    /// How events become messages.
    pub encoding: Encoding,
    /// The order to keep.
    pub ordering: Ordering,
    /// What happens to an event that the destination refuses for good.
    pub on_refused: OnRefused,
    /// What happens when retention passed its checkpoint.
    pub on_expired: OnExpired,
    /// `http.public_url`, the beginning of references to oversize events; without it references are relative.
    pub public_url: Option<String>,
    /// `http.base_path`, such as `/api/catalog`.
    pub base_path: String,
}

/// What a sink sees of the log.
pub trait View: Send + Sync {
    /// The event as this view shows it, or `None` when it does not.
    fn see(&self, entry: &LogEntry) -> Option<Event>;

    /// Filter and `changes` in one canonical text: part of the sink's fingerprint.
    fn describe(&self) -> String;
}

/// What happens to an event that a destination refuses for good (promise P8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnRefused {
    /// The sink stops before it and says so; `sinks skip` leads on.
    #[default]
    Block,
    /// It is recorded as skipped and the sink goes on.
    Skip,
}

/// What happens to a sink that retention passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExpired {
    /// It waits for `sinks rewind --to snapshot`.
    #[default]
    Wait,
    /// It starts again by a walk over the live state, by itself.
    Snapshot,
}

/// What all workers share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This process, unique per start (`host/pid/random`).
    pub owner: String,
    /// How long a lease lasts; it is renewed at a third.
    pub lease: Duration,
    /// How long a stopping session may flush what is in flight.
    pub drain: Duration,
}

impl Settings {
    /// The defaults for this owner: leases of 15 s, 10 s to drain.
    pub fn new(owner: impl Into<String>) -> Self {
        Settings { owner: owner.into(), lease: Duration::from_secs(15), drain: Duration::from_secs(10) }
    }
}

/// Tells the workers that an operator's command was stored, so that it takes effect now rather than at the next renewal.
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nudge {
    sender: watch::Sender<u64>,
}

impl Nudge {
    /// A bell that nobody hears yet.
    pub fn new() -> Self {
        Nudge { sender: watch::Sender::new(0) }
    }

    /// Every worker looks at its row again.
    pub fn ring(&self) {
        self.sender.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Hears every ring from now on.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.sender.subscribe()
    }
}

impl Default for Nudge {
    fn default() -> Self {
        Nudge::new()
    }
}
