//! Retention's statements on PostgreSQL.
//!
//! What a step frees is looked up before the head lock is taken: below head nothing changes which event has a next one, so
//! under the lock only rows named by their key go.

use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::Offset;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Row, query, query_scalar};

use super::super::retention::{ENABLED_WITHIN, Facts, ROW_BYTES, Reader, Step, Tables, Weight};
use super::super::{LogState, StoreError};
use super::{PostgresStore, number_of, offset_of, unavailable};

const ACTION: &str = "retain events";

/// The first event above `$1` that is not past its age (`$2`).
const FIRST_YOUNG: &str = "
select event_offset
from events
where event_offset > $1 and recorded_at >= $2
order by event_offset
limit 1";

const READERS: &str = "
select name, event_offset, walk, coalesce(lease_expires_at > $1, false) as is_enabled
from checkpoints
where kind = 'sink' and not expired
order by name";

const NOW: &str = "select clock_timestamp()";

/// An event `n` in ($1, $2] frees the same entity's event before it; $3 is what a row costs.
const WEIGH: &str = "
select count(*) as events, coalesce(sum(p.entity_bytes + $3), 0)::bigint as bytes
from events n
join events p on p.event_offset = coalesce(n.previous_offset, (
    select max(e.event_offset) from events e where e.entity_ref = n.entity_ref and e.event_offset < n.event_offset
))
where n.event_offset > $1 and n.event_offset <= $2";

const REACH: &str = "
select event_offset
from (
    select
        n.event_offset,
        count(*) over (order by n.event_offset) as events,
        sum(p.entity_bytes + $3) over (order by n.event_offset) as bytes
    from events n
    join events p on p.event_offset = coalesce(n.previous_offset, (
        select max(e.event_offset) from events e where e.entity_ref = n.entity_ref and e.event_offset < n.event_offset
    ))
    where n.event_offset > $1 and n.event_offset <= $2
) as running
where events >= $4 and bytes >= $5
order by event_offset
limit 1";

/// Everything that has its entity's next event at or below $2, by the events in ($1, $2].
const FREED: &str = "
select e.event_offset
from events e
join (
    select entity_ref, max(event_offset) as last_offset
    from events
    where event_offset > $1 and event_offset <= $2
    group by entity_ref
) as n on n.entity_ref = e.entity_ref and e.event_offset < n.last_offset
order by e.event_offset";

const LEFT_BEHIND: &str = "
select count(*)
from checkpoints
where kind = 'sink' and not expired and coalesce(walk, event_offset) < $1
    and not name = any($2::text[])";

const MOVE: &str = "update log_state set oldest = $1";

const EXPIRE: &str = "
update checkpoints
set expired = true, updated_at = clock_timestamp()
where kind = 'sink' and not expired and coalesce(walk, event_offset) < $1
    and name = any($2::text[])
returning name";

const DELETE: &str = "delete from events where event_offset = any($1::bigint[])";

const DELETE_OLD_REMOVALS: &str = "
delete from events
where event_offset in (
    select r.event_offset
    from events r
    where r.type = 'removed' and r.event_offset <= $1 and r.recorded_at < $2
        and not exists (
            select from events n where n.entity_ref = r.entity_ref and n.event_offset > r.event_offset
        )
    order by r.event_offset
    limit $3
)";

/// Removals that go in one transaction.
const REMOVALS_MAX: i64 = 1_000;

