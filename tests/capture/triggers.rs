//! Capture by triggers, on the oldest and the newest PostgreSQL: every committed version once, in the order of commits; laid and
//! taken away with no more rights than `source grants --print --triggers` names.

use anyhow::{Result, ensure};
use catalog_bridge_api::{EventType, Offset};
use catalog_bridge_services::PostgresVersion;
use sqlx::{AssertSqlSafe, Connection, Executor, raw_sql};

use crate::servers;
use crate::support::catalog::{Catalog, put};
use crate::support::history::History;
use crate::support::triggers::{Installed, install, uninstall};
use crate::support::{Place, Store, catalog_database, postgres_store};

async fn check_history(version: PostgresVersion, store: Store) -> Result<()> {
    let catalog = Catalog::create(&servers::postgres(version).await?.fresh_database("catalog").await?).await?;
    install(&catalog).await?;
    let history = History {
        catalog: &catalog,
        store: &store,
        source: "capture: triggers",
        is_two_phase: true,
        has_every_version: true,
    };
    history.check().await
}

/// P3: late commits, rollbacks, savepoints, cascades, delete and re-create in one transaction, two-phase commit; the daemon
/// killed.
#[tokio::test(flavor = "multi_thread")]
async fn every_committed_version_comes_once_on_postgres_14() -> Result<()> {
    check_history(PostgresVersion::V14, Store::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_committed_version_comes_once_on_postgres_18() -> Result<()> {
    check_history(PostgresVersion::V18, postgres_store().await?).await
}

/// The outbox is cleaned behind the log, and only there; the status tells how large it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_deleted() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    for version in 0..50 {
        installed.catalog.put_one(&format!("e{}", version % 5), version).await?;
    }
    installed.catalog.remove_one("e0").await?;

    daemon.wait_until("all versions", async || Ok(daemon.head().await? == Offset::new(51))).await?;
    daemon
        .wait_until("an empty outbox", async || {
            Ok(installed.count("catalog_bridge.outbox").await? == 0
                && daemon.source("backstage").await?["detail"]["outbox"]["rows"] == 0)
        })
        .await?;
    daemon.kill()?;
    installed.catalog.put_one("e1", 99).await?;
    ensure!(installed.count("catalog_bridge.outbox").await? == 1, "nobody drains");

    let daemon = installed.start().await?;
    daemon.wait_until("the change made meanwhile", async || Ok(daemon.head().await? == Offset::new(52))).await?;
    let detail = daemon.source("backstage").await?["detail"].clone();
    ensure!(detail["capture"] == "triggers" && detail["gaps"]["count"] == 0, "{detail}");
    Ok(())
}

/// One logical change is one event: bookkeeping writes none, a body that becomes NULL and a changed ref write the removal.
#[tokio::test(flavor = "multi_thread")]
async fn one_logical_change_is_one_event() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    let mut connection = installed.catalog.connect().await?;
    put(&mut connection, "a", || 1).await?;
    put(&mut connection, "b", || 2).await?;
    for statement in [
        "update final_entities set last_updated_at = now()",
        "update final_entities set hash = hash, final_entity = final_entity",
        "update final_entities set final_entity = null where entity_ref = 'component:default/a'",
        "update final_entities set entity_ref = 'component:default/c' where entity_ref = 'component:default/b'",
        "delete from refresh_state",
    ] {
        connection.execute(raw_sql(AssertSqlSafe(statement))).await?;
    }

    daemon.wait_until("six events", async || Ok(daemon.head().await? == Offset::new(6))).await?;
    let events = daemon.events(Offset::ZERO).await?;
    let told: Vec<_> = events.iter().map(|event| (event.event_type, event.entity_ref.name())).collect();
    use EventType::{Added, Removed};
    let expected = [(Added, "a"), (Added, "b"), (Removed, "a"), (Removed, "b"), (Added, "c"), (Removed, "c")].to_vec();
    ensure!(told == expected, "{told:?}");
    Ok(())
}

