//! Sinks to a receiver, and one session of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{
    Ack, Acks, BuildContext, Claim, Connector, ConnectorError, ConnectorKind, Lease, Message, Ordering, SinkName, feed,
};
use catalog_bridge_api::{EntityRef, EventType, MessageId, Offset};
use catalog_bridge_services::WebhookReceiver;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const NEW_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Whatever takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn receiver() -> Result<WebhookReceiver> {
    WebhookReceiver::start(&[SECRET])
}

/// The section of a sink to an address of this machine.
pub(crate) fn section(address: &str) -> Value {
    json!({
        "url": format!("http://{address}/hooks/T0KEN?access_token=s3cret"),
        "secret": SECRET,
        "allow_http": true,
        "allow_addresses": ["127.0.0.1"],
    })
}

/// The same, changed.
pub(crate) fn section_with(address: &str, change: Value) -> Value {
    let mut section = section(address);
    for (key, value) in change.as_object().expect("an object") {
        section[key] = value.clone();
    }
    section
}

pub(crate) fn build(section: Value, ordering: Ordering) -> Result<Box<dyn Connector>> {
    let context = BuildContext { sink: SinkName::parse("conformance")?, ordering, ensure: false };
    Ok(catalog_bridge_webhook::KIND.build(section, context)?)
}

/// Each of an entity of its own, so that all may be sent at once.
pub(crate) fn messages(offsets: std::ops::RangeInclusive<u64>) -> Vec<Message> {
    let message = |offset: u64| Message {
        id: MessageId { log_id: Uuid::from_u128(7), generation: 3, offset: Offset::new(offset) },
        entity_ref: EntityRef::parse(&format!("component:default/e{offset}")).expect("valid"),
        event_type: EventType::Updated,
        attributes: Vec::new(),
        content_type: "application/cloudevents+json",
        body: format!("{{\"id\":\"{offset}\"}}").into(),
        is_reference: false,
    };
    offsets.map(message).collect()
}

/// What one session came to.
pub(crate) struct Outcome {
    pub(crate) result: Result<(), ConnectorError>,
    pub(crate) acknowledged: BTreeSet<u64>,
    /// Whether it says that nothing of what it sent may still land.
    pub(crate) is_settled: bool,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn error(self) -> ConnectorError {
        self.result.expect_err("the session went through")
    }
}

/// One session that is offered all of these at once and then ends.
pub(crate) async fn session(connector: &dyn Connector, messages: Vec<Message>) -> Result<Outcome> {
    session_under(connector, messages, Lease::unlimited()).await
}

pub(crate) async fn session_under(connector: &dyn Connector, messages: Vec<Message>, lease: Lease) -> Result<Outcome> {
    let claim = Claim {
        log_id: Uuid::from_u128(7),
        sink: SinkName::parse("conformance")?,
        generation: 3,
        epoch: 1,
        checkpoint: Offset::ZERO,
        head: Offset::new(u64::MAX),
        ordering: Ordering::Entity,
        state: None,
        lease: lease.clone(),
    };
    let opened = connector.open(claim).await?;
    let (sender, feed) = feed(messages.len(), lease);
    let (acks, mut reports) = Acks::channel();
    for message in messages {
        ensure!(sender.try_offer(message).is_ok(), "the feed has room for all");
    }
    drop(sender);
    let result = tokio::time::timeout(PATIENCE, opened.run(feed, acks)).await.context("the session never ended")?;
    let (mut acknowledged, mut is_settled) = (BTreeSet::new(), false);
    while let Some(ack) = reports.try_next() {
        match ack {
            Ack::One(offset) => ensure!(acknowledged.insert(offset.get()), "{offset} was acknowledged twice"),
            Ack::Settled => is_settled = true,
            _ => {}
        }
    }
    Ok(Outcome { result, acknowledged, is_settled })
}

/// The offsets that a receiver stored, in its order.
pub(crate) fn stored(receiver: &WebhookReceiver) -> Vec<u64> {
    let offset = |request: &catalog_bridge_services::WebhookRequest| {
        request.headers[catalog_bridge_api::BRIDGE_OFFSET].parse().expect("a number")
    };
    receiver.stored().iter().map(offset).collect()
}

pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(Instant::now() < end, "it never came that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// An error as everybody sees it, and as a log would print it.
#[track_caller]
pub(crate) fn assert_no_secret(error: &ConnectorError) {
    let text = format!("{error} {error:?}");
    for secret in ["MfKQ9r8", "AAECAwQF", "T0KEN", "s3cret", "hunter2"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

pub(crate) fn is_misconfigured(error: &ConnectorError) -> bool {
    matches!(error, ConnectorError::Misconfigured { .. })
}

pub(crate) fn is_transient(error: &ConnectorError) -> bool {
    matches!(error, ConnectorError::Transient { .. })
}
