//! Whatever breaks in the outbox, every operation of the catalog still succeeds; the gap is reported and healed.

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{Truth, live_state};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, raw_sql};

use crate::support::catalog::{put, remove};
use crate::support::triggers::{Installed, install};
use crate::support::{Daemon, Place};

/// A stitch, a change, a removal by cascade, and an unregister of many in one transaction: none may fail.
async fn operate(connection: &mut PgConnection, round: u64) -> Result<()> {
    put(connection, &format!("added-{round}"), || round).await.context("a stitch")?;
    put(connection, "changed", || 100 + round).await.context("a change")?;
    put(connection, &format!("again-{round}"), || round).await.context("a stitch")?;
    remove(connection, &format!("again-{round}")).await.context("a removal")?;
    let mut transaction = connection.begin().await?;
    for number in 0..3 {
        put(&mut transaction, &format!("many-{round}-{number}"), || round).await.context("many stitches")?;
    }
    transaction.commit().await.context("many stitches")?;
    connection
        .execute(raw_sql(AssertSqlSafe(format!("delete from refresh_state where entity_ref like '%many-{round}-%'"))))
        .await
        .context("an unregister")?;
    Ok(())
}

async fn wait_for_truth(installed: &Installed, daemon: &Daemon) -> Result<()> {
    daemon
        .wait_until("log = truth", async || {
            let truth = installed.catalog.truth().await?;
            Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth)
        })
        .await
}

