//! Drives the sinks: one worker per sink reads the log, offers messages to its connector and moves the checkpoint.
//!
//! Invariants: P5 (first deliveries in offset order per entity or over all; the checkpoint is the end of the acknowledged
//! prefix), P6 (after a crash at most the window and what was acknowledged since the last checkpoint is repeated, with
//! identical ids and bytes), P7 (a sink's trouble, a panic included, stays in its worker), P8 (a refused event blocks the
//! sink or is skipped with a record, never dropped), P9 (nothing is offered without the lease; checkpoints are saved by
//! compare-and-set on epoch and generation). Knows nothing of any broker's protocol, of SQL or of HTTP.

mod checkpoint;
mod driver;
mod key_gate;
mod lease;
mod metrics;
mod preview;
mod reader;
mod report;
mod retry;
mod session;
mod window;

use std::sync::Arc;
use std::time::Duration;

use catalog_bridge_api::{Connector, Encoder, EncoderSettings, Encoding, Ordering, SinkName};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::metrics::Metrics;
pub use self::preview::preview;
use crate::filter::View;
use crate::store::{Start, Tail};
use crate::telemetry::StatusBoard;

/// Delivers to all sinks until `shutdown`; returns when every worker has flushed, saved its checkpoint and given its lease up.
/// A sink's trouble, a panic included, stays in its worker (P7). Dropping the future stops everything at once.
pub async fn run(
    sinks: Vec<Sink>,
    tail: Tail,
    board: StatusBoard,
    metrics: Metrics,
    nudge: Nudge,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let mut workers = tokio::task::JoinSet::new();
    for sink in sinks {
        let worker = driver::Worker {
            sink,
            tail: tail.clone(),
            board: board.clone(),
            metrics: metrics.clone(),
            nudge: nudge.clone(),
            settings: settings.clone(),
            shutdown: shutdown.clone(),
        };
        workers.spawn(driver::supervise(worker));
    }
    while workers.join_next().await.is_some() {}
}

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
    pub view: View,
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
    /// What happens to an event that is larger than the destination takes.
    pub on_oversize: OnOversize,
    /// What happens when retention passed its checkpoint.
    pub on_expired: OnExpired,
    /// `http.public_url`, the beginning of references to oversize events; without it references are relative.
    pub public_url: Option<String>,
    /// `http.base_path`, such as `/api/catalog`.
    pub base_path: String,
}

impl Sink {
    /// What makes messages of this sink's events.
    pub fn encoder(&self, log_id: Uuid, generation: u64) -> Encoder {
        Encoder::new(EncoderSettings {
            encoding: self.encoding,
            log_id,
            generation,
            omit: self.omit.clone(),
            message_bytes_max: self.connector.limits().message_bytes_max,
            reference_base: self.reference_base(),
        })
    }

    /// Everything that decides which bytes go where, hashed: who claims with another one gets a new generation.
    pub fn fingerprint(&self) -> String {
        let limit = self.connector.limits().message_bytes_max;
        let parts = [
            self.view.describe(),
            self.omit.join("\n"),
            format!("{:?} {limit:?} {:?}", self.encoding, self.on_oversize),
            self.reference_base(),
            self.connector.destination(),
        ];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn reference_base(&self) -> String {
        let public_url = self.public_url.as_deref().unwrap_or_default();
        format!("{}{}", public_url.trim_end_matches('/'), self.base_path)
    }
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

/// What happens to an event that is larger than the destination takes (promise P8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnOversize {
    /// It goes as a reference to the REST endpoint, without the entity.
    #[default]
    Reference,
    /// It is refused: `on_refused` decides.
    Refuse,
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

#[cfg(test)]
mod tests;
