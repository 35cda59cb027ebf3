//! Messages of as many entities, offered to a session at once; no key gate is needed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use catalog_bridge_api::{
    Ack, Acks, Claim, Connector, ConnectorError, EntityRef, EventType, Lease, Message, MessageId, Offset, Ordering,
    SinkName, feed,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// Whatever takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a session came to.
pub(crate) struct Outcome {
    pub(crate) result: Result<(), ConnectorError>,
    pub(crate) acknowledged: BTreeSet<u64>,
    /// What it wants to be remembered.
    pub(crate) state: Option<Value>,
    /// Whether it says that nothing of what it sent may still land.
    pub(crate) is_settled: bool,
}

pub(crate) fn message(offset: u64, name: &str) -> Message {
    let entity_ref = EntityRef::from_parts("component", "default", name).expect("valid");
    let body = json!({ "subject": entity_ref.as_str(), "offset": offset, "fill": "x".repeat(300) });
    Message {
        id: MessageId { log_id: log_id(), generation: 1, offset: offset.into() },
        event_type: EventType::Updated,
        attributes: Vec::new(),
        entity_ref,
        content_type: "application/cloudevents+json",
        body: body.to_string().into(),
        is_reference: false,
    }
}

/// Offsets `1..=count`, an entity each.
pub(crate) fn messages(count: u64) -> Vec<Message> {
    (1..=count).map(|offset| message(offset, &format!("e{offset}"))).collect()
}

pub(crate) fn log_id() -> Uuid {
    Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0)
}

pub(crate) fn claim(state: Option<Value>) -> Claim {
    Claim {
        log_id: log_id(),
        sink: SinkName::parse("conformance").expect("valid"),
        generation: 1,
        epoch: 1,
        checkpoint: Offset::ZERO,
        head: Offset::new(1_000),
        ordering: Ordering::Entity,
        state,
        lease: Lease::unlimited(),
    }
}

/// Offers all of them, and ends the feed when all are acknowledged.
pub(crate) async fn run(connector: &dyn Connector, messages: Vec<Message>) -> Result<Outcome> {
    run_again(connector, messages, None).await
}

pub(crate) async fn run_again(
    connector: &dyn Connector,
    messages: Vec<Message>,
    state: Option<Value>,
) -> Result<Outcome> {
    let session = match connector.open(claim(state)).await {
        Ok(session) => session,
        Err(error) => {
            return Ok(Outcome { result: Err(error), acknowledged: BTreeSet::new(), state: None, is_settled: true });
        }
    };
    let (sender, feed) = feed(messages.len(), Lease::unlimited());
    let (acks, mut reports) = Acks::channel();
    let running = tokio::spawn(session.run(feed, acks));
    let count = messages.len();
    for message in messages {
        // A session that failed already takes no more.
        let _ = sender.offer(message).await;
    }
    let (mut acknowledged, mut state, mut is_settled) = (BTreeSet::new(), None, false);
    let collecting = async {
        while acknowledged.len() < count
            && let Some(report) = reports.next().await
        {
            match report {
                Ack::One(offset) => assert!(acknowledged.insert(offset.get()), "{offset} was acknowledged twice"),
                Ack::Remember(kept) => state = Some(kept),
                Ack::Settled => is_settled = true,
                other => panic!("{other:?}"),
            }
        }
    };
    let collected = tokio::time::timeout(PATIENCE, collecting).await;
    collected.with_context(|| format!("{} of {count} were acknowledged", acknowledged.len()))?;
    drop(sender);
    let result = tokio::time::timeout(PATIENCE, running).await.context("the session never ended")??;
    Ok(Outcome { result, acknowledged, state, is_settled })
}

/// The error that `open` answers with.
pub(crate) async fn open_error(connector: &dyn Connector) -> ConnectorError {
    match connector.open(claim(None)).await {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}
