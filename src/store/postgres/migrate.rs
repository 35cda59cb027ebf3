//! Brings the schema up to date: replicas that start together do it once, also through PgBouncer.
//!
//! One transaction under `pg_advisory_xact_lock`, so that a crash leaves nothing half done and no lock outlives it.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, query, query_scalar, raw_sql};

use super::super::{READER_VERSION, StoreError};
use super::unavailable;

/// In order; a number and a name are never used again.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "log", include_str!("../migrations/postgres/0001_log.sql"))];

const ACTION: &str = "migrate the store";

/// `schema` is a plain name.
pub(super) async fn migrate(pool: &PgPool, schema: &str) -> Result<(), StoreError> {
    let mut transaction = pool.begin_with("begin isolation level read committed").await.map_err(unavailable(ACTION))?;
    let connection = &mut *transaction;
    prepare(connection, schema).await.map_err(unavailable(ACTION))?;
    let done = applied(connection).await.map_err(unavailable(ACTION))?;
    if !done.is_empty() {
        refuse_too_new(connection).await?;
    }
    for (version, name, sql) in MIGRATIONS.iter().filter(|(version, _, _)| !done.contains(version)) {
        apply(connection, *version, name, sql).await.map_err(unavailable(ACTION))?;
        tracing::info!(version, name, "the store was migrated");
    }
    transaction.commit().await.map_err(unavailable(ACTION))
}

/// Waits for other replicas' migrations, makes the schema and points the transaction at it.
async fn prepare(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    raw_sql("set local statement_timeout = '10min'; set local lock_timeout = '10min'")
        .execute(&mut *connection)
        .await?;
    query("select pg_advisory_xact_lock(hashtextextended('catalog-bridge migrations ' || $1, 0))")
        .bind(schema)
        .persistent(false)
        .execute(&mut *connection)
        .await?;
    // CREATE SCHEMA IF NOT EXISTS asks for the right to create even where there is nothing to do.
    let is_there: bool = query_scalar("select to_regnamespace(quote_ident($1)) is not null")
        .bind(schema)
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !is_there {
        raw_sql(AssertSqlSafe(format!("create schema \"{schema}\""))).execute(&mut *connection).await?;
    }
    raw_sql(AssertSqlSafe(format!("set local search_path = \"{schema}\""))).execute(&mut *connection).await?;
    raw_sql(
        "create table if not exists migrations (
            version bigint primary key,
            name text not null,
            applied_at timestamptz not null default clock_timestamp()
        )",
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    query_scalar("select version from migrations order by version").persistent(false).fetch_all(connection).await
}

/// A newer binary may have changed the tables so that ours must not read them. It need not have: then we go on.
async fn refuse_too_new(connection: &mut PgConnection) -> Result<(), StoreError> {
    let needed: i64 = query_scalar("select min_reader_version from log_state")
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(unavailable(ACTION))?;
    if needed > READER_VERSION { Err(StoreError::TooNew { needed, ours: READER_VERSION }) } else { Ok(()) }
}

async fn apply(connection: &mut PgConnection, version: i64, name: &str, sql: &'static str) -> Result<(), sqlx::Error> {
    raw_sql(sql).execute(&mut *connection).await?;
    query("insert into migrations (version, name) values ($1, $2)")
        .bind(version)
        .bind(name)
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}
