//! The daemon's side of the contract, as small as it can be: window, key gate, resumption after the acknowledged prefix.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use catalog_bridge_api::{
    Ack, AckReceiver, Acks, Claim, Connector, ConnectorError, Encoder, EncoderSettings, Event, FeedSender, Lease,
    Message, Offset, Ordering, SinkName, feed,
};
use catalog_bridge_history::Delivered;
use rand::Rng;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::Destination;

/// Whatever takes longer than this never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// One sink: what it knows between sessions.
pub(crate) struct Sink {
    pub(crate) log_id: Uuid,
    pub(crate) generation: u64,
    pub(crate) ordering: Ordering,
    pub(crate) checkpoint: Offset,
    pub(crate) head: Offset,
    pub(crate) lease: Lease,
    state: Option<serde_json::Value>,
    epoch: u64,
    /// Sessions that were opened.
    pub(crate) sessions: usize,
}

/// How a session is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// When everything is acknowledged the feed ends.
    Whole,
    /// The feed ends after so many messages were offered.
    FeedAfter(usize),
    /// The future is dropped after so many were acknowledged, or after the time.
    DropAfter { acknowledged: usize, at_most: Duration },
    /// The lease ends after so many were acknowledged; the session ends by itself.
    LeaseAfter(usize),
}

/// What a session came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The connector's word; `None` when its future was dropped.
    pub(crate) result: Option<Result<(), ConnectorError>>,
    /// Acknowledged in this session, `already_stored` included.
    pub(crate) acknowledged: BTreeSet<Offset>,
    /// Offered in this session.
    pub(crate) offered: BTreeSet<Offset>,
}

