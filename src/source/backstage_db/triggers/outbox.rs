//! Reads the outbox, and cleans it.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;

use super::snapshot::Snapshot;
use crate::source::backstage_db::catalog::{Body, Catalog, bound_bytes};
use crate::source::backstage_db::quote;
use crate::source::entity::ENTITY_BYTES_MAX;
use crate::source::owner::SourceError;

/// Rows deleted by one transaction.
const CLEANED_MAX: i64 = 2_000;
/// Gap rows read at once; the others are only counted.
const GAPS_SHOWN: i64 = 5;

/// How far the outbox was read: what `from` shows was, and of what `to` shows besides, the ids up to `after_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Drain {
    pub(crate) from: Snapshot,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Snapshot>,
    #[serde(default)]
    pub(crate) after_id: i64,
    /// Removals up to `to` are too many to believe.
    #[serde(default)]
    pub(crate) holds: bool,
    /// The failures that the triggers could not write down, as counted last.
    pub(crate) lost: i64,
    /// Transactions below it were under way at a gap, and may have changed what was compared before they ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsettled: Option<u64>,
}

/// What a transaction reads of the outbox at its begin.
#[derive(Debug, Clone)]
pub(crate) struct OutboxLook {
    /// The transaction's own.
    pub(crate) snapshot: Snapshot,
    /// The last id drawn, committed or not.
    pub(crate) last_id: i64,
    /// Failures that the triggers could not write down.
    pub(crate) lost: i64,
    /// Failures that they could, in the table of gaps.
    pub(crate) gaps: i64,
    /// Nobody drained for so long that the triggers write no more.
    pub(crate) is_abandoned: bool,
    /// Through where rows were deleted.
    pub(crate) cleaned: Option<Snapshot>,
    /// The number that the next transaction will draw. The snapshot's own `xmax` may be below those of transactions under way: it
    /// is one above the last that ended.
    pub(crate) next_xid: u64,
}

/// One change.
#[derive(Debug)]
pub(crate) struct OutboxRow {
    pub(crate) id: i64,
    pub(crate) is_removal: bool,
    pub(crate) entity_ref: String,
    pub(crate) entity_id: Option<String>,
    pub(crate) hash: Option<String>,
    pub(crate) at: DateTime<Utc>,
    pub(crate) body: Body,
}

/// Some of the changes between two snapshots, in the order of their ids.
#[derive(Debug)]
pub(crate) struct OutboxPage {
    pub(crate) rows: Vec<OutboxRow>,
    pub(crate) is_full: bool,
    /// Entities that the window removes, of a window that begins here and has more than these rows.
    pub(crate) removals: Option<u64>,
}

/// What the outbox holds, for a person.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OutboxSize {
    pub(crate) rows: i64,
    pub(crate) bytes: i64,
    pub(crate) oldest_at: Option<DateTime<Utc>>,
}

impl Drain {
    /// From this look on.
    pub(crate) fn begin(look: &OutboxLook) -> Self {
        Drain { from: look.snapshot.clone(), to: None, after_id: 0, holds: false, lost: look.lost, unsettled: None }
    }

    /// True when it was read further than this shows: then transactions were numbered anew.
    pub(crate) fn is_after(&self, now: &Snapshot) -> bool {
        self.upper().xmax() > now.xmax()
    }

    fn upper(&self) -> &Snapshot {
        self.to.as_ref().unwrap_or(&self.from)
    }
}

impl OutboxLook {
    /// No transaction that writes was under way.
    pub(crate) fn is_settled(&self) -> bool {
        self.snapshot.xmin() >= self.next_xid
    }

    /// The columns that a transaction's first statement reads for it, after those of the identity.
    pub(crate) fn columns(outbox: &str) -> String {
        let schema = quote(outbox);
        format!(
            ", pg_current_snapshot()::text, \
             (select case when is_called then last_value else 0 end from {schema}.outbox_id_seq)::text, \
             (select case when is_called then last_value else 0 end from {schema}.lost)::text, \
             (select count(*) from (select from {schema}.gap limit 1000) as gaps)::text, \
             (select drained_at <= now() - abandon_after from {schema}.state)::text, \
             (select cleaned::text from {schema}.state), age('3'::xid)::text"
        )
    }

