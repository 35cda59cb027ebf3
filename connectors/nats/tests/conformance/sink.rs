//! A sink of the connector under test, driven by hand: the feed and the acknowledgements are the test's.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use catalog_bridge_api::{
    Ack, AckReceiver, Acks, BuildContext, Claim, Connector, ConnectorError, ConnectorKind, EntityRef, EventType,
    FeedSender, Lease, Message, MessageId, Offset, Ordering, SinkName, feed,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

pub(crate) const LOG_ID: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

/// Builds the connector from its section; `servers` and `stream` are filled in.
pub(crate) fn connector(address: &str, stream: &str, settings: Value) -> Box<dyn Connector> {
    connector_with(address, stream, settings, false)
}

pub(crate) fn connector_with(address: &str, stream: &str, settings: Value, ensure: bool) -> Box<dyn Connector> {
    // Tests share a server: the stream's name keeps their subjects apart.
    let subject = format!("{stream}.{{kind}}.{{namespace}}.{{name}}");
    let mut section = json!({ "servers": [address], "stream": stream, "subject": subject });
    let Value::Object(settings) = settings else { panic!("settings are an object") };
    for (key, value) in settings {
        section[key] = value;
    }
    let context = BuildContext { sink: sink_name(), ordering: Ordering::Entity, ensure };
    catalog_bridge_nats::KIND.build(section, context).expect("a valid section")
}

pub(crate) fn sink_name() -> SinkName {
    SinkName::parse("platform").expect("a name")
}

pub(crate) fn claim(checkpoint: u64, state: Option<Value>) -> Claim {
    Claim {
        log_id: LOG_ID,
        sink: sink_name(),
        generation: 1,
        epoch: 1,
        checkpoint: checkpoint.into(),
        head: 1_000_000.into(),
        ordering: Ordering::Entity,
        state,
        lease: Lease::unlimited(),
    }
}

/// Event `offset` of one of 100 entities, with a body of `size` bytes.
pub(crate) fn message(offset: u64, size: usize) -> Message {
    let body = format!("{{\"offset\":{offset},\"fill\":\"{}\"}}", "x".repeat(size));
    Message {
        id: MessageId { log_id: LOG_ID, generation: 1, offset: offset.into() },
        entity_ref: entity_ref(offset),
        event_type: EventType::Updated,
        attributes: vec![("specversion", "1.0".to_owned()), ("id", offset.to_string())],
        content_type: "application/json",
        body: body.into(),
        is_reference: false,
    }
}

/// The entity of event `offset`.
pub(crate) fn entity_ref(offset: u64) -> EntityRef {
    EntityRef::parse(&format!("component:default/entity-{}", offset % 100)).expect("valid")
}

/// What must be delivered of events `1..=last`.
pub(crate) fn expected(last: u64) -> Vec<(Offset, String)> {
    (1..=last).map(|offset| (offset.into(), entity_ref(offset).to_string())).collect()
}

/// A session that runs.
pub(crate) struct Running {
    pub(crate) session: JoinHandle<Result<(), ConnectorError>>,
    pub(crate) feed: FeedSender,
    acks: AckReceiver,
    acknowledged: std::collections::BTreeSet<u64>,
    prefix: u64,
    /// Messages that were found stored.
    pub(crate) already_stored: u64,
    /// What was to be remembered last.
    pub(crate) state: Option<Value>,
    /// How the session ended, when it ended while acknowledgements were waited for.
    pub(crate) error: Option<ConnectorError>,
}

/// Event `offset` in another generation.
pub(crate) fn message_of(generation: u64, offset: u64) -> Message {
    let mut message = message(offset, 100);
    message.id.generation = generation;
    message
}

/// Opens a session, trying again while the trouble is transient.
pub(crate) async fn open(connector: &dyn Connector, claim: Claim) -> Result<Running, ConnectorError> {
    let lease = claim.lease.clone();
    let prefix = claim.checkpoint.get();
    let end = Instant::now() + Duration::from_secs(90);
    let session = loop {
        match connector.open(claim.clone()).await {
            Err(ConnectorError::Transient { .. }) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            outcome => break outcome?,
        }
    };
    let (sender, feed) = feed(64, lease);
    let (acks, receiver) = Acks::channel();
    Ok(Running {
        session: tokio::spawn(session.run(feed, acks)),
        feed: sender,
        acks: receiver,
        acknowledged: std::collections::BTreeSet::new(),
        prefix,
        already_stored: 0,
        state: None,
        error: None,
    })
}

impl Running {
    /// Offers events `first..=last`, taking acknowledgements in meanwhile.
    pub(crate) async fn offer(&mut self, first: u64, last: u64, size: usize) {
        for offset in first..=last {
            if !self.feed.offer(message(offset, size)).await {
                return;
            }
            if offset % 64 == 0 {
                self.take_acks();
            }
        }
    }

    fn take_acks(&mut self) {
        while let Some(ack) = self.acks.try_next() {
            self.take(ack);
        }
    }

    fn take(&mut self, ack: Ack) {
        match ack {
            Ack::One(offset) => {
                self.acknowledged.insert(offset.get());
            }
            Ack::UpTo(offset) => self.acknowledged.extend(self.prefix + 1..=offset.get()),
            Ack::AlreadyStored(offset) => {
                self.already_stored += 1;
                self.acknowledged.extend(self.prefix + 1..=offset.get());
            }
            Ack::Remember(state) => self.state = Some(state),
            Ack::Stalled(_) => {}
        }
        while self.acknowledged.remove(&(self.prefix + 1)) {
            self.prefix += 1;
        }
    }

    /// Counts an offset that is not offered as done.
    pub(crate) fn skip(&mut self, offset: u64) {
        self.acknowledged.insert(offset);
    }

    /// The acknowledged prefix so far.
    pub(crate) fn prefix(&mut self) -> u64 {
        self.take_acks();
        self.prefix
    }

    /// Waits until everything up to `offset` is acknowledged.
    pub(crate) async fn acknowledged_to(&mut self, offset: u64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(120);
        while self.prefix() < offset {
            if self.session.is_finished() {
                self.take_acks();
                if self.prefix >= offset {
                    break;
                }
                self.error = (&mut self.session).await?.err();
                bail!("the session ended at {} of {offset}: {:?}", self.prefix, self.error);
            }
            if Instant::now() > end {
                bail!("acknowledged to {} of {offset}", self.prefix);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends the feed and waits for the session's own end.
    pub(crate) async fn finish(self) -> Result<(), ConnectorError> {
        drop(self.feed);
        self.session.await.expect("the session does not panic")
    }

    /// Waits for an end that the session finds by itself.
    pub(crate) async fn end(&mut self) -> Result<(), ConnectorError> {
        let end = tokio::time::timeout(Duration::from_secs(120), &mut self.session).await;
        end.expect("the session ends").expect("the session does not panic")
    }
}
