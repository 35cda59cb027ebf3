//! `delivery: idempotent`: order and prefix through faults, promises P5, P6 and P9.

use std::time::Duration;

use anyhow::{Context, Result};
use catalog_bridge_api::{ConnectorError, EventType, Lease};
use catalog_bridge_conformance::by_hand::{claim, entity_ref, expected, message, open};
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use serde_json::json;

use crate::broker;
use crate::sink::connector;
use crate::topic;

const NOTHING_REPEATED: DeliveryRules =
    DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 0, sessions_max: 0 };

#[tokio::test(flavor = "multi_thread")]
async fn records_carry_key_partition_headers_and_body() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "plain", 4, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({}));

    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 500, 100).await;
    running.acknowledged_to(500).await?;
    running.finish().await?;

    let records = topic::read(&kafka.bootstrap(), &topic).await?;
    check_delivery(&expected(500), &topic::delivered(&records), NOTHING_REPEATED)?;
    let seventh = records.iter().find(|record| record.offset() == 7).context("offset 7")?;
    assert_eq!(seventh.key, "component:default/entity-7");
    assert_eq!(seventh.value.as_deref(), Some(&message(7, 100).body[..]));
    assert_eq!(seventh.headers["ce_id"], "7");
    assert_eq!(seventh.headers["content-type"], "application/json");
    assert_eq!(seventh.headers["catalog-bridge-log-id"], "12345678-9abc-def0-1234-56789abcdef0");
    assert_eq!(seventh.headers["catalog-bridge-generation"], "1");
    assert_eq!(seventh.headers["catalog-bridge-sink"], "platform");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_a_tombstone_when_asked_for() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "tombstones", 1, &[("cleanup.policy", "compact")]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({ "tombstones": true }));

    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 1, 0).await;
    let mut removal = message(2, 0);
    removal.event_type = EventType::Removed;
    running.feed.offer(removal).await;
    running.acknowledged_to(2).await?;
    running.finish().await?;

    let records = topic::read(&kafka.bootstrap(), &topic).await?;
    assert_eq!(records.iter().map(|record| record.value.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!((records[1].offset(), records[1].headers["ce_id"].as_str()), (2, "2"));
    Ok(())
}

/// P5 and P6: an outage in the middle of the window is only a stall, which is told; the session lives on, and nothing is lost,
/// repeated or out of order.
#[tokio::test(flavor = "multi_thread")]
async fn an_absent_broker_is_waited_for_and_an_outage_costs_nothing() -> Result<()> {
    const LAST: u64 = 30_000;
    let mut kafka = broker::own().await?;
    let topic = topic::create(&kafka.bootstrap(), "absent", 4, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({}));
    kafka.kill9().await?;

    let absent = connector.open(claim(0, None)).await.err().context("nobody listens")?;
    kafka.start_again().await?;
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 10_000, 1000).await;
    kafka.kill9().await?;
    running.offer(10_001, 15_000, 1000).await;
    running.stalled_becomes(true).await?;
    let (restarted, ()) = tokio::join!(kafka.start_again(), running.offer(15_001, LAST, 1000));
    restarted?;
    running.acknowledged_to(LAST).await?;

    assert!(matches!(absent, ConnectorError::Transient { .. }), "{absent}");
    running.stalled_becomes(false).await?;
    running.finish().await?;
    let records = topic::read(&kafka.bootstrap(), &topic).await?;
    check_delivery(&expected(LAST), &topic::delivered(&records), NOTHING_REPEATED)
}

/// P9: with the lease gone, what is still queued is never written, however long the broker takes to come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_takes_back_what_is_queued() -> Result<()> {
    let mut kafka = broker::own().await?;
    let topic = topic::create(&kafka.bootstrap(), "lease", 1, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({}));
    let lease = Lease::unlimited();
    let mut claim = claim(0, None);
    claim.lease = lease.clone();
    let mut running = open(&*connector, claim).await?;
    running.offer(1, 10, 10).await;
    running.acknowledged_to(10).await?;

    kafka.pause()?;
    running.offer(11, 15_000, 1000).await;
    lease.end();
    running.end().await?;
    let frozen = connector.open(self::claim(10, None)).await.err().context("a frozen broker answered")?;
    kafka.resume()?;
    tokio::time::sleep(Duration::from_secs(3)).await;

    assert!(matches!(frozen, ConnectorError::Transient { .. }), "{frozen}");
    let records = topic::read(&kafka.bootstrap(), &topic).await?;
    let last = records.len() as u64;
    // What was under way when the broker froze may have landed: five requests of at most a megabyte.
    assert!((10..=5_000).contains(&last), "{last} records");
    check_delivery(&expected(last), &topic::delivered(&records), NOTHING_REPEATED)
}

/// The contract of `Session::run`: after its future was dropped, nothing more is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_writes_nothing_more() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "dropped", 4, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({ "linger_ms": 1000 }));
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 5_000, 1000).await;

    running.session.abort();
    let _ = (&mut running.session).await;
    let now = topic::read(&kafka.bootstrap(), &topic).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let later = topic::read(&kafka.bootstrap(), &topic).await?;

    assert_eq!(now.len(), later.len());
    assert!(later.iter().all(|record| record.key == entity_ref(record.offset()).as_str()));
    Ok(())
}