    /// What makes the triggers' identity: any change of them or of their functions shows, a rewritten or emptied table too.
    pub(crate) fn identity(outbox: &str) -> String {
        let names = super::sql::trigger_names(outbox).map(|name| format!("'{name}'")).join(", ");
        format!(
            "(select string_agg(concat_ws(' ', t.tgname, t.tgenabled, t.xmin, p.xmin), ', ' order by t.tgname) \
              || ' ' || coalesce(pg_relation_filenode('final_entities')::text, '') \
              from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
              where t.tgrelid = 'final_entities'::regclass and t.tgname in ({names}))"
        )
    }

    /// Reads those columns, which begin at `first`.
    pub(crate) fn read(catalog: &Catalog, row: &PgRow, first: usize) -> Result<Self, SourceError> {
        let text = |index| catalog.get::<Option<String>>(row, first + index);
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or_default();
        let snapshot = |text: Option<String>| text.and_then(|text| text.parse::<Snapshot>().ok());
        let Some(is_abandoned) = text(4)? else {
            return Err(SourceError::Reopen("the outbox has lost its state".to_owned()));
        };
        let seen = snapshot(text(0)?).ok_or_else(|| SourceError::Reopen("the catalog gave no snapshot".to_owned()))?;
        Ok(OutboxLook {
            next_xid: next_xid(seen.xmax(), number(text(6)?)),
            snapshot: seen,
            last_id: number(text(1)?),
            lost: number(text(2)?),
            gaps: number(text(3)?),
            is_abandoned: is_abandoned == "true",
            cleaned: snapshot(text(5)?),
        })
    }
}

/// The whole number of the next transaction, of which the server tells the lower half as a distance from 3.
fn next_xid(xmax: u64, age: i64) -> u64 {
    let lower = (age as u32).wrapping_add(3);
    let ahead = lower.wrapping_sub(xmax as u32) as i32;
    xmax.saturating_add(u64::try_from(ahead).unwrap_or_default())
}

impl Catalog {
    /// Changes after `drain`, in ids above `floor`, bounded. At the begin of a window, `removals` are counted.
    pub(crate) async fn outbox_page(
        &mut self,
        drain: &Drain,
        floor: i64,
        rows_max: i64,
        bytes_max: usize,
    ) -> Result<OutboxPage, SourceError> {
        let schema = quote(self.outbox());
        let after = drain.after_id.max(floor);
        let (from, to) = (drain.from.to_string(), drain.upper().to_string());
        self.begin().await?;
        let heads = format!(
            "select id, op::text, entity_ref, entity_id, hash, at, octet_length(entity) \
             from {schema}.outbox \
             where id > $1 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot) \
               and not pg_visible_in_snapshot(xid, $3::text::pg_snapshot) \
             order by id limit $4"
        );
        let heads = self
            .all_of("read the outbox", heads, |query| query.bind(after).bind(&to).bind(&from).bind(rows_max))
            .await?;
        let mut rows = heads.iter().map(|row| self.outbox_row(row)).collect::<Result<Vec<_>, _>>()?;
        let mut is_full = rows.len() as i64 >= rows_max;
        is_full |= bound_bytes(&mut rows, bytes_max, |row| &row.body);
        let ids: Vec<i64> = rows.iter().filter(|row| !row.is_removal).map(|row| row.id).collect();
        if !ids.is_empty() {
            let bodies =
                format!("select id, entity from {schema}.outbox where id = any($1) and octet_length(entity) <= $2");
            let bodies =
                self.all_of("read the outbox", bodies, |query| query.bind(&ids).bind(ENTITY_BYTES_MAX as i32)).await?;
            self.fill_outbox(&mut rows, &bodies)?;
        }
        let removals = match is_full && drain.after_id == 0 {
            true => Some(self.count_removals(after, &to, &from).await?),
            false => None,
        };
        self.commit().await?;
        Ok(OutboxPage { rows, is_full, removals })
    }

