//! Writes what an append comes to, in bulk: `insert … select from unnest`, never COPY, which PgBouncer and time-outs bear less
//! well.

use catalog_bridge_api::{EntityRef, JsonText, SourceName};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_scalar};

use super::super::decide::{Decision, NewEvent};
use super::super::{Appended, Idempotency};
use super::number_of;

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
    let rejected = rejected(connection, source, decision).await?;
    entities(connection, decision).await?;
    let Some(last) = decision.events.last() else {
        return Ok(Wrote { recorded_at: None, is_nothing: rejected == 0 && decision.entities.is_empty() });
    };
    let recorded_at = events(connection, decision).await?;
    query("update log_state set head = $1").bind(number_of(last.offset)).persistent(false).execute(connection).await?;
    Ok(Wrote { recorded_at: Some(recorded_at), is_nothing: false })
}

async fn events(connection: &mut PgConnection, decision: &Decision) -> Result<DateTime<Utc>, sqlx::Error> {
    // statement_timestamp: one time for all of them, taken after the head lock was granted.
    const INSERT: &str = "
        with inserted as (
            insert into events (
                event_offset, type, entity_ref, uid, entity, entity_bytes, changed, occurred_at, recorded_at, cause,
                previous_offset
            )
            select
                event_offset, type, entity_ref, uid, entity, coalesce(octet_length(entity), 0), changed,
                coalesce(occurred_at, statement_timestamp()), statement_timestamp(), cause, previous_offset
            from unnest(
                $1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::text[],
                $9::bigint[]
            ) as new (
                event_offset, type, entity_ref, uid, entity, changed, occurred_at, cause, previous_offset
            )
            returning recorded_at
        )
        select max(recorded_at) from inserted";
    let new = &decision.events;
    query_scalar(INSERT)
        .bind(new.iter().map(|event| number_of(event.offset)).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.entity_ref.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.uid.as_deref()).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.entity.as_ref().map(JsonText::as_str)).collect::<Vec<_>>())
        .bind(new.iter().map(NewEvent::changed_text).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.occurred_at).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.cause.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|event| event.previous_offset.map(number_of)).collect::<Vec<_>>())
        .persistent(false)
        .fetch_one(connection)
        .await
}

async fn entities(connection: &mut PgConnection, decision: &Decision) -> Result<(), sqlx::Error> {
    const UPSERT: &str = "
        insert into entities (entity_ref, source, uid, content_hash, source_version, source_position, last_offset)
        select * from unnest(
            $1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::bigint[], $7::bigint[]
        )
        on conflict (entity_ref) do update set
            source = excluded.source,
            uid = excluded.uid,
            content_hash = excluded.content_hash,
            source_version = excluded.source_version,
            source_position = excluded.source_position,
            last_offset = excluded.last_offset";
    let gone: Vec<&str> = decision.gone().map(EntityRef::as_str).collect();
    if !gone.is_empty() {
        query("delete from entities where entity_ref = any($1)")
            .bind(gone)
            .persistent(false)
            .execute(&mut *connection)
            .await?;
    }
    let held: Vec<_> = decision.held().collect();
    if held.is_empty() {
        return Ok(());
    }
    query(UPSERT)
        .bind(held.iter().map(|(entity_ref, _)| entity_ref.as_str()).collect::<Vec<_>>())
        .bind(held.iter().map(|(_, held)| held.source.as_str()).collect::<Vec<_>>())
        .bind(held.iter().map(|(_, held)| held.uid.as_deref()).collect::<Vec<_>>())
        .bind(held.iter().map(|(_, held)| held.content_hash.as_slice()).collect::<Vec<_>>())
        .bind(held.iter().map(|(_, held)| held.source_version.as_deref()).collect::<Vec<_>>())
        .bind(held.iter().map(|(_, held)| held.source_position).collect::<Vec<_>>())
        .bind(held.iter().map(|(_, held)| number_of(held.last_offset)).collect::<Vec<_>>())
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns how many rows were touched.
async fn rejected(connection: &mut PgConnection, source: &SourceName, decision: &Decision) -> Result<u64, sqlx::Error> {
    const CLEAR: &str = "delete from rejected where source = $1 and entity_ref = any($2)";
    const REMEMBER: &str = "
        insert into rejected (source, entity_ref, reason, source_version, source_position, owner)
        select $1, * from unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
        on conflict (source, entity_ref) do update set
            reason = excluded.reason,
            source_version = excluded.source_version,
            source_position = excluded.source_position,
            owner = excluded.owner,
            rejected_at = clock_timestamp()";
    let forgotten: Vec<&str> = decision.forgotten().collect();
    let mut touched = 0;
    if !forgotten.is_empty() {
        let clear = query(CLEAR).bind(source.as_str()).bind(forgotten).persistent(false);
        touched += clear.execute(&mut *connection).await?.rows_affected();
    }
    let new: Vec<_> = decision.remembered().collect();
    if new.is_empty() {
        return Ok(touched);
    }
    let remember = query(REMEMBER)
        .bind(source.as_str())
        .bind(new.iter().map(|new| new.rejected.entity_ref.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.rejected.reason.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.rejected.source_version.as_deref()).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.rejected.source_position).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.owner.as_ref().map(SourceName::as_str)).collect::<Vec<_>>())
        .persistent(false);
    touched += remember.execute(connection).await?.rows_affected();
    Ok(touched)
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
