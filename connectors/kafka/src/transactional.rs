//! One life of the transactional producer: chunks of records, each committed before it is acknowledged.
//!
//! Keeps P6 and P9 in full: the transactional id fences a former owner, what it left open was aborted at `open`, and
//! records up to the committed tail of their partition are not sent again. So every event is there exactly once for readers
//! of committed records. Reports are counted before each commit, because a commit that has to flush costs 100 ms
//! (MEASURED section 1). Blocking calls run on blocking threads, each with a time limit around it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catalog_bridge_api::{Acks, ConnectorError, Feed, Lease, Message, Offset, Session};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;

use crate::config::TRANSACTION_TIMEOUT;
use crate::errors;
use crate::patience::Patience;
use crate::producer::{End, Native};
use crate::reports::Failure;
use crate::session::{LOOK_INTERVAL, Link};

/// Records in one transaction.
const CHUNK_EVENTS: u64 = 5_000;
/// Bytes in one transaction.
const CHUNK_BYTES: usize = 8 << 20;
/// How long a transaction is filled.
const CHUNK_TIME: Duration = Duration::from_millis(250);
/// How long one try of a commit may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much later than its own limit a blocking call is given up.
const WATCHDOG_SLACK: Duration = Duration::from_secs(5);

/// A session of `delivery: transactional`.
pub(crate) struct TransactionalSession {
    pub(crate) link: Link,
    /// Per partition the last committed offset when the session was opened.
    pub(crate) stored: BTreeMap<i32, Offset>,
}

/// Why a transaction came to nothing.
enum Stop {
    End(End),
    Client(&'static str, KafkaError),
    Hung(&'static str),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Stop::End(end)
    }
}

/// What one transaction holds.
#[derive(Default)]
struct Chunk {
    sent: u64,
    bytes: usize,
    last: Offset,
}

#[async_trait]
impl Session for TransactionalSession {
    async fn run(self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        acks.remember(self.link.state());
        let outcome = match self.publish(&mut feed, &acks).await {
            Ok(()) | Err(Stop::End(End::LeaseLost)) => Ok(()),
            Err(stop) => Err(self.explain(stop).await),
        };
        self.link.producer.close().await;
        outcome
    }
}

impl TransactionalSession {
    async fn publish(&self, feed: &mut Feed, acks: &Acks) -> Result<(), Stop> {
        let mut patience = Patience::new(acks.clone());
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut sent = 0;
        loop {
            let message = tokio::select! {
                biased;
                failure = self.link.producer.reports.failed() => return Err(End::Failed(failure).into()),
                _ = look.tick() => {
                    patience.look(&self.link.producer.reports, feed.lease(), sent)?;
                    continue;
                }
                message = feed.next() => message,
            };
            let Some(message) = message else { return Ok(()) };
            if self.is_stored(&message) {
                // Everything before it is committed or was stored as well.
                acks.already_stored(message.offset());
                continue;
            }
            let chunk = self.fill(feed, message, &mut patience, sent).await?;
            sent += chunk.sent;
            self.settle(feed.lease(), sent).await?;
            self.commit(feed.lease()).await?;
            acks.up_to(chunk.last);
        }
    }

    fn is_stored(&self, message: &Message) -> bool {
        self.stored.get(&self.link.lane.partition_of(message)).is_some_and(|tail| message.offset() <= *tail)
    }

    /// Sends what the feed holds, up to the limits of a chunk. The commit of one chunk is the time in which the next gathers.
    async fn fill(&self, feed: &mut Feed, first: Message, patience: &mut Patience, sent: u64) -> Result<Chunk, Stop> {
        let Link { producer, lane, .. } = &self.link;
        self.blocking("begin a transaction", COMMIT_TIMEOUT, Native::begin_transaction).await?;
        let began = Instant::now();
        let mut chunk = Chunk::default();
        let mut next = Some(first);
        while let Some(message) = next {
            if !self.is_stored(&message) {
                let look = || patience.look(&producer.reports, feed.lease(), sent + chunk.sent);
                lane.send(producer, &message, feed.lease(), look).await?;
                chunk.sent += 1;
                chunk.bytes += message.size_bytes();
            }
            chunk.last = message.offset();
            let is_full = chunk.sent >= CHUNK_EVENTS || chunk.bytes >= CHUNK_BYTES || began.elapsed() >= CHUNK_TIME;
            next = if is_full { None } else { feed.try_next() };
        }
        Ok(chunk)
    }