#[async_trait]
impl Tables for PostgresStore {
    async fn facts(&self, age: Duration) -> Result<Facts, StoreError> {
        self.bounded(ACTION, async {
            let mut transaction = self.begin_read().await?;
            let state = self.read_state(&mut transaction).await?;
            let now: DateTime<Utc> =
                query_scalar(NOW).persistent(false).fetch_one(&mut *transaction).await.map_err(unavailable(ACTION))?;
            let first_young: Option<i64> = query_scalar(FIRST_YOUNG)
                .bind(number_of(state.oldest))
                .bind(before(now, age))
                .persistent(false)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            let readers = query(READERS)
                .bind(before(now, ENABLED_WITHIN))
                .persistent(false)
                .try_map(|row: sqlx::postgres::PgRow| {
                    let walk: Option<i64> = row.try_get("walk")?;
                    Ok(Reader {
                        name: row.try_get("name")?,
                        needs: offset_of(walk.map_or_else(|| row.try_get("event_offset"), Ok)?),
                        is_walking: walk.is_some(),
                        is_enabled: row.try_get("is_enabled")?,
                    })
                })
                .fetch_all(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            transaction.rollback().await;
            let aged = first_young.map_or(state.head, |offset| offset_of(offset - 1));
            Ok(Facts { state, aged, readers })
        })
        .await
    }

    async fn weigh(&self, after: Offset, to: Offset) -> Result<Weight, StoreError> {
        self.bounded(ACTION, async {
            let mut transaction = self.begin_read().await?;
            let weight = query(WEIGH)
                .bind(number_of(after))
                .bind(number_of(to))
                .bind(ROW_BYTES)
                .persistent(false)
                .try_map(|row: sqlx::postgres::PgRow| {
                    Ok(Weight {
                        events: row.try_get::<i64, _>("events")?.unsigned_abs(),
                        bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
                    })
                })
                .fetch_one(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            transaction.rollback().await;
            Ok(weight)
        })
        .await
    }

    async fn reach(&self, after: Offset, to: Offset, least: Weight) -> Result<Offset, StoreError> {
        self.bounded(ACTION, async {
            let mut transaction = self.begin_read().await?;
            let offset: Option<i64> = query_scalar(REACH)
                .bind(number_of(after))
                .bind(number_of(to))
                .bind(ROW_BYTES)
                .bind(least.events.cast_signed())
                .bind(least.bytes.cast_signed())
                .persistent(false)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            transaction.rollback().await;
            Ok(offset.map_or(to, offset_of))
        })
        .await
    }

    async fn step(&self, from: &LogState, to: Offset, expire: &[String]) -> Result<Step, StoreError> {
        self.bounded(ACTION, async {
            let mut transaction = self.begin_write().await?;
            let freed: Vec<i64> = query_scalar(FREED)
                .bind(number_of(from.oldest))
                .bind(number_of(to))
                .persistent(false)
                .fetch_all(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            let state = self.lock_head(&mut transaction).await?;
            let left_behind: i64 = query_scalar(LEFT_BEHIND)
                .bind(number_of(to))
                .bind(expire)
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            if state.log_id != from.log_id || state.oldest != from.oldest || left_behind > 0 {
                transaction.rollback().await;
                return Ok(Step::Overtaken);
            }
            query(MOVE)
                .bind(number_of(to))
                .persistent(false)
                .execute(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            let expired_sinks = query_scalar(EXPIRE)
                .bind(number_of(to))
                .bind(expire)
                .persistent(false)
                .fetch_all(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?;
            let deleted = query(DELETE)
                .bind(freed)
                .persistent(false)
                .execute(&mut *transaction)
                .await
                .map_err(unavailable(ACTION))?
                .rows_affected();
            transaction.commit().await.map_err(unavailable(ACTION))?;
            self.head.publish(&LogState { oldest: to, ..state });
            Ok(Step::Done { deleted, expired_sinks })
        })
        .await
    }

    async fn delete_old_removals(&self, oldest: Offset, removals: Duration) -> Result<u64, StoreError> {
        let mut total = 0;
        loop {
            let deleted = self
                .bounded(ACTION, async {
                    let mut transaction = self.begin_write().await?;
                    let now: DateTime<Utc> = query_scalar(NOW)
                        .persistent(false)
                        .fetch_one(&mut *transaction)
                        .await
                        .map_err(unavailable(ACTION))?;
                    let deleted = query(DELETE_OLD_REMOVALS)
                        .bind(number_of(oldest))
                        .bind(before(now, removals))
                        .bind(REMOVALS_MAX)
                        .persistent(false)
                        .execute(&mut *transaction)
                        .await
                        .map_err(unavailable(ACTION))?
                        .rows_affected();
                    transaction.commit().await.map_err(unavailable(ACTION))?;
                    Ok(deleted)
                })
                .await?;
            total += deleted;
            if deleted < REMOVALS_MAX.unsigned_abs() {
                return Ok(total);
            }
        }
    }
}

fn before(now: DateTime<Utc>, duration: Duration) -> DateTime<Utc> {
    let delta = TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX);
    now.checked_sub_signed(delta).unwrap_or(DateTime::UNIX_EPOCH)
}
