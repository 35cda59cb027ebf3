//! The fenced append: one transaction of the one writer, so a source's position and its events are one commit.

use std::collections::HashMap;
use std::time::Instant;

use catalog_bridge_api::{EntityRef, JsonText, SourceName};
use chrono::Utc;
use futures::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, query};

use super::super::decide::{Decision, Held, Prepared, decide};
use super::super::page::{Sized, chunks};
use super::super::{Append, Appended, Idempotency, LogState, PositionMove, StoreError, decode};
use super::{SqliteStore, json_of, microseconds_of, number_of, offset_of, unavailable, write};

pub(super) const ACTION: &str = "append to the log";

/// What a transaction did, before its commit.
struct Written {
    appended: Appended,
    /// The log's state after the commit.
    state: LogState,
    decision: Decision,
}

enum Step {
    /// Nothing is to be committed.
    Answered(Appended),
    Ready(Box<Written>),
}

impl SqliteStore {
    /// The transaction runs in a task of its own: it ends, and the watchers learn of it, also when the caller goes away.
    pub(super) async fn append_changes(&self, append: Append) -> Result<Appended, StoreError> {
        let started = Instant::now();
        let store = self.clone();
        let task = tokio::spawn(async move {
            let prepared = Prepared::aside(append).await?;
            let appended = store.bounded(ACTION, store.append_prepared(prepared)).await?;
            store.metrics.appended(started.elapsed());
            Ok(appended)
        });
        task.await.map_err(|error| StoreError::Unavailable { action: ACTION, source: error.into() })?
    }

    async fn append_prepared(&self, prepared: Prepared) -> Result<Appended, StoreError> {
        let mut transaction = self.begin_write().await?;
        // A transaction that is dropped rolls back before the next one begins.
        let state = self.lock_head(&mut transaction).await?;
        let written = match write_in(&mut transaction, state, prepared).await? {
            Step::Answered(appended) => return Ok(appended),
            Step::Ready(written) => written,
        };
        transaction.commit().await.map_err(unavailable(ACTION))?;
        self.publish(&written.state);
        self.metrics.events(&written.decision);
        Ok(written.appended)
    }
}

async fn write_in(connection: &mut SqliteConnection, state: LogState, prepared: Prepared) -> Result<Step, StoreError> {
    let (source, position) = (prepared.source.clone(), prepared.position.clone());
    let idempotency = prepared.idempotency.clone();
    if let Some(idempotency) = &idempotency
        && let Some(answer) = earlier_answer(connection, &source, idempotency).await?
    {
        return Ok(Step::Answered(answer));
    }
    if let Some(position) = &position {
        move_position(connection, &source, position).await?;
    }
    let held = held_rows(connection, &prepared.entity_refs()).await.map_err(unavailable(ACTION))?;
    let mut decision = decide(prepared, held, state.head)?;
    compare(connection, &mut decision).await.map_err(unavailable(ACTION))?;
    let is_nothing = write::all(connection, &source, &decision).await.map_err(unavailable(ACTION))?;
    let appended = decision.appended(state.head);
    if let Some(idempotency) = &idempotency {
        write::answer(connection, &source, idempotency, &appended).await.map_err(unavailable(ACTION))?;
    } else if position.is_none() && is_nothing {
        return Ok(Step::Answered(appended));
    }
    let state = LogState { head: appended.last_event_offset, ..state };
    Ok(Step::Ready(Box::new(Written { appended, state, decision })))
}

/// The first answer to a request with the same key, if it was asked within a day.
async fn earlier_answer(
    connection: &mut SqliteConnection,
    source: &SourceName,
    idempotency: &Idempotency,
) -> Result<Option<Appended>, StoreError> {
    const EARLIER: &str = "
        select body_hash, answer
        from idempotency
        where source = $1 and key = $2 and created_at > $3";
    let row = query(EARLIER)
        .bind(source.as_str())
        .bind(&idempotency.key)
        .bind(microseconds_of(Utc::now()) - write::DAY)
        .fetch_optional(connection)
        .await
        .map_err(unavailable(ACTION))?;
    let Some(row) = row else { return Ok(None) };
    let body_hash: String = row.try_get("body_hash").map_err(unavailable(ACTION))?;
    let answer: String = row.try_get("answer").map_err(unavailable(ACTION))?;
    idempotency.repeat(&body_hash, &answer).map(Some)
}

