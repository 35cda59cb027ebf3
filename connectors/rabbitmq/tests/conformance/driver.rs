//! The daemon's side for one sink, with hands to look into: key gate, resumption after the prefix, errors by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use catalog_bridge_api::{
    Ack, AckReceiver, Acks, Claim, Connector, ConnectorError, EntityRef, EventType, FeedSender, Lease, Message,
    MessageId, Offset, Ordering, SinkName, feed,
};
use catalog_bridge_conformance::Delivered;
use catalog_bridge_history::{DeliveryRules, Lane, check_delivery};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Whatever takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(240);

/// Events `1..=last` over so many entities, and what of them is acknowledged.
pub(crate) struct Sink {
    pub(crate) log_id: Uuid,
    last: u64,
    keys: u64,
    /// Every so many-th event is of kind `api`; 0 for none.
    pub(crate) api_every: u64,
    pub(crate) body_bytes: usize,
    acknowledged: Mutex<BTreeSet<u64>>,
}

/// A session that runs.
pub(crate) struct Running {
    pub(crate) session: JoinHandle<Result<(), ConnectorError>>,
    pub(crate) feed: FeedSender,
    pub(crate) acks: AckReceiver,
}

impl Sink {
    pub(crate) fn new(last: u64, keys: u64) -> Self {
        Sink { log_id: Uuid::new_v4(), last, keys, api_every: 0, body_bytes: 500, acknowledged: Mutex::default() }
    }

    pub(crate) fn is_api(&self, offset: u64) -> bool {
        self.api_every > 0 && offset.is_multiple_of(self.api_every)
    }

    pub(crate) fn entity_ref(&self, offset: u64) -> EntityRef {
        let kind = if self.is_api(offset) { "api" } else { "component" };
        EntityRef::parse(&format!("{kind}:default/e{}", offset % self.keys)).expect("valid")
    }

    pub(crate) fn message(&self, offset: u64) -> Message {
        let entity_ref = self.entity_ref(offset);
        Message {
            id: MessageId { log_id: self.log_id, generation: 1, offset: offset.into() },
            event_type: EventType::Updated,
            attributes: vec![("id", offset.to_string()), ("subject", entity_ref.to_string())],
            entity_ref,
            content_type: "application/json",
            body: format!("{{\"offset\":{offset},\"fill\":\"{}\"}}", "x".repeat(self.body_bytes)).into(),
            is_reference: false,
        }
    }

    pub(crate) fn claim(&self) -> Claim {
        Claim {
            log_id: self.log_id,
            sink: SinkName::parse("conformance").expect("valid"),
            generation: 1,
            epoch: 1,
            checkpoint: self.prefix().into(),
            head: self.last.into(),
            ordering: Ordering::Entity,
            state: None,
            lease: Lease::unlimited(),
        }
    }

    pub(crate) fn acknowledged(&self) -> BTreeSet<u64> {
        self.acknowledged.lock().expect("unpoisoned").clone()
    }

    pub(crate) fn prefix(&self) -> u64 {
        let acknowledged = self.acknowledged.lock().expect("unpoisoned");
        (1..).find(|offset| !acknowledged.contains(offset)).expect("endless") - 1
    }

    pub(crate) async fn start(&self, connector: &dyn Connector) -> Result<Running, ConnectorError> {
        let session = connector.open(self.claim()).await?;
        let (sender, feed) = feed(connector.limits().window_events, Lease::unlimited());
        let (acks, receiver) = Acks::channel();
        Ok(Running { session: tokio::spawn(session.run(feed, acks)), feed: sender, acks: receiver })
    }

    /// One session until everything is acknowledged or it ends by itself.
    pub(crate) async fn session(&self, connector: &dyn Connector) -> Result<Result<(), ConnectorError>> {
        let mut running = match self.start(connector).await {
            Ok(running) => running,
            Err(error) => return Ok(Err(error)),
        };
        let end = Instant::now() + PATIENCE;
        let mut lanes: BTreeMap<EntityRef, VecDeque<u64>> = BTreeMap::new();
        let mut ready = VecDeque::new();
        for offset in self.prefix() + 1..=self.last {
            let lane = lanes.entry(self.entity_ref(offset)).or_default();
            if lane.is_empty() {
                ready.push_back(offset);
            }
            lane.push_back(offset);
        }
        while self.prefix() < self.last && !running.session.is_finished() {
            ensure!(Instant::now() < end, "acknowledged only to {} of {}", self.prefix(), self.last);
            while let Some(offset) = ready.pop_front() {
                if running.feed.try_offer(self.message(offset)).is_err() {
                    ready.push_front(offset);
                    break;
                }
            }
            let report = tokio::time::timeout(Duration::from_millis(20), running.acks.next()).await;
            let mut report = report.ok().flatten();
            while let Some(ack) = report {
                self.take(&ack, &mut lanes, &mut ready);
                report = running.acks.try_next();
            }
        }
        drop(running.feed);
        let outcome = running.session.await?;
        while let Some(ack) = running.acks.try_next() {
            self.take(&ack, &mut lanes, &mut ready);
        }
        Ok(outcome)
    }

    fn take(&self, ack: &Ack, lanes: &mut BTreeMap<EntityRef, VecDeque<u64>>, ready: &mut VecDeque<u64>) {
        let Ack::One(offset) = ack else { return };
        self.acknowledged.lock().expect("unpoisoned").insert(offset.get());
        let lane = lanes.get_mut(&self.entity_ref(offset.get())).expect("offered");
        assert_eq!(lane.pop_front(), Some(offset.get()), "acknowledged what was not the open one of its entity");
        ready.extend(lane.front());
    }

    /// Sessions until everything is acknowledged; returns how many, and every transient error's text.
    pub(crate) async fn deliver(&self, connector: &dyn Connector) -> Result<Vec<String>> {
        let end = Instant::now() + PATIENCE;
        let mut troubles = Vec::new();
        while self.prefix() < self.last {
            ensure!(Instant::now() < end, "acknowledged only to {}; {:?}", self.prefix(), troubles.last());
            match self.session(connector).await? {
                Ok(()) => {}
                Err(error @ ConnectorError::Transient { .. }) => {
                    troubles.push(error.to_string());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(troubles)
    }

    /// Everything is there, first deliveries in order per entity, repetitions alike and within the window.
    pub(crate) fn check(&self, delivered: &[Delivered], sessions_max: usize) -> Result<()> {
        let expected: Vec<(Offset, String)> =
            (1..=self.last).map(|offset| (offset.into(), self.entity_ref(offset).to_string())).collect();
        let rules = DeliveryRules { lane: Lane::Entity, repeated_per_session_max: 1_000, sessions_max };
        check_delivery(&expected, delivered, rules)
    }
}

impl Running {
    /// Waits until the session says that the destination accepts nothing, or that it does again.
    pub(crate) async fn stalled_becomes(&mut self, is_stalled: bool) -> Result<Option<String>> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.acks.try_next() {
                Some(Ack::Stalled(reason)) if reason.is_some() == is_stalled => return Ok(reason),
                Some(_) => {}
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            ensure!(Instant::now() < end, "stalled never became {is_stalled}");
        }
    }
}

/// The error that `open` answers with.
pub(crate) async fn open_error(connector: &dyn Connector) -> ConnectorError {
    match connector.open(Sink::new(1, 1).claim()).await {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}
