//! (c) Whether any backend of the catalog ever waits for one of ours: samples of `pg_stat_activity` and of locks while four
//! clients write, entities come and go in masses, and reconciles run.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use catalog_bridge_services::{Postgres, PostgresOptions};
use sqlx::Row;

use crate::support::catalog::{Catalog, put};
use crate::support::grants;
use crate::ways::{Captured, Way};

/// How long each way is watched.
const WATCHED: Duration = Duration::from_secs(30);

const SAMPLE: &str = "\
select
  coalesce((select count(*) from pg_stat_activity blocked
    where blocked.datname = current_database() and blocked.usename <> $1 and exists (
      select 1 from unnest(pg_blocking_pids(blocked.pid)) as blocking
      join pg_stat_activity ours on ours.pid = blocking where ours.usename = $1)), 0),
  coalesce((select extract(epoch from max(clock_timestamp() - xact_start))::float8 from pg_stat_activity
    where datname = current_database() and usename = $1), 0),
  array(select distinct mode from pg_locks join pg_stat_activity using (pid)
    where usename = $1 and datname = current_database() and locktype <> 'virtualxid'),
  (select count(*) from pg_stat_activity
    where datname = current_database() and usename <> $1 and wait_event_type = 'Lock')";

pub(crate) async fn run() -> Result<()> {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    println!(
        "| capture | samples | catalog backends seen waiting for ours | seen waiting for each other | longest transaction of ours, ms | locks of ours |\n|---|---|---|---|---|---|"
    );
    for way in [Way::Generations, Way::Reconcile, Way::Triggers] {
        let catalog = Catalog::create(&postgres.fresh_database("catalog").await?).await?;
        catalog.fill(20_000, 1_000).await?;
        let captured = Captured::new(catalog.owner_url(), "public", &[way]).await?;
        let daemon = captured.start(way, "").await?;
        let end = Instant::now() + WATCHED;
        let write = async |client: u64| -> Result<()> {
            let mut connection = catalog.connect().await?;
            let mut number = 0;
            while Instant::now() < end {
                number += 1;
                put(&mut connection, &format!("w{client}-{}", number % 50), || number).await?;
                if number % 100 == 0 {
                    let some = "delete from refresh_state where entity_id like 'fill-%' and random() < 0.01";
                    sqlx::query(some).execute(&mut connection).await?;
                }
            }
            Ok(())
        };
        let reconcile = async || -> Result<()> {
            while let (true, Some(daemon)) = (Instant::now() < end, &daemon) {
                let url = format!("{}/sources/backstage/reconcile", daemon.admin);
                daemon.client().post(url).send().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        };
        let sample = async || -> Result<_> {
            let mut connection = catalog.connect().await?;
            let (mut samples, mut waits, mut others, mut longest) = (0, 0, 0, 0.0f64);
            let mut modes = BTreeSet::new();
            while Instant::now() < end {
                let row = sqlx::query(SAMPLE).bind(grants::ROLE).fetch_one(&mut connection).await?;
                samples += 1;
                waits += row.try_get::<i64, _>(0)?;
                longest = longest.max(row.try_get(1)?);
                modes.extend(row.try_get::<Vec<String>, _>(2)?);
                others += row.try_get::<i64, _>(3)?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok((samples, waits, others, longest, modes))
        };
        let (_, _, (samples, waits, others, longest, modes)) =
            tokio::try_join!(futures::future::try_join_all((0..4).map(write)), reconcile(), sample())?;
        println!(
            "| {} | {samples} | {waits} | {others} | {:.0} | {} |",
            way.name(),
            longest * 1e3,
            modes.into_iter().collect::<Vec<_>>().join(", ")
        );
        captured.stop(way, daemon).await?;
    }
    Ok(())
}