    /// Waits until every record is reported and the client's own count agrees.
    async fn settle(&self, lease: &Lease, sent: u64) -> Result<(), Stop> {
        let producer = &self.link.producer;
        let settled = async {
            producer.reports.delivered_all(sent).await.map_err(End::Failed)?;
            while producer.native().in_flight_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        };
        let lost = async {
            while lease.is_held() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            outcome = settled => outcome.map_err(Stop::End),
            () = lost => Err(End::LeaseLost.into()),
            // The broker aborts the transaction by then.
            () = tokio::time::sleep(TRANSACTION_TIMEOUT) => Err(Stop::Hung("publish")),
        }
    }

    /// Commits; a commit whose answer did not come is asked for again, as the client wants it.
    async fn commit(&self, lease: &Lease) -> Result<(), Stop> {
        let end = Instant::now() + TRANSACTION_TIMEOUT;
        loop {
            if !lease.is_held() {
                return Err(End::LeaseLost.into());
            }
            let outcome =
                self.blocking("commit", COMMIT_TIMEOUT, |native| native.commit_transaction(COMMIT_TIMEOUT)).await;
            match outcome {
                Err(Stop::Client(_, KafkaError::Transaction(error)))
                    if error.is_retriable() && Instant::now() < end => {}
                outcome => return outcome,
            }
        }
    }

    async fn blocking(
        &self,
        action: &'static str,
        limit: Duration,
        call: impl FnOnce(&Native) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<(), Stop> {
        let native = self.link.producer.native().clone();
        let call = tokio::task::spawn_blocking(move || call(&native));
        match tokio::time::timeout(limit + WATCHDOG_SLACK, call).await {
            Ok(Ok(outcome)) => outcome.map_err(|error| Stop::Client(action, error)),
            Ok(Err(_)) | Err(_) => Err(Stop::Hung(action)),
        }
    }

    async fn explain(&self, stop: Stop) -> ConnectorError {
        let endpoint = self.link.lane.config.endpoint();
        match stop {
            Stop::End(End::LeaseLost) => ConnectorError::transient("publish", endpoint, "the lease was lost"),
            Stop::End(End::Failed(failure)) if errors::is_purge(failure.code) => self.explain_abort(failure).await,
            Stop::End(End::Failed(failure)) => self.link.explain(failure).await,
            // A failed record says more than the transaction that it spoiled.
            Stop::Client(action, error) => match self.link.producer.reports.failure() {
                Some(failure) if failure.record.is_some() => self.link.explain(failure).await,
                _ => errors::client_error(action, &endpoint, &error),
            },
            Stop::Hung(action) => ConnectorError::transient(action, endpoint, "no answer in time"),
        }
    }

    /// Records that were purged say only that the transaction has to be aborted; a commit, which cannot succeed any more,
    /// says why.
    async fn explain_abort(&self, failure: Failure) -> ConnectorError {
        let commit = self.blocking("commit", COMMIT_TIMEOUT, |native| native.commit_transaction(COMMIT_TIMEOUT)).await;
        match (commit, self.link.producer.reports.failure()) {
            (_, Some(failure)) if failure.record.is_some() => self.link.explain(failure).await,
            (Err(Stop::Client(action, error)), _) => {
                errors::client_error(action, &self.link.lane.config.endpoint(), &error)
            }
            _ => self.link.explain(failure).await,
        }
    }
}
