//! Writes what an append comes to, in one statement: while it runs nobody else may append, and each statement costs two
//! round trips (unnamed statements are parsed each time). Bulk by `unnest`, never COPY.

use catalog_bridge_api::{EntityRef, JsonText, SourceName};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row, query};

use super::super::decide::{Decision, Held, NewEvent, NewRejected};
use super::super::{Appended, Idempotency};
use super::number_of;

/// Everything but the idempotent answer. `statement_timestamp`: one time for all events, taken after the head lock was
/// granted. Each part touches another table or other rows, so that their order does not matter.
const WRITE: &str = "
with cleared as (
    delete from rejected where source = $1 and entity_ref = any($2::text[]) returning 1
), remembered as (
    insert into rejected (source, entity_ref, reason, source_version, source_position, owner)
    select $1, entity_ref, reason, source_version, source_position, owner
    from unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
        as new (entity_ref, reason, source_version, source_position, owner)
    on conflict (source, entity_ref) do update set
        reason = excluded.reason,
        source_version = excluded.source_version,
        source_position = excluded.source_position,
        owner = excluded.owner,
        rejected_at = clock_timestamp()
    returning 1
), gone as (
    delete from entities where entity_ref = any($8::text[]) returning 1
), held as (
    insert into entities (entity_ref, source, uid, content_hash, source_version, source_position, last_offset)
    select entity_ref, $1, uid, content_hash, source_version, source_position, last_offset
    from unnest($9::text[], $10::text[], $11::bytea[], $12::text[], $13::bigint[], $14::bigint[])
        as new (entity_ref, uid, content_hash, source_version, source_position, last_offset)
    on conflict (entity_ref) do update set
        source = excluded.source,
        uid = excluded.uid,
        content_hash = excluded.content_hash,
        source_version = excluded.source_version,
        source_position = excluded.source_position,
        last_offset = excluded.last_offset
    returning 1
), inserted as (
    insert into events (
        event_offset, type, entity_ref, uid, entity, entity_bytes, changed, occurred_at, recorded_at, cause,
        previous_offset
    )
    select
        event_offset, type, entity_ref, uid, entity, coalesce(octet_length(entity), 0), changed,
        coalesce(occurred_at, statement_timestamp()), statement_timestamp(), cause, previous_offset
    from unnest(
        $15::bigint[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], $21::timestamptz[], $22::text[],
        $23::bigint[]
    ) as new (event_offset, type, entity_ref, uid, entity, changed, occurred_at, cause, previous_offset)
    returning event_offset, recorded_at
), moved as (
    -- Other replicas that listen look at the head at once; see follow.rs.
    update log_state set head = $24 where head < $24 returning pg_notify('catalog_bridge_head', '')
)
select
    (select count(*) from cleared) + (select count(*) from remembered) + (select count(*) from gone)
        + (select count(*) from held) + (select count(*) from moved) as touched,
    (select max(recorded_at) from inserted) as recorded_at";

/// What was written.
pub(super) struct Wrote {
    /// Of the events, if there are any.
    pub(super) recorded_at: Option<DateTime<Utc>>,
    /// Whether no row was touched: then there is nothing to commit.
    pub(super) is_nothing: bool,
}

/// Writes everything but the idempotent answer.
pub(super) async fn all(
    connection: &mut PgConnection,
    source: &SourceName,
    decision: &Decision,
) -> Result<Wrote, sqlx::Error> {
    let rejected: Vec<&NewRejected> = decision.remembered().collect();
    let held: Vec<(&EntityRef, &Held)> = decision.held().collect();
    let events = &decision.events;
    let wrote = |row: PgRow| {
        Ok(Wrote { recorded_at: row.try_get("recorded_at")?, is_nothing: row.try_get::<i64, _>("touched")? == 0 })
    };
    query(WRITE)
        .bind(source.as_str())
        .bind(decision.forgotten().collect::<Vec<_>>())
        .bind(column(&rejected, |new| new.rejected.entity_ref.as_str()))
        .bind(column(&rejected, |new| new.rejected.reason.as_str()))
        .bind(column(&rejected, |new| new.rejected.source_version.as_deref()))
        .bind(column(&rejected, |new| new.rejected.source_position))
        .bind(column(&rejected, |new| new.owner.as_ref().map(SourceName::as_str)))
        .bind(decision.gone().map(EntityRef::as_str).collect::<Vec<_>>())
        .bind(column(&held, |(entity_ref, _)| entity_ref.as_str()))
        .bind(column(&held, |(_, held)| held.uid.as_deref()))
        .bind(column(&held, |(_, held)| held.content_hash.as_slice()))
        .bind(column(&held, |(_, held)| held.source_version.as_deref()))
        .bind(column(&held, |(_, held)| held.source_position))
        .bind(column(&held, |(_, held)| number_of(held.last_offset)))
        .bind(column(events, |event| number_of(event.offset)))
        .bind(column(events, |event| event.event_type.as_str()))
        .bind(column(events, |event| event.entity_ref.as_str()))
        .bind(column(events, |event| event.uid.as_deref()))
        .bind(column(events, |event| event.entity.as_ref().map(JsonText::as_str)))
        .bind(column(events, NewEvent::changed_text))
        .bind(column(events, |event| event.occurred_at))
        .bind(column(events, |event| event.cause.as_str()))
        .bind(column(events, |event| event.previous_offset.map(number_of)))
        .bind(events.last().map(|event| number_of(event.offset)))
        .persistent(false)
        .try_map(wrote)
        .fetch_one(connection)
        .await
}

/// One array parameter: a value of each row.
fn column<'a, R, V>(rows: &'a [R], value: impl Fn(&'a R) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

/// Keeps the answer for a repetition of the request, and forgets some that are older than a day.
pub(super) async fn answer(
    connection: &mut PgConnection,
    source: &SourceName,
    idempotency: &Idempotency,
    answer: &Appended,
) -> Result<(), sqlx::Error> {
    const FORGET: &str = "
        delete from idempotency
        where ctid = any (array(
            select ctid from idempotency
            where created_at < clock_timestamp() - interval '1 day'
            order by created_at
            limit 100
        ))";
    const KEEP: &str = "
        insert into idempotency (source, key, body_hash, answer)
        values ($1, $2, $3, $4)
        on conflict (source, key) do update set
            body_hash = excluded.body_hash,
            answer = excluded.answer,
            created_at = clock_timestamp()";
    query(FORGET).persistent(false).execute(&mut *connection).await?;
    query(KEEP)
        .bind(source.as_str())
        .bind(&idempotency.key)
        .bind(&idempotency.body_hash)
        .bind(answer.to_text())
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}
