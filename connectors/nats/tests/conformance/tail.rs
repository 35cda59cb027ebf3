//! The tail: what is not repeated, what others wrote, what was lost (promises P6 and P8).

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream;
use catalog_bridge_api::{Claim, Connector, ConnectorError, Message};
use catalog_bridge_conformance::by_hand::{Running, claim, message, open};
use serde_json::{Value, json};

use crate::server;
use crate::sink::{connector, connector_with};

async fn diverged(connector: &dyn Connector, claim: Claim) -> Result<String> {
    match connector.open(claim).await.err().context("opened")? {
        ConnectorError::Diverged { reason, .. } => Ok(reason),
        other => anyhow::bail!("not diverged: {other}"),
    }
}

async fn deliver(connector: &dyn Connector, claim: Claim, messages: Vec<Message>) -> Result<Running> {
    let last = messages.last().context("a message")?.offset().get();
    let mut running = open(connector, claim).await?;
    let mut before = running.prefix();
    for message in messages {
        // Offsets in between are filtered.
        (before + 1..message.offset().get()).for_each(|offset| running.skip(offset));
        before = message.offset().get();
        ensure!(running.feed.offer(message).await, "the session ended");
    }
    running.acknowledged_to(last).await?;
    Ok(running)
}

/// P6: filtered offsets leave holes, which are no losses; the tail is found with and without anything remembered.
#[tokio::test(flavor = "multi_thread")]
async fn a_filtered_sink_repeats_nothing_after_a_reopen() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::create(&url, "filtered").await?;
    let connector = connector(&url, &stream, json!({}));
    let every_seventh =
        |from: u64, to: u64| (from..=to).filter(|offset| offset % 7 == 0).map(|offset| message(offset, 50));
    let running = deliver(&*connector, claim(0, None), every_seventh(1, 700).collect()).await?;
    let state = running.state.clone();
    running.finish().await?;

    // The checkpoint moved on over filtered events; nothing of the suffix is missing.
    let running = deliver(&*connector, claim(705, state), every_seventh(706, 1_400).collect()).await?;
    running.finish().await?;
    // A checkpoint that was never written, nothing remembered: the stream alone tells.
    let mut running = open(&*connector, claim(0, None)).await?;
    running.acknowledged_to(1_400).await?;
    for message in every_seventh(1, 1_414) {
        ensure!(running.feed.offer(message).await, "the session ended");
    }
    (1_401..=1_414).for_each(|offset| running.skip(offset));
    running.finish().await?;

    let expected: Vec<u64> = (1..=1_414).filter(|offset| offset % 7 == 0).collect();
    assert_eq!(server::offsets(&server::read(&url, &stream).await?), expected);
    Ok(())
}

/// P8: a foreign message in the middle of the window costs nothing of ours and is told; an operator may accept it.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_write_diverges_and_loses_nothing() -> Result<()> {
    const LAST: u64 = 20_000;
    let url = server::shared().await.url();
    let stream = server::create(&url, "foreign").await?;
    let jetstream = server::jetstream(&url).await?;
    let connector = connector(&url, &stream, json!({}));
    let mut running = open(&*connector, claim(0, None)).await?;

    let subject = format!("{stream}.foreign");
    let intruder = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        jetstream.publish(subject, "not yours".into()).await?.await
    };
    let (written, ()) = tokio::join!(intruder, running.offer(1, LAST, 200));
    written?;
    if !running.session.is_finished() {
        // It came after the last one: the next message meets it.
        running.offer(LAST + 1, LAST + 10, 200).await;
    }
    let end = running.end().await;
    let (checkpoint, state) = (running.prefix(), running.state.clone());

    assert!(matches!(end, Err(ConnectorError::Transient { .. })), "{end:?}");
    let reason = diverged(&*connector, claim(checkpoint, state.clone())).await?;
    assert!(reason.contains("somebody else"), "{reason}");
    let held = server::offsets(&server::read(&url, &stream).await?);
    assert_eq!(held, (1..=held.len() as u64).collect::<Vec<_>>(), "no hole");
    // `sinks resume`: the driver opens again under the same lease.
    let mut running = open(&*connector, claim(checkpoint, state)).await?;
    running.offer(checkpoint + 1, LAST + 10, 200).await;
    running.acknowledged_to(LAST + 10).await?;
    let state = running.state.clone();
    running.finish().await?;
    let records = server::read(&url, &stream).await?;
    assert_eq!(server::offsets(&records), (1..=LAST + 10).collect::<Vec<_>>());
    assert_eq!(records.len() as u64, LAST + 11);
    // What was accepted is not told again.
    connector.open(claim(LAST + 10, state)).await?;
    Ok(())
}

