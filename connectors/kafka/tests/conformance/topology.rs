//! The topic as the sink finds it: created on demand, pinned, and told apart from what it was.

use anyhow::{Context, Result};
use catalog_bridge_api::{ConnectorError, Ordering};
use catalog_bridge_conformance::by_hand::{claim, open};
use serde_json::json;

use crate::broker;
use crate::sink::{claims_of_own_log, connector, connector_with};
use crate::topic;

#[tokio::test(flavor = "multi_thread")]
async fn ensure_creates_the_topic_and_check_does_not() -> Result<()> {
    let kafka = broker::shared().await;
    let name = topic::new_name("ensured");
    let connector = connector_with(&kafka.bootstrap(), &name, json!({ "partitions": 3 }), Ordering::Entity, true);

    let report = connector.check().await?;
    let still_missing = topic::read(&kafka.bootstrap(), &name).await.map_or(0, |records| records.len());
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 30, 10).await;
    running.acknowledged_to(30).await?;

    assert!(report.facts[0].contains("will be created"), "{report:?}");
    assert_eq!(still_missing, 0);
    let state = running.state.clone().context("state")?;
    assert_eq!(state["partitions"], 3);
    assert!(state["topic_id"].as_str().is_some_and(|id| id.len() == 22), "{state}");
    running.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_wants_one_partition() -> Result<()> {
    let kafka = broker::shared().await;
    let name = topic::create(&kafka.bootstrap(), "stream", 2, &[]).await?;
    let connector = connector_with(&kafka.bootstrap(), &name, json!({}), Ordering::Stream, false);

    for error in [connector.check().await.err(), connector.open(claim(0, None)).await.err()] {
        let error = error.context("accepted")?;
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("one partition"), "{error}");
    }
    Ok(())
}

/// P5: keys are mapped with the partition count that the sink started with, or an operator decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_grown_or_recreated_topic_diverges_until_an_operator_accepts_it() -> Result<()> {
    let kafka = broker::shared().await;
    let name = topic::create(&kafka.bootstrap(), "changing", 2, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &name, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 10, 10).await;
    running.acknowledged_to(10).await?;
    let state = running.state.clone();
    running.finish().await?;

    topic::grow(&kafka.bootstrap(), &name, 3).await?;
    let grown = connector.open(claim(10, state.clone())).await.err().context("opened")?;
    // The driver opens again only when an operator resumed the sink.
    let mut running = open(&*connector, claim(10, state)).await?;
    running.offer(11, 20, 10).await;
    running.acknowledged_to(20).await?;
    let state = running.state.clone();
    running.finish().await?;
    topic::delete(&kafka.bootstrap(), &name).await?;
    let gone = connector.open(claim(20, state.clone())).await.err().context("opened")?;
    topic::create_named(&kafka.bootstrap(), &name, 3, &[]).await?;
    let anew = connector.open(claim(20, state)).await.err().context("opened")?;

    assert!(matches!(grown, ConnectorError::Diverged { .. }), "{grown}");
    assert!(grown.to_string().contains("has 3 partitions and had 2"), "{grown}");
    assert!(matches!(gone, ConnectorError::Misconfigured { .. }), "{gone}");
    assert!(matches!(anew, ConnectorError::Diverged { .. }), "{anew}");
    Ok(())
}

/// A log restored to an older state is noticed by what the topic already holds of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tail_above_the_head_tells_of_a_restored_log() -> Result<()> {
    let kafka = broker::shared().await;
    let claim = claims_of_own_log();
    for delivery in ["idempotent", "transactional"] {
        let name = topic::create(&kafka.bootstrap(), "restored", 2, &[]).await?;
        let connector = connector(&kafka.bootstrap(), &name, json!({ "delivery": delivery }));
        let mut running = open(&*connector, claim(0, None)).await?;
        running.offer(1, 50, 10).await;
        running.acknowledged_to(50).await?;
        running.finish().await?;

        let mut restored = claim(30, None);
        restored.head = 40.into();
        let error = connector.open(restored).await.err().context("opened")?;

        assert!(matches!(error, ConnectorError::AheadOfLog { tail, .. } if tail == 50.into()), "{delivery}: {error}");
    }
    Ok(())
}