/// As catalog backends before 4.0.3 write: first a row without a body, in a transaction of its own, and no generations.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_release_gives_one_event_for_each_change_too() -> Result<()> {
    let installed = Installed::new("capture: auto").await?;
    let mut connection = installed.catalog.connect().await?;
    connection
        .execute(raw_sql(
            "drop trigger final_entities_assign_generation_at_commit on final_entities;
             drop table catalog_generation_counter;
             alter table final_entities drop column generation, add column stitch_ticket text",
        ))
        .await?;
    let daemon = installed.start().await?;
    for statement in [
        "insert into refresh_state (entity_id, entity_ref, unprocessed_entity, errors, next_update_at, last_discovery_at)
         values ('u1', 'component:default/a', '{}', '', now(), now())",
        "insert into final_entities (entity_id, entity_ref, hash, stitch_ticket) values ('u1', 'component:default/a', '', 't')",
        "update final_entities set hash = 'h1', final_entity = '{\"kind\":\"Component\",\"metadata\":{\"name\":\"a\"}}'",
        "update final_entities set stitch_ticket = 't2'",
        "update final_entities set hash = 'h2', final_entity = '{\"kind\":\"Component\",\"metadata\":{\"name\":\"a\",\"x\":1}}'",
        "delete from refresh_state",
    ] {
        connection.execute(raw_sql(AssertSqlSafe(statement))).await?;
    }

    daemon.wait_until("three events", async || Ok(daemon.head().await? == Offset::new(3))).await?;
    ensure!(daemon.source("backstage").await?["detail"]["capture"] == "triggers");
    let types: Vec<_> = daemon.events(Offset::ZERO).await?.iter().map(|event| event.event_type).collect();
    ensure!(types == [EventType::Added, EventType::Updated, EventType::Removed], "{types:?}");
    Ok(())
}

/// The catalog's own role, which owns its tables and no more, cannot read, write, alter or call anything of ours; what it does
/// to its own tables is captured nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalogs_role_can_neither_read_nor_alter_the_outbox() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    let mut backstage = installed.as_backstage().await?;
    put(&mut backstage, "a", || 1).await?;
    daemon.wait_until("the change", async || Ok(daemon.head().await? == Offset::new(1))).await?;

    for statement in [
        "select * from catalog_bridge.outbox",
        "select * from catalog_bridge.gap",
        "select * from catalog_bridge.state",
        "select last_value from catalog_bridge.lost",
        "insert into catalog_bridge.outbox (xid, op, entity_ref) values ('1', 'r', 'component:default/a')",
        "update catalog_bridge.state set drained_at = now()",
        "delete from catalog_bridge.outbox",
        "truncate catalog_bridge.outbox",
        "drop table catalog_bridge.outbox",
        "alter table catalog_bridge.outbox add column x text",
        "create table catalog_bridge.mine (x text)",
        "drop schema catalog_bridge cascade",
        "create trigger mine after insert on refresh_state for each row execute function catalog_bridge.on_write()",
        "create or replace function catalog_bridge.on_write() returns trigger language plpgsql as 'begin return null; end'",
        "alter function catalog_bridge.on_write() security invoker",
    ] {
        let refused = backstage.execute(raw_sql(AssertSqlSafe(statement))).await;
        let code = refused.as_ref().err().and_then(|error| error.as_database_error()?.code().map(String::from));
        ensure!(code.as_deref() == Some("42501"), "{statement}: {refused:?}");
    }
    put(&mut backstage, "a", || 2).await?;
    daemon.wait_until("the next change", async || Ok(daemon.head().await? == Offset::new(2))).await
}

/// The daemon's role lays them, lays them again, and takes them away, though it owns neither table nor database; without the
/// right it says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_role_installs_and_uninstalls_without_ownership() -> Result<()> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let place = Place::new()?;
    let refused = Installed::command(&catalog, &place, &["install"])?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("grants --print --triggers")
    );

    install(&catalog).await?;
    install(&catalog).await?;
    ensure!(triggers(&catalog).await? == 3);
    uninstall(&catalog).await?;
    let text = String::from_utf8(Installed::command(&catalog, &place, &["uninstall"])?.stdout)?;

    ensure!(triggers(&catalog).await? == 0 && text.contains("no triggers are installed"), "{text}");
    Ok(())
}