/// P8: another bridge's sink, or the same sink of another log, is a foreign writer.
#[tokio::test(flavor = "multi_thread")]
async fn another_logs_events_are_foreign() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::create(&url, "other-log").await?;
    let ours = connector(&url, &stream, json!({}));
    let running = deliver(&*ours, claim(0, None), vec![message(1, 10)]).await?;
    let state = running.state.clone();
    running.finish().await?;
    let mut other = claim(0, None);
    other.log_id = uuid::Uuid::from_u128(99);
    let mut foreign = message(1, 10);
    foreign.id.log_id = other.log_id;
    deliver(&*connector(&url, &stream, json!({})), other, vec![foreign]).await?.finish().await?;

    let reason = diverged(&*ours, claim(1, state)).await?;

    assert!(reason.contains("message 2"), "{reason}");
    Ok(())
}

/// P6 and P8: a server that comes back without what it had acknowledged (a power failure) is told, with the event to go back
/// to; from there the lost ones are sent again under their ids, and nothing that is there is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tail_is_told_and_sent_again() -> Result<()> {
    let mut nats = server::own().await?;
    let url = nats.url();
    let stream = server::create(&url, "lost").await?;
    let connector = connector(&url, &stream, json!({}));
    let first = (1..=50).map(|offset| message(offset, 10)).collect();
    let running = deliver(&*connector, claim(0, None), first).await?;
    let state = running.state.clone();
    running.finish().await?;
    nats.keep_data().await?;
    let second = (51..=80).map(|offset| message(offset, 10)).collect();
    let running = deliver(&*connector, claim(50, state), second).await?;
    let state: Option<Value> = running.state.clone();
    running.finish().await?;
    nats.lose_data().await?;

    let lost = connector.open(claim(80, state.clone())).await.err().context("opened")?;
    // As the driver does: back to what is there, in the same generation and with the state of before.
    let again = (51..=90).map(|offset| message(offset, 10)).collect();
    deliver(&*connector, claim(50, state), again).await?.finish().await?;

    assert!(matches!(lost, ConnectorError::TailLost { kept, .. } if kept == 50.into()), "{lost}");
    assert!(lost.to_string().contains("went back from 80 to 50"), "{lost}");
    let held = server::offsets(&server::read(&url, &stream).await?);
    assert_eq!(held, (1..=90).collect::<Vec<_>>());
    Ok(())
}

/// P8: with nothing of this generation left there is no event to go back to, so an operator decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_tail_lost_to_the_last_message_is_the_operators() -> Result<()> {
    let mut nats = server::own().await?;
    let url = nats.url();
    let stream = server::create(&url, "all-lost").await?;
    let connector = connector(&url, &stream, json!({}));
    nats.keep_data().await?;
    let messages = (1..=30).map(|offset| message(offset, 10)).collect();
    let running = deliver(&*connector, claim(0, None), messages).await?;
    let state = running.state.clone();
    running.finish().await?;
    nats.lose_data().await?;

    let reason = diverged(&*connector, claim(30, state)).await?;

    assert!(reason.contains("sinks rewind platform --to snapshot"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_created_anew_is_told() -> Result<()> {
    let url = server::shared().await.url();
    let stream = server::create(&url, "anew").await?;
    let jetstream = server::jetstream(&url).await?;
    let connector = connector_with(&url, &stream, json!({}), true);
    let running = deliver(&*connector, claim(0, None), vec![message(1, 10), message(2, 10)]).await?;
    let state = running.state.clone();
    running.finish().await?;

    jetstream.delete_stream(&stream).await?;
    let gone = connector.open(claim(2, state.clone())).await.err().context("opened")?;
    let settings =
        stream::Config { name: stream.clone(), subjects: vec![format!("{stream}.>")], ..stream::Config::default() };
    jetstream.create_stream(settings).await?;
    let reason = diverged(&*connector, claim(2, state)).await?;

    assert!(matches!(gone, ConnectorError::Misconfigured { .. }), "{gone}");
    assert!(reason.contains("created anew") && reason.contains("--to snapshot"), "{reason}");
    Ok(())
}
