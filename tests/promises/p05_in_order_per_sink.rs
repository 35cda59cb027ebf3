//! P5: first deliveries in offset order, per entity or over all; a checkpoint never passes what is not acknowledged.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::Offset;
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use catalog_bridge_services::{Kafka, KafkaOptions};

use crate::support::{Daemon, Place, kafka, remove, upsert};

async fn start(place: &Place, address: &str, sink: &str) -> Result<Daemon> {
    let config = format!(
        "log: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\nsinks:\n  platform: {{ kafka: {{ brokers: [\"{address}\"], {sink}\n",
        place.path().display()
    );
    place.start(&config).await
}

async fn write(daemon: &Daemon, rounds: std::ops::Range<u64>) -> Result<()> {
    for round in rounds {
        let mut changes: Vec<_> = (0..40).map(|step| upsert(&format!("e{}", (round * 7 + step) % 90), round)).collect();
        changes.push(remove(&format!("e{}", round * 11 % 90)));
        daemon.ingest("push", &changes).await?;
    }
    Ok(())
}

/// The broker is killed and restarted in mid-stream, then frozen: per entity (four partitions) and over all (one partition,
/// `ordering: stream`) the order holds, nothing is lost, and while it is frozen the checkpoint stays.
#[tokio::test(flavor = "multi_thread")]
async fn order_holds_through_a_killed_and_a_frozen_broker() -> Result<()> {
    let mut server = Kafka::start(KafkaOptions::default()).await?;
    let broker = kafka::Broker::at(server.bootstrap());
    let (by_entity, by_stream) = (broker.create_topic(4).await?, broker.create_topic(1).await?);
    let place = Place::new()?;
    let config = format!(
        "topic: {by_entity} }} }}\n  total: {{ kafka: {{ brokers: [\"{}\"], topic: {by_stream} }}, ordering: stream }}",
        broker.address()
    );
    let daemon = start(&place, broker.address(), &config).await?;

    write(&daemon, 0..30).await?;
    server.kill9().await?;
    write(&daemon, 30..60).await?;
    server.start_again().await?;
    write(&daemon, 60..90).await?;
    let reached = async |sink: &str| -> Result<()> {
        let head = daemon.head().await?;
        daemon.wait_for_checkpoint(sink, head.get()).await
    };
    reached("platform").await?;
    reached("total").await?;

    server.pause()?;
    let before = daemon.head().await?;
    write(&daemon, 90..95).await?;
    for _ in 0..20 {
        for sink in ["platform", "total"] {
            let checkpoint = daemon.sink(sink).await?["checkpoint"].as_u64().context("a checkpoint")?;
            ensure!(
                checkpoint <= before.get(),
                "{sink}: checkpoint {checkpoint} above {before}, which a frozen broker cannot have acknowledged"
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.resume()?;
    reached("platform").await?;
    reached("total").await?;

    let expected: Vec<(Offset, String)> = daemon
        .events(Offset::ZERO)
        .await?
        .into_iter()
        .map(|event| (event.offset, event.entity_ref.to_string()))
        .collect();
    for (topic, lane) in [(&by_entity, Lane::Entity), (&by_stream, Lane::Stream)] {
        let rules = DeliveryRules { lane, repeated_per_session_max: 21_000, sessions_max: 4 };
        check_delivery(&expected, &broker.read_all(topic).await?, rules).with_context(|| format!("{lane:?}"))?;
    }
    Ok(())
}

/// `ordering: stream` asks for one lane: a topic of four partitions is refused with what to do, and nothing is sent.
#[tokio::test(flavor = "multi_thread")]
async fn stream_order_refuses_a_topic_of_several_partitions() -> Result<()> {
    let broker = kafka::shared().await?;
    let topic = broker.create_topic(4).await?;
    let place = Place::new()?;
    let daemon = start(&place, broker.address(), &format!("topic: {topic} }}, ordering: stream }}")).await?;

    daemon.ingest("push", &[upsert("a", 1)]).await?;

    daemon
        .wait_until("the topic is refused", async || Ok(daemon.sink("platform").await?["state"] == "misconfigured"))
        .await?;
    let status = daemon.sink("platform").await?;
    ensure!(status["reason"].as_str().context("a reason")?.contains("partition"), "{status}");
    ensure!(broker.read_records(&topic).await?.is_empty(), "nothing was sent");
    Ok(())
}
