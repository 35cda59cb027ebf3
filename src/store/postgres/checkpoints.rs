//! The positions of sources and sinks, and who owns them, on PostgreSQL.
//!
//! Keeps P9: every write locks its row, decides by the row and by the server's clock, and writes it, in one transaction.
//! Where the log's state matters (new rows, commands) the head lock is taken before the row's.

use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{EntityRef, JsonText, Offset, SourceName};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, query};

use super::append::move_position;
use super::transaction::Transaction;
use super::{PostgresStore, number_of, offset_of, unavailable};
use crate::store::checkpoint::{self, Claim, Row};
use crate::store::{
    Checkpoint, CheckpointMove, Checkpoints, ClaimRequest, Claimed, ConsumerKind, PositionMove, SinkCommand, Skipped,
    StoreError,
};

const ALL: &str = "\
select kind, name, event_offset, source_position, walk, walk_removals_above, connector_state, owner, epoch, \
lease_expires_at, flight_milliseconds, generation, fingerprint, paused, expired, status, commands, updated_at, \
clock_timestamp() as now
from checkpoints
order by kind, name";

const ONE: &str = "\
select kind, name, event_offset, source_position, walk, walk_removals_above, connector_state, owner, epoch, \
lease_expires_at, flight_milliseconds, generation, fingerprint, paused, expired, status, commands, updated_at, \
clock_timestamp() as now
from checkpoints
where kind = $1 and name = $2";

const LOCK: &str = "\
select kind, name, event_offset, source_position, walk, walk_removals_above, connector_state, owner, epoch, \
lease_expires_at, flight_milliseconds, generation, fingerprint, paused, expired, status, commands, updated_at, \
clock_timestamp() as now
from checkpoints
where kind = $1 and name = $2
for update";

const WRITE: &str = "\
insert into checkpoints (kind, name, event_offset, source_position, walk, walk_removals_above, connector_state, owner, \
epoch, lease_expires_at, flight_milliseconds, generation, fingerprint, paused, expired, status, commands, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
on conflict (kind, name) do update
set event_offset = excluded.event_offset,
    source_position = excluded.source_position,
    walk = excluded.walk,
    walk_removals_above = excluded.walk_removals_above,
    connector_state = excluded.connector_state,
    owner = excluded.owner,
    epoch = excluded.epoch,
    lease_expires_at = excluded.lease_expires_at,
    flight_milliseconds = excluded.flight_milliseconds,
    generation = excluded.generation,
    fingerprint = excluded.fingerprint,
    paused = excluded.paused,
    expired = excluded.expired,
    status = excluded.status,
    commands = excluded.commands,
    updated_at = excluded.updated_at";

const NOW: &str = "select clock_timestamp() as now";

const RECORD_SKIPPED: &str = "\
insert into skipped (sink, generation, event_offset, entity_ref, reason, skipped_by)
values ($1, $2, $3, $4, $5, $6)
on conflict (sink, generation, event_offset) do nothing";

const SKIPPED: &str = "\
select sink, generation, event_offset, entity_ref, reason, skipped_by, skipped_at
from skipped
where sink = $1 and event_offset > $2
order by event_offset, generation
limit $3";

const REF_AT: &str = "select entity_ref from events where event_offset = $1";

