//! (e) From a commit in the catalog to the event in a reader's hands (REST long poll), idle and busy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use catalog_bridge_services::{Postgres, PostgresOptions};

use crate::number;
use crate::support::catalog::{Catalog, put};
use crate::ways::{Captured, Way};

pub(crate) async fn run(arguments: &[String]) -> Result<()> {
    let (idle, busy) = (number(arguments, 0, 12)?, number(arguments, 1, 200)?);
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    println!("| capture | changes | n | p50 / p99 / most, ms |\n|---|---|---|---|");
    let ways = [
        (Way::Generations, "", "generations, defaults"),
        (Way::Generations, ", poll_interval: 10ms", "generations, poll_interval 10ms"),
        (Way::Triggers, "", "triggers, defaults"),
        (Way::Triggers, ", poll_interval: 10ms", "triggers, poll_interval 10ms"),
    ];
    for (way, keys, name) in ways {
        let catalog = Catalog::create(&postgres.fresh_database("catalog").await?).await?;
        catalog.put_one("first", 0).await?;
        let captured = Captured::new(catalog.owner_url(), "public", &[way]).await?;
        let daemon = captured.start(way, keys).await?.context("a daemon")?;
        let mut connection = catalog.connect().await?;
        let mut at = daemon.head().await?.get();
        for (what, pause, count) in
            [("busy, one every 100 to 350 ms", 100, busy), ("idle, one every 11 s", 11_000, idle)]
        {
            let mut delays = Vec::new();
            for number in 0..count {
                // Not in step with the polls.
                tokio::time::sleep(Duration::from_millis(pause + rand::random_range(0..250))).await;
                let path = format!("/events?offset={at}&wait=55");
                let (page, committed) = tokio::join!(daemon.get(&path), async {
                    // The long poll is parked by then.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    put(&mut connection, "l", || number as u64 + pause).await?;
                    anyhow::Ok(Instant::now())
                });
                delays.push(committed?.elapsed());
                at = page?["lastEventOffset"].as_u64().context("an offset")?;
            }
            delays.sort();
            let part = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
            println!("| {name} | {what} | {count} | {:.1} / {:.1} / {:.1} |", part(0.5), part(0.99), part(1.0));
        }
        captured.stop(way, Some(daemon)).await?;
    }
    Ok(())
}
