//! Incremental capture by the outbox.
//!
//! Keeps P3: a window is what one look shows and the look before did not; it is read in the order of its ids and the position is
//! stored with what was read. Keeps P10: ids below which everything is read and deleted are left out of each statement, so that
//! a poll costs the same whatever lies dead there.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use catalog_bridge_api::Cause;
use tracing::warn;

use super::outbox::{Drain, OutboxLook, OutboxPage, OutboxRow, OutboxSize};
use super::snapshot::Snapshot;
use crate::source::backstage_db::catalog::Row;
use crate::source::backstage_db::session::{PAGE_BYTES, Session, canonical, to_change};
use crate::source::owner::SourceError;
use crate::store::{Change, Removal};

/// Batches deleted before something else is looked at.
const CLEANED_BATCHES_MAX: usize = 10;
/// Pause between deletions of what was read.
const CLEAN_INTERVAL: Duration = Duration::from_secs(1);
/// Longest pause between notes that somebody drains.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// What one connection knows of the outbox beside the position.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Every row with an id up to here is read, or was undone.
    floor: i64,
    /// This id will be the floor, once no transaction below that number is under way.
    candidate: Option<(i64, u64)>,
    /// The last id drawn, as of the look before.
    last_id: i64,
    /// Every row with an id up to here is deleted.
    cleaned: i64,
    has_uncleaned: bool,
    cleaned_at: Option<Instant>,
    /// A look that showed something new and was not used yet.
    fresh: Option<OutboxLook>,
    /// Removals were left out: look for what is gone.
    sweep_due: bool,
    pub(crate) size: OutboxSize,
}

impl Reading {
    /// `holds`: removals were held when the position was stored, and have to be found again.
    pub(crate) fn new(holds: bool) -> Self {
        Reading { sweep_due: holds, ..Reading::default() }
    }

    fn has_news(&self, look: &OutboxLook, drain: &Drain) -> bool {
        drain.to.is_some() || look.last_id != self.floor
    }

    /// A look begins a window. Ids that an earlier look saw belong to transactions that this one knows of: whoever draws an id has
    /// its number already.
    fn looked(&mut self, look: &OutboxLook) {
        self.candidate.get_or_insert((self.last_id, look.next_xid));
        self.last_id = look.last_id;
    }

    fn read_through(&mut self, from: &Snapshot) {
        if let Some((id, _)) = self.candidate.take_if(|(_, next_xid)| from.xmin() >= *next_xid) {
            self.floor = id;
        }
    }

    fn clean_due_in(&self, abandon_after: Duration, now: Instant) -> Duration {
        let interval = if self.has_uncleaned { CLEAN_INTERVAL } else { HEARTBEAT_MAX.min(abandon_after / 10) };
        self.cleaned_at.map_or(Duration::ZERO, |last| (last + interval).saturating_duration_since(now))
    }
}