/// Breaks it, drives the catalog, mends it, and waits until the log is the truth and the gap is counted.
async fn check(source: &str, breaking: &str, mending: &str) -> Result<()> {
    let installed = Installed::new(source).await?;
    let daemon = installed.start().await?;
    let mut connection = installed.catalog.connect().await?;
    operate(&mut connection, 1).await?;
    wait_for_truth(&installed, &daemon).await?;

    installed.execute(breaking).await?;
    operate(&mut connection, 2).await.context(breaking.to_owned())?;
    if mending.is_empty() {
        install(&installed.catalog).await?;
    } else {
        installed.execute(mending).await?;
    }
    operate(&mut connection, 3).await?;

    wait_for_truth(&installed, &daemon).await?;
    daemon
        .wait_until("a counted gap", async || {
            let detail = daemon.source("backstage").await?["detail"].clone();
            Ok(detail["gaps"]["count"].as_u64() >= Some(1) && detail["reconcile"].is_null())
        })
        .await?;
    let metrics = daemon.metrics().await?;
    let counted =
        metrics.lines().find_map(|line| line.strip_prefix("catalog_bridge_source_gaps_total{source=\"backstage\"} "));
    ensure!(counted.is_some_and(|count| count != "0"), "{counted:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_dropped() -> Result<()> {
    check("capture: auto", "drop table catalog_bridge.outbox", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_and_gaps_are_dropped() -> Result<()> {
    check("capture: auto", "drop table catalog_bridge.outbox, catalog_bridge.gap", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_schema_is_dropped() -> Result<()> {
    check("capture: auto", "drop schema catalog_bridge cascade", "").await
}

/// Even without the schema's triggers going with it: the functions' tables and sequences are all away.
#[tokio::test(flavor = "multi_thread")]
async fn everything_but_the_functions_is_dropped() -> Result<()> {
    let breaking =
        "drop table catalog_bridge.outbox, catalog_bridge.gap, catalog_bridge.state; drop sequence catalog_bridge.lost";
    check("capture: auto", breaking, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_full() -> Result<()> {
    let breaking = "create function catalog_bridge.full() returns trigger language plpgsql as
            'begin raise disk_full using message = ''No space left on device''; end';
         create trigger is_full before insert on catalog_bridge.outbox for each row execute function catalog_bridge.full()";
    check("capture: triggers", breaking, "drop trigger is_full on catalog_bridge.outbox").await
}

/// Not even the failure can be written down.
#[tokio::test(flavor = "multi_thread")]
async fn outbox_and_gaps_are_full() -> Result<()> {
    let breaking = "create function catalog_bridge.full() returns trigger language plpgsql as
            'begin raise disk_full using message = ''No space left on device''; end';
         create trigger is_full before insert on catalog_bridge.outbox for each row execute function catalog_bridge.full();
         create trigger is_full before insert on catalog_bridge.gap for each row execute function catalog_bridge.full()";
    let mending = "drop trigger is_full on catalog_bridge.outbox; drop trigger is_full on catalog_bridge.gap";
    check("capture: triggers", breaking, mending).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_triggers_have_no_right_to_write() -> Result<()> {
    let breaking = "revoke all on catalog_bridge.outbox, catalog_bridge.gap, catalog_bridge.state from bridge_reader";
    let mending = "grant all on catalog_bridge.outbox, catalog_bridge.gap, catalog_bridge.state to bridge_reader";
    check("capture: triggers", breaking, mending).await
}

/// An assertion that fails is not among the `others` of an exception clause, nor is a cancellation.
#[tokio::test(flavor = "multi_thread")]
async fn errors_that_others_does_not_catch_are_caught() -> Result<()> {
    let breaking = "create function catalog_bridge.worse() returns trigger language plpgsql as 'begin assert false; end';
         create trigger is_worse before insert on catalog_bridge.outbox for each row execute function catalog_bridge.worse()";
    check("capture: triggers", breaking, "drop trigger is_worse on catalog_bridge.outbox").await?;
    let breaking = "create function catalog_bridge.cancelled() returns trigger language plpgsql as
            'begin raise query_canceled; end';
         create trigger is_cancelled before insert on catalog_bridge.outbox for each row execute function catalog_bridge.cancelled()";
    check("capture: triggers", breaking, "drop trigger is_cancelled on catalog_bridge.outbox").await
}

/// Somebody holds the outbox: a change waits for it a moment, once in each transaction, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_locked() -> Result<()> {
    let installed = Installed::new("capture: triggers, statement_timeout: 2s").await?;
    let daemon = installed.start().await?;
    let mut connection = installed.catalog.connect().await?;
    operate(&mut connection, 1).await?;
    wait_for_truth(&installed, &daemon).await?;
    let mut holder = installed.catalog.connect().await?;
    let mut locks = holder.begin().await?;
    locks.execute(raw_sql("lock table catalog_bridge.outbox in access exclusive mode")).await?;

    operate(&mut connection, 2).await?;
    // One wait of 50 ms in each transaction, not one in each statement: two hundred of them would take ten seconds.
    let mut transaction = connection.begin().await?;
    transaction.execute(raw_sql("set local statement_timeout = '8s'")).await?;
    transaction
        .execute(raw_sql(
            "insert into refresh_state (entity_id, entity_ref, unprocessed_entity, errors, next_update_at, last_discovery_at)
             select 'id-' || n, 'component:default/bulk-' || n, '{}', '', now(), now() from generate_series(1, 200) as n;
             insert into final_entities (entity_id, entity_ref, hash, final_entity)
             select 'id-' || n, 'component:default/bulk-' || n, 'h', '{\"kind\":\"Component\",\"metadata\":{\"name\":\"bulk\"}}' from generate_series(1, 200) as n",
        ))
        .await?;
    transaction.commit().await?;
    locks.rollback().await?;

    wait_for_truth(&installed, &daemon).await?;
    daemon
        .wait_until("a counted gap", async || {
            let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();
            let reason = gaps["last"]["reason"].as_str().unwrap_or_default().to_owned();
            Ok(gaps["count"].as_u64() >= Some(1) && reason.contains("lock timeout"))
        })
        .await
}

/// The catalog's own statement_timeout ends while its trigger waits: the statement goes on.
#[tokio::test(flavor = "multi_thread")]
async fn the_statements_time_is_over_in_the_trigger() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    let mut holder = installed.catalog.connect().await?;
    let mut locks = holder.begin().await?;
    locks.execute(raw_sql("lock table catalog_bridge.outbox in access exclusive mode")).await?;
    let mut connection = installed.catalog.connect().await?;
    put(&mut connection, "warm", || 0).await?;
    // Shorter than the trigger's own patience; a statement that the machine starves meets it elsewhere and is tried again.
    connection.execute(raw_sql("set statement_timeout = '40ms'")).await?;
    let mut codes = Vec::new();
    for version in 1..20 {
        if let Err(error) = put(&mut connection, "timed", || version).await {
            codes.push(format!("{error:#}"));
        }
    }
    locks.rollback().await?;

    ensure!(codes.len() < 19, "no statement went on: {codes:?}");
    wait_for_truth(&installed, &daemon).await?;
    let caught = "select count(*) > 0 from catalog_bridge.gap where code = '57014'";
    let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();
    let is_left: bool = sqlx::query_scalar(caught).fetch_one(&mut connection).await?;
    ensure!(is_left || gaps["count"].as_u64() >= Some(1), "{gaps}");
    Ok(())
}

/// What the daemon cannot have noticed, as it was down, is in the table of gaps when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_while_the_daemon_is_down_is_found_at_its_start() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    let mut connection = installed.catalog.connect().await?;
    operate(&mut connection, 1).await?;
    wait_for_truth(&installed, &daemon).await?;
    daemon.kill()?;
    installed
        .execute("alter table catalog_bridge.outbox add constraint refuses check (entity_ref not like '%added-2')")
        .await?;
    operate(&mut connection, 2).await?;
    installed.execute("alter table catalog_bridge.outbox drop constraint refuses").await?;
    ensure!(installed.count("catalog_bridge.gap").await? == 1);

    let daemon = installed.start().await?;
    wait_for_truth(&installed, &daemon).await?;
    daemon.wait_until("the gap is forgotten", async || Ok(installed.count("catalog_bridge.gap").await? == 0)).await?;
    let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();
    ensure!(gaps["last"]["reason"].as_str().is_some_and(|reason| reason.contains("added-2")), "{gaps}");
    Ok(())
}

/// Dead-man switch: nobody drained for too long, so nothing is written, and that is known when somebody comes.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_nobody_drains_fall_silent_and_the_gap_is_known() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    let mut connection = installed.catalog.connect().await?;
    operate(&mut connection, 1).await?;
    wait_for_truth(&installed, &daemon).await?;
    daemon.stop().await?;
    put(&mut connection, "before", || 1).await?;
    installed.execute("update catalog_bridge.state set drained_at = now() - interval '8 days'").await?;
    let rows = installed.count("catalog_bridge.outbox").await?;

    operate(&mut connection, 2).await?;
    ensure!(installed.count("catalog_bridge.outbox").await? == rows, "nothing is written");
    ensure!(installed.count("catalog_bridge.gap").await? == 0);
    let daemon = installed.start().await?;

    wait_for_truth(&installed, &daemon).await?;
    put(&mut connection, "after", || 3).await?;
    wait_for_truth(&installed, &daemon).await?;
    let gaps = daemon.source("backstage").await?["detail"]["gaps"].clone();
    ensure!(gaps["last"]["reason"].as_str().is_some_and(|reason| reason.contains("nobody drained")), "{gaps}");
    Ok(())
}

/// Two bridges on one catalog name each their own schema; one that fails takes nothing from the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_bridges_have_an_outbox_each() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let other = Place::new()?;
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", capture: triggers, trigger_schema: second }} }} }}\n",
        other.path().display(),
        installed.catalog.bridge_url()
    );
    installed.execute("create schema second authorization bridge_reader").await?;
    std::fs::write(other.path().join("second.yaml"), &config)?;
    let file = other.path().join("second.yaml").display().to_string();
    let laid = crate::support::cli(&["source", "install", "--config", &file])?;
    ensure!(laid.status.success(), "{}", String::from_utf8_lossy(&laid.stderr));
    let (first, second) = (installed.start().await?, other.start(&config).await?);
    let mut connection = installed.catalog.connect().await?;
    operate(&mut connection, 1).await?;
    installed.execute("drop table catalog_bridge.outbox").await?;
    operate(&mut connection, 2).await?;

    let truth = installed.catalog.truth().await?;
    second
        .wait_until("log = truth", async || Ok(live_state(Truth::new(), &second.events(Offset::ZERO).await?)? == truth))
        .await?;
    ensure!(second.source("backstage").await?["detail"]["gaps"]["count"] == 0);
    first
        .wait_until("the other says so", async || Ok(first.source("backstage").await?["state"] == "misconfigured"))
        .await
}