#[async_trait]
impl Checkpoints for PostgresStore {
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        let read = "read the checkpoints";
        self.bounded(read, async {
            let mut transaction = self.begin_read().await?;
            let rows = query(ALL).persistent(false).fetch_all(&mut *transaction).await.map_err(unavailable(read))?;
            transaction.rollback().await;
            rows.iter().map(|row| Ok(row_of(row).map_err(unavailable(read))?.0.checkpoint)).collect()
        })
        .await
    }

    async fn checkpoint(&self, kind: ConsumerKind, name: &str) -> Result<Option<Checkpoint>, StoreError> {
        self.bounded("read a checkpoint", async {
            let mut transaction = self.begin_read().await?;
            let row = find(&mut transaction, ONE, kind, name).await?;
            transaction.rollback().await;
            Ok(row.map(|(row, _now)| row.checkpoint))
        })
        .await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.bounded("claim a lease", async {
            let mut transaction = self.begin_write().await?;
            let row = match find(&mut transaction, LOCK, request.kind, &request.name).await? {
                Some((row, now)) => row.claim(request, now),
                None => self.claim_first(&mut transaction, request).await?,
            };
            match row {
                Claim::HeldBy { owner, until } => {
                    transaction.rollback().await;
                    Ok(Claimed::HeldBy { owner, until })
                }
                Claim::Ours(row) => {
                    write(&mut transaction, &row).await?;
                    transaction.commit().await.map_err(unavailable("claim a lease"))?;
                    Ok(Claimed::Ours(Box::new(row.checkpoint)))
                }
            }
        })
        .await
    }

    async fn renew(
        &self,
        kind: ConsumerKind,
        name: &str,
        epoch: u64,
        time_to_live: Duration,
    ) -> Result<Checkpoint, StoreError> {
        self.change("renew a lease", kind, name, |row, now| row.renew(epoch, time_to_live, now)).await
    }

    async fn release(&self, kind: ConsumerKind, name: &str, epoch: u64) -> Result<(), StoreError> {
        match self.change("release a lease", kind, name, |row, now| row.release(epoch, now)).await {
            Ok(_) | Err(StoreError::Fenced(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn save(&self, sink: &str, to: &CheckpointMove) -> Result<(), StoreError> {
        self.change("save a checkpoint", ConsumerKind::Sink, sink, |row, now| row.save(to, now)).await?;
        Ok(())
    }

    async fn set_back(&self, sink: &str, to: &CheckpointMove) -> Result<(), StoreError> {
        self.change("set a checkpoint back", ConsumerKind::Sink, sink, |row, now| row.set_back(to, now)).await?;
        Ok(())
    }

    async fn save_status(
        &self,
        kind: ConsumerKind,
        name: &str,
        epoch: u64,
        status: &JsonText,
    ) -> Result<(), StoreError> {
        self.change("save a status", kind, name, |row, now| row.save_status(epoch, status, now)).await?;
        Ok(())
    }

    async fn save_position(&self, source: &SourceName, to: &PositionMove) -> Result<(), StoreError> {
        let action = "save a position";
        self.bounded(action, async {
            let mut transaction = self.begin_write().await?;
            if let Err(refusal) = move_position(&mut transaction, source, to).await {
                transaction.rollback().await;
                return Err(refusal);
            }
            transaction.commit().await.map_err(unavailable(action))
        })
        .await
    }

    async fn command(&self, sink: &str, command: &SinkCommand) -> Result<Checkpoint, StoreError> {
        let action = "carry out a command";
        self.bounded(action, async {
            let mut transaction = self.begin_write().await?;
            let log = self.lock_head(&mut transaction).await?;
            let outcome = match find(&mut transaction, LOCK, ConsumerKind::Sink, sink).await? {
                None => Err(checkpoint::unknown(ConsumerKind::Sink, sink)),
                Some((mut row, now)) => row.command(command, &log, now).map(|()| row),
            };
            let row = match outcome {
                Ok(row) => row,
                Err(refusal) => {
                    transaction.rollback().await;
                    return Err(refusal);
                }
            };
            if let SinkCommand::Skip(offset) = *command {
                record_commanded_skip(&mut transaction, &row.checkpoint, offset).await?;
            }
            write(&mut transaction, &row).await?;
            transaction.commit().await.map_err(unavailable(action))?;
            Ok(row.checkpoint)
        })
        .await
    }

    async fn record_skipped(&self, skipped: &Skipped) -> Result<(), StoreError> {
        let action = "record a skipped event";
        self.bounded(action, async {
            let mut transaction = self.begin_write().await?;
            insert_skipped(&mut transaction, skipped).await?;
            transaction.commit().await.map_err(unavailable(action))
        })
        .await
    }

    async fn skipped(&self, sink: &str, after: Offset, limit: usize) -> Result<Vec<Skipped>, StoreError> {
        let read = "read the skipped events";
        self.bounded(read, async {
            let mut transaction = self.begin_read().await?;
            let rows = query(SKIPPED)
                .persistent(false)
                .bind(sink)
                .bind(number_of(after))
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(&mut *transaction)
                .await
                .map_err(unavailable(read))?;
            transaction.rollback().await;
            rows.iter().map(|row| skipped_of(row).map_err(unavailable(read))).collect()
        })
        .await
    }
}

impl PostgresStore {
    /// Changes the row of an owner; a refusal writes nothing.
    async fn change(
        &self,
        action: &'static str,
        kind: ConsumerKind,
        name: &str,
        decide: impl FnOnce(&mut Row, DateTime<Utc>) -> Result<(), StoreError> + Send,
    ) -> Result<Checkpoint, StoreError> {
        self.bounded(action, async {
            let mut transaction = self.begin_write().await?;
            let outcome = match find(&mut transaction, LOCK, kind, name).await? {
                None => Err(checkpoint::fenced_without_row(kind, name)),
                Some((mut row, now)) => decide(&mut row, now).map(|()| row),
            };
            match outcome {
                Err(refusal) => {
                    transaction.rollback().await;
                    Err(refusal)
                }
                Ok(row) => {
                    write(&mut transaction, &row).await?;
                    transaction.commit().await.map_err(unavailable(action))?;
                    Ok(row.checkpoint)
                }
            }
        })
        .await
    }

    /// Two may make a row at once: the head lock orders them, and the second finds the first one's.
    async fn claim_first(&self, transaction: &mut Transaction, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let log = self.lock_head(transaction).await?;
        if let Some((row, now)) = find(transaction, LOCK, request.kind, &request.name).await? {
            return Ok(row.claim(request, now));
        }
        let read = "read the clock";
        let row = query(NOW).persistent(false).fetch_one(&mut **transaction).await.map_err(unavailable(read))?;
        let now = row.try_get("now").map_err(unavailable(read))?;
        Ok(Claim::Ours(Box::new(Row::first_claim(request, &log, now)?)))
    }
}

/// The row, by [`ONE`] or [`LOCK`], and the server's clock.
async fn find(
    transaction: &mut Transaction,
    statement: &'static str,
    kind: ConsumerKind,
    name: &str,
) -> Result<Option<(Row, DateTime<Utc>)>, StoreError> {
    let read = "read a checkpoint";
    query(statement)
        .persistent(false)
        .bind(kind.as_str())
        .bind(name)
        .fetch_optional(&mut **transaction)
        .await
        .and_then(|row| row.as_ref().map(row_of).transpose())
        .map_err(unavailable(read))
}

fn row_of(row: &PgRow) -> Result<(Row, DateTime<Utc>), sqlx::Error> {
    let kind = match row.try_get("kind")? {
        "source" => ConsumerKind::Source,
        _ => ConsumerKind::Sink,
    };
    let offset = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(offset_of));
    let json = |column| {
        let text: Option<String> = row.try_get(column)?;
        Ok::<_, sqlx::Error>(text.map(JsonText::from_trusted))
    };
    let checkpoint = Checkpoint {
        kind,
        name: row.try_get("name")?,
        offset: offset_of(row.try_get("event_offset")?),
        source_position: json("source_position")?,
        walk: offset("walk")?,
        walk_removals_above: offset("walk_removals_above")?,
        connector_state: json("connector_state")?,
        owner: row.try_get("owner")?,
        epoch: row.try_get::<i64, _>("epoch")?.unsigned_abs(),
        lease_expires_at: row.try_get("lease_expires_at")?,
        generation: row.try_get::<i64, _>("generation")?.unsigned_abs(),
        fingerprint: row.try_get("fingerprint")?,
        paused: row.try_get("paused")?,
        expired: row.try_get("expired")?,
        status: json("status")?,
        commands: row.try_get::<i64, _>("commands")?.unsigned_abs(),
        updated_at: row.try_get("updated_at")?,
    };
    let flight = Duration::from_millis(row.try_get::<i64, _>("flight_milliseconds")?.unsigned_abs());
    Ok((Row { checkpoint, flight }, row.try_get("now")?))
}

async fn write(transaction: &mut Transaction, row: &Row) -> Result<(), StoreError> {
    let checkpoint = &row.checkpoint;
    query(WRITE)
        .persistent(false)
        .bind(checkpoint.kind.as_str())
        .bind(&checkpoint.name)
        .bind(number_of(checkpoint.offset))
        .bind(checkpoint.source_position.as_ref().map(JsonText::as_str))
        .bind(checkpoint.walk.map(number_of))
        .bind(checkpoint.walk_removals_above.map(number_of))
        .bind(checkpoint.connector_state.as_ref().map(JsonText::as_str))
        .bind(&checkpoint.owner)
        .bind(checkpoint.epoch.cast_signed())
        .bind(checkpoint.lease_expires_at)
        .bind(i64::try_from(row.flight.as_millis()).unwrap_or(i64::MAX))
        .bind(checkpoint.generation.cast_signed())
        .bind(&checkpoint.fingerprint)
        .bind(checkpoint.paused)
        .bind(checkpoint.expired)
        .bind(checkpoint.status.as_ref().map(JsonText::as_str))
        .bind(checkpoint.commands.cast_signed())
        .bind(checkpoint.updated_at)
        .execute(&mut **transaction)
        .await
        .map_err(unavailable("write a checkpoint"))?;
    Ok(())
}

async fn record_commanded_skip(
    transaction: &mut Transaction,
    sink: &Checkpoint,
    offset: Offset,
) -> Result<(), StoreError> {
    let read = "read an event's ref";
    let row = query(REF_AT)
        .persistent(false)
        .bind(number_of(offset))
        .fetch_optional(&mut **transaction)
        .await
        .map_err(unavailable(read))?;
    let entity_ref = row.map(|row| row.try_get::<String, _>("entity_ref")).transpose().map_err(unavailable(read))?;
    let skipped = checkpoint::commanded_skip(sink, offset, entity_ref.as_deref());
    insert_skipped(transaction, &skipped).await
}

async fn insert_skipped(transaction: &mut Transaction, skipped: &Skipped) -> Result<(), StoreError> {
    query(RECORD_SKIPPED)
        .persistent(false)
        .bind(&skipped.sink)
        .bind(skipped.generation.cast_signed())
        .bind(number_of(skipped.offset))
        .bind(skipped.entity_ref.as_ref().map(EntityRef::as_str))
        .bind(&skipped.reason)
        .bind(&skipped.by)
        .execute(&mut **transaction)
        .await
        .map_err(unavailable("record a skipped event"))?;
    Ok(())
}

fn skipped_of(row: &PgRow) -> Result<Skipped, sqlx::Error> {
    let entity_ref: Option<&str> = row.try_get("entity_ref")?;
    Ok(Skipped {
        sink: row.try_get("sink")?,
        generation: row.try_get::<i64, _>("generation")?.unsigned_abs(),
        offset: offset_of(row.try_get("event_offset")?),
        entity_ref: entity_ref.and_then(|text| EntityRef::parse(text).ok()),
        reason: row.try_get("reason")?,
        by: row.try_get("skipped_by")?,
        at: row.try_get("skipped_at")?,
    })
}