impl Session<'_> {
    /// Reads one page; when that was all there is, looks at everything else that is due, then waits.
    pub(crate) async fn step_by_triggers(&mut self) -> Result<(), SourceError> {
        if !self.drain_page().await? {
            self.publish();
            return Ok(());
        }
        self.seen();
        self.meet_gaps().await?;
        self.sweep_confirmed().await?;
        self.clean().await?;
        if self.step_due_reconcile().await? {
            return Ok(());
        }
        if std::mem::take(&mut self.reading.sweep_due) {
            self.sweep().await?;
        }
        self.look_around().await?;
        self.publish();
        self.wait_for_outbox().await
    }

    /// Reads and appends one page. True when nothing is left.
    pub(crate) async fn drain_page(&mut self) -> Result<bool, SourceError> {
        let look = match self.reading.fresh.take() {
            Some(look) => look,
            None => self.look_at_outbox().await?,
        };
        let mut drain = self.drain()?;
        if !self.reading.has_news(&look, &drain) {
            self.report.metrics.set_lag(0);
            return Ok(true);
        }
        if drain.to.is_none() {
            self.reading.looked(&look);
            drain.to = Some(look.snapshot.clone());
        }
        let rows_max = i64::from(self.settings.page_rows);
        let page = self.catalog.outbox_page(&drain, self.reading.floor, rows_max, PAGE_BYTES).await?;
        if drain.after_id == 0 {
            self.judge_removals(&mut drain, &page);
        }
        let OutboxPage { rows, is_full, .. } = page;
        let holds = drain.holds;
        if is_full {
            drain.after_id = rows.last().map_or(drain.after_id, |row| row.id);
            self.report.metrics.set_lag(look.last_id - drain.after_id);
        } else {
            drain.from = drain.to.take().unwrap_or(drain.from);
            (drain.after_id, drain.holds) = (0, false);
            self.reading.read_through(&drain.from);
            self.report.metrics.set_lag(0);
        }
        self.catalog.drained_to(&drain, self.reading.floor);
        self.position.drain = Some(drain);
        if !rows.is_empty() {
            self.paces.poll.changed(Instant::now());
            self.reading.has_uncleaned = true;
            self.apply_drained(rows, holds).await?;
        }
        Ok(!is_full)
    }

    /// Reads until nothing is left.
    pub(crate) async fn drain_all(&mut self) -> Result<(), SourceError> {
        while !self.drain_page().await? {}
        Ok(())
    }

    fn drain(&self) -> Result<Drain, SourceError> {
        self.position.drain.clone().ok_or_else(|| SourceError::Reopen("the position has no drain".to_owned()))
    }

    async fn look_at_outbox(&mut self) -> Result<OutboxLook, SourceError> {
        let (identity, _) = self.catalog.look().await?;
        if identity != self.position.identity {
            return Err(SourceError::Reopen(
                "another server, database or table answered, or its triggers changed".to_owned(),
            ));
        }
        let look = self.catalog.outbox_look()?;
        if self.position.drain.as_ref().is_some_and(|drain| drain.is_after(&look.snapshot)) {
            return Err(SourceError::Reopen("the catalog's transaction numbers went back".to_owned()));
        }
        Ok(look)
    }

    /// Decides, before the first removal of a window is appended, whether they are too many to believe.
    fn judge_removals(&mut self, drain: &mut Drain, page: &OutboxPage) {
        let entities = self.ledger.len() as u64;
        let removals = match page.removals {
            Some(counted) => counted.min(entities),
            None => {
                let last: HashMap<&str, bool> =
                    page.rows.iter().map(|row| (row.entity_ref.as_str(), row.is_removal)).collect();
                let is_loss = |(text, is_removal): &(&str, bool)| *is_removal && self.ledger.contains(text);
                last.into_iter().filter(is_loss).count() as u64
            }
        };
        drain.holds = self.settings.removal_guard.is_some_and(|guard| guard.holds(removals, entities));
        if drain.holds {
            // Durable with the page: whoever goes on looks for what is gone before it believes a removal.
            self.position.holding = self.held_count() + removals;
        }
    }

    /// Appends what the rows say. Removals that are not believed are left to a sweep, which holds them back by name.
    async fn apply_drained(&mut self, rows: Vec<OutboxRow>, holds: bool) -> Result<(), SourceError> {
        let is_taken_over = self.position.holding > 0 && !self.held.is_known && self.settings.removal_guard.is_some();
        let (mut changes, mut rejected) = (Vec::new(), Vec::new());
        let mut stated: HashSet<String> = HashSet::new();
        for row in rows {
            if !row.is_removal {
                self.held.forget(&row.entity_ref);
                stated.insert(row.entity_ref.clone());
                match to_change(&row.into_row(), Cause::Capture) {
                    Ok(change) => changes.extend(change),
                    Err(refused) => rejected.push(refused),
                }
                continue;
            }
            let is_known = self.ledger.contains(&row.entity_ref) || stated.contains(&row.entity_ref);
            if !is_known || self.held.contains(&row.entity_ref) {
                continue;
            }
            if holds || is_taken_over {
                self.reading.sweep_due = true;
                continue;
            }
            match canonical(&row.entity_ref) {
                Some(entity_ref) => {
                    let occurred_at = Some(row.at);
                    changes.push(Change::Remove(Removal { entity_ref, occurred_at, cause: Cause::Capture }));
                }
                // The log never held it.
                None => self.ledger.remove(&row.entity_ref),
            }
        }
        if self.held.is_known && !holds {
            self.position.holding = self.held.len() as u64;
        }
        self.append(changes, rejected, Cause::Capture).await.map(drop)
    }

    /// What the triggers could not do, and what they did not do while nobody drained.
    async fn meet_gaps(&mut self) -> Result<(), SourceError> {
        let look = self.catalog.outbox_look()?;
        let mut drain = self.drain()?;
        if look.is_abandoned {
            // First they write again, then everything is compared.
            self.catalog.clean_outbox(&drain.from, i64::MAX, self.settings.abandon_after).await?;
            self.look_at_outbox().await?;
            self.meet_gap("nobody drained the outbox for so long that the triggers wrote nothing").await?;
        }
        if look.lost != drain.lost {
            drain.lost = look.lost;
            self.position.drain = Some(drain);
            // That count is not undone with a transaction, nor committed with it: what failed may still be under way.
            self.meet_gap("the triggers could write neither a change nor that they could not").await?;
        }
        if look.gaps > 0 {
            let (shown, last) = self.catalog.gaps().await?;
            warn!(source = self.report.name, gaps = look.gaps, first = ?shown, "the triggers could not write changes");
            self.meet_gap(&format!("triggers could not write: {}", shown.first().map_or("", String::as_str))).await?;
            if let Some(last) = last {
                self.catalog.forget_gaps(last).await?;
            }
        }
        let settled = self.catalog.outbox_look()?.snapshot.xmin();
        if self.position.reconcile.is_none()
            && let Some(drain) = &mut self.position.drain
            && drain.unsettled.take_if(|next_xid| settled >= *next_xid).is_some()
        {
            self.begin_reconcile("the transactions that were under way at a gap have ended", false);
        }
        Ok(())
    }

    /// Everything is compared; once more when transactions that are under way now have ended, or when that had begun already.
    async fn meet_gap(&mut self, reason: &str) -> Result<(), SourceError> {
        let look = self.catalog.outbox_look()?;
        let is_late = !self.begin_reconcile(reason, true);
        if is_late {
            self.note_gap(reason);
        }
        if let Some(drain) = &mut self.position.drain
            && (is_late || !look.is_settled())
        {
            drain.unsettled = Some(look.next_xid);
        }
        let position = self.position.to_json()?;
        self.owner.save_position(position).await
    }

    /// Deletes what the log holds durably, and notes that somebody drains.
    async fn clean(&mut self) -> Result<(), SourceError> {
        let abandon_after = self.settings.abandon_after;
        if !self.reading.clean_due_in(abandon_after, Instant::now()).is_zero() {
            return Ok(());
        }
        let position = self.position.to_json()?;
        self.owner.save_position(position).await?;
        let read = self.drain()?.from;
        self.reading.has_uncleaned = false;
        for _ in 0..CLEANED_BATCHES_MAX {
            let last = self.catalog.clean_outbox(&read, self.reading.cleaned, abandon_after).await?;
            self.reading.cleaned = last.unwrap_or(i64::MAX).min(self.reading.floor);
            self.reading.has_uncleaned = last.is_some();
            if last.is_none() {
                break;
            }
        }
        self.reading.cleaned_at = Some(Instant::now());
        Ok(())
    }

    /// Waits for a new row, for whatever else is due, or for a command.
    async fn wait_for_outbox(&mut self) -> Result<(), SourceError> {
        loop {
            let now = Instant::now();
            let due = self
                .reading
                .clean_due_in(self.settings.abandon_after, now)
                .min(self.paces.schema.due_in(now))
                .min(self.paces.owned.due_in(now));
            let pause = self.paces.poll.pause(now).min(due.max(Duration::from_millis(1)));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.report.commands.woken() => return Ok(()),
                () = self.owner.stop.cancelled() => return Ok(()),
            }
            if due <= pause {
                return Ok(());
            }
            let look = self.look_at_outbox().await?;
            let drain = self.drain()?;
            if self.reading.has_news(&look, &drain)
                || look.gaps > 0
                || look.lost != drain.lost
                || look.is_abandoned
                || drain.unsettled.is_some_and(|next_xid| look.snapshot.xmin() >= next_xid)
            {
                self.reading.fresh = Some(look);
                return Ok(());
            }
            self.seen();
            self.publish();
        }
    }

    /// What the status shows of the outbox.
    pub(crate) async fn measure_outbox(&mut self) -> Result<(), SourceError> {
        self.reading.size = self.catalog.outbox_size().await?;
        Ok(())
    }
}

