//! Writes what an append comes to, many rows to a statement.

use catalog_bridge_api::{EntityRef, JsonText, SourceName};
use chrono::Utc;
use sqlx::{QueryBuilder, SqliteConnection, query};

use super::super::decide::{Decision, Held, NewEvent, NewRejected};
use super::super::{Appended, Idempotency};
use super::{json_of, microseconds_of, number_of};

/// Rows of one statement: enough to pay for the way to the writing thread, and few different statements to keep prepared.
const ROWS: usize = 100;
/// In microseconds.
pub(super) const DAY: i64 = 24 * 60 * 60 * 1_000_000;

/// Writes everything but the idempotent answer. Returns whether no row was touched: then there is nothing to commit.
pub(super) async fn all(
    connection: &mut SqliteConnection,
    source: &SourceName,
    decision: &Decision,
) -> Result<bool, sqlx::Error> {
    let now = microseconds_of(Utc::now());
    let mut touched = rejected(connection, source, decision, now).await?;
    let gone = json_of(decision.gone().map(EntityRef::as_str));
    let held: Vec<_> = decision.held().collect();
    touched += decision.entities.len() as u64;
    if held.len() < decision.entities.len() {
        let delete = query("delete from entities where entity_ref in (select value from json_each($1))");
        delete.bind(gone).execute(&mut *connection).await?;
    }
    for rows in held.chunks(ROWS) {
        entities(connection, rows).await?;
    }
    for rows in decision.events.chunks(ROWS) {
        events(connection, rows, now).await?;
    }
    if let Some(last) = decision.events.last() {
        query("update log_state set head = $1").bind(number_of(last.offset)).execute(connection).await?;
    }
    Ok(touched == 0)
}

async fn events(connection: &mut SqliteConnection, rows: &[NewEvent], now: i64) -> Result<(), sqlx::Error> {
    const INSERT: &str = "
        insert into events (
            event_offset, type, entity_ref, uid, entity, entity_bytes, changed, occurred_at, recorded_at, cause,
            previous_offset
        ) ";
    let mut insert = QueryBuilder::new(INSERT);
    insert.push_values(rows, |mut row, event| {
        let entity = event.entity.as_ref().map(JsonText::as_str);
        row.push_bind(number_of(event.offset))
            .push_bind(event.event_type.as_str())
            .push_bind(event.entity_ref.as_str())
            .push_bind(event.uid.as_deref())
            .push_bind(entity)
            .push_bind(entity.map_or(0, |entity| entity.len() as i64))
            .push_bind(event.changed_text())
            .push_bind(event.occurred_at.map_or(now, microseconds_of))
            .push_bind(now)
            .push_bind(event.cause.as_str())
            .push_bind(event.previous_offset.map(number_of));
    });
    insert.build().execute(connection).await?;
    Ok(())
}

async fn entities(connection: &mut SqliteConnection, rows: &[(&EntityRef, &Held)]) -> Result<(), sqlx::Error> {
    const INSERT: &str =
        "insert into entities (entity_ref, source, uid, content_hash, source_version, source_position, last_offset) ";
    const REPLACE: &str = "
        on conflict (entity_ref) do update set
            source = excluded.source,
            uid = excluded.uid,
            content_hash = excluded.content_hash,
            source_version = excluded.source_version,
            source_position = excluded.source_position,
            last_offset = excluded.last_offset";
    let mut upsert = QueryBuilder::new(INSERT);
    upsert.push_values(rows, |mut row, (entity_ref, held)| {
        row.push_bind(entity_ref.as_str())
            .push_bind(held.source.as_str())
            .push_bind(held.uid.as_deref())
            .push_bind(held.content_hash.as_slice())
            .push_bind(held.source_version.as_deref())
            .push_bind(held.source_position)
            .push_bind(number_of(held.last_offset));
    });
    upsert.push(REPLACE).build().execute(connection).await?;
    Ok(())
}

/// Returns how many rows were touched.
async fn rejected(
    connection: &mut SqliteConnection,
    source: &SourceName,
    decision: &Decision,
    now: i64,
) -> Result<u64, sqlx::Error> {
    const CLEAR: &str = "delete from rejected where source = $1 and entity_ref in (select value from json_each($2))";
    const INSERT: &str =
        "insert into rejected (source, entity_ref, reason, source_version, source_position, owner, rejected_at) ";
    const REPLACE: &str = "
        on conflict (source, entity_ref) do update set
            reason = excluded.reason,
            source_version = excluded.source_version,
            source_position = excluded.source_position,
            owner = excluded.owner,
            rejected_at = excluded.rejected_at";
    let forgotten = json_of(decision.forgotten());
    let clear = query(CLEAR).bind(source.as_str()).bind(forgotten);
    let mut touched = clear.execute(&mut *connection).await?.rows_affected();
    let new: Vec<&NewRejected> = decision.remembered().collect();
    for rows in new.chunks(ROWS) {
        let mut remember = QueryBuilder::new(INSERT);
        remember.push_values(rows, |mut row, new| {
            row.push_bind(source.as_str())
                .push_bind(new.rejected.entity_ref.as_str())
                .push_bind(new.rejected.reason.as_str())
                .push_bind(new.rejected.source_version.as_deref())
                .push_bind(new.rejected.source_position)
                .push_bind(new.owner.as_ref().map(SourceName::as_str))
                .push_bind(now);
        });
        touched += remember.push(REPLACE).build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(touched)
}

/// Keeps the answer for a repetition of the request, and forgets some that are older than a day.
pub(super) async fn answer(
    connection: &mut SqliteConnection,
    source: &SourceName,
    idempotency: &Idempotency,
    answer: &Appended,
) -> Result<(), sqlx::Error> {
    const FORGET: &str = "
        delete from idempotency
        where rowid in (select rowid from idempotency where created_at < $1 order by created_at limit 100)";
    const KEEP: &str = "
        insert into idempotency (source, key, body_hash, answer, created_at)
        values ($1, $2, $3, $4, $5)
        on conflict (source, key) do update set
            body_hash = excluded.body_hash,
            answer = excluded.answer,
            created_at = excluded.created_at";
    let now = microseconds_of(Utc::now());
    query(FORGET).bind(now - DAY).execute(&mut *connection).await?;
    query(KEEP)
        .bind(source.as_str())
        .bind(&idempotency.key)
        .bind(&idempotency.body_hash)
        .bind(answer.to_text())
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}
