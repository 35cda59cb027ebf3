//! The fenced append: one transaction under the head lock, so a source's position and its events are one commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catalog_bridge_api::{EntityRef, JsonText, Offset, SourceName};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row, query, query_scalar};
use tokio::sync::OwnedMutexGuard;

use super::super::decide::{Decision, Held, Prepared, decide};
use super::super::page::{Sized, chunks};
use super::super::{Append, Appended, Idempotency, LogState, PositionMove, StoreError, decode};
use super::transaction::Transaction;
use super::{PostgresStore, number_of, offset_of, unavailable, write};

pub(super) const ACTION: &str = "append to the log";

/// What a transaction did, before its commit.
struct Written {
    appended: Appended,
    /// The log's state after the commit.
    state: LogState,
    decision: Decision,
    /// Recognizes the commit when its answer was lost.
    mark: Mark,
}

/// What is there if and only if the transaction was committed.
#[derive(Debug, Clone)]
enum Mark {
    /// Its first event.
    Event { offset: Offset, entity_ref: EntityRef, recorded_at: DateTime<Utc> },
    /// The source's new position.
    Position { source: SourceName, position: PositionMove },
    /// Nothing that a repetition would change.
    None,
}

enum Outcome {
    /// Nothing is to be committed.
    Answered(Appended),
    Ready(Transaction, Box<Written>),
}

enum Step {
    Answered(Appended),
    Ready(Box<Written>),
}

impl PostgresStore {
    /// The transaction runs in a task of its own: it ends, and the watchers learn of it, also when the caller goes away.
    pub(super) async fn append_changes(&self, append: Append) -> Result<Appended, StoreError> {
        let started = Instant::now();
        let store = self.clone();
        let task = tokio::spawn(async move {
            let prepared = Prepared::aside(append).await?;
            let appended = store.append_prepared(prepared).await?;
            store.metrics.appended(started.elapsed());
            Ok(appended)
        });
        task.await.map_err(|error| StoreError::Unavailable { action: ACTION, source: error.into() })?
    }

    async fn append_prepared(&self, prepared: Prepared) -> Result<Appended, StoreError> {
        let _turn = self.await_turn().await?;
        let (transaction, written) = match self.bounded(ACTION, self.write(prepared)).await? {
            Outcome::Answered(appended) => return Ok(appended),
            Outcome::Ready(transaction, written) => (transaction, written),
        };
        if let Err(error) = self.commit(transaction).await {
            tracing::warn!(error = %error, "a commit was not answered; asking the log whether it took place");
            if !self.ask_whether_committed(&written).await? {
                return self.bounded(ACTION, std::future::ready(Err(error))).await;
            }
        }
        self.head.publish(&written.state);
        self.metrics.events(&written.decision);
        Ok(written.appended)
    }

    /// Appends of one process follow one another here, in the order in which they came: they would only wait for the head
    /// lock, each with a connection that readers miss.
    async fn await_turn(&self) -> Result<OwnedMutexGuard<()>, StoreError> {
        let turn = tokio::time::timeout(self.begin.limit * 2, Arc::clone(&self.turn).lock_owned()).await;
        turn.map_err(|_| {
            self.metrics.failed(ACTION);
            StoreError::Unavailable { action: ACTION, source: "earlier appends are still under way".into() }
        })
    }

    async fn write(&self, prepared: Prepared) -> Result<Outcome, StoreError> {
        let mut transaction = self.begin_write().await?;
        match self.write_in(&mut transaction, prepared).await {
            Ok(Step::Ready(written)) => Ok(Outcome::Ready(transaction, written)),
            Ok(Step::Answered(appended)) => {
                transaction.rollback().await;
                Ok(Outcome::Answered(appended))
            }
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(refusal) => {
                transaction.rollback().await;
                Err(refusal)
            }
        }
    }

    async fn write_in(&self, transaction: &mut Transaction, prepared: Prepared) -> Result<Step, StoreError> {
        let state = self.lock_head(transaction).await?;
        let (source, position) = (prepared.source.clone(), prepared.position.clone());
        let idempotency = prepared.idempotency.clone();
        if let Some(idempotency) = &idempotency
            && let Some(answer) = earlier_answer(transaction, &source, idempotency).await?
        {
            return Ok(Step::Answered(answer));
        }
        if let Some(position) = &position {
            move_position(transaction, &source, position).await?;
        }
        let held = held_rows(transaction, &prepared.entity_refs()).await.map_err(unavailable(ACTION))?;
        let mut decision = decide(prepared, held, state.head)?;
        compare(transaction, &mut decision).await.map_err(unavailable(ACTION))?;
        let write::Wrote { recorded_at, is_nothing } =
            write::all(transaction, &source, &decision).await.map_err(unavailable(ACTION))?;
        let appended = decision.appended(state.head);
        if let Some(idempotency) = &idempotency {
            write::answer(transaction, &source, idempotency, &appended).await.map_err(unavailable(ACTION))?;
        } else if position.is_none() && is_nothing {
            return Ok(Step::Answered(appended));
        }
        let mark = match (decision.events.first(), recorded_at, position) {
            (Some(event), Some(recorded_at), _) => {
                Mark::Event { offset: event.offset, entity_ref: event.entity_ref.clone(), recorded_at }
            }
            (_, _, Some(position)) => Mark::Position { source, position },
            (_, _, None) => Mark::None,
        };
        let state = LogState { head: appended.last_event_offset, ..state };
        Ok(Step::Ready(Box::new(Written { appended, state, decision, mark })))
    }