impl OutboxRow {
    fn into_row(self) -> Row {
        Row {
            entity_ref: self.entity_ref,
            entity_id: self.entity_id.unwrap_or_default(),
            hash: self.hash.unwrap_or_default(),
            generation: Some(self.id),
            updated_at: Some(self.at),
            body: self.body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(snapshot: &str, last_id: i64, next_xid: u64) -> OutboxLook {
        OutboxLook {
            snapshot: snapshot.parse().expect("a snapshot"),
            last_id,
            lost: 0,
            gaps: 0,
            is_abandoned: false,
            cleaned: None,
            next_xid,
        }
    }

    /// A transaction that drew an id and is still under way keeps the floor below that id, also one that the snapshot does not
    /// name as nothing after it has ended.
    #[test]
    fn the_floor_rises_when_whoever_drew_an_id_has_ended() {
        let mut reading = Reading::default();
        let mut window = |snapshot: &str, last_id, next_xid| {
            let look = look(snapshot, last_id, next_xid);
            reading.looked(&look);
            reading.read_through(&look.snapshot);
            reading.floor
        };

        assert_eq!(window("10:12:10", 7, 12), 0);
        assert_eq!(window("10:15:10", 9, 15), 0, "10 may have drawn one of the 7");
        assert_eq!(window("16:16:", 9, 17), 0, "what was seen before the first look");
        assert_eq!(window("16:16:", 9, 17), 0, "16 is under way");
        assert_eq!(window("17:18:17", 9, 18), 9, "it ended");
    }
}
