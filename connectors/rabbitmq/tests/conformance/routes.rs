//! Queues and exchanges that go away under a running sink, and come back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{Connector, ConnectorError};
use lapin::Channel;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::broker::{bind, build, channel, declare, fresh, section, shared, take_all};
use crate::driver::Sink;

fn quorum() -> [(&'static str, AMQPValue); 1] {
    [("x-queue-type", AMQPValue::LongString("quorum".into()))]
}

/// Delivers, does the harm in mid-run, and returns what the session then says.
async fn harmed(
    sink: &Arc<Sink>,
    connector: &Arc<Box<dyn Connector>>,
    harm: impl AsyncFnOnce() -> Result<()>,
) -> Result<ConnectorError> {
    let running = tokio::spawn({
        let (sink, connector) = (Arc::clone(sink), Arc::clone(connector));
        async move { sink.session(&**connector).await }
    });
    let end = Instant::now() + Duration::from_secs(60);
    while sink.prefix() < 1_000 {
        ensure!(Instant::now() < end && !running.is_finished(), "no thousand arrived");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    harm().await?;
    running.await??.err().context("the session ended well: everything was delivered before the harm was done")
}

async fn unbind(channel: &Channel, name: &str) -> Result<()> {
    Ok(channel.queue_unbind(name.into(), name.into(), "#".into(), FieldTable::default()).await?)
}

/// P5, P7: what has no queue is waited for, and goes on where it stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_unbound_in_mid_run_gets_everything_once_bound_again() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("unbound"));
    let (_connection, channel) = channel(&address).await?;
    declare(&channel, &name, &quorum()).await?;
    bind(&channel, &name, "#").await?;
    let connector = Arc::new(build(section(&address, &name), false)?);
    let sink = Arc::new(Sink::new(15_000, 300));

    let error = harmed(&sink, &connector, async || unbind(&channel, &name).await).await?;

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("found no queue (NO_ROUTE)"), "{error}");
    for _ in 0..3 {
        let error = sink.session(&**connector).await?.expect_err("still unbound");
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    }
    bind(&channel, &name, "#").await?;
    sink.deliver(&**connector).await?;
    sink.check(&take_all(&address, &name).await?, 5)
}

/// P6: each look at a message without a queue repeats nothing of what has one, however often it is looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_again_at_what_has_no_queue_repeats_nothing() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("looks"));
    let (_connection, channel) = channel(&address).await?;
    declare(&channel, &name, &quorum()).await?;
    bind(&channel, &name, "component.#").await?;
    let connector = build(section(&address, &name), false)?;
    let mut sink = Sink::new(3_000, 5_000);
    sink.api_every = 1_700;
    let mut found = Vec::new();
    let mut counts = Vec::new();
    for _ in 0..6 {
        let error = sink.session(&*connector).await?.expect_err("no queue for it");
        assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
        let taken = take_all(&address, &name).await?;
        counts.push(taken.len());
        found.extend(taken);
    }

    assert!(counts[1..].iter().all(|count| *count == 0), "{counts:?}");
    assert_eq!(sink.prefix(), 1_699);
    bind(&channel, &name, "api.#").await?;
    sink.deliver(&*connector).await?;
    found.extend(take_all(&address, &name).await?);
    sink.check(&found, 7)
}

/// What was in the queue is gone with it; everything that was not acknowledged by then is in the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_told_and_its_successor_gets_the_rest() -> Result<()> {
    for by_ensure in [false, true] {
        let (address, name) = (shared().await?.address(1), fresh("deleted"));
        let (_connection, channel) = channel(&address).await?;
        declare(&channel, &name, &quorum()).await?;
        bind(&channel, &name, "#").await?;
        let connector = Arc::new(build(section(&address, &name), by_ensure)?);
        let sink = Arc::new(Sink::new(15_000, 300));

        let error = harmed(&sink, &connector, async || {
            channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
            Ok(())
        });
        // Either no route, or the broker's channel fails over the deleted queue.
        error.await?;

        let before = sink.acknowledged();
        if !by_ensure {
            let error = sink.session(&**connector).await?.expect_err("no queue");
            assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
            assert!(error.to_string().contains(&format!("no queue '{name}'")), "{error}");
            declare(&channel, &name, &quorum()).await?;
            bind(&channel, &name, "#").await?;
        }
        sink.deliver(&**connector).await?;
        let found: BTreeSet<u64> =
            take_all(&address, &name).await?.iter().map(|delivered| delivered.offset.get()).collect();
        let lost = (1..=15_000).find(|offset| !found.contains(offset) && !before.contains(offset));
        assert_eq!(lost, None, "with ensure {by_ensure}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_exchange_is_told_and_waited_for() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("no-exchange"));
    let (_connection, channel) = channel(&address).await?;
    declare(&channel, &name, &quorum()).await?;
    bind(&channel, &name, "#").await?;
    let connector = Arc::new(build(section(&address, &name), false)?);
    let sink = Arc::new(Sink::new(15_000, 300));

    let error = harmed(&sink, &connector, async || {
        channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await?;
        Ok(())
    });
    let error = error.await?;

    assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains(&format!("no exchange '{name}'")), "{error}");
    declare(&channel, &name, &quorum()).await?;
    bind(&channel, &name, "#").await?;
    sink.deliver(&**connector).await?;
    sink.check(&take_all(&address, &name).await?, 3)
}

/// Exchange and routing key of each message come from its entity; a queue per kind sees its own alone, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchange_and_routing_key_follow_the_entity() -> Result<()> {
    let (address, name) = (shared().await?.address(1), fresh("routed"));
    let (_connection, channel) = channel(&address).await?;
    let mut section = section(&address, &name);
    section["exchange"] = json!(format!("{name}.{{kind}}"));
    section["routing_key"] = json!("{namespace}.{name}");
    section["queue"] = json!(null);
    for kind in ["component", "api"] {
        let name = format!("{name}.{kind}");
        declare(&channel, &name, &quorum()).await?;
        bind(&channel, &name, "default.*").await?;
    }
    let mut sink = Sink::new(600, 30);
    sink.api_every = 3;

    sink.deliver(&*build(section, false)?).await?;

    let mut found = take_all(&address, &format!("{name}.component")).await?;
    assert!(!found.is_empty() && found.iter().all(|delivered| delivered.key.starts_with("component:")));
    let apis = take_all(&address, &format!("{name}.api")).await?;
    assert_eq!(apis.len(), 200);
    found.extend(apis);
    sink.check(&found, 1)
}
