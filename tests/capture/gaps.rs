//! What capture could not see is noticed, repaired by a reconcile, and counted.

use anyhow::{Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{Truth, live_state};
use catalog_bridge_services::{Postgres, PostgresOptions, PostgresVersion};
use sqlx::{Connection, Executor, raw_sql};

use crate::servers;
use crate::support::catalog::put;
use crate::support::triggers::Installed;
use crate::support::{Daemon, catalog_database};

async fn started(source: &str) -> Result<(Installed, Daemon)> {
    let installed = Installed::on(&catalog_database().await?, source).await?;
    let daemon = installed.start().await?;
    for (version, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        installed.catalog.put_one(name, version as u64).await?;
    }
    wait_for_truth(&installed, &daemon).await?;
    Ok((installed, daemon))
}

async fn wait_for_truth(installed: &Installed, daemon: &Daemon) -> Result<()> {
    daemon
        .wait_until("log = truth", async || {
            let truth = installed.catalog.truth().await?;
            Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth)
        })
        .await
}

/// The log is the truth again, and the last gap is this one.
async fn check(installed: &Installed, daemon: &Daemon, reason: &str) -> Result<()> {
    wait_for_truth(installed, daemon).await?;
    daemon
        .wait_until(&format!("a gap: {reason}"), async || {
            let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();
            let told = gaps["last"]["reason"].as_str().unwrap_or_default();
            Ok(gaps["count"].as_u64() >= Some(1) && told.contains(reason))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_were_disabled_for_a_moment() -> Result<()> {
    let (installed, daemon) = started("capture: triggers").await?;

    installed.execute("alter table final_entities disable trigger catalog_bridge_delete").await?;
    installed.catalog.remove_one("a").await?;
    installed.execute("alter table final_entities enable trigger catalog_bridge_delete").await?;

    check(&installed, &daemon, "the bridge's triggers were off or replaced").await
}

/// The function did nothing for a while; a transaction of that while commits after all was mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_did_nothing_for_a_moment() -> Result<()> {
    let (installed, daemon) = started("capture: triggers").await?;
    let sql = "select pg_get_functiondef('catalog_bridge.on_write'::regproc)";
    let function: String = sqlx::query_scalar(sql).fetch_one(&mut installed.catalog.connect().await?).await?;
    let mut connection = installed.catalog.connect().await?;
    let mut late = connection.begin().await?;

    installed
        .execute("create or replace function catalog_bridge.on_write() returns trigger language plpgsql security definer as 'begin return null; end'")
        .await?;
    installed.catalog.put_one("a", 10).await?;
    put(&mut late, "b", || 11).await?;
    installed.execute(&function).await?;
    check(&installed, &daemon, "off or replaced").await?;
    late.commit().await?;

    wait_for_truth(&installed, &daemon).await
}

/// Rows were deleted from the outbox that the restored log has not.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_store_that_was_restored_to_an_older_state() -> Result<()> {
    let (installed, daemon) = started("capture: triggers").await?;
    daemon.stop().await?;
    let place = |name: &str| installed.place.path().join(name);
    let older = place("older");
    std::fs::create_dir(&older)?;
    // What is not in the file yet is in the others beside it.
    let files = ["log.db", "log.db-wal", "log.db-shm"];
    for file in files.into_iter().filter(|file| place(file).exists()) {
        std::fs::copy(place(file), older.join(file))?;
    }
    let daemon = installed.start().await?;
    installed.catalog.put_one("a", 20).await?;
    installed.catalog.remove_one("b").await?;
    daemon
        .wait_until("an empty outbox", async || {
            Ok(daemon.head().await? == Offset::new(6) && installed.count("catalog_bridge.outbox").await? == 0)
        })
        .await?;
    daemon.stop().await?;
    for file in files {
        let _ = std::fs::remove_file(place(file));
        if older.join(file).exists() {
            std::fs::copy(older.join(file), place(file))?;
        }
    }

    let daemon = installed.start().await?;
    check(&installed, &daemon, "the outbox was cleaned beyond what the log holds").await
}

/// Dumped and loaded into another cluster: the outbox brings rows whose transactions have other numbers there.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_dumped_into_another_cluster() -> Result<()> {
    let (mut installed, daemon) = started("capture: triggers").await?;
    daemon.stop().await?;
    let server = servers::postgres(PostgresVersion::V18).await?;
    let other = Installed::on(&server.fresh_database("catalog").await?, "capture: triggers").await?;
    other
        .execute(
            "insert into catalog_bridge.outbox (xid, op, entity_id, entity_ref, hash, entity)
             select (x::text)::xid8, 'u', 'ghost', 'component:default/ghost-' || x, 'h', '{\"kind\":\"Component\"}'
             from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint + n as x from generate_series(-20, 200) as n) as xids",
        )
        .await?;
    for (name, version) in [("a", 30), ("e", 31)] {
        other.catalog.put_one(name, version).await?;
    }
    installed.catalog = other.catalog;

    let daemon = installed.start().await?;
    check(&installed, &daemon, "the catalog is in another database").await?;
    for version in 40..80 {
        installed.catalog.put_one("f", version).await?;
    }
    wait_for_truth(&installed, &daemon).await?;
    let ghost =
        daemon.events(Offset::ZERO).await?.into_iter().find(|event| event.entity_ref.name().starts_with("ghost"));
    ensure!(ghost.is_none(), "{ghost:?}");
    Ok(())
}

/// The server's data go back to a copy, in which the same numbers of transactions are used again for other changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_was_restored_from_a_backup() -> Result<()> {
    let mut server = Postgres::start(PostgresOptions::default()).await?;
    let installed = Installed::on(&server.fresh_database("catalog").await?, "capture: triggers").await?;
    installed.catalog.put_one("a", 1).await?;
    server.stop().await?;
    let copy = tempfile::tempdir()?;
    let copy = copy.path().join("copy");
    server.copy_data_to(&copy).await?;
    server.start_again().await?;
    let daemon = installed.start().await?;
    for version in 2..30 {
        installed.catalog.put_one("lost", version).await?;
    }
    wait_for_truth(&installed, &daemon).await?;
    daemon.stop().await?;

    server.stop().await?;
    server.replace_data_by(&copy).await?;
    server.start_again().await?;
    for version in 50..60 {
        installed.catalog.put_one("new", version).await?;
    }
    let daemon = installed.start().await?;

    wait_for_truth(&installed, &daemon).await?;
    let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();
    ensure!(gaps["count"].as_u64() >= Some(1), "{gaps}");
    installed.catalog.put_one("after", 99).await?;
    wait_for_truth(&installed, &daemon).await
}

/// Everything is written anew behind the triggers' back, as a load of data does.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_emptied_and_loaded() -> Result<()> {
    let (installed, daemon) = started("capture: triggers").await?;
    let mut connection = installed.catalog.connect().await?;
    connection
        .execute(raw_sql(
            "create temporary table kept as select * from final_entities where entity_ref <> 'component:default/b';
             truncate final_entities cascade;
             set session_replication_role = replica;
             insert into final_entities select * from kept",
        ))
        .await?;

    check(&installed, &daemon, "off or replaced").await
}
