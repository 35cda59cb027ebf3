//! One life of the idempotent producer: everything offered is sent at once, every report acknowledged by itself.
//!
//! Keeps P5 and P6: one task hands records to the client in feed order, nothing in the client expires (an outage of any
//! length is only a stall), and the first failure ends the session with all that is queued purged. What landed in a
//! partition is therefore a prefix of what was sent there. Keeps P9 as far as the broker allows: queued records are purged
//! as soon as the lease is lost. Never flushes: flushing polls in steps of 100 ms and beside the polling thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catalog_bridge_api::{Acks, ConnectorError, Feed, Lease, Session};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::Producer as _;

use crate::errors::{self, Verdict};
use crate::patience::Patience;
use crate::producer::{End, Lane, Producer};
use crate::reports::Failure;
use crate::suspects::Suspects;
use crate::topic::Pin;

/// How often the lease and the client's troubles are looked at while nothing else happens.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the end of the feed waits for what is in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How many messages are taken between two looks at everything else.
const BURST: usize = 256;

/// What both kinds of session share.
pub(crate) struct Link {
    pub(crate) producer: Producer,
    pub(crate) lane: Lane,
    pub(crate) pin: Pin,
    pub(crate) suspects: Arc<Suspects>,
    /// One record per batch: then a refusal is about that record.
    pub(crate) is_careful: bool,
}

impl Link {
    /// The connector's error for a failure.
    pub(crate) async fn explain(&self, failure: Failure) -> ConnectorError {
        let endpoint = self.lane.config.endpoint();
        let Failure { mut code, mut words, record } = self.with_record(failure).await;
        if let (Verdict::Refused, Some((offset, entity_ref))) = (errors::verdict(code), record) {
            let suspected = self.producer.reports.refused_up_to();
            // Not among the reports: the client itself refused it, before any batch.
            if self.is_careful || suspected == 0.into() {
                return ConnectorError::Refused { offset, entity_ref, endpoint, reason: words };
            }
            self.suspects.suspect(suspected);
            let words =
                format!("a batch with offset {offset} was refused ({words}); sending one by one to find the record");
            return ConnectorError::transient("publish", endpoint, words);
        }
        if errors::is_fatal(code) || errors::is_purge(code) {
            (code, words) = self.producer.native().client().fatal_error().unwrap_or((code, words));
        }
        errors::connector_error("publish", &endpoint, Some(code), &words)
    }

    /// A fatal error of the client, or what it purged, may arrive before the report of the record that caused it.
    async fn with_record(&self, failure: Failure) -> Failure {
        let has_cause =
            matches!(failure.code, Code::Fatal | Code::GaplessGuarantee | Code::PurgeQueue | Code::PurgeInflight);
        if failure.record.is_some() || !has_cause {
            return failure;
        }
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            if let Some(found) = self.producer.reports.failure().filter(|found| found.record.is_some()) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        failure
    }

    /// What to keep for the next claim.
    pub(crate) fn state(&self) -> serde_json::Value {
        serde_json::to_value(&self.pin).expect("plain data")
    }
}

/// A session of `delivery: idempotent`.
pub(crate) struct IdempotentSession {
    pub(crate) link: Link,
}

#[async_trait]
impl Session for IdempotentSession {
    async fn run(self: Box<Self>, mut feed: Feed, acks: Acks) -> Result<(), ConnectorError> {
        acks.remember(self.link.state());
        self.link.producer.reports.acknowledge_to(acks.clone());
        let outcome = match self.publish(&mut feed, acks).await {
            Ok(()) | Err(End::LeaseLost) => Ok(()),
            Err(End::Failed(failure)) => Err(self.link.explain(failure).await),
        };
        self.link.producer.close().await;
        outcome
    }
}

impl IdempotentSession {
    async fn publish(&self, feed: &mut Feed, acks: Acks) -> Result<(), End> {
        let Link { producer, lane, .. } = &self.link;
        let mut patience = Patience::new(acks);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut sent = 0;
        loop {
            let message = tokio::select! {
                biased;
                failure = producer.reports.failed() => return Err(End::Failed(failure)),
                _ = look.tick() => {
                    patience.look(&producer.reports, feed.lease(), sent)?;
                    continue;
                }
                message = feed.next() => message,
            };
            let Some(message) = message else { return self.drain(feed.lease(), sent).await };
            let mut next = Some(message);
            let mut burst = 0;
            while let Some(message) = next {
                let look = || patience.look(&producer.reports, feed.lease(), sent);
                if let Err(end) = lane.send(producer, &message, feed.lease(), look).await {
                    return self.end_of_sending(feed.lease(), sent, end).await;
                }
                sent += 1;
                burst += 1;
                next = if burst < BURST { feed.try_next() } else { None };
            }
        }
    }

    /// A record that the client itself refused leaves the producer whole: what was sent before it is waited for, so that
    /// it is not repeated.
    async fn end_of_sending(&self, lease: &Lease, sent: u64, end: End) -> Result<(), End> {
        if let End::Failed(Failure { code, .. }) = &end
            && errors::verdict(*code) == Verdict::Refused
            && !self.link.producer.reports.has_failed()
        {
            self.drain(lease, sent).await?;
        }
        Err(end)
    }

    /// Waits for what is in flight; what is not reported in time is purged and repeated by the next session.
    async fn drain(&self, lease: &Lease, sent: u64) -> Result<(), End> {
        let reports = &self.link.producer.reports;
        let lost = async {
            while lease.is_held() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            outcome = reports.delivered_all(sent) => outcome.map_err(End::Failed),
            () = lost => Err(End::LeaseLost),
            () = tokio::time::sleep(DRAIN_TIMEOUT) => Ok(()),
        }
    }
}
