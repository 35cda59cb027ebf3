//! Tells how a sink does: the status board, the row for other replicas, and the gauges.

use std::time::Duration;

use catalog_bridge_api::{JsonText, Offset, SinkName};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::{SinkMetrics, name_of};
use crate::store::ConsumerKind;
use crate::telemetry::{ConsumerState, ConsumerStatus, StatusBoard};

/// How often figures alone are published to the row.
const ROW_INTERVAL: Duration = Duration::from_secs(5);

/// Where a sink stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) checkpoint: Offset,
    pub(super) head: Offset,
    pub(super) in_flight: usize,
    pub(super) generation: u64,
    /// When the oldest event that is not acknowledged was appended.
    pub(super) behind_since: Option<DateTime<Utc>>,
}

/// What a destination lost last, for as long as this process owns the sink.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct TailLoss {
    at: DateTime<Utc>,
    checkpoint: Offset,
    kept: Offset,
}

/// Publishes one sink's state.
#[derive(Debug)]
pub(super) struct Reporter {
    sink: SinkName,
    protocol: &'static str,
    board: StatusBoard,
    pub(super) metrics: SinkMetrics,
    state: ConsumerState,
    figures: Figures,
    tail_loss: Option<TailLoss>,
    row: watch::Sender<Option<JsonText>>,
    row_written: Instant,
}

impl Reporter {
    pub(super) fn new(sink: SinkName, protocol: &'static str, board: StatusBoard, metrics: SinkMetrics) -> Self {
        let mut reporter = Reporter {
            sink,
            protocol,
            board,
            metrics,
            state: ConsumerState::Starting,
            figures: Figures::default(),
            tail_loss: None,
            row: watch::Sender::new(None),
            row_written: Instant::now(),
        };
        reporter.publish(true);
        reporter
    }

    /// What the row should show, for the lease's keeper.
    pub(super) fn row(&self) -> watch::Receiver<Option<JsonText>> {
        self.row.subscribe()
    }

    pub(super) fn state(&self) -> &ConsumerState {
        &self.state
    }

    /// Shows a state; a change of it is logged once.
    pub(super) fn show(&mut self, state: ConsumerState) {
        if state == self.state {
            return;
        }
        if name_of(&state) != name_of(&self.state) {
            self.log(&state);
        }
        self.state = state;
        self.publish(true);
    }

    /// Shows where the sink stands.
    pub(super) fn measure(&mut self, figures: Figures) {
        self.figures = figures;
        self.publish(self.row_written.elapsed() >= ROW_INTERVAL);
    }

    /// Shows that the destination lost what it had acknowledged between `kept` and the checkpoint.
    pub(super) fn tail_lost(&mut self, checkpoint: Offset, kept: Offset) {
        self.metrics.tail_losses.inc();
        self.tail_loss = Some(TailLoss { at: Utc::now(), checkpoint, kept });
        self.figures.checkpoint = kept;
        self.publish(true);
    }

    fn log(&self, state: &ConsumerState) {
        let sink = self.sink.as_str();
        match state {
            ConsumerState::Starting
            | ConsumerState::Running
            | ConsumerState::Paused
            | ConsumerState::Snapshot { .. } => {
                tracing::info!(sink, state = name_of(state), "delivery changed its state");
            }
            ConsumerState::Standby { owner } => tracing::info!(sink, owner, "another replica owns the sink"),
            ConsumerState::Retrying { error, .. } => tracing::warn!(sink, error, "delivery is retrying"),
            ConsumerState::Stalled { reason, .. } => tracing::warn!(sink, reason, "the destination accepts nothing"),
            ConsumerState::StoreAway { error } => tracing::warn!(sink, error, "the store is away"),
            ConsumerState::Blocked { offset, entity_ref, reason } => {
                tracing::error!(sink, %offset, %entity_ref, reason, help = ?self.help(state), "delivery is blocked");
            }
            ConsumerState::Misconfigured { reason } => tracing::error!(sink, reason, "the sink is misconfigured"),
            ConsumerState::Diverged { reason } => {
                tracing::error!(sink, reason, help = ?self.help(state), "the destination has diverged");
            }
            ConsumerState::Expired | ConsumerState::RemovalsHeld { .. } => {
                tracing::error!(sink, help = ?self.help(state), "retention passed the sink's checkpoint");
            }
        }
    }

    fn publish(&mut self, also_row: bool) {
        let Figures { checkpoint, head, in_flight, generation, behind_since } = self.figures;
        let lag_events = head.get().saturating_sub(checkpoint.get());
        let lag_seconds = behind_since.filter(|_| lag_events > 0).map_or(0, |since| seconds_since(since, Utc::now()));
        self.metrics.checkpoint.set(checkpoint.get().try_into().unwrap_or(i64::MAX));
        self.metrics.lag_events.set(lag_events.try_into().unwrap_or(i64::MAX));
        self.metrics.lag_seconds.set(lag_seconds.try_into().unwrap_or(i64::MAX));
        self.metrics.in_flight.set(in_flight.try_into().unwrap_or(i64::MAX));
        self.metrics.show(&self.state);
        let is_owner = !matches!(self.state, ConsumerState::Standby { .. } | ConsumerState::Starting);
        let mut detail = json!(null);
        if is_owner {
            detail = json!({ "inFlight": in_flight, "generation": generation });
            if let Some(loss) = self.tail_loss {
                detail["tailLost"] = json!(loss);
            }
        }
        let status = ConsumerStatus {
            state: self.state.clone(),
            protocol: self.protocol.to_owned(),
            checkpoint: is_owner.then_some(checkpoint),
            lag_events: is_owner.then_some(lag_events),
            lag_seconds: is_owner.then_some(lag_seconds),
            detail,
            help: self.help(&self.state),
        };
        if also_row && is_owner {
            self.row_written = Instant::now();
            let text = serde_json::to_string(&status).expect("a status is plain data");
            self.row.send_replace(Some(JsonText::from_trusted(text)));
        }
        self.board.publish(ConsumerKind::Sink, self.sink.as_str(), status);
    }

    /// The commands that lead out of a state.
    fn help(&self, state: &ConsumerState) -> Vec<String> {
        let sink = &self.sink;
        match state {
            ConsumerState::Paused => vec![format!("catalog-bridge sinks resume {sink}")],
            ConsumerState::Blocked { offset, .. } => vec![
                format!("catalog-bridge sinks skip {sink} {offset}"),
                format!("catalog-bridge sinks resume {sink}"),
            ],
            ConsumerState::Diverged { .. } => vec![
                format!("catalog-bridge sinks resume {sink}"),
                format!("catalog-bridge sinks rewind {sink} --to snapshot"),
            ],
            ConsumerState::Expired => vec![format!("catalog-bridge sinks rewind {sink} --to snapshot")],
            ConsumerState::Misconfigured { .. } => vec!["catalog-bridge check".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// Clocks of the store and of this machine may differ: never negative.
pub(super) fn seconds_since(since: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    u64::try_from((now - since).num_seconds()).unwrap_or(0)
}
