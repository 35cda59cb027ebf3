//! Incremental capture by the numbers that the catalog gives at commit.
//!
//! Keeps P3: a trigger, deferred to COMMIT, numbers each written row under a row lock that is held through the commit. So
//! whoever sees the counter at N in a snapshot will never later see a new row with a number up to N. A page, the counter and
//! the count are statements of one snapshot.

use std::time::{Duration, Instant};

use catalog_bridge_api::Cause;

use super::catalog::{Census, CensusKind, PageLimits};
use super::session::{PAGE_BYTES, Session};
use crate::source::owner::SourceError;

/// So many of the last generations are looked at again after each reconnect: a failover may have lost what was read.
const VERIFIED: i64 = 10_000;

impl Session<'_> {
    /// Reads one page; when that was all there is, looks for removals and at everything else that is due, then waits.
    pub(super) async fn step_by_generations(&mut self) -> Result<(), SourceError> {
        let kind = self.wanted_census();
        let Some(census) = self.read_page(kind).await? else { return Ok(()) };
        self.seen();
        if let Some(census) = census.0 {
            self.judge(census).await?;
        }
        self.sweep_confirmed().await?;
        if self.step_due_reconcile().await? {
            return Ok(());
        }
        self.look_around().await?;
        self.publish();
        self.wait_for_change().await
    }

    /// Reads and appends one page. `None`: there is more. Otherwise the census of the snapshot that we hold now.
    async fn read_page(&mut self, kind: CensusKind) -> Result<Option<(Option<Census>,)>, SourceError> {
        let limits = PageLimits { rows: i64::from(self.settings.page_rows), bytes: PAGE_BYTES };
        let page = self.catalog.page(self.position.generation, limits, kind).await?;
        if page.counter < self.position.generation {
            return Err(SourceError::Reopen("the catalog's counter went back".to_owned()));
        }
        let last = page.rows.last().and_then(|row| row.generation).unwrap_or(self.position.generation);
        if page.counter > self.position.generation {
            self.paces.poll.changed(Instant::now());
        }
        self.position.generation = if page.is_full { last } else { last.max(page.counter) };
        self.counter = page.counter;
        self.report.metrics.set_lag(page.counter - self.position.generation);
        self.apply(page.rows, Cause::Capture).await?;
        if page.is_full {
            self.publish();
            return Ok(None);
        }
        self.bodies_lost = 0;
        Ok(Some((page.census,)))
    }

    /// Reads until nothing is left.
    pub(super) async fn read_all(&mut self) -> Result<(), SourceError> {
        while self.read_page(CensusKind::None).await?.is_none() {}
        Ok(())
    }

    /// A first or repairing reconcile is what fills the ledger; before its end there is nothing to count.
    fn wanted_census(&self) -> CensusKind {
        let now = Instant::now();
        if self.position.reconcile.is_some() || !self.paces.count.is_due(now) {
            CensusKind::None
        } else if self.can_sum && self.paces.sum.is_due(now) {
            CensusKind::Sum
        } else {
            CensusKind::Count
        }
    }

    /// Waits for the counter, for whatever else is due, or for a command.
    async fn wait_for_change(&mut self) -> Result<(), SourceError> {
        loop {
            let now = Instant::now();
            let due = self.paces.count.due_in(now).min(self.paces.schema.due_in(now)).min(self.paces.owned.due_in(now));
            let pause = self.paces.poll.pause(now).min(due.max(Duration::from_millis(1)));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.report.commands.woken() => return Ok(()),
                () = self.owner.stop.cancelled() => return Ok(()),
            }
            if due <= pause {
                return Ok(());
            }
            let (identity, counter) = self.catalog.look().await?;
            if identity != self.position.identity {
                return Err(SourceError::Reopen("another server, database or table answered".to_owned()));
            }
            if counter != Some(self.position.generation) {
                return Ok(());
            }
            self.seen();
            self.publish();
        }
    }

    /// Compares the last generations with what the log holds, and repairs what differs.
    pub(super) async fn verify_recent(&mut self) -> Result<(), SourceError> {
        let up_to = self.position.generation;
        let mut after = (up_to - VERIFIED).max(0);
        let limit = i64::from(self.settings.page_rows);
        let mut repaired = 0;
        loop {
            let (keys, last) = self.catalog.recent_keys(after, up_to, limit).await?;
            let differing = self.differing(&keys).await?;
            repaired += self.repair(differing, Cause::Reconcile).await?;
            match last {
                Some(last) if keys.len() as i64 >= limit => after = last,
                _ => break,
            }
        }
        if repaired > 0 {
            self.report.metrics.count_repairs(repaired);
            tracing::warn!(
                source = self.report.name,
                repaired,
                "recent changes differed after a reconnect and were read again"
            );
        }
        Ok(())
    }
}
