//! Broken promises of brokers, and what becomes of the events.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use catalog_bridge_api::ConnectorError;
use catalog_bridge_services::{RabbitMq, RabbitMqOptions, RabbitMqVersion};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::broker::{bind, build, channel, declare, delivered, fresh, section, shared, start, strict, take_all};
use crate::driver::Sink;

/// P5, P6: a broker's crash loses nothing and reorders nothing; repeated is at most the window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_and_reorders_nothing() -> Result<()> {
    killed(RabbitMqVersion::V4).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_of_release_3_loses_and_reorders_nothing() -> Result<()> {
    killed(RabbitMqVersion::V3).await
}

async fn killed(version: RabbitMqVersion) -> Result<()> {
    let mut rabbit = RabbitMq::start(RabbitMqOptions { version, ..Default::default() }).await?;
    let (address, name) = (rabbit.address(1), fresh("killed"));
    let connector = build(section(&address, &name), true)?;
    // RabbitMQ 4.0 writes a new quorum queue's name to disk minutes later, or when it stops: killed before, it does not find
    // the queue's data again.
    Sink::new(1, 1).deliver(&*connector).await?;
    assert_eq!(take_all(&address, &name).await?.len(), 1);
    rabbit.stop().await?;
    rabbit.start_again().await?;
    let sink = std::sync::Arc::new(Sink::new(20_000, 60));
    let delivering = tokio::spawn({
        let sink = std::sync::Arc::clone(&sink);
        async move { sink.deliver(&*connector).await }
    });

    for threshold in [1_000, 6_000] {
        while sink.prefix() < threshold && !delivering.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rabbit.kill9().await?;
        rabbit.start_again().await?;
    }

    let troubles = delivering.await??;
    assert!(troubles.len() >= 2, "the broker was killed twice: {troubles:?}");
    sink.check(&take_all(&address, &name).await?, troubles.len() + 1)
}

/// P7: among pipelined messages some find no queue. The client library attaches returns to the wrong confirms, so this looks at
/// many windows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unroutable_message_is_never_acknowledged_and_none_is_lost() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("unroutable"));
    let (_connection, channel) = channel(&address).await?;
    declare(&channel, &name, &[]).await?;
    bind(&channel, &name, "component").await?;
    let mut section = section(&address, &name);
    section["routing_key"] = json!("{kind}");
    let connector = build(section, false)?;
    let mut last = None;
    for api_every in (0..40).map(|round| 20 + 23 * round) {
        let mut sink = Sink::new(1_000, 100_000);
        sink.api_every = api_every;

        let error = sink.session(&*connector).await?.expect_err("some find no queue");

        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("found no queue (NO_ROUTE)"), "{error}");
        let acknowledged = sink.acknowledged();
        let wrong: Vec<_> = acknowledged.iter().filter(|offset| sink.is_api(**offset)).collect();
        assert!(wrong.is_empty(), "{wrong:?} found no queue and were acknowledged");
        let stored: BTreeSet<u64> = take_all(&address, &name).await?.iter().map(|found| found.offset.get()).collect();
        assert!(acknowledged.is_subset(&stored), "acknowledged and not stored");
        last = Some(sink);
    }

    let sink = last.context("a round")?;
    let before = sink.acknowledged();
    bind(&channel, &name, "api").await?;
    sink.deliver(&*connector).await?;
    let found: BTreeSet<u64> = take_all(&address, &name).await?.iter().map(|found| found.offset.get()).collect();
    assert!((1..=1_000).all(|offset| found.contains(&offset) || before.contains(&offset)), "some were lost");
    Ok(())
}