    /// Entities whose last change between two snapshots is a removal.
    async fn count_removals(&mut self, after: i64, to: &str, from: &str) -> Result<u64, SourceError> {
        let sql = format!(
            "select count(*) from (\
               select distinct on (entity_ref) op from {schema}.outbox \
               where id > $1 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot) \
                 and not pg_visible_in_snapshot(xid, $3::text::pg_snapshot) \
               order by entity_ref, id desc\
             ) as last where op = 'r'",
            schema = quote(self.outbox())
        );
        let rows = self.all_of("count removals", sql, |query| query.bind(after).bind(to).bind(from)).await?;
        rows.first().map_or(Ok(0), |row| self.get::<i64>(row, 0)).map(i64::unsigned_abs)
    }

    /// Which of these refs have changes that are visible and not yet read, in the transaction under way.
    pub(crate) async fn undrained(&mut self, refs: &[&str]) -> Result<HashSet<String>, SourceError> {
        let Some((drain, floor)) = self.drained().cloned() else { return Ok(HashSet::new()) };
        let sql = format!(
            "select distinct entity_ref from {schema}.outbox \
             where id > $1 and entity_ref = any($2) and not pg_visible_in_snapshot(xid, $3::text::pg_snapshot) \
               and not (id <= $4 and pg_visible_in_snapshot(xid, $5::text::pg_snapshot))",
            schema = quote(self.outbox())
        );
        let (from, to) = (drain.from.to_string(), drain.upper().to_string());
        let refs: Vec<String> = refs.iter().map(|&text| text.to_owned()).collect();
        let rows = self
            .all_of("look for unread changes", sql, |query| {
                query.bind(floor).bind(refs).bind(from).bind(drain.after_id).bind(to)
            })
            .await?;
        rows.iter().map(|row| self.get(row, 0)).collect()
    }

    /// Deletes some rows that `read` shows, in ids above `cleaned`, and notes that somebody drains. Returns the last id deleted
    /// when there may be more.
    pub(crate) async fn clean_outbox(
        &mut self,
        read: &Snapshot,
        cleaned: i64,
        abandon_after: Duration,
    ) -> Result<Option<i64>, SourceError> {
        let schema = quote(self.outbox());
        self.begin_writing().await?;
        let delete = format!(
            "with gone as (\
               delete from {schema}.outbox where id in (\
                 select id from {schema}.outbox where id > $1 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot) \
                 order by id limit $3) \
               returning id) \
             select count(*), max(id) from gone"
        );
        let text = read.to_string();
        let rows =
            self.all_of("clean the outbox", delete, |query| query.bind(cleaned).bind(&text).bind(CLEANED_MAX)).await?;
        let (count, last) = match rows.first() {
            Some(row) => (self.get::<i64>(row, 0)?, self.get::<Option<i64>>(row, 1)?),
            None => (0, None),
        };
        let note = format!(
            "update {schema}.state set drained_at = now(), abandon_after = make_interval(secs => $1), \
             cleaned = case when $2 then $3::text::pg_snapshot else cleaned end"
        );
        let seconds = abandon_after.as_secs_f64();
        self.all_of("note that the outbox is drained", note, |query| query.bind(seconds).bind(count > 0).bind(&text))
            .await?;
        self.commit().await?;
        Ok(last.filter(|_| count >= CLEANED_MAX))
    }

    /// Deletes everything that is there now: rows of before a restore mean other transactions than those of their numbers.
    pub(crate) async fn empty_outbox(&mut self, abandon_after: Duration) -> Result<(), SourceError> {
        let schema = quote(self.outbox());
        self.begin_writing().await?;
        let rows =
            self.all_of("look at the outbox", format!("select max(id) from {schema}.outbox"), |query| query).await?;
        let last: Option<i64> = rows.first().map_or(Ok(None), |row| self.get(row, 0))?;
        let seconds = abandon_after.as_secs_f64();
        let note = format!(
            "update {schema}.state set drained_at = now(), abandon_after = make_interval(secs => $1), \
             cleaned = pg_current_snapshot()"
        );
        self.all_of("note that the outbox is drained", note, |query| query.bind(seconds)).await?;
        self.all_of("empty the outbox", format!("delete from {schema}.gap"), |query| query).await?;
        self.commit().await?;
        let delete = format!(
            "with gone as (\
               delete from {schema}.outbox where id in (select id from {schema}.outbox where id <= $1 order by id limit $2) \
               returning id) \
             select count(*) from gone"
        );
        loop {
            self.begin_writing().await?;
            let rows =
                self.all_of("empty the outbox", delete.clone(), |query| query.bind(last).bind(CLEANED_MAX)).await?;
            let count: i64 = rows.first().map_or(Ok(0), |row| self.get(row, 0))?;
            self.commit().await?;
            if count < CLEANED_MAX {
                return Ok(());
            }
        }
    }

