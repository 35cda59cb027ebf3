//! What a broker refuses for good, and how it is told from trouble that passes (promise P8).

use anyhow::{Context, Result};
use catalog_bridge_api::{Connector, ConnectorError};
use catalog_bridge_conformance::by_hand::{claim, message, open};
use serde_json::json;

use crate::broker;
use crate::sink::{claims_of_own_log, connector};
use crate::topic;

async fn open_error(connector: &dyn Connector) -> Result<ConnectorError> {
    connector.open(claim(0, None)).await.err().context("opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_the_operators() -> Result<()> {
    let kafka = broker::shared().await;
    let connector = connector(&kafka.bootstrap(), &topic::new_name("nowhere"), json!({}));

    let open = open_error(&*connector).await?;
    let check = connector.check().await.err().context("checked")?;

    for error in [open, check] {
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("ensure: true"), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_the_operators_and_is_not_shown() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "sasl", 1, &[]).await?;
    for (mechanism, username) in [("plain", "alice"), ("scram-sha-256", "bob")] {
        let sasl = json!({ "mechanism": mechanism, "username": username, "password": "hunter2-wrong" });
        let connector = connector(&kafka.security().sasl_address(), &topic, json!({ "sasl": sasl }));

        let open = open_error(&*connector).await?;
        let check = connector.check().await.err().context("checked")?;

        for error in [open, check] {
            assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{mechanism}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sasl_and_tls_deliver() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "secured", 1, &[]).await?;
    let ca = kafka.security().file("ca.pem");
    let plain = json!({ "mechanism": "plain", "username": "alice", "password": "alice-pw" });
    let scram = json!({ "mechanism": "scram-sha-256", "username": "bob", "password": "bob-pw" });
    let client = json!({
        "ca_file": ca,
        "certificate_file": kafka.security().file("client.crt"),
        "key_file": kafka.security().file("client.key"),
    });
    let ways = [
        (kafka.security().sasl_address(), json!({ "sasl": plain })),
        (kafka.security().sasl_tls_address(), json!({ "sasl": scram, "tls": { "ca_file": ca } })),
        (kafka.security().mutual_tls_address(), json!({ "tls": client })),
    ];
    for (index, (address, settings)) in (0..).zip(ways) {
        let connector = connector(&address, &topic, settings);
        connector.check().await?;
        let mut running = open(&*connector, claim(index, None)).await?;
        running.offer(index + 1, index + 1, 10).await;
        running.acknowledged_to(index + 1).await?;
        running.finish().await?;
    }

    assert_eq!(topic::read(&kafka.bootstrap(), &topic).await?.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_or_missing_is_the_operators() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "tls", 1, &[]).await?;
    let ca = kafka.security().file("ca.pem");
    for tls in [json!({}), json!({ "ca_file": ca }), json!({ "ca_file": "/nowhere/ca.pem" })] {
        let error =
            open_error(&*connector(&kafka.security().mutual_tls_address(), &topic, json!({ "tls": tls }))).await?;
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{tls}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_record_is_refused_after_everything_before_it_is_acknowledged() -> Result<()> {
    let kafka = broker::shared().await;
    let topic = topic::create(&kafka.bootstrap(), "oversize", 2, &[]).await?;
    let connector = connector(&kafka.bootstrap(), &topic, json!({ "message_bytes_max": 50_000 }));
    let mut running = open(&*connector, claim(0, None)).await?;

    running.offer(1, 200, 100).await;
    running.offer(201, 201, 60_000).await;
    let end = running.end().await;

    assert!(matches!(end, Err(ConnectorError::Refused { offset, .. }) if offset == 201.into()), "{end:?}");
    assert_eq!(running.prefix(), 200);
    Ok(())
}

/// A topic refuses a whole batch for one record, and batches of small records as well: neither may cost an innocent one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_costs_only_the_record_that_is_too_large() -> Result<()> {
    for delivery in ["idempotent", "transactional"] {
        let kafka = broker::shared().await;
        let claim = claims_of_own_log();
        let topic = topic::create(&kafka.bootstrap(), "small-batches", 1, &[("max.message.bytes", "20000")]).await?;
        let connector = connector(&kafka.bootstrap(), &topic, json!({ "delivery": delivery }));

        // As the driver with `on_refused: skip` does.
        let (mut checkpoint, mut refused) = (0, Vec::new());
        for _ in 0..20 {
            let mut running = open(&*connector, claim(checkpoint, None)).await?;
            for offset in checkpoint + 1..=400 {
                let size = if offset == 150 { 30_000 } else { 500 };
                if refused.contains(&offset) {
                    running.skip(offset);
                } else if !running.feed.offer(message(offset, size)).await {
                    break;
                }
            }
            if running.acknowledged_to(400).await.is_ok() {
                checkpoint = 400;
                running.finish().await?;
                break;
            }
            checkpoint = running.prefix();
            if let Some(ConnectorError::Refused { offset, .. }) = running.error.take() {
                refused.push(offset.get());
            }
        }

        assert_eq!((checkpoint, refused), (400, vec![150]), "{delivery}");
        let records = topic::read(&kafka.bootstrap(), &topic).await?;
        let mut offsets: Vec<u64> = records.iter().map(topic::Record::offset).collect();
        offsets.dedup();
        assert_eq!(offsets, (1..=400).filter(|offset| *offset != 150).collect::<Vec<_>>(), "{delivery}");
    }
    Ok(())
}
