//! Compares everything that the catalog holds with what the log holds, and repairs the difference.
//!
//! Bounded memory: by key range, one short statement each. The progress is part of the position, so a restart goes on where
//! it was. The positions of what the log holds are not compared: after a restore they mean nothing. Beside generations, rows
//! that are numbered after the last page are left to the next one, so that changes keep the order of their commits.

use std::time::{Duration, Instant};

use catalog_bridge_api::Cause;
use chrono::Utc;
use tracing::{debug, info};

use super::position::{Outcome, Progress};
use super::session::Session;
use crate::source::owner::SourceError;

impl Session<'_> {
    /// Begins one; one under way that was begun for a graver reason goes on. True when it was begun.
    pub(super) fn begin_reconcile(&mut self, reason: &str, is_gap: bool) -> bool {
        if self.position.reconcile.as_ref().is_some_and(|progress| progress.is_gap || !is_gap) {
            return false;
        }
        if is_gap {
            self.note_gap(reason);
        }
        self.position.reconcile = Some(Progress::begin(reason, is_gap));
        true
    }

    /// Counts and tells a sign that something may have been missed.
    pub(super) fn note_gap(&mut self, reason: &str) {
        self.report.metrics.count_gap();
        self.position.gaps.note(reason);
        info!(source = self.report.name, reason, "everything is compared before the source counts as caught up");
    }

    /// Begins the scheduled one when it is due, and goes on with the one under way. False when there is none.
    pub(super) async fn step_due_reconcile(&mut self) -> Result<bool, SourceError> {
        if self.paces.reconcile.is_due(Instant::now()) {
            self.begin_reconcile("scheduled", false);
            self.paces.reconcile.done(Duration::ZERO, Instant::now());
        }
        if self.position.reconcile.is_none() {
            return Ok(false);
        }
        self.step_reconcile().await?;
        self.publish();
        Ok(true)
    }

    /// One step of the reconcile under way.
    pub(super) async fn step_reconcile(&mut self) -> Result<(), SourceError> {
        let Some(progress) = &self.position.reconcile else { return Ok(()) };
        if progress.sweeping {
            let removed = self.sweep().await?;
            return self.end_reconcile(removed).await;
        }
        let after = progress.after.clone();
        let limit = i64::from(self.settings.page_rows);
        let keys = self.catalog.keys(after.as_deref(), self.position.generation, limit).await?;
        let differing = self.differing(&keys).await?;
        let repaired = self.repair(differing, Cause::Reconcile).await?;
        if let Some(progress) = &mut self.position.reconcile {
            progress.compared += keys.len() as u64;
            progress.repaired += repaired;
            progress.sweeping = (keys.len() as i64) < limit;
            progress.after = keys.last().map(|key| key.entity_ref.clone()).or(after);
        }
        let position = self.position.to_json()?;
        self.owner.save_position(position).await
    }

    async fn end_reconcile(&mut self, removed: u64) -> Result<(), SourceError> {
        let Some(progress) = self.position.reconcile.take() else { return Ok(()) };
        let outcome = Outcome {
            reason: progress.reason,
            started_at: progress.started_at,
            ended_at: Utc::now(),
            compared: progress.compared,
            repaired: progress.repaired + removed,
        };
        // What a first start adds is no repair.
        if outcome.reason != super::FIRST_START {
            self.report.metrics.count_repairs(outcome.repaired);
        }
        if progress.is_gap || outcome.repaired > 0 {
            info!(
                source = self.report.name,
                reason = outcome.reason,
                compared = outcome.compared,
                repaired = outcome.repaired,
                "a reconcile ended"
            );
        } else {
            debug!(source = self.report.name, compared = outcome.compared, "a reconcile ended");
        }
        self.position.last_reconcile = Some(outcome);
        let position = self.position.to_json()?;
        self.owner.save_position(position).await
    }

    /// Where reconcile is the only way: one whole reconcile, then a pause that keeps it below 1 % of a core.
    pub(super) async fn step_by_reconcile(&mut self) -> Result<(), SourceError> {
        self.catalog.take_spent();
        self.sweep_confirmed().await?;
        if self.position.reconcile.is_none() {
            self.position.reconcile = Some(Progress::begin("every look is one", false));
        }
        while self.position.reconcile.is_some() && !self.owner.stop.is_cancelled() {
            self.step_reconcile().await?;
            self.publish();
        }
        let cost = self.catalog.take_spent();
        self.seen();
        self.look_around().await?;
        self.paces.reconcile.done(cost, Instant::now());
        self.publish();
        self.wait_for_reconcile().await
    }

    async fn wait_for_reconcile(&mut self) -> Result<(), SourceError> {
        loop {
            let pause = self.paces.reconcile.due_in(Instant::now());
            if pause.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(pause.min(Duration::from_secs(1))) => {}
                () = self.report.commands.woken() => return Ok(()),
                () = self.owner.stop.cancelled() => return Ok(()),
            }
            self.publish();
        }
    }
}
