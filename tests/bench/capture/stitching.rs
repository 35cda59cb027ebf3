//! (a) How fast a real Backstage stitches without capture, by generations and with triggers, one after the other in rounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use catalog_bridge_services::{Backstage, BackstageOptions, Postgres, PostgresOptions};
use sqlx::{Connection, PgConnection};

use crate::support::component;
use crate::ways::{Captured, Way};
use crate::{cpu, number, spread};

/// What is compared.
const WAYS: [Way; 3] = [Way::Nothing, Way::Generations, Way::Triggers];

/// What one round took: seconds, and CPU seconds of the database without the bridge's own backend.
struct Took {
    wall: f64,
    server: f64,
}

pub(crate) async fn run(arguments: &[String]) -> Result<()> {
    let (entities, rounds) = (number(arguments, 0, 500)?, number(arguments, 1, 3)?);
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let backstage =
        Backstage::start(&postgres, BackstageOptions { processing_seconds: 60, ..Default::default() }).await?;
    let captured = Captured::new(backstage.database_url(), backstage.schema(), &WAYS).await?;
    let mut took: BTreeMap<(&str, &str), Vec<Took>> = BTreeMap::new();
    // The first round warms up and does not count.
    for round in 0..=rounds {
        for way in WAYS {
            let daemon = captured.start(way, "").await?;
            for (what, version) in [("add", round * 2 + 1), ("update", round * 2 + 2), ("remove", 0)] {
                let measured = change(&backstage, entities, version as u64).await?;
                if round > 0 {
                    took.entry((what, way.name())).or_default().push(measured);
                }
            }
            captured.stop(way, daemon).await?;
        }
    }
    println!("{entities} entities, {rounds} rounds, refresh loop 60 s; least / median / most\n");
    println!("| change | capture | wall s | CPU s of the database without the bridge's backend |\n|---|---|---|---|");
    for ((what, way), measures) in &took {
        let wall: Vec<f64> = measures.iter().map(|took| took.wall).collect();
        let server: Vec<f64> = measures.iter().map(|took| took.server).collect();
        println!("| {what} | {way} | {} | {} |", spread(&wall, 2), spread(&server, 2));
    }
    Ok(())
}

/// Puts entities of this version, or removes all by 0, and waits until the last is stitched.
async fn change(backstage: &Backstage, entities: usize, version: u64) -> Result<Took> {
    let mut connection = PgConnection::connect(backstage.database_url()).await?;
    let (server, bridge) = (cpu::of_server(&mut connection).await?, cpu::of_bridge(&mut connection).await?);
    let started = Instant::now();
    let all: Vec<_> = match version {
        0 => Vec::new(),
        _ => (0..entities).map(|number| component(&format!("s{number}"), version)).collect(),
    };
    backstage.mutate_full(&all).await?;
    let wanted = if version == 0 { 0 } else { entities as i64 };
    loop {
        let count: i64 = sqlx::query_scalar(
            "select count(*) from final_entities where final_entity like '%\"example.com/version\":\"' || $1 || '\"%'",
        )
        .bind(version.to_string())
        .fetch_one(&mut connection)
        .await?;
        let left: i64 = sqlx::query_scalar("select count(*) from final_entities").fetch_one(&mut connection).await?;
        if count == wanted && left == wanted {
            break;
        }
        ensure!(started.elapsed() < Duration::from_secs(900), "{count} of {wanted} after 15 minutes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wall = started.elapsed().as_secs_f64();
    let server = cpu::of_server(&mut connection).await?.saturating_sub(server);
    let bridge = cpu::of_bridge(&mut connection).await?.saturating_sub(bridge);
    Ok(Took { wall, server: server.saturating_sub(bridge).as_secs_f64() })
}
