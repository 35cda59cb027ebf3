//! The kit itself: a right connector passes, and each wrong one fails in the check that is there for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use catalog_bridge_api::{
    Acks, CheckReport, Claim, Connector, ConnectorError, Encoding, Feed, Limits, Message, Offset, Ordering, Session,
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
}

/// A server in memory: appends, and can be harmed.
#[derive(Default)]
struct Server {
    stored: Vec<(Uuid, Delivered)>,
    harm: Option<Harm>,
    refuses: bool,
}

enum Answer {
    Stored,
    Nacked,
    Cut,
}

impl Server {
    fn append(&mut self, message: &Message, bytes: Vec<u8>) -> Answer {
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
}

impl Memory {
    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct MemoryPatient(Wrong);

#[async_trait]
impl Patient for MemoryPatient {
    fn promises(&self) -> Promises {
        Promises { exactly_once: true, stream: true }
    }

    async fn fresh(&self) -> Result<Arc<dyn Destination>> {
        Ok(Arc::new(Memory { server: Arc::default(), wrong: self.0 }))
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
}

#[async_trait]
impl Connector for Memory {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: Some(100_000),
            prefix_safe: true,
            window_events: 64,
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
        let wrong = self.memory.wrong;
        if self.stored > Offset::ZERO {
            acks.already_stored(self.stored);
        }
        while let Some(first) = feed.next().await {
            let mut batch = VecDeque::from([first]);
            while batch.len() < 8
                && let Some(message) = feed.try_next()
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
                        memory.server().append(message, message.body.to_vec());
                    }
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.send(batch, &acks)?;
        }
        Ok(())
    }
}

impl MemorySession {
    fn send(&self, mut batch: VecDeque<Message>, acks: &Acks) -> Result<(), ConnectorError> {
        let wrong = self.memory.wrong;
        let failed = |reason: &str| ConnectorError::transient("append", "memory", reason.to_owned());
        while let Some(message) = batch.pop_front() {
            if wrong == Wrong::SkipsOne && message.offset().get() == 13 {
                acks.one(message.offset());
                continue;
            }
            if self.memory.server().refuses && message.entity_ref.name().starts_with("refused-") {
                return Err(ConnectorError::Refused {
                    offset: message.offset(),
                    entity_ref: message.entity_ref.clone(),
                    endpoint: "memory".to_owned(),
                    reason: "scripted".to_owned(),
                });
            }
            let mut bytes = message.body.to_vec();
            if wrong == Wrong::ChangesRepeatedBytes {
                bytes.extend(self.epoch.to_be_bytes());
            }
            let answer = self.memory.server().append(&message, bytes);
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

/// Each of these checks finds it.
async fn check(wrong: Wrong, expected: &[&str]) {
    let report = judge_by(&MemoryPatient(wrong), expected).await;
    assert_eq!(report.broken(), expected, "{wrong:?}:\n{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_connector_passes() {
    judge(&MemoryPatient(Wrong::Nothing)).await.assert_all_held();
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