    /// The failures that the triggers wrote down: how many are shown, what they were, and the ids to forget them by.
    pub(crate) async fn gaps(&mut self) -> Result<(Vec<String>, Option<i64>), SourceError> {
        let schema = quote(self.outbox());
        self.begin().await?;
        let sql = format!(
            "select op || coalesce(' of ' || entity_ref, '') || ': ' || message || ' (' || code || ')', \
             (select max(id) from {schema}.gap) from {schema}.gap order by id limit $1"
        );
        let rows = self.all_of("read the gaps", sql, |query| query.bind(GAPS_SHOWN)).await?;
        self.commit().await?;
        let last = rows.first().map_or(Ok(None), |row| self.get(row, 1))?;
        Ok((rows.iter().map(|row| self.get(row, 0)).collect::<Result<_, _>>()?, last))
    }

    /// Forgets gaps, which are repaired or remembered elsewhere.
    pub(crate) async fn forget_gaps(&mut self, up_to: i64) -> Result<(), SourceError> {
        let sql = format!("delete from {}.gap where id <= $1", quote(self.outbox()));
        self.begin_writing().await?;
        self.all_of("forget gaps", sql, |query| query.bind(up_to)).await?;
        self.commit().await
    }

    /// What the outbox holds now.
    pub(crate) async fn outbox_size(&mut self) -> Result<OutboxSize, SourceError> {
        let schema = quote(self.outbox());
        let sql = format!(
            "select count(*), pg_total_relation_size('{schema}.outbox'), min(at) \
             from (select at from {schema}.outbox order by id limit 100000) as kept"
        );
        self.begin().await?;
        let rows = self.all_of("measure the outbox", sql, |query| query).await?;
        self.commit().await?;
        let Some(row) = rows.first() else { return Ok(OutboxSize::default()) };
        Ok(OutboxSize { rows: self.get(row, 0)?, bytes: self.get(row, 1)?, oldest_at: self.get(row, 2)? })
    }

    fn outbox_row(&self, row: &PgRow) -> Result<OutboxRow, SourceError> {
        let length: Option<i32> = self.get(row, 6)?;
        Ok(OutboxRow {
            id: self.get(row, 0)?,
            is_removal: self.get::<String>(row, 1)? == "r",
            entity_ref: self.get(row, 2)?,
            entity_id: self.get(row, 3)?,
            hash: self.get(row, 4)?,
            at: self.get(row, 5)?,
            body: length.map_or(Body::Absent, |length| Body::TooLarge(usize::try_from(length).unwrap_or_default())),
        })
    }

    fn fill_outbox(&self, rows: &mut [OutboxRow], bodies: &[PgRow]) -> Result<(), SourceError> {
        let mut texts = std::collections::HashMap::with_capacity(bodies.len());
        for body in bodies {
            texts.insert(self.get::<i64>(body, 0)?, self.get::<String>(body, 1)?);
        }
        for row in rows {
            if let Some(text) = texts.remove(&row.id) {
                row.body = Body::Text(text);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::next_xid;

    #[test]
    fn the_next_number_goes_on_over_four_billions() {
        assert_eq!(next_xid(750, 750), 753);
        assert_eq!(next_xid(750, 747), 750);
        assert_eq!(next_xid((1 << 32) + 10, 9), (1 << 32) + 12);
        assert_eq!(next_xid((1 << 32) - 1, 2), (1 << 32) + 5);
        assert_eq!(next_xid(3_000_000_000, i64::from(3_000_000_002_u32 as i32)), 3_000_000_005);
    }
}
