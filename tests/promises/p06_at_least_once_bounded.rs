//! P5 and P6 through SIGKILL: first deliveries in order, repetitions only a suffix with identical bytes, and none where the
//! destination can tell (file).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery, repeats};
use rand::{Rng, SeedableRng};

use crate::support::{Daemon, Place, delivered_lines, kafka, remove, rounds, seed, stores, upsert};

/// What a session border may repeat: the Kafka connector's window plus what was acknowledged since the last checkpoint.
const WINDOW: usize = 20_000 + 1_000;

/// The daemon is killed at random moments while sixteen tasks write: nothing lost, order kept, bytes identical.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_and_reorder_nothing() -> Result<()> {
    let seed = seed();
    let broker = kafka::shared().await?;
    for store in stores().await? {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let place = Place::new()?;
        let topic = broker.create_topic(4).await?;
        let audit = place.path().join("audit.ndjson");
        let config = format!(
            "log: {}\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n  audit: {{ file: {{ path: \"{}\" }}, encoding: json }}\n  platform: {{ kafka: {{ brokers: [\"{}\"], topic: {topic} }} }}\n",
            store.log(&place)?,
            audit.display(),
            broker.address(),
        );
        let kills = rounds(20, 60);
        let mut version = 0;
        for _ in 0..kills {
            let daemon = place.start(&config).await?;
            let deadline = tokio::time::Instant::now() + Duration::from_millis(random.random_range(50..900));
            while tokio::time::Instant::now() < deadline {
                version = write(&daemon, version).await?;
            }
            daemon.kill()?;
        }
        let daemon = place.start(&config).await?;
        let head = daemon.head().await?;
        for sink in ["audit", "platform"] {
            daemon.wait_for_checkpoint(sink, head.get()).await?;
        }

        let expected: Vec<(Offset, String)> = daemon
            .events(Offset::ZERO)
            .await?
            .into_iter()
            .map(|event| (event.offset, event.entity_ref.to_string()))
            .collect();
        ensure!(expected.len() as u64 == head.get(), "{}: the log holds 1..={head}", store.name());
        let lines = delivered_lines(&audit)?;
        let rules = DeliveryRules { lane: Lane::Stream, repeated_per_session_max: 0, sessions_max: kills + 1 };
        check_delivery(&expected, &lines, rules).with_context(|| format!("{}: file, seed {seed}", store.name()))?;
        let records = broker.read_all(&topic).await?;
        let rules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: WINDOW, sessions_max: kills + 1 };
        check_delivery(&expected, &records, rules).with_context(|| format!("{}: Kafka, seed {seed}", store.name()))?;
        eprintln!(
            "{}: {head} events, {kills} kills, {} repetitions in Kafka, none in the file",
            store.name(),
            repeats(&records)
        );
    }
    Ok(())
}

async fn write(daemon: &Daemon, version: u64) -> Result<u64> {
    let batches = (0..16u64).map(|writer| {
        let mut changes: Vec<_> =
            (0..10).map(|step| upsert(&format!("e{}", (writer * 10 + step) % 120), version + writer)).collect();
        changes.push(remove(&format!("e{}", (writer + version) % 120)));
        async move { daemon.ingest("push", &changes).await }
    });
    futures::future::try_join_all(batches).await?;
    Ok(version + 16)
}