impl Sink {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Sink {
            log_id: Uuid::from_u128(rand::rng().random()),
            generation: 1,
            ordering,
            checkpoint: Offset::ZERO,
            head: Offset::new(u64::MAX / 2),
            lease: Lease::unlimited(),
            state: None,
            epoch: 0,
            sessions: 0,
        }
    }

    /// The messages as this sink sends them.
    pub(crate) fn encode(&self, connector: &dyn Connector, events: &[Event]) -> Vec<Message> {
        let limits = connector.limits();
        let encoder = Encoder::new(EncoderSettings {
            encoding: limits.encoding,
            log_id: self.log_id,
            generation: self.generation,
            omit: Vec::new(),
            message_bytes_max: limits.message_bytes_max,
            reference_base: "https://bridge.example/api/catalog".to_owned(),
        });
        events.iter().map(|event| encoder.encode(event)).collect()
    }

    /// Runs one session. What it acknowledges moves the checkpoint.
    pub(crate) async fn session(
        &mut self,
        connector: &dyn Connector,
        messages: &[Message],
        ending: Ending,
    ) -> Result<Outcome, ConnectorError> {
        self.epoch += 1;
        self.sessions += 1;
        let claim = Claim {
            log_id: self.log_id,
            sink: SinkName::parse("conformance").expect("a name"),
            generation: self.generation,
            epoch: self.epoch,
            checkpoint: self.checkpoint,
            head: self.head,
            ordering: self.ordering,
            state: self.state.clone(),
            lease: self.lease.clone(),
        };
        let session = connector.open(claim).await?;
        let limits = connector.limits();
        let (sender, feed) = feed(limits.window_events, self.lease.clone());
        let (acks, reports) = Acks::channel();
        let running = tokio::spawn(session.run(feed, acks));
        let mut live = Live {
            unsent: messages.iter().filter(|message| message.offset() > self.checkpoint).cloned().collect(),
            ready: VecDeque::new(),
            sender: Some(sender),
            gated: !limits.prefix_safe,
            ordering: self.ordering,
            window_events: limits.window_events,
            window_bytes: limits.window_bytes,
            lanes: HashMap::new(),
            open: BTreeMap::new(),
            open_bytes: 0,
            lease: self.lease.clone(),
            outcome: Outcome { result: None, acknowledged: BTreeSet::new(), offered: BTreeSet::new() },
            state: None,
        };
        live.run(running, reports, ending).await;
        if let Some(state) = live.state {
            self.state = Some(state);
        }
        // The acknowledged prefix: up to the first message that is not acknowledged.
        let acknowledged = &live.outcome.acknowledged;
        let before = self.checkpoint;
        for message in messages.iter().filter(|message| message.offset() > before) {
            if !acknowledged.contains(&message.offset()) {
                break;
            }
            self.checkpoint = message.offset();
        }
        Ok(live.outcome)
    }

    /// Opens sessions, each by a connector that is built anew, until everything is acknowledged.
    pub(crate) async fn deliver(&mut self, destination: &Arc<dyn Destination>, events: &[Event]) -> Result<()> {
        match self.deliver_or_fail(destination, events).await? {
            Ok(()) => Ok(()),
            Err(error) => bail!("unexpected: {error}"),
        }
    }

    /// The same until an error that does not pass.
    pub(crate) async fn deliver_or_fail(
        &mut self,
        destination: &Arc<dyn Destination>,
        events: &[Event],
    ) -> Result<Result<(), ConnectorError>> {
        let begun = Instant::now();
        let last = events.last().context("events")?.offset;
        // One for all sessions, as the daemon has it: a connector may remember what it learned in the last one.
        let connector = destination.connector(self.ordering)?;
        while self.checkpoint < last {
            ensure!(begun.elapsed() < PATIENCE, "after {PATIENCE:?} only offset {} is acknowledged", self.checkpoint);
            let messages = self.encode(&*connector, events);
            let result = match self.session(&*connector, &messages, Ending::Whole).await {
                Ok(outcome) => outcome.result.context("the session never ended")?,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {}
                Err(ConnectorError::Transient { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

/// What reached the destination from one sink's generation.
pub(crate) async fn of_generation(destination: &Arc<dyn Destination>, generation: u64) -> Result<Vec<Delivered>> {
    let all = destination.read_back().await?;
    Ok(all.into_iter().filter(|message| message.generation == generation).collect())
}

/// Resolves when what is ready can go; never when nothing is, or the session is gone (then its end follows).
async fn room(sender: Option<&FeedSender>, ready: &VecDeque<Message>) {
    match sender.filter(|sender| !ready.is_empty() && sender.is_open()) {
        Some(sender) => sender.room().await,
        None => std::future::pending().await,
    }
}

struct Live {
    unsent: VecDeque<Message>,
    /// May go, in order.
    ready: VecDeque<Message>,
    sender: Option<FeedSender>,
    gated: bool,
    ordering: Ordering,
    window_events: usize,
    window_bytes: usize,
    /// Lanes with an open message, and what waits behind it.
    lanes: HashMap<String, VecDeque<Message>>,
    /// Taken into the window and not acknowledged: lane and bytes.
    open: BTreeMap<Offset, (String, usize)>,
    open_bytes: usize,
    lease: Lease,
    outcome: Outcome,
    state: Option<serde_json::Value>,
}

impl Live {
    async fn run(
        &mut self,
        mut running: JoinHandle<Result<(), ConnectorError>>,
        mut reports: AckReceiver,
        ending: Ending,
    ) {
        let end = Instant::now()
            + match ending {
                Ending::DropAfter { at_most, .. } => at_most,
                _ => PATIENCE,
            };
        let mut is_reporting = true;
        loop {
            self.offer(ending);
            let is_done = match ending {
                Ending::Whole => self.unsent.is_empty() && self.open.is_empty(),
                Ending::FeedAfter(count) => self.outcome.offered.len() >= count,
                Ending::DropAfter { acknowledged, .. } => {
                    if self.outcome.acknowledged.len() >= acknowledged {
                        break;
                    }
                    false
                }
                Ending::LeaseAfter(acknowledged) => {
                    if self.outcome.acknowledged.len() >= acknowledged {
                        self.lease.end();
                    }
                    // With nothing left to offer, no message tells the session of its lease's end.
                    !self.lease.is_held() && self.unsent.is_empty() && self.ready.is_empty()
                }
            };
            if is_done {
                self.sender = None;
            }
            tokio::select! {
                biased;
                report = reports.next(), if is_reporting => match report {
                    Some(report) => self.apply(report),
                    None => is_reporting = false,
                },
                result = &mut running => {
                    let result = result.unwrap_or_else(|panic| {
                        Err(ConnectorError::misconfigured("the connector", format!("it panicked: {panic}")))
                    });
                    self.outcome.result = Some(result);
                    break;
                }
                () = room(self.sender.as_ref(), &self.ready) => {}
                () = tokio::time::sleep_until(end) => break,
            }
        }
        if self.outcome.result.is_none() {
            running.abort();
            let _ = running.await;
        }
        while let Some(report) = reports.try_next() {
            self.apply(report);
        }
    }

    fn offer(&mut self, ending: Ending) {
        let count_max = if let Ending::FeedAfter(count) = ending { count } else { usize::MAX };
        while self.sender.is_some()
            && self.outcome.offered.len() < count_max
            && (self.open.is_empty() || (self.open.len() < self.window_events && self.open_bytes < self.window_bytes))
            && let Some(message) = self.unsent.pop_front()
        {
            let lane = match self.ordering {
                Ordering::Entity => message.entity_ref.to_string(),
                Ordering::Stream => String::new(),
            };
            self.open_bytes += message.size_bytes();
            self.open.insert(message.offset(), (lane.clone(), message.size_bytes()));
            match self.lanes.get_mut(&lane) {
                Some(waiting) if self.gated => waiting.push_back(message),
                _ => {
                    if self.gated {
                        self.lanes.insert(lane, VecDeque::new());
                    }
                    self.ready.push_back(message);
                }
            }
            self.send();
        }
        self.send();
    }

    fn send(&mut self) {
        let Some(sender) = &self.sender else { return };
        while let Some(message) = self.ready.pop_front() {
            let offset = message.offset();
            match sender.try_offer(message) {
                Ok(()) => self.outcome.offered.insert(offset),
                Err(message) => return self.ready.push_front(*message),
            };
        }
    }

    fn apply(&mut self, report: Ack) {
        match report {
            Ack::One(offset) => self.settle(&[offset]),
            Ack::UpTo(offset) | Ack::AlreadyStored(offset) => {
                if matches!(report, Ack::AlreadyStored(_)) {
                    let stored = self.unsent.partition_point(|message| message.offset() <= offset);
                    self.outcome.acknowledged.extend(self.unsent.drain(..stored).map(|message| message.offset()));
                }
                let settled: Vec<Offset> = self.open.range(..=offset).map(|(offset, _)| *offset).collect();
                self.settle(&settled);
            }
            Ack::Remember(state) => self.state = Some(state),
            Ack::Stalled(_) | Ack::Settled => {}
        }
    }

    fn settle(&mut self, offsets: &[Offset]) {
        for offset in offsets {
            if !self.outcome.offered.contains(offset) {
                continue;
            }
            let Some((lane, bytes)) = self.open.remove(offset) else { continue };
            self.open_bytes -= bytes;
            self.outcome.acknowledged.insert(*offset);
            if !self.gated {
                continue;
            }
            match self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
                Some(next) => self.ready.push_back(next),
                None => {
                    self.lanes.remove(&lane);
                }
            }
        }
    }
}