/// P5: a queue that is full nacks some and takes others behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nacks_lose_and_reorder_nothing() -> Result<()> {
    nacked(&shared().await?.address(1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nacks_of_release_3_lose_and_reorder_nothing() -> Result<()> {
    nacked(&strict(RabbitMqVersion::V3).await?.address(1)).await
}

async fn nacked(address: &str) -> Result<()> {
    let name = fresh("full");
    let (_connection, channel) = channel(address).await?;
    let limits =
        [("x-max-length", AMQPValue::LongInt(200)), ("x-overflow", AMQPValue::LongString("reject-publish".into()))];
    declare(&channel, &name, &limits).await?;
    bind(&channel, &name, "#").await?;
    channel.basic_qos(50, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(name.as_str().into(), "slow".into(), options, FieldTable::default()).await?;
    let consuming = tokio::spawn(async move {
        let mut found = Vec::new();
        // Ends when nothing more comes.
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await {
            let message = message?;
            found.push(delivered(&message.properties)?);
            message.acker.ack(Default::default()).await?;
            if found.len() % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        anyhow::Ok(found)
    });
    let connector = build(section(address, &name), false)?;
    let sink = Sink::new(4_000, 1_500);

    let troubles = sink.deliver(&*connector).await?;

    assert!(troubles.iter().any(|trouble| trouble.contains("basic.nack")), "the queue was never full: {troubles:?}");
    sink.check(&consuming.await??, troubles.len() + 1)
}

/// A broker out of memory stops reading: a state, no error, and nothing is sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_connection_is_a_stall() -> Result<()> {
    // One of its own: what it blocks would keep other tests waiting.
    blocked(&start(RabbitMqOptions::default()).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_connection_of_release_3_is_a_stall() -> Result<()> {
    blocked(&start(RabbitMqOptions { version: RabbitMqVersion::V3, ..Default::default() }).await?).await
}

async fn blocked(rabbit: &RabbitMq) -> Result<()> {
    let (address, name) = (rabbit.address(1), fresh("blocked"));
    let connector = build(section(&address, &name), true)?;
    let sink = Sink::new(300, 300);
    let mut running = sink.start(&*connector).await?;
    rabbit.control(1, &["set_vm_memory_high_watermark", "absolute", "1MB"]).await?;

    for offset in 1..=300 {
        assert!(running.feed.offer(sink.message(offset)).await);
    }
    let reason = running.stalled_becomes(true).await?.context("a reason")?;
    assert!(reason.contains("blocks publishers"), "{reason}");
    // Longer than the connection lives without a heartbeat.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(!running.session.is_finished(), "a stall is no end");
    rabbit.control(1, &["set_vm_memory_high_watermark", "absolute", "1GB"]).await?;
    running.stalled_becomes(false).await?;

    drop(running.feed);
    running.session.await??;
    let found = take_all(&address, &name).await?;
    assert_eq!(found.len(), 300);
    Ok(())
}

/// P9: one publisher per sink.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_queue_keeps_a_second_session_out() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("locked"));
    let connector = build(section(&address, &name), true)?;
    let sink = Sink::new(10, 10);
    let first = sink.start(&*connector).await?;

    let Err(error) = sink.start(&*connector).await else { panic!("two sessions of one sink") };
    assert!(matches!(error, ConnectorError::Transient { .. }), "{error}");
    assert!(error.to_string().contains("within the heartbeat"), "{error}");
    // Another sink of another log is not kept out.
    Sink::new(10, 10).deliver(&*connector).await?;
    first.session.abort();

    sink.deliver(&*connector).await?;
    Ok(())
}

/// A message that the broker never takes is named, though the broker says only its size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_above_the_brokers_limit_is_refused_by_its_offset() -> Result<()> {
    for version in [RabbitMqVersion::V4, RabbitMqVersion::V3] {
        too_large(strict(version).await?).await?;
    }
    Ok(())
}

async fn too_large(rabbit: &RabbitMq) -> Result<()> {
    let (address, name) = (rabbit.address(1), fresh("large"));
    let connector = build(section(&address, &name), true)?;
    let mut sink = Sink::new(50, 50);
    let mut running = sink.start(&*connector).await?;

    for offset in 1..=50 {
        sink.body_bytes = if offset == 37 { 150_000 } else { 500 };
        let _ = running.feed.offer(sink.message(offset)).await;
    }

    let error = (&mut running.session).await?.expect_err("refused");
    assert!(matches!(&error, ConnectorError::Refused { offset, .. } if *offset == 37.into()), "{error}");
    assert!(error.to_string().contains("is larger than"), "{error}");
    let found = take_all(&address, &name).await?;
    assert!(found.iter().all(|found| found.offset.get() < 37), "nothing behind it was taken");
    Ok(())
}
