//! `delivery: transactional`: exactly once, and a former owner is fenced (promises P6 and P9).

use anyhow::{Context, Result};
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{expected, open};
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use serde_json::json;

use crate::broker;
use crate::sink::{claims_of_own_log, connector};
use crate::topic;

const NOTHING_REPEATED: DeliveryRules =
    DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 0, sessions_max: 0 };

#[tokio::test(flavor = "multi_thread")]
async fn a_former_owner_is_fenced_and_leaves_nothing_behind() -> Result<()> {
    let kafka = broker::shared().await;
    let claim = claims_of_own_log();
    let topic = topic::create(&kafka.bootstrap(), "fenced", 2, &[]).await?;
    let settings = json!({ "delivery": "transactional" });
    let (old_owner, new_owner) =
        (connector(&kafka.bootstrap(), &topic, settings.clone()), connector(&kafka.bootstrap(), &topic, settings));
    let mut old = open(&*old_owner, claim(0, None)).await?;
    old.offer(1, 100, 100).await;
    old.acknowledged_to(100).await?;

    let mut new = open(&*new_owner, claim(100, None)).await?;
    old.offer(101, 200, 100).await;
    let fenced = old.end().await.err().context("the former owner went on")?;
    new.offer(101, 300, 100).await;
    new.acknowledged_to(300).await?;
    new.finish().await?;

    assert!(matches!(fenced, ConnectorError::Fenced { .. }), "{fenced}");
    assert_eq!(old.prefix(), 100);
    let records = topic::read(&kafka.bootstrap(), &topic).await?;
    check_delivery(&expected(300), &topic::delivered(&records), NOTHING_REPEATED)
}

/// Others write to the topic too: what is ours is found behind any number of their records, and generations are told apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_tail_is_found_behind_foreign_records_and_only_of_this_generation() -> Result<()> {
    let kafka = broker::shared().await;
    let claim = claims_of_own_log();
    let topic = topic::create(&kafka.bootstrap(), "shared", 2, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({ "delivery": "transactional" }));
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 100, 100).await;
    running.acknowledged_to(100).await?;
    running.finish().await?;
    let mut foreign = claim(0, None);
    foreign.log_id = uuid::Uuid::from_u128(9);
    let other = self::connector(&kafka.bootstrap(), &topic, json!({}));
    let mut running = open(&*other, foreign).await?;
    running.offer(1, 5_000, 10).await;
    running.acknowledged_to(5_000).await?;
    running.finish().await?;

    let mut same = open(&*connector, claim(50, None)).await?;
    same.offer(51, 100, 100).await;
    same.acknowledged_to(100).await?;
    let mut next_generation = claim(50, None);
    next_generation.generation = 2;
    let found_in_same = same.already_stored;
    same.finish().await?;
    let mut next = open(&*connector, next_generation).await?;
    next.offer(51, 100, 100).await;
    next.acknowledged_to(100).await?;

    assert_eq!((found_in_same, next.already_stored), (50, 0));
    next.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_die_anywhere_repeat_nothing() -> Result<()> {
    const LAST: u64 = 30_000;
    let kafka = broker::shared().await;
    let claim = claims_of_own_log();
    let topic = topic::create(&kafka.bootstrap(), "once", 4, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({ "delivery": "transactional" }));

    // Each session starts from a checkpoint older than what was committed, and is dropped in the middle of what follows.
    let mut already_stored = 0;
    for round in 1..=4 {
        let first = (round - 1) * 5_000;
        let mut running = open(&*connector, claim(first, None)).await?;
        running.offer(first + 1, first + 5_500, 200).await;
        running.acknowledged_to(first + 5_500).await?;
        running.offer(first + 5_501, first + 6_000 + round * 711, 200).await;
        running.session.abort();
        let _ = (&mut running.session).await;
        running.prefix();
        already_stored += running.already_stored;
    }
    let mut running = open(&*connector, claim(20_000, None)).await?;
    running.offer(20_001, LAST, 200).await;
    running.acknowledged_to(LAST).await?;
    running.finish().await?;

    assert!(already_stored > 0, "no session found anything stored");
    let records = topic::read(&kafka.bootstrap(), &topic).await?;
    check_delivery(&expected(LAST), &topic::delivered(&records), NOTHING_REPEATED)
}
