//! The kit itself: a right connector passes, and each wrong one fails in the check that is there for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_api::{
    Acks, BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, CheckReport, Claim, Connector, ConnectorError, Encoding,
    Feed, Limits, Message, Offset, Ordering, Session,
};
use catalog_bridge_conformance::{Delivered, Destination, Harm, Patient, Promises, judge, judge_by};
use uuid::Uuid;

/// What a connector does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    AcknowledgesEarly,
    ReordersAfterNack,
    SkipsOne,
    TrustsForeignTail,
    IgnoresItsTail,
    WritesAfterDrop,
    ChangesRepeatedBytes,
    NamesNoLog,
    PassesOverRefused,
    BlamesANeighbour,
    ForgetsTheRest,
    SendsWithoutLease,
    IsImpatient,
}

/// Messages that an ordinary append takes at most.
const BATCH: usize = 8;

/// A server in memory: appends, and can be harmed.
#[derive(Default)]
struct Server {
    stored: Vec<(Uuid, Delivered)>,
    headers: Vec<BTreeMap<String, String>>,
    harm: Option<Harm>,
    refuses: bool,
    is_slow: bool,
}

enum Answer {
    Stored,
    Nacked,
    Cut,
}

impl Server {
    fn append(&mut self, message: &Message, bytes: Vec<u8>, headers: BTreeMap<String, String>) -> Answer {
        match self.harm.take() {
            Some(Harm::Nack) => return Answer::Nacked,
            Some(Harm::Cut) => return Answer::Cut,
            answer => {
                let delivered = Delivered {
                    offset: message.offset(),
                    key: message.entity_ref.to_string(),
                    generation: message.id.generation,
                    bytes,
                };
                self.stored.push((message.id.log_id, delivered));
                self.headers.push(headers);
                if answer.is_some() {
                    return Answer::Cut;
                }
            }
        }
        Answer::Stored
    }
}

#[derive(Clone)]
struct Memory {
    server: Arc<Mutex<Server>>,
    wrong: Wrong,
    batch: usize,
}

impl Memory {
    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct MemoryPatient {
    wrong: Wrong,
    /// Messages that one append takes at most.
    batch: usize,
}

#[async_trait]
impl Patient for MemoryPatient {
    fn promises(&self) -> Promises {
        Promises { exactly_once: true, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        Ok(Arc::new(Memory { server: Arc::default(), wrong: self.wrong, batch: self.batch }))
    }
}

#[async_trait]
impl Destination for Memory {
    fn connector(&self, _: Ordering) -> Result<Box<dyn Connector>> {
        Ok(Box::new(self.clone()))
    }

    async fn read_back(&self) -> Result<Vec<Delivered>> {
        Ok(self.server().stored.iter().map(|(_, delivered)| delivered.clone()).collect())
    }

    async fn harm(&self, harm: Harm) -> Result<bool> {
        self.server().harm = Some(harm);
        Ok(true)
    }

    async fn refuse(&self) -> Result<bool> {
        self.server().refuses = true;
        Ok(true)
    }

    async fn slow(&self) -> Result<bool> {
        self.server().is_slow = true;
        Ok(true)
    }

    async fn read_headers(&self) -> Result<Vec<BTreeMap<String, String>>> {
        Ok(self.server().headers.clone())
    }
}

#[async_trait]
impl Connector for Memory {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: Some(100_000),
            prefix_safe: true,
            window_events: 8 * self.batch,
            window_bytes: 1024 * 1024,
            flight: Duration::ZERO,
            encoding: Encoding::Cloudevents,
        }
    }

    fn destination(&self) -> String {
        "memory".to_owned()
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        Ok(CheckReport::default())
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let is_ours = |log_id: Uuid, generation: u64| {
            self.wrong == Wrong::TrustsForeignTail || (log_id == claim.log_id && generation == claim.generation)
        };
        let tail = self
            .server()
            .stored
            .iter()
            .rev()
            .find(|(log_id, last)| is_ours(*log_id, last.generation))
            .map(|(_, last)| last.offset);
        let tail = tail.filter(|_| !matches!(self.wrong, Wrong::IgnoresItsTail | Wrong::ChangesRepeatedBytes));
        if let Some(tail) = tail.filter(|tail| *tail > claim.head) {
            return Err(ConnectorError::AheadOfLog { endpoint: "memory".to_owned(), tail });
        }
        let stored = tail.unwrap_or_default().max(claim.checkpoint);
        Ok(Box::new(MemorySession { memory: self.clone(), stored, epoch: claim.epoch }))
    }
}

struct MemorySession {
    memory: Memory,
    stored: Offset,
    epoch: u64,
}

#[async_trait]
impl Session for MemorySession {
    async fn run(self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        let (wrong, full) = (self.memory.wrong, self.memory.batch);
        if self.stored > Offset::ZERO {
            acks.already_stored(self.stored);
        }
        while let Some(first) = feed.next().await {
            let mut batch = VecDeque::from([first]);
            while batch.len() < full
                && let Some(message) = feed.try_next()
            {
                batch.push_back(message);
            }
            // Full batches, so that a message sent once more at their end has been overtaken.
            while wrong == Wrong::ReordersAfterNack
                && batch.len() < full
                && let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(50), feed.next()).await
            {
                batch.push_back(message);
            }
            batch.retain(|message| message.offset() > self.stored);
            if wrong == Wrong::AcknowledgesEarly {
                batch.iter().for_each(|message| acks.one(message.offset()));
            }
            if wrong == Wrong::WritesAfterDrop {
                let memory = self.memory.clone();
                let late = batch.clone();
                // A thread of its own, as a careless client library has.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    for message in &late {
                        memory.server().append(message, message.body.to_vec(), BTreeMap::new());
                    }
                });
            }
            // The whole window, so that it is still sending long after the lease ended with the first acknowledgement.
            while wrong == Wrong::SendsWithoutLease
                && let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(500), feed.next()).await
            {
                batch.push_back(message);
            }
            let is_slow = self.memory.server().is_slow;
            if wrong == Wrong::IsImpatient && is_slow {
                return Err(ConnectorError::transient("append", "memory", "no answer within a millisecond"));
            }
            tokio::time::sleep(Duration::from_millis(if is_slow { 20 } else { 1 })).await;
            if wrong == Wrong::SendsWithoutLease {
                for message in batch {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    self.send(VecDeque::from([message]), &acks)?;
                }
                continue;
            }
            if wrong == Wrong::ForgetsTheRest && batch.len() < full {
                // Kept for a fuller batch, which the feed's end never brings.
                while let Some(message) = feed.next().await {
                    batch.push_back(message);
                    if batch.len() == full {
                        break;
                    }
                }
                if batch.len() < full {
                    return Ok(());
                }
            }
            self.send(batch, &acks)?;
        }
        Ok(())
    }
}

