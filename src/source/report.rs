//! Tells how a source goes: one place that fills the status board.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::handle::Commands;
use super::metrics::SourceMetrics;
use crate::store::ConsumerKind;
use crate::telemetry::{ConsumerState, ConsumerStatus, StatusBoard};

/// Publishes the states of one source. Details outlive a change of state, so that a source in trouble still shows what it
/// knew last.
pub(super) struct Report {
    pub(super) board: StatusBoard,
    pub(super) name: String,
    pub(super) protocol: &'static str,
    pub(super) metrics: SourceMetrics,
    pub(super) commands: Arc<Commands>,
    /// Shown with every state.
    pub(super) detail: Value,
    /// When the source last saw everything there was.
    pub(super) last_look: Option<DateTime<Utc>>,
}

impl Report {
    pub(super) fn publish(&self, state: ConsumerState) {
        let help = self.help(&state);
        let status = ConsumerStatus {
            state,
            protocol: self.protocol.to_owned(),
            checkpoint: None,
            lag_events: None,
            lag_seconds: self.last_look.and_then(|last| u64::try_from((Utc::now() - last).num_seconds().max(0)).ok()),
            detail: self.detail.clone(),
            help,
        };
        self.board.publish(ConsumerKind::Source, &self.name, status);
    }

    fn help(&self, state: &ConsumerState) -> Vec<String> {
        match state {
            ConsumerState::RemovalsHeld { .. } => {
                vec![format!("catalog-bridge source reconcile {} --confirm", self.name)]
            }
            ConsumerState::Misconfigured { .. } if self.protocol == "backstage-db" => {
                vec!["catalog-bridge check".to_owned(), "catalog-bridge source grants --print".to_owned()]
            }
            ConsumerState::Misconfigured { .. } => vec!["catalog-bridge check".to_owned()],
            _ => Vec::new(),
        }
    }
}
