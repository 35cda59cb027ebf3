//! Reads events: each page in one snapshot, sizes before bodies.

use std::sync::Arc;

use catalog_bridge_api::{EntityRef, Event, Offset};
use futures::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row, query};

use super::super::page::Sized;
use super::super::{LogEntry, Page, ReadLimits, StoreError, decode, queries};
use super::{PostgresStore, number_of, offset_of, unavailable};

pub(super) const ACTION: &str = "read the log";

impl PostgresStore {
    pub(super) async fn read_page(&self, after: Offset, limits: ReadLimits) -> Result<Page, StoreError> {
        let mut transaction = self.begin_read().await?;
        let state = self.read_state(&mut transaction).await?;
        state.check_kept(after)?;
        if after >= state.head {
            transaction.rollback().await;
            return Ok(Page { state, entries: Vec::new() });
        }
        let sizes =
            sizes(&mut transaction, query(queries::READ_SIZES).bind(number_of(after)).bind(limits.rows())).await?;
        let sizes = &sizes[..limits.fit(&sizes)];
        state.check_contiguous(after, sizes)?;
        let last = sizes.last().map_or(after, |row| row.offset);
        let read = query(queries::READ).bind(number_of(after)).bind(number_of(last));
        let entries = entries(&mut transaction, read).await?;
        transaction.rollback().await;
        Ok(Page { state, entries })
    }

    pub(super) async fn read_event(&self, offset: Offset) -> Result<Option<LogEntry>, StoreError> {
        let mut transaction = self.begin_read().await?;
        let entry = one(&mut transaction, query(queries::EVENT).bind(number_of(offset))).await?;
        transaction.rollback().await;
        Ok(entry)
    }

    pub(super) async fn read_latest(&self, entity_ref: &EntityRef) -> Result<Option<LogEntry>, StoreError> {
        let mut transaction = self.begin_read().await?;
        let latest = query(queries::LATEST).bind(i64::MAX).bind(entity_ref.as_str());
        let entry = one(&mut transaction, latest).await?;
        transaction.rollback().await;
        Ok(entry)
    }

    pub(super) async fn read_history(
        &self,
        entity_ref: &EntityRef,
        before: Option<Offset>,
        limits: ReadLimits,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        let before = before.map_or(i64::MAX, number_of);
        let mut transaction = self.begin_read().await?;
        let sizes = sizes(
            &mut transaction,
            query(queries::HISTORY_SIZES).bind(before).bind(entity_ref.as_str()).bind(limits.rows()),
        )
        .await?;
        let Some(last) = sizes[..limits.fit(&sizes)].last() else {
            transaction.rollback().await;
            return Ok(Vec::new());
        };
        let history = query(queries::HISTORY).bind(before).bind(entity_ref.as_str()).bind(number_of(last.offset));
        let entries = entries(&mut transaction, history).await?;
        transaction.rollback().await;
        Ok(entries)
    }
}

/// Rows of `event_offset` and `bytes`.
pub(super) async fn sizes(
    connection: &mut PgConnection,
    statement: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<Sized>, StoreError> {
    let size = |row: PgRow| Ok(Sized { offset: offset_of(row.try_get("event_offset")?), bytes: row.try_get("bytes")? });
    statement.persistent(false).try_map(size).fetch_all(connection).await.map_err(unavailable(ACTION))
}

/// Events with their predecessors' bodies; a predecessor that is itself among them lends its body.
pub(super) async fn entries(
    connection: &mut PgConnection,
    statement: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<Arc<LogEntry>>, StoreError> {
    let read = async {
        let mut entries = Vec::new();
        let mut rows = statement.persistent(false).fetch(connection);
        while let Some(row) = rows.try_next().await? {
            entries.push(entry_of(&row)?);
        }
        Ok(entries)
    };
    Ok(LogEntry::lend_bodies(read.await.map_err(unavailable(ACTION))?))
}

async fn one(
    connection: &mut PgConnection,
    statement: Query<'_, Postgres, PgArguments>,
) -> Result<Option<LogEntry>, StoreError> {
    let row = statement.persistent(false).fetch_optional(connection).await;
    row.and_then(|row| row.as_ref().map(entry_of).transpose()).map_err(unavailable(ACTION))
}

fn entry_of(row: &PgRow) -> Result<LogEntry, sqlx::Error> {
    let event = Event {
        offset: offset_of(row.try_get("event_offset")?),
        event_type: decode::event_type(row.try_get("type")?)?,
        entity_ref: decode::entity_ref(row.try_get("entity_ref")?)?,
        uid: row.try_get("uid")?,
        entity: decode::body(row.try_get("entity")?),
        changed: decode::changed(row.try_get("changed")?)?,
        reason: None,
        occurred_at: row.try_get("occurred_at")?,
        recorded_at: row.try_get("recorded_at")?,
        cause: decode::cause(row.try_get("cause")?)?,
        previous_offset: row.try_get::<Option<i64>, _>("previous_offset")?.map(offset_of),
    };
    Ok(LogEntry { event, previous_entity: decode::body(row.try_get("previous_entity")?) })
}