impl MemorySession {
    fn send(&self, mut batch: VecDeque<Message>, acks: &Acks) -> Result<(), ConnectorError> {
        let wrong = self.memory.wrong;
        let last = batch.back().map(Message::offset).unwrap_or_default();
        let failed = |reason: &str| ConnectorError::transient("append", "memory", reason.to_owned());
        while let Some(message) = batch.pop_front() {
            if wrong == Wrong::SkipsOne && message.offset().get() == 13 {
                acks.one(message.offset());
                continue;
            }
            if self.memory.server().refuses && message.entity_ref.name().starts_with("refused-") {
                if wrong == Wrong::PassesOverRefused {
                    acks.one(message.offset());
                    continue;
                }
                // Whoever was in the same batch, for a connector that does not look closer.
                let blamed = if wrong == Wrong::BlamesANeighbour { last } else { message.offset() };
                return Err(ConnectorError::Refused {
                    offset: blamed,
                    entity_ref: message.entity_ref.clone(),
                    endpoint: "memory".to_owned(),
                    reason: "scripted".to_owned(),
                });
            }
            let mut bytes = message.body.to_vec();
            if wrong == Wrong::ChangesRepeatedBytes {
                bytes.extend(self.epoch.to_be_bytes());
            }
            let answer = self.memory.server().append(&message, bytes, headers(&message, wrong));
            match answer {
                Answer::Stored => acks.one(message.offset()),
                Answer::Nacked if wrong == Wrong::ReordersAfterNack => batch.push_back(message),
                Answer::Nacked => return Err(failed("nacked")),
                Answer::Cut => return Err(failed("connection reset")),
            }
        }
        Ok(())
    }
}

fn headers(message: &Message, wrong: Wrong) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::from([
        (BRIDGE_GENERATION.to_owned(), message.id.generation.to_string()),
        (BRIDGE_OFFSET.to_owned(), message.id.offset.to_string()),
    ]);
    if wrong != Wrong::NamesNoLog {
        headers.insert(BRIDGE_LOG_ID.to_owned(), message.id.log_id.to_string());
    }
    headers
}

/// Each of these checks finds it.
async fn check(wrong: Wrong, expected: &[&str]) {
    let report = judge_by(&MemoryPatient { wrong, batch: BATCH }, expected).await;
    assert_eq!(report.broken(), expected, "{wrong:?}:\n{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_connector_passes() {
    judge(&MemoryPatient { wrong: Wrong::Nothing, batch: BATCH }).await.assert_all_held();
}

// One thread: the driver has offered everything before the session first looks.
#[tokio::test]
async fn a_connector_that_acknowledges_everything_at_once_passes() {
    let whole = MemoryPatient { wrong: Wrong::Nothing, batch: 10_000 };
    judge_by(&whole, &["nothing is sent after the lease ended in mid-window"]).await.assert_all_held();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledging_early_is_found() {
    check(Wrong::AcknowledgesEarly, &["what is acknowledged is stored"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reordering_after_a_nack_is_found() {
    check(Wrong::ReordersAfterNack, &["a nack loses and reorders nothing"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skipping_one_is_found() {
    check(Wrong::SkipsOne, &["everything arrives in order"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trusting_a_foreign_tail_is_found() {
    let expected = ["another log's messages are no tail of ours", "another generation's messages are no tail of ours"];
    check(Wrong::TrustsForeignTail, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignoring_ones_own_tail_is_found() {
    check(Wrong::IgnoresItsTail, &["a lost checkpoint repeats at most what it must", "a tail above head is told"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_after_the_drop_is_found() {
    check(Wrong::WritesAfterDrop, &["a dropped session writes nothing more"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_in_a_repetition_are_found() {
    check(Wrong::ChangesRepeatedBytes, &["a lost checkpoint repeats at most what it must"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_without_its_log_is_found() {
    check(Wrong::NamesNoLog, &["every message names its log, generation and offset"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_over_a_refused_event_is_found() {
    check(
        Wrong::PassesOverRefused,
        &["a refused event is named and not stored", "refused events are skipped and cost no other"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blaming_a_neighbour_for_a_refusal_is_found() {
    check(
        Wrong::BlamesANeighbour,
        &["a refused event is named and not stored", "refused events are skipped and cost no other"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgetting_the_rest_at_a_stop_is_found() {
    check(Wrong::ForgetsTheRest, &["the feed's end flushes what is in flight"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_after_the_lease_ended_is_found() {
    check(Wrong::SendsWithoutLease, &["nothing is sent after the lease ended in mid-window"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_on_a_slow_destination_is_found() {
    check(Wrong::IsImpatient, &["a slow destination only takes time"]).await;
}
