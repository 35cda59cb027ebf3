//! P10: capture takes no lock that another catalog transaction can wait for, writes nothing there, and reads with SELECT alone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use catalog_bridge_api::Offset;
use sqlx::Row;

use crate::support::catalog::{Catalog, put};
use crate::support::{Place, catalog_database};

/// While entities change and a migration of Backstage's own alters the table, the bridge's backends never hold more than
/// ACCESS SHARE, never draw a transaction id, and the migration gets its lock.
#[tokio::test(flavor = "multi_thread")]
async fn capture_holds_only_access_share_and_writes_nothing() -> Result<()> {
    for capture in ["generations", "reconcile"] {
        let catalog = Catalog::create(&catalog_database().await?).await?;
        let place = Place::new()?;
        let config = format!(
            "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\", capture: {capture} }} }} }}\n",
            place.path().display(),
            catalog.bridge_url()
        );
        let daemon = place.start(&config).await?;
        let mut connection = catalog.connect().await?;
        let (mut modes, mut writers, mut samples) = (BTreeSet::new(), 0, 0);
        for version in 0..60 {
            put(&mut connection, &format!("e{}", version % 7), || version).await?;
            for _ in 0..5 {
                let rows = sqlx::query(
                    "select l.mode, a.backend_xid is not null as writes from pg_stat_activity a left join pg_locks l on l.pid = a.pid and l.locktype <> 'virtualxid'
                     where a.datname = current_database() and a.usename = 'bridge_reader'",
                )
                .fetch_all(&mut connection)
                .await?;
                for row in rows {
                    samples += 1;
                    modes.extend(row.try_get::<Option<String>, _>("mode")?);
                    writers += i32::from(row.try_get::<bool, _>("writes")?);
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        sqlx::raw_sql("set lock_timeout = '20s'; alter table final_entities add column later text; alter table final_entities drop column later").execute(&mut connection).await?;
        put(&mut connection, "after-the-migration", || 61).await?;

        daemon
            .wait_until("the change after the migration is captured", async || {
                Ok(daemon
                    .events(Offset::ZERO)
                    .await?
                    .iter()
                    .any(|event| event.entity_ref.name() == "after-the-migration"))
            })
            .await?;
        ensure!(samples > 0, "{capture}: the bridge's sessions were never seen");
        ensure!(writers == 0, "{capture}: {writers} of {samples} samples had a transaction id");
        ensure!(modes.iter().all(|mode| mode == "AccessShareLock"), "{capture}: locks {modes:?}");
    }
    Ok(())
}

/// Every transaction of the bridge's role on the catalog is READ ONLY: the role is refused all writing, and capture works.
#[tokio::test(flavor = "multi_thread")]
async fn capture_works_with_a_role_that_is_forced_read_only() -> Result<()> {
    let catalog = Catalog::create(&catalog_database().await?).await?;
    let mut connection = catalog.connect().await?;
    put(&mut connection, "before", || 1).await?;
    let place = Place::new()?;
    let daemon = place
        .start(&format!(
            "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{}\" }} }} }}\n",
            place.path().display(),
            catalog.bridge_url()
        ))
        .await?;

    daemon.wait_until("what was there is captured", async || Ok(daemon.events(Offset::ZERO).await?.len() == 1)).await?;
    catalog.remove_one("before").await?;
    put(&mut connection, "after", || 2).await?;

    daemon.wait_until("added, removed, added", async || Ok(daemon.events(Offset::ZERO).await?.len() == 3)).await?;
    let rights = sqlx::query("select count(*) as rights from information_schema.role_table_grants where grantee = 'bridge_reader' and privilege_type <> 'SELECT'").fetch_one(&mut connection).await?;
    ensure!(rights.try_get::<i64, _>("rights")? == 0, "the bridge's role has SELECT and nothing else");
    Ok(())
}
