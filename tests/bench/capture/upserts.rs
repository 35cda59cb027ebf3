//! (b) What triggers add to upserts and cascades in plain SQL: several clients, entities of several sizes, the outbox small and
//! huge.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use catalog_bridge_services::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::catalog::Catalog;
use crate::ways::{Captured, Way};
use crate::{cpu, median, number};

/// Changes that wait in a huge outbox.
const HUGE: usize = 300_000;
/// How many clients write, and entities of how many KiB.
const CELLS: [(usize, usize); 5] = [(1, 1), (4, 1), (16, 1), (4, 10), (4, 100)];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outbox {
    None,
    Small,
    Huge,
}

pub(crate) async fn run(arguments: &[String]) -> Result<()> {
    let (upserts, rounds) = (number(arguments, 0, 2_000)?, number(arguments, 1, 3)?);
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let catalog = Catalog::create(&postgres.fresh_database("catalog").await?).await?;
    let owner_url = catalog.owner_url();
    let captured = Captured::new(owner_url, "public", &[Way::Triggers]).await?;
    let mut measures: BTreeMap<_, Vec<[f64; 4]>> = BTreeMap::new();
    for round in 0..=rounds {
        for outbox in [Outbox::None, Outbox::Small, Outbox::Huge] {
            if outbox != Outbox::None {
                captured.install().await?;
            }
            if outbox == Outbox::Huge {
                catalog.fill(HUGE as u64, 100).await?;
                sqlx::query("update final_entities set hash = hash || '+'")
                    .execute(&mut catalog.connect().await?)
                    .await?;
            }
            for (clients, kib) in CELLS {
                let count = if kib >= 100 { upserts / 5 } else { upserts };
                let measured = write(&catalog, clients, kib, count).await?;
                if round > 0 {
                    measures.entry((clients, kib, outbox)).or_default().push(measured);
                }
            }
            if outbox != Outbox::None {
                captured.uninstall().await?;
            }
            sqlx::query("delete from refresh_state").execute(&mut catalog.connect().await?).await?;
        }
    }
    println!(
        "{upserts} upserts a cell (a fifth of that at 100 KiB), {rounds} rounds, medians; huge: {HUGE} rows wait\n"
    );
    println!(
        "| clients | KiB | outbox | upserts/s | CPU of the database per upsert, µs | cascade of all, CPU µs a row | upsert, of none |\n|---|---|---|---|---|---|---|"
    );
    for ((clients, kib, outbox), all) in &measures {
        let column = |index: usize| median(&all.iter().map(|measured| measured[index]).collect::<Vec<_>>());
        let base = measures.get(&(*clients, *kib, Outbox::None)).context("measured")?;
        let base = median(&base.iter().map(|measured| measured[1]).collect::<Vec<_>>());
        println!(
            "| {clients} | {kib} | {outbox:?} | {:.0} | {:.0} | {:.1} | {:.2} |",
            column(0),
            column(1),
            column(2),
            column(1) / base
        );
    }
    Ok(())
}

/// Upserts each in a transaction of its own, then removes all in one: upserts a second, CPU µs an upsert and a removed row.
async fn write(catalog: &Catalog, clients: usize, kib: usize, upserts: usize) -> Result<[f64; 4]> {
    let mut connection = catalog.connect().await?;
    let before = cpu::of_server(&mut connection).await?;
    let started = Instant::now();
    let client = async |client: usize| -> Result<()> {
        let mut connection = PgConnection::connect(catalog.owner_url()).await?;
        let filler = format!("repeat(md5('{client}'), {})", kib * 32);
        // Half of them insert, half of them update.
        let count = upserts / clients;
        for number in 0..count {
            let id = format!("u{client}-{}", number % (count / 2).max(1));
            let upsert = format!(
                "with state as (
                   insert into refresh_state (entity_id, entity_ref, unprocessed_entity, errors, next_update_at, last_discovery_at)
                   values ('{id}', 'component:default/{id}', '{{}}', '[]', now(), now()) on conflict (entity_ref) do nothing)
                 insert into final_entities (entity_id, hash, final_entity, last_updated_at, entity_ref)
                 values ('{id}', '{number}', '{{\"kind\":\"Component\",\"metadata\":{{\"name\":\"{id}\"}},\"spec\":{{\"text\":\"' || {filler} || '\"}}}}', now(), 'component:default/{id}')
                 on conflict (entity_ref) do update set hash = excluded.hash, final_entity = excluded.final_entity, last_updated_at = now()"
            );
            sqlx::query(AssertSqlSafe(upsert)).persistent(false).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    };
    futures::future::try_join_all((0..clients).map(client)).await?;
    let wall = started.elapsed().as_secs_f64();
    let written = cpu::of_server(&mut connection).await?;
    let removed = sqlx::query("delete from refresh_state where entity_id like 'u%'").execute(&mut connection).await?;
    let gone = cpu::of_server(&mut connection).await?;
    let micros = |later: std::time::Duration, earlier| later.saturating_sub(earlier).as_secs_f64() * 1e6;
    Ok([
        upserts as f64 / wall,
        micros(written, before) / upserts as f64,
        micros(gone, written) / removed.rows_affected().max(1) as f64,
        wall,
    ])
}
