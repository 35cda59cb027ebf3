//! States at an offset: ordered by ref for snapshots, by offset for walks.
//!
//! P4: what is read here cannot change as long as `oldest` is not above the offset, so steps need not share a snapshot.

use std::sync::Arc;

use catalog_bridge_api::{EntityRef, Offset};
use sqlx::postgres::PgRow;
use sqlx::{Row, query, query_scalar};

use super::super::page::Sized;
use super::super::walk::{STEP_EVENTS, STEP_REFS, as_added};
use super::super::{LogEntry, ReadLimits, StatePage, StoreError, queries};
use super::read::{ACTION, entries, sizes};
use super::transaction::Transaction;
use super::{PostgresStore, number_of, unavailable};

/// The events at these offsets, removals with the bodies before them.
const BY_OFFSETS: &str = "
    select e.event_offset, e.type, e.entity_ref, e.uid, e.entity, e.changed, e.occurred_at, e.recorded_at, e.cause,
        e.previous_offset, case e.type
            when 'removed' then (select p.entity from events p where p.event_offset = e.previous_offset)
        end as previous_entity
    from events e
    where e.event_offset = any($1)
    order by e.event_offset";

impl PostgresStore {
    pub(super) async fn read_state_at(
        &self,
        at: Offset,
        after_ref: Option<&EntityRef>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError> {
        let mut found = Vec::new();
        let mut position = Some(after_ref.map_or_else(String::new, |after| after.as_str().to_owned()));
        while let Some(after) = position.take_if(|_| (found.len() as i64) < limits.rows()) {
            position = self.bounded(ACTION, self.state_step(at, &after, &mut found)).await?;
        }
        let fitting = limits.fit(&found);
        let mut entries = self.bounded(ACTION, self.read_offsets(at, &found[..fitting])).await?;
        entries.sort_by(|one, other| one.event.entity_ref.cmp(&other.event.entity_ref));
        Ok(StatePage { entries, more: fitting < found.len() })
    }

    /// Looks at the next refs; answers the last of them if there may be more.
    async fn state_step(&self, at: Offset, after: &str, found: &mut Vec<Sized>) -> Result<Option<String>, StoreError> {
        const LIVE: &str = "
            select event_offset, entity_bytes as bytes
            from events
            where event_offset = any($1) and type <> 'removed'
            order by entity_ref";
        let mut transaction = self.begin_read().await?;
        self.read_state(&mut transaction).await?.check_kept(at)?;
        let decode = |row: PgRow| Ok((row.try_get("entity_ref")?, row.try_get("event_offset")?));
        let refs: Vec<(String, Option<i64>)> = query(queries::STATE_REFS)
            .bind(number_of(at))
            .bind(after)
            .bind(STEP_REFS)
            .persistent(false)
            .try_map(decode)
            .fetch_all(&mut *transaction)
            .await
            .map_err(unavailable(ACTION))?;
        let offsets: Vec<i64> = refs.iter().filter_map(|(_, offset)| *offset).collect();
        found.extend(sizes(&mut transaction, query(LIVE).bind(offsets)).await?);
        transaction.rollback().await;
        let is_full = refs.len() as i64 == STEP_REFS;
        Ok(refs.into_iter().next_back().map(|(entity_ref, _)| entity_ref).filter(|_| is_full))
    }

    pub(super) async fn read_walk(
        &self,
        at: Offset,
        after: Offset,
        removals_above: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<StatePage, StoreError> {
        let removals_above = removals_above.map_or(i64::MAX, number_of);
        let mut found = Vec::new();
        let mut position = Some(number_of(after));
        while let Some(after) = position.take_if(|_| (found.len() as i64) < limits.rows()) {
            let step = self.walk_step(at, after, removals_above, limits, &mut found);
            position = self.bounded(ACTION, step).await?;
        }
        let fitting = limits.fit(&found);
        let entries = self.bounded(ACTION, self.read_offsets(at, &found[..fitting])).await?;
        Ok(StatePage { entries: as_added(entries), more: fitting < found.len() })
    }

    /// Looks at the next events; answers where to go on, if there may be more.
    async fn walk_step(
        &self,
        at: Offset,
        after: i64,
        removals_above: i64,
        limits: ReadLimits,
        found: &mut Vec<Sized>,
    ) -> Result<Option<i64>, StoreError> {
        let mut transaction = self.begin_read().await?;
        self.read_state(&mut transaction).await?.check_kept(at)?;
        let end: Option<i64> = query_scalar(queries::WALK_STEP)
            .bind(after)
            .bind(number_of(at))
            .bind(STEP_EVENTS)
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await
            .map_err(unavailable(ACTION))?;
        if let Some(end) = end {
            let find = query(queries::WALK_SIZES).bind(after).bind(end).bind(number_of(at)).bind(removals_above);
            found.extend(sizes(&mut transaction, find.bind(limits.rows())).await?);
        }
        transaction.rollback().await;
        Ok(end)
    }

    /// The events at these offsets; no wish that `oldest` passed meanwhile is answered.
    async fn read_offsets(&self, at: Offset, rows: &[Sized]) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let offsets: Vec<i64> = rows.iter().map(|row| number_of(row.offset)).collect();
        let mut transaction: Transaction = self.begin_read().await?;
        self.read_state(&mut transaction).await?.check_kept(at)?;
        let entries = entries(&mut transaction, query(BY_OFFSETS).bind(offsets)).await?;
        transaction.rollback().await;
        Ok(entries)
    }
}
