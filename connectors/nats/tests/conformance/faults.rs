//! Order and prefix through faults, promises P5, P6 and P9.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::stream;
use catalog_bridge_api::ConnectorError;
use catalog_bridge_conformance::by_hand::{claim, expected, message, open};
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use serde_json::json;

use crate::server;
use crate::sink::connector;

const NOTHING_REPEATED: DeliveryRules =
    DeliveryRules { lane: Lane::Stream, repeated_per_session_max: 0, sessions_max: 0 };

#[tokio::test(flavor = "multi_thread")]
async fn messages_carry_subject_headers_and_body() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::create(&url, "plain").await?;
    let connector = connector(&url, &stream, json!({}));

    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 5_000, 100).await;
    running.acknowledged_to(5_000).await?;
    running.finish().await?;

    let records = server::read(&url, &stream).await?;
    check_delivery(&expected(5_000), &server::delivered(&records), NOTHING_REPEATED)?;
    let seventh = &records[6];
    assert_eq!(seventh.subject, format!("{stream}.component.default.entity-7"));
    assert_eq!(seventh.body, &message(7, 100).body[..]);
    assert_eq!(seventh.headers["ce-id"], "7");
    assert_eq!(seventh.headers["content-type"], "application/json");
    assert_eq!(seventh.headers["catalog-bridge-log-id"], "12345678-9abc-def0-1234-56789abcdef0");
    assert_eq!(seventh.headers["catalog-bridge-generation"], "1");
    assert_eq!(seventh.headers["catalog-bridge-sink"], "platform");
    assert_eq!(seventh.headers["Nats-Msg-Id"], "12345678.1.7");
    Ok(())
}

/// P5 and P6: a server killed inside the window leaves a prefix, and the next session goes on where the stream ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_leaves_a_prefix_and_nothing_is_repeated() -> Result<()> {
    const LAST: u64 = 60_000;
    let mut nats = server::own().await?;
    let url = nats.url();
    let stream = server::create(&url, "killed").await?;
    let connector = connector(&url, &stream, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;

    running.offer(1, 20_000, 1000).await;
    nats.kill9().await?;
    running.offer(20_001, LAST, 1000).await;
    let end = running.end().await;
    let (checkpoint, state) = (running.prefix(), running.state.clone());
    nats.start_again().await?;
    let records = server::read(&url, &stream).await?;
    let held = records.len() as u64;
    assert!(matches!(end, Err(ConnectorError::Transient { .. })), "{end:?}");
    assert!(held >= checkpoint, "acknowledged {checkpoint}, stored {held}");
    assert_eq!(server::offsets(&records), (1..=held).collect::<Vec<_>>());

    let mut running = open(&*connector, claim(checkpoint, state)).await?;
    running.offer(checkpoint + 1, LAST, 1000).await;
    running.acknowledged_to(LAST).await?;
    running.finish().await?;

    let records = server::read(&url, &stream).await?;
    check_delivery(&expected(LAST), &server::delivered(&records), NOTHING_REPEATED)
}

/// The server forgets the last message's id after its duplicate window and a restart: the first message needs no such tie.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_the_duplicate_window_changes_nothing() -> Result<()> {
    let mut nats = server::own().await?;
    let url = nats.url();
    let settings = stream::Config { duplicate_window: Duration::from_secs(1), ..stream::Config::default() };
    let stream = server::create_with(&url, "window", settings).await?;
    let connector = connector(&url, &stream, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 100, 100).await;
    running.acknowledged_to(100).await?;
    // Idle beyond the window within a session, too.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    running.offer(101, 200, 100).await;
    running.acknowledged_to(200).await?;
    let state = running.state.clone();
    running.finish().await?;

    tokio::time::sleep(Duration::from_millis(2_500)).await;
    nats.stop().await?;
    nats.start_again().await?;
    let mut running = open(&*connector, claim(150, state)).await?;
    running.offer(151, 300, 100).await;
    running.acknowledged_to(300).await?;
    running.finish().await?;

    let records = server::read(&url, &stream).await?;
    check_delivery(&expected(300), &server::delivered(&records), NOTHING_REPEATED)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_server_is_waited_for() -> Result<()> {
    let mut nats = server::own().await?;
    let url = nats.url();
    let stream = server::create(&url, "absent").await?;
    let connector = connector(&url, &stream, json!({}));
    nats.kill9().await?;

    let absent = connector.open(claim(0, None)).await.err().context("nobody listens")?;
    nats.start_again().await?;
    let mut running = open(&*connector, claim(0, None)).await?;
    running.offer(1, 10, 10).await;
    running.acknowledged_to(10).await?;
    running.finish().await?;

    assert!(matches!(absent, ConnectorError::Transient { .. }), "{absent}");
    assert_eq!(server::offsets(&server::read(&url, &stream).await?), (1..=10).collect::<Vec<_>>());
    Ok(())
}
