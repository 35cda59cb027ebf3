//! What the status shows of a catalog.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
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
        self.report.metrics.set_capture(self.position.way.name());
        self.report.metrics.set_reconciles(
            self.position.last_reconcile.as_ref().map(|last| last.ended_at.timestamp()),
            self.next_reconcile().map(|next| next.timestamp()),
        );
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

    /// `capturedThrough`: everything that was committed up to there is in the log. A way of capture that keeps an outbox
    /// adds `outbox` with `rows`, `bytes` and `oldestAt`.
    fn detail(&self) -> serde_json::Value {
        let mut detail = json!({
            "capture": self.position.way,
            "why": self.choice.why,
            "capturedThrough": { "at": self.report.last_look },
            "entities": self.ledger.len(),
            "rejected": self.ledger.rejected_count(),
            "reconcile": self.position.reconcile,
            "lastReconcile": self.position.last_reconcile,
            "nextReconcileAt": self.next_reconcile(),
            "gaps": self.position.gaps,
            "heldRemovals": { "count": self.held.len(), "byOrigin": self.held.by_origin() },
        });
        if let Some(drain) = &self.position.drain {
            detail["outbox"] = json!(self.reading.size);
            detail["capturedThrough"]["snapshot"] = json!(drain.from);
        }
        if self.position.way == Way::Generations {
            detail["capturedThrough"]["generation"] = json!(self.position.generation);
            detail["lagChanges"] = json!(self.counter - self.position.generation);
            detail["removalPauseSeconds"] = json!(self.paces.count.pause().as_secs_f64());
        }
        detail
    }

    fn next_reconcile(&self) -> Option<DateTime<Utc>> {
        let pause = TimeDelta::from_std(self.paces.reconcile.due_in(Instant::now())).ok()?;
        Some(Utc::now() + pause)
    }
}