    /// An error means that the outcome is unknown.
    async fn commit(&self, transaction: Transaction) -> Result<(), StoreError> {
        match tokio::time::timeout(self.begin.limit, transaction.commit()).await {
            Ok(result) => result.map_err(unavailable(ACTION)),
            Err(_) => Err(StoreError::Unavailable { action: ACTION, source: "the commit was not answered".into() }),
        }
    }

    /// Asks until the log answers, as long as a transaction may take; then nobody knows, and the source learns it from its
    /// position, the ingesting client from its key.
    async fn ask_whether_committed(&self, written: &Written) -> Result<bool, StoreError> {
        let deadline = Instant::now() + self.begin.limit * 2;
        loop {
            let asked = self.bounded("ask whether a commit took place", self.took_place(written)).await;
            let is_away = matches!(asked, Err(StoreError::Unavailable { .. }));
            if !is_away || Instant::now() >= deadline {
                return asked;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Whether the commit took place. The head lock is waited for first: as long as the server may still carry the commit
    /// out, it holds the lock.
    async fn took_place(&self, written: &Written) -> Result<bool, StoreError> {
        let mut transaction = self.begin_write().await?;
        let state = self.lock_head(&mut transaction).await?;
        if state.log_id != written.state.log_id {
            return Err(StoreError::LogChanged { now: state.log_id });
        }
        let found = match &written.mark {
            Mark::None => false,
            Mark::Event { offset, entity_ref, recorded_at } => {
                is_there(&mut transaction, *offset, entity_ref, *recorded_at).await.map_err(unavailable(ACTION))?
            }
            Mark::Position { source, position } => {
                let (epoch, stored) = stored_position(&mut transaction, source).await?.unwrap_or_default();
                epoch == position.epoch && stored.as_deref() == Some(position.new.as_str())
            }
        };
        transaction.rollback().await;
        Ok(found)
    }
}

async fn is_there(
    connection: &mut PgConnection,
    offset: Offset,
    entity_ref: &EntityRef,
    recorded_at: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    const IS_THERE: &str = "select exists (
        select from events where event_offset = $1 and entity_ref = $2 and recorded_at = $3
    )";
    query_scalar(IS_THERE)
        .bind(number_of(offset))
        .bind(entity_ref.as_str())
        .bind(recorded_at)
        .persistent(false)
        .fetch_one(connection)
        .await
}

/// The first answer to a request with the same key, if it was asked within a day.
async fn earlier_answer(
    connection: &mut PgConnection,
    source: &SourceName,
    idempotency: &Idempotency,
) -> Result<Option<Appended>, StoreError> {
    const EARLIER: &str = "
        select body_hash, answer
        from idempotency
        where source = $1 and key = $2 and created_at > clock_timestamp() - interval '1 day'";
    let row = query(EARLIER)
        .bind(source.as_str())
        .bind(&idempotency.key)
        .persistent(false)
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
    connection: &mut PgConnection,
    source: &SourceName,
    to: &PositionMove,
) -> Result<(), StoreError> {
    const MOVE: &str = "
        update checkpoints
        set source_position = $1, updated_at = clock_timestamp()
        where kind = 'source' and name = $2 and epoch = $3 and source_position is not distinct from $4";
    let moved = query(MOVE)
        .bind(to.new.as_str())
        .bind(source.as_str())
        .bind(i64::try_from(to.epoch).unwrap_or(i64::MAX))
        .bind(to.expected.as_ref().map(JsonText::as_str))
        .persistent(false)
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
    connection: &mut PgConnection,
    source: &SourceName,
) -> Result<Option<(u64, Option<String>)>, StoreError> {
    const STORED: &str = "select epoch, source_position from checkpoints where kind = 'source' and name = $1";
    let decode = |row: PgRow| Ok((row.try_get::<i64, _>("epoch")?.unsigned_abs(), row.try_get("source_position")?));
    let row = query(STORED).bind(source.as_str()).persistent(false).fetch_optional(connection).await;
    row.and_then(|row| row.map(decode).transpose()).map_err(unavailable(ACTION))
}

async fn held_rows(
    connection: &mut PgConnection,
    entity_refs: &[&str],
) -> Result<HashMap<EntityRef, Held>, sqlx::Error> {
    const HELD_ROWS: &str = "
        select entity_ref, source, uid, content_hash, source_version, source_position, last_offset
        from entities
        where entity_ref = any($1)";
    let mut held = HashMap::with_capacity(entity_refs.len());
    let mut rows = query(HELD_ROWS).bind(entity_refs).persistent(false).fetch(connection);
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
async fn compare(connection: &mut PgConnection, decision: &mut Decision) -> Result<(), sqlx::Error> {
    const SIZES: &str =
        "select event_offset, entity_bytes from events where event_offset = any($1) order by event_offset";
    const BODIES: &str = "select event_offset, entity from events where event_offset = any($1)";
    let offsets: Vec<i64> = decision.predecessors().into_iter().map(number_of).collect();
    if offsets.is_empty() {
        return Ok(());
    }
    let size =
        |row: PgRow| Ok(Sized { offset: offset_of(row.try_get("event_offset")?), bytes: row.try_get("entity_bytes")? });
    let sizes = query(SIZES).bind(&offsets).persistent(false).try_map(size).fetch_all(&mut *connection).await?;
    for chunk in chunks(&sizes) {
        let offsets: Vec<i64> = chunk.iter().map(|row| number_of(row.offset)).collect();
        let body = |row: PgRow| Ok((offset_of(row.try_get("event_offset")?), row.try_get("entity")?));
        let bodies = query(BODIES).bind(&offsets).persistent(false).try_map(body).fetch_all(&mut *connection).await?;
        decision.compare(&bodies.into_iter().collect());
    }
    decision.give_up_comparing();
    Ok(())
}
