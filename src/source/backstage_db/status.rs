//! What the status shows of a catalog.

use std::time::Instant;

use chrono::{TimeDelta, Utc};
use serde_json::json;

use super::position::Way;
use super::session::Session;
use crate::telemetry::ConsumerState;

impl Session<'_> {
    /// Publishes state, details and gauges.
    pub(super) fn publish(&mut self) {
        self.report.commands.set_held_removals(self.held_count());
        self.report.metrics.set_held_removals(self.held.len());
        self.report.metrics.set_rejected(self.ledger.rejected_count());
        self.report.metrics.set_entities(self.ledger.len());
        self.report.detail = self.detail();
        self.report.publish(self.state());
    }

    fn state(&self) -> ConsumerState {
        if self.held_count() > 0 {
            return ConsumerState::RemovalsHeld { count: self.held_count() };
        }
        match &self.position.reconcile {
            Some(progress) if progress.is_gap && progress.sweeping => {
                ConsumerState::Snapshot { progress: format!("{} compared, looking for removals", progress.compared) }
            }
            Some(progress) if progress.is_gap => {
                ConsumerState::Snapshot { progress: format!("{} entities compared", progress.compared) }
            }
            _ => ConsumerState::Running,
        }
    }

    fn detail(&self) -> serde_json::Value {
        let next = TimeDelta::from_std(self.paces.reconcile.due_in(Instant::now())).map(|pause| Utc::now() + pause);
        let mut detail = json!({
            "capture": self.position.way,
            "why": self.choice.why,
            "entities": self.ledger.len(),
            "rejected": self.ledger.rejected_count(),
            "lastLookAt": self.report.last_look,
            "reconcile": self.position.reconcile,
            "lastReconcile": self.position.last_reconcile,
            "nextReconcileAt": next.ok(),
            "heldRemovals": { "count": self.held.len(), "byOrigin": self.held.by_origin() },
        });
        if self.position.way == Way::Generations {
            detail["generation"] = json!(self.position.generation);
            detail["counter"] = json!(self.counter);
            detail["removalPauseSeconds"] = json!(self.paces.count.pause().as_secs_f64());
        }
        detail
    }
}
