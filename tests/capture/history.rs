//! P3 on the oldest and the newest PostgreSQL, by each read-only way of capture, with two-phase commit: log = truth, per entity in
//! commit order, no event for what did not commit.

use anyhow::Result;
use catalog_bridge_services::PostgresVersion;

use crate::servers;
use crate::support::Store;
use crate::support::catalog::Catalog;
use crate::support::history::History;

async fn check(version: PostgresVersion, source: &str) -> Result<()> {
    let catalog = Catalog::create(&servers::postgres(version).await?.fresh_database("catalog").await?).await?;
    let store = Store::Sqlite;
    let history = History { catalog: &catalog, store: &store, source, is_two_phase: true, has_every_version: false };
    history.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn by_generations_on_postgres_14() -> Result<()> {
    check(PostgresVersion::V14, "capture: generations, removal_interval: 100ms").await
}

#[tokio::test(flavor = "multi_thread")]
async fn by_generations_on_postgres_18() -> Result<()> {
    check(PostgresVersion::V18, "capture: generations, removal_interval: 100ms").await
}

#[tokio::test(flavor = "multi_thread")]
async fn by_reconcile_on_postgres_14() -> Result<()> {
    check(PostgresVersion::V14, "capture: reconcile, reconcile_only_interval: 100ms").await
}

#[tokio::test(flavor = "multi_thread")]
async fn by_reconcile_on_postgres_18() -> Result<()> {
    check(PostgresVersion::V18, "capture: reconcile, reconcile_only_interval: 100ms").await
}
