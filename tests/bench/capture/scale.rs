//! (d) What a catalog of 1k, 100k, 1M entities costs: the first reconcile, looking for removals, finding one, a reconcile on
//! demand. The database's cost is the CPU time of the backend that serves the bridge.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use catalog_bridge_api::Offset;
use catalog_bridge_services::{Postgres, PostgresOptions};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::support::Daemon;
use crate::support::catalog::{Catalog, remove};
use crate::support::grants;
use crate::ways::{Captured, Way};
use crate::{cpu, number, spread};

/// How long nothing happens but looking.
const IDLE: Duration = Duration::from_secs(60);
/// Removals measured.
const REMOVALS: usize = 5;

pub(crate) async fn run(arguments: &[String]) -> Result<()> {
    let most = number(arguments, 0, 1_000_000)?;
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    println!(
        "| entities (1 KiB) | capture | first reconcile, s / CPU s | looks when idle, share of a core | pause between looks, s | a removal is found after, s (least / median / most) | reconcile on demand, s / CPU s | longest transaction, ms | RSS of the daemon, peak MiB |\n|---|---|---|---|---|---|---|---|---|"
    );
    for entities in [1_000, 100_000, 1_000_000].into_iter().filter(|entities| *entities <= most) {
        let catalog = Catalog::create(&postgres.fresh_database("catalog").await?).await?;
        catalog.fill(entities as u64, 800).await?;
        for way in [Way::Generations, Way::Reconcile] {
            measure(&catalog, entities, way).await?;
        }
    }
    Ok(())
}

async fn measure(catalog: &Catalog, entities: usize, way: Way) -> Result<()> {
    let captured = Captured::new(catalog.owner_url(), "public", &[way]).await?;
    let mut connection = catalog.connect().await?;
    let (longest, stop) = (watch(catalog).await?, tokio_util::sync::CancellationToken::new());
    let watching = tokio::spawn(longest.run(stop.clone()));

    let started = Instant::now();
    let daemon = captured.start(way, "").await?.context("a daemon")?;
    let (first, first_cpu) = (started.elapsed(), cpu::of_bridge(&mut connection).await?);
    // Counts settle at their pace first.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = cpu::of_bridge(&mut connection).await?;
    tokio::time::sleep(IDLE).await;
    let looks = cpu::of_bridge(&mut connection).await?.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64();
    let pause = pause(&daemon).await?;
    let mut found = Vec::new();
    // By reconcile alone one look at a million takes so long that the next is far away.
    let removals = match way {
        Way::Reconcile if entities >= 1_000_000 => 0,
        Way::Reconcile if entities >= 100_000 => 1,
        _ => REMOVALS,
    };
    // The ways share the catalog: each takes away others.
    let begin = if way == Way::Generations { 0 } else { REMOVALS };
    for number in begin..begin + removals {
        found.push(find_one(&daemon, &mut connection, &format!("fill-{}", number * 7)).await?);
    }
    let (demand, demand_cpu) = match way {
        Way::Generations => reconcile(&daemon, &mut connection).await?,
        _ => (f64::NAN, f64::NAN),
    };
    stop.cancel();
    println!(
        "| {entities} | {} | {:.1} / {:.2} | {:.4} | {pause:.1} | {} | {demand:.1} / {demand_cpu:.2} | {:.0} | {} |",
        way.name(),
        first.as_secs_f64(),
        first_cpu.as_secs_f64(),
        looks,
        if found.is_empty() { "not waited for".to_owned() } else { spread(&found, 2) },
        watching.await??.as_secs_f64() * 1e3,
        daemon.peak_memory_bytes()? >> 20,
    );
    captured.stop(way, Some(daemon)).await
}

/// Seconds between two looks for removals.
async fn pause(daemon: &Daemon) -> Result<f64> {
    let detail = daemon.source("backstage").await?["detail"].clone();
    if let Some(pause) = detail["removalPauseSeconds"].as_f64() {
        return Ok(pause);
    }
    let time =
        |value: &serde_json::Value| Ok::<_, anyhow::Error>(value.as_str().context("a time")?.parse::<DateTime<Utc>>()?);
    let (ended, next) = (time(&detail["lastReconcile"]["endedAt"])?, time(&detail["nextReconcileAt"])?);
    Ok((next - ended).as_seconds_f64())
}

/// Removes one and waits for its event; seconds from the commit.
async fn find_one(daemon: &Daemon, connection: &mut PgConnection, name: &str) -> Result<f64> {
    let head = daemon.head().await?;
    remove(connection, name).await?;
    let committed = Instant::now();
    let after = daemon.get(&format!("/events?offset={head}&wait=55")).await?;
    let mut at = Offset::new(after["lastEventOffset"].as_u64().context("an offset")?);
    while at == head {
        let page = daemon.get(&format!("/events?offset={head}&wait=55")).await?;
        at = Offset::new(page["lastEventOffset"].as_u64().context("an offset")?);
    }
    let took = committed.elapsed().as_secs_f64();
    // Not in step with the looks.
    tokio::time::sleep(Duration::from_millis(1_370)).await;
    Ok(took)
}

/// Begins a reconcile and waits for its end; seconds, and CPU seconds of the bridge's backend.
async fn reconcile(daemon: &Daemon, connection: &mut PgConnection) -> Result<(f64, f64)> {
    let last = daemon.source("backstage").await?["detail"]["lastReconcile"]["endedAt"].clone();
    let (started, before) = (Instant::now(), cpu::of_bridge(connection).await?);
    daemon.client().post(format!("{}/sources/backstage/reconcile", daemon.admin)).send().await?.error_for_status()?;
    while daemon.source("backstage").await?["detail"]["lastReconcile"]["endedAt"] == last {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let cost = cpu::of_bridge(connection).await?.saturating_sub(before);
    Ok((started.elapsed().as_secs_f64(), cost.as_secs_f64()))
}

/// Looks for the longest transaction of the bridge.
struct Watch {
    connection: PgConnection,
}

async fn watch(catalog: &Catalog) -> Result<Watch> {
    Ok(Watch { connection: catalog.connect().await? })
}

impl Watch {
    async fn run(mut self, stop: tokio_util::sync::CancellationToken) -> Result<Duration> {
        let mut longest = 0.0f64;
        while !stop.is_cancelled() {
            let age: Option<f64> = sqlx::query_scalar(
                "select extract(epoch from max(clock_timestamp() - xact_start))::float8 from pg_stat_activity
                 where datname = current_database() and usename = $1",
            )
            .bind(grants::ROLE)
            .fetch_one(&mut self.connection)
            .await?;
            longest = longest.max(age.unwrap_or(0.0));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Duration::from_secs_f64(longest))
    }
}
