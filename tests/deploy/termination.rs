//! A rollout under load: SIGTERM finishes within the pod's grace period, with the checkpoint at what Kafka acknowledged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use serde_json::json;
use sqlx::{Connection, PgConnection, Row};

use crate::charts::render;
use crate::support::{Daemon, Place, Store, kafka, postgres_store, upsert};

/// Writers that do not care whether the daemon answers.
fn load(daemon: &Daemon, writers: u64) -> Vec<tokio::task::JoinHandle<()>> {
    let writer = |number: u64| {
        let (client, url) = (daemon.client().clone(), format!("{}/api/catalog/sources/push/changes", daemon.http));
        tokio::spawn(async move {
            for version in 0.. {
                let changes: Vec<_> =
                    (0..50).map(|step| upsert(&format!("e{}", number * 50 + step), version)).collect();
                let sent = client.post(&url).json(&json!({ "changes": changes })).send().await;
                if sent.is_err() {
                    return;
                }
            }
        })
    };
    (0..writers).map(writer).collect()
}

async fn checkpoint(store_url: &str) -> Result<(Offset, bool)> {
    let mut connection = PgConnection::connect(store_url).await?;
    let statement = "select event_offset, coalesce(lease_expires_at > clock_timestamp(), false) as is_held
                     from catalog_bridge.checkpoints where kind = 'sink' and name = 'platform'";
    let row = sqlx::query(statement).fetch_one(&mut connection).await?;
    Ok((Offset::new(u64::try_from(row.try_get::<i64, _>("event_offset")?)?), row.try_get("is_held")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_in_the_grace_period_at_the_acknowledged_prefix() -> Result<()> {
    let rendered = render(&json!({})).await?;
    let grace = rendered.one("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
    let grace = Duration::from_secs(grace.context("a grace period")?);
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(4).await?;
    let store = postgres_store().await?;
    let Store::Postgres(store_url) = &store else { unreachable!("a PostgreSQL store") };
    let place = Place::new()?;
    let config = format!(
        "log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks: {{ platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }} }} }}\n",
        store.log(&place)?,
        broker.address(),
    );
    let daemon = place.start(&config).await?;
    let writers = load(&daemon, 8);
    daemon
        .wait_until("thousands are delivered", async || {
            Ok(daemon.sink("platform").await?["checkpoint"].as_u64() > Some(2_000))
        })
        .await?;

    let begin = Instant::now();
    let code = daemon.stop().await?;
    let took = begin.elapsed();
    for writer in writers {
        writer.await?;
    }

    ensure!(code == 0, "it ends in order: {code}");
    ensure!(took < grace, "it took {took:?}, and the pod is killed after {grace:?}");
    let (stopped_at, is_held) = checkpoint(store_url).await?;
    ensure!(!is_held, "the lease is given up, so that the next pod need not wait");
    let records = broker.read_all(&topic).await?;
    let mut stored: Vec<Offset> = records.iter().map(|record| record.offset).collect();
    stored.sort_unstable();
    let prefix: Vec<Offset> = (1..=stopped_at.get()).map(Offset::new).collect();
    ensure!(
        stored == prefix,
        "Kafka holds {} records up to {:?}, the checkpoint is {stopped_at}",
        stored.len(),
        stored.last()
    );

    // The next pod repeats nothing and leaves nothing out.
    let next = place.start_named("next", &config).await?;
    let head = next.head().await?;
    next.wait_for_checkpoint("platform", head.get()).await?;
    let expected: Vec<(Offset, String)> = next
        .events(Offset::ZERO)
        .await?
        .into_iter()
        .map(|event| (event.offset, event.entity_ref.to_string()))
        .collect();
    let rules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 0, sessions_max: 2 };
    check_delivery(&expected, &broker.read_all(&topic).await?, rules)?;
    eprintln!("stopped in {took:?} at {stopped_at}, {} later; nothing repeated", head.get() - stopped_at.get());
    Ok(())
}
