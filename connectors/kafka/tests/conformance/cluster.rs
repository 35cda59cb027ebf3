//! Three brokers with `min.insync.replicas` 2: the loss of one costs nothing (promises P5 and P6).

use anyhow::{Result, ensure};
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{claim, expected, open};
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use catalog_bridge_services::{Kafka, KafkaOptions};
use serde_json::json;

use crate::sink::connector;
use crate::topic;

/// Each delivery loses another broker inside its window; the cluster is shared, as its start is what costs most.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_of_three_leaves_no_gap_and_no_repetition() -> Result<()> {
    const LAST: u64 = 30_000;
    let mut kafka = Kafka::start(KafkaOptions { nodes: 3, ..KafkaOptions::default() }).await?;
    for (victim, delivery) in [(2, "idempotent"), (3, "transactional")] {
        let topic = topic::create_replicated(&kafka.bootstrap(), delivery, 3, 3).await?;
        let connector = connector(&kafka.bootstrap(), &topic, json!({ "delivery": delivery }));
        let mut running = open(&*connector, claim(0, None)).await?;
        running.offer(1, LAST / 3, 500).await;
        kafka.node(victim).kill9().await?;
        running.offer(LAST / 3 + 1, LAST, 500).await;
        while running.acknowledged_to(LAST).await.is_err() {
            let error = &running.error;
            ensure!(
                delivery == "transactional" && matches!(error, Some(ConnectorError::Transient { .. })),
                "{delivery} ended by {error:?}"
            );
            let prefix = running.prefix();
            running = open(&*connector, claim(prefix, running.state.clone())).await?;
            running.offer(prefix + 1, LAST, 500).await;
        }
        running.finish().await?;
        kafka.node(victim).start_again().await?;

        let rules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 0, sessions_max: 0 };
        let records = topic::read(&kafka.bootstrap(), &topic).await?;
        check_delivery(&expected(LAST), &topic::delivered(&records), rules)?;
    }
    Ok(())
}
