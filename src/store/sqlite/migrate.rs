//! Brings the file's tables up to date, in one transaction.

use sqlx::{SqliteConnection, SqlitePool, query, query_scalar, raw_sql};

use super::super::{READER_VERSION, StoreError};
use super::unavailable;

/// The twins of PostgreSQL's, number by number.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "log", include_str!("../migrations/sqlite/0001_log.sql"))];

const ACTION: &str = "migrate the store";

pub(super) async fn migrate(writer: &SqlitePool) -> Result<(), StoreError> {
    let mut transaction = writer.begin_with("begin immediate").await.map_err(unavailable(ACTION))?;
    let connection = &mut *transaction;
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

async fn applied(connection: &mut SqliteConnection) -> Result<Vec<i64>, sqlx::Error> {
    raw_sql(
        "create table if not exists migrations (
            version integer primary key,
            name text not null,
            applied_at integer not null default (cast(unixepoch('subsec') * 1000000 as integer))
        ) strict",
    )
    .execute(&mut *connection)
    .await?;
    query_scalar("select version from migrations order by version").fetch_all(connection).await
}

/// A newer binary may have changed the tables so that ours must not read them. It need not have: then we go on.
async fn refuse_too_new(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let needed: i64 = query_scalar("select min_reader_version from log_state")
        .fetch_one(connection)
        .await
        .map_err(unavailable(ACTION))?;
    if needed > READER_VERSION { Err(StoreError::TooNew { needed, ours: READER_VERSION }) } else { Ok(()) }
}

async fn apply(
    connection: &mut SqliteConnection,
    version: i64,
    name: &str,
    sql: &'static str,
) -> Result<(), sqlx::Error> {
    raw_sql(sql).execute(&mut *connection).await?;
    query("insert into migrations (version, name) values ($1, $2)")
        .bind(version)
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}