/// Somebody holds the table: then the triggers are silenced at once, and dropped when it is free.
#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_beside_a_long_transaction_makes_the_triggers_do_nothing() -> Result<()> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    install(&catalog).await?;
    let mut busy = catalog.connect().await?;
    let mut transaction = busy.begin().await?;
    put(&mut transaction, "a", || 1).await?;
    let mut other = catalog.connect().await?;

    let silenced = async {
        loop {
            put(&mut other, "b", || 2).await?;
            let sql = "select count(*) from pg_proc where prosrc like '%uninstalled%'";
            let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut catalog.connect().await?).await?;
            if count == 2 {
                return transaction.commit().await.map_err(anyhow::Error::from);
            }
        }
    };
    // The command blocks its thread.
    let place = Place::new()?;
    let (uninstalled, silenced) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let uninstalled = scope.spawn(|| Installed::command(&catalog, &place, &["uninstall"]));
            let silenced = tokio::runtime::Handle::current().block_on(silenced);
            (uninstalled.join(), silenced)
        })
    });
    silenced?;
    let uninstalled = uninstalled.map_err(|_| anyhow::anyhow!("the command panicked"))??;
    ensure!(uninstalled.status.success(), "{}", String::from_utf8_lossy(&uninstalled.stderr));

    ensure!(triggers(&catalog).await? == 0);
    Ok(())
}

/// What `--print` shows, run by a DBA, gives the daemon's role all it needs, without the right to lay triggers.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_can_be_run_by_a_dba() -> Result<()> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let place = Place::new()?;
    let script = String::from_utf8(Installed::command(&catalog, &place, &["install", "--print"])?.stdout)?;
    catalog.connect().await?.execute(raw_sql(AssertSqlSafe(script.clone()))).await?;
    catalog.connect().await?.execute(raw_sql(AssertSqlSafe(script))).await?;

    let installed = Installed { catalog, place, source: "capture: triggers".to_owned() };
    let daemon = installed.start().await?;
    installed.catalog.put_one("a", 1).await?;
    daemon.wait_until("the change", async || Ok(daemon.head().await? == Offset::new(1))).await?;
    daemon.stop().await?;
    let script = Installed::command(&installed.catalog, &installed.place, &["uninstall", "--print"])?.stdout;
    installed.catalog.connect().await?.execute(raw_sql(AssertSqlSafe(String::from_utf8(script)?))).await?;
    ensure!(triggers(&installed.catalog).await? == 0);
    Ok(())
}

/// Most of a catalog vanishes in one transaction: the removals are held, though the outbox tells each, and adds flow on.
#[tokio::test(flavor = "multi_thread")]
async fn a_mass_removal_in_one_drain_is_held_until_confirmed() -> Result<()> {
    let installed = Installed::new("capture: triggers").await?;
    let daemon = installed.start().await?;
    let mut connection = installed.catalog.connect().await?;
    let mut transaction = connection.begin().await?;
    for number in 0..300 {
        put(&mut transaction, &format!("e{number}"), || number).await?;
    }
    transaction.commit().await?;
    daemon.wait_until("300 entities", async || Ok(daemon.head().await? == Offset::new(300))).await?;
    installed.catalog.remove_one("e0").await?;
    daemon.wait_until("an ordinary removal", async || Ok(daemon.head().await? == Offset::new(301))).await?;

    connection.execute(raw_sql("delete from refresh_state where entity_ref not like '%e1_'")).await?;
    put(&mut connection, "new", || 1).await?;

    daemon
        .wait_until("held removals", async || {
            let source = daemon.source("backstage").await?;
            Ok(source["state"] == "removals-held" && source["count"] == 289)
        })
        .await?;
    daemon.wait_until("the new one", async || Ok(daemon.head().await? == Offset::new(302))).await?;
    daemon.kill()?;
    let daemon = installed.start().await?;
    daemon
        .wait_until("held again", async || {
            let source = daemon.source("backstage").await?;
            Ok(source["count"] == 289 && source["detail"]["heldRemovals"]["count"] == 289)
        })
        .await?;
    ensure!(daemon.head().await? == Offset::new(302));
    installed.run(&["reconcile", "backstage", "--confirm"])?;
    daemon.wait_until("the removals", async || Ok(daemon.head().await? == Offset::new(591))).await
}

async fn triggers(catalog: &Catalog) -> Result<i64> {
    let sql = "select count(*) from pg_trigger where tgname like 'catalog_bridge_%'";
    Ok(sqlx::query_scalar(sql).fetch_one(&mut catalog.connect().await?).await?)
}