/// Moves a source's position if epoch and position are the expected ones.
pub(super) async fn move_position(
    connection: &mut SqliteConnection,
    source: &SourceName,
    to: &PositionMove,
) -> Result<(), StoreError> {
    const MOVE: &str = "
        update checkpoints
        set source_position = $1, updated_at = $5
        where kind = 'source' and name = $2 and epoch = $3 and source_position is $4";
    let moved = query(MOVE)
        .bind(to.new.as_str())
        .bind(source.as_str())
        .bind(i64::try_from(to.epoch).unwrap_or(i64::MAX))
        .bind(to.expected.as_ref().map(JsonText::as_str))
        .bind(microseconds_of(Utc::now()))
        .execute(&mut *connection)
        .await
        .map_err(unavailable(ACTION))?;
    if moved.rows_affected() == 1 {
        return Ok(());
    }
    let stored = stored_position(connection, source).await?;
    Err(to.fenced(source, stored.as_ref()))
}

async fn stored_position(
    connection: &mut SqliteConnection,
    source: &SourceName,
) -> Result<Option<(u64, Option<String>)>, StoreError> {
    const STORED: &str = "select epoch, source_position from checkpoints where kind = 'source' and name = $1";
    let decode = |row: SqliteRow| Ok((row.try_get::<i64, _>("epoch")?.unsigned_abs(), row.try_get("source_position")?));
    let row = query(STORED).bind(source.as_str()).fetch_optional(connection).await;
    row.and_then(|row| row.map(decode).transpose()).map_err(unavailable(ACTION))
}

async fn held_rows(
    connection: &mut SqliteConnection,
    entity_refs: &[&str],
) -> Result<HashMap<EntityRef, Held>, sqlx::Error> {
    const HELD_ROWS: &str = "
        select entity_ref, source, uid, content_hash, source_version, source_position, last_offset
        from entities
        where entity_ref in (select value from json_each($1))";
    let mut held = HashMap::with_capacity(entity_refs.len());
    let mut rows = query(HELD_ROWS).bind(json_of(entity_refs.iter())).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let content_hash: &[u8] = row.try_get("content_hash")?;
        held.insert(
            decode::entity_ref(row.try_get("entity_ref")?)?,
            Held {
                source: decode::source(row.try_get("source")?)?,
                uid: row.try_get("uid")?,
                content_hash: content_hash.try_into().map_err(|_| sqlx::Error::Decode("a hash has 32 bytes".into()))?,
                source_version: row.try_get("source_version")?,
                source_position: row.try_get("source_position")?,
                last_offset: offset_of(row.try_get("last_offset")?),
            },
        );
    }
    Ok(held)
}

/// Finds what the updates changed, reading the bodies before them piece by piece.
async fn compare(connection: &mut SqliteConnection, decision: &mut Decision) -> Result<(), sqlx::Error> {
    const SIZES: &str = "
        select event_offset, entity_bytes
        from events
        where event_offset in (select value from json_each($1))
        order by event_offset";
    const BODIES: &str =
        "select event_offset, entity from events where event_offset in (select value from json_each($1))";
    let predecessors = decision.predecessors();
    if predecessors.is_empty() {
        return Ok(());
    }
    let size = |row: SqliteRow| {
        Ok(Sized { offset: offset_of(row.try_get("event_offset")?), bytes: row.try_get("entity_bytes")? })
    };
    let offsets = json_of(predecessors.into_iter().map(number_of));
    let sizes = query(SIZES).bind(offsets).try_map(size).fetch_all(&mut *connection).await?;
    for chunk in chunks(&sizes) {
        let offsets = json_of(chunk.iter().map(|row| number_of(row.offset)));
        let body = |row: SqliteRow| Ok((offset_of(row.try_get("event_offset")?), row.try_get("entity")?));
        let bodies = query(BODIES).bind(offsets).try_map(body).fetch_all(&mut *connection).await?;
        decision.compare(&bodies.into_iter().collect());
    }
    decision.give_up_comparing();
    Ok(())
}
