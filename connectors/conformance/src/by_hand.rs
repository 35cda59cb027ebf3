//! A sink driven by hand, for what only one protocol can suffer: the feed and the acknowledgements are the test's.
//!
//! Nothing is held back here, so it suits connectors that are `prefix_safe`, and others as long as an entity has one message open.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use catalog_bridge_api::{
    Ack, AckReceiver, Acks, Claim, Connector, ConnectorError, EntityRef, EventType, FeedSender, Lease, Message,
    MessageId, Offset, Ordering, SinkName, feed,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::driver::PATIENCE;

/// The log that the messages are of.
pub const LOG_ID: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

/// The sink's name.
pub fn sink_name() -> SinkName {
    SinkName::parse("platform").expect("a name")
}

/// A claim of generation 1 with this checkpoint, and what the connector kept.
pub fn claim(checkpoint: u64, state: Option<serde_json::Value>) -> Claim {
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
pub fn message(offset: u64, size: usize) -> Message {
    let body = format!("{{\"offset\":{offset},\"fill\":\"{}\"}}", "x".repeat(size));
    Message {
        id: MessageId { log_id: LOG_ID, generation: 1, offset: offset.into() },
        attributes: vec![
            ("specversion", "1.0".to_owned()),
            ("id", offset.to_string()),
            ("subject", entity_ref(offset).to_string()),
        ],
        entity_ref: entity_ref(offset),
        event_type: EventType::Updated,
        content_type: "application/json",
        body: body.into(),
        is_reference: false,
    }
}

/// The entity of event `offset`.
pub fn entity_ref(offset: u64) -> EntityRef {
    EntityRef::parse(&format!("component:default/entity-{}", offset % 100)).expect("valid")
}

/// What must be delivered of events `1..=last`.
pub fn expected(last: u64) -> Vec<(Offset, String)> {
    (1..=last).map(|offset| (offset.into(), entity_ref(offset).to_string())).collect()
}

/// A session that runs.
#[derive(Debug)]
pub struct Running {
    /// Its task.
    pub session: JoinHandle<Result<(), ConnectorError>>,
    /// Its feed; see also [`Running::offer`].
    pub feed: FeedSender,
    acks: AckReceiver,
    acknowledged: BTreeSet<u64>,
    prefix: u64,
    /// Messages that were found stored.
    pub already_stored: u64,
    /// What was to be remembered last.
    pub state: Option<serde_json::Value>,
    /// Why the destination accepts nothing, if it does not.
    pub stalled: Option<String>,
    /// How the session ended, when it ended while acknowledgements were waited for.
    pub error: Option<ConnectorError>,
}

/// Opens a session, trying again while the trouble is transient.
pub async fn open(connector: &dyn Connector, claim: Claim) -> Result<Running, ConnectorError> {
    let lease = claim.lease.clone();
    let prefix = claim.checkpoint.get();
    let end = Instant::now() + PATIENCE;
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
        acknowledged: BTreeSet::new(),
        prefix,
        already_stored: 0,
        state: None,
        stalled: None,
        error: None,
    })
}

impl Running {
    /// Offers events `first..=last`, taking acknowledgements in meanwhile.
    pub async fn offer(&mut self, first: u64, last: u64, size: usize) {
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
            Ack::Stalled(reason) => self.stalled = reason,
            Ack::Settled => {}
        }
        while self.acknowledged.remove(&(self.prefix + 1)) {
            self.prefix += 1;
        }
    }

    /// Counts an offset that is not offered as done.
    pub fn skip(&mut self, offset: u64) {
        self.acknowledged.insert(offset);
    }

    /// The acknowledged prefix so far.
    pub fn prefix(&mut self) -> u64 {
        self.take_acks();
        self.prefix
    }

    /// Waits until everything up to `offset` is acknowledged.
    pub async fn acknowledged_to(&mut self, offset: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
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

    /// Waits until the session says that the destination accepts nothing, or that it does again.
    pub async fn stalled_becomes(&mut self, is_stalled: bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.stalled.is_some() != is_stalled {
            if Instant::now() > end {
                bail!("stalled stays {:?}", self.stalled);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.take_acks();
        }
        Ok(())
    }

    /// Ends the feed and waits for the session's own end.
    pub async fn finish(self) -> Result<(), ConnectorError> {
        drop(self.feed);
        self.session.await.expect("the session does not panic")
    }

    /// Waits for an end that the session finds by itself.
    pub async fn end(&mut self) -> Result<(), ConnectorError> {
        let end = tokio::time::timeout(PATIENCE, &mut self.session).await;
        end.expect("the session ends").expect("the session does not panic")
    }
}
