//! `helm rollback` after a store migration: the release before starts on what a newer one has migrated, as long as the marker
//! `min_reader_version` lets it.

use anyhow::{Result, ensure};
use catalog_bridge_api::Offset;
use sqlx::{Connection, PgConnection};

use crate::support::{Place, Store, postgres_store, upsert};

const SOURCES: &str = "sources: { push: { ingest: {} } }\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_release_before_runs_on_a_store_that_a_newer_one_migrated() -> Result<()> {
    let store = postgres_store().await?;
    let Store::Postgres(url) = &store else { unreachable!("a PostgreSQL store") };
    let place = Place::new()?;
    let config = format!("log: {}\n{SOURCES}", store.log(&place)?);
    let before = place.start(&config).await?;
    before.ingest("push", &[upsert("a", 1)]).await?;
    ensure!(before.stop().await? == 0);

    // What the next release's migration does: it expands, and leaves the marker where it is.
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(
        "insert into catalog_bridge.migrations (version, name) values (1000, 'of_the_next_release');
         alter table catalog_bridge.events add column of_the_next_release text;
         alter table catalog_bridge.checkpoints add column of_the_next_release bigint not null default 0;
         create table catalog_bridge.of_the_next_release (id bigint primary key);",
    )
    .execute(&mut connection)
    .await?;
    let back = place.start_named("back", &config).await?;
    back.ingest("push", &[upsert("a", 2), upsert("b", 1)]).await?;
    ensure!(back.events(Offset::ZERO).await?.len() == 3, "it reads what was before, and goes on");
    ensure!(back.stop().await? == 0);

    // And what a contraction does, two releases later.
    sqlx::raw_sql("update catalog_bridge.log_state set min_reader_version = 1000").execute(&mut connection).await?;
    let mut refused = place.spawn("refused", &config)?;
    crate::support::wait_until("the daemon ends", async || Ok(refused.log().contains("1000"))).await?;
    crate::support::wait_until("the daemon ends", {
        let refused = std::sync::Mutex::new(&mut refused);
        async move || Ok(!refused.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.is_alive())
    })
    .await?;
    Ok(())
}
