//! What a client tells from its own threads: delivery reports and troubles.
//!
//! Reports are counted and passed on one by one; they may come from any thread and, over several partitions, in any order
//! (MEASURED section 1), which the driver's window tolerates. The first failure is kept: everything after it is repeated by
//! the next session. librdkafka's log lines go to `debug`, because who decides on a trouble logs it once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use catalog_bridge_api::{Acks, EntityRef, Offset};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use rdkafka::{ClientContext, Statistics};
use tokio::sync::Notify;

use crate::errors;

/// Why a record was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) words: String,
    /// The record, when the failure is one of a record.
    pub(crate) record: Option<(Offset, EntityRef)>,
}

/// A client's context, shared between its threads and the session.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Set by a session whose reports are acknowledgements (not so in a transaction: there the commit is).
    acks: OnceLock<Acks>,
    delivered: AtomicU64,
    wanted: AtomicU64,
    has_failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
    /// Largest offset among the records refused with the first one: they may have been in one batch.
    refused_up_to: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
    changed: Notify,
}

/// What the client said last about its connections.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) code: Code,
    pub(crate) words: String,
    /// It will not pass by itself: wrong credentials, a certificate that is not trusted.
    pub(crate) is_refusal: bool,
}

impl Reports {
    /// From now on every delivered record is acknowledged.
    pub(crate) fn acknowledge_to(&self, acks: Acks) {
        let _ = self.acks.set(acks);
    }

    /// How many records were delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// True once something failed; cheap enough to be asked before each send.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// The first failure.
    pub(crate) fn failure(&self) -> Option<Failure> {
        if !self.has_failed() {
            return None;
        }
        self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The largest offset that was refused.
    pub(crate) fn refused_up_to(&self) -> Offset {
        self.refused_up_to.load(Ordering::Acquire).into()
    }

    /// What the client said last about its connections, since something was delivered.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Resolves at the first failure. Cancel safe.
    pub(crate) async fn failed(&self) -> Failure {
        self.until(|| self.failure()).await
    }

    /// Resolves when `count` records were delivered, or with the first failure. Cancel safe.
    pub(crate) async fn delivered_all(&self, count: u64) -> Result<(), Failure> {
        self.wanted.store(count, Ordering::SeqCst);
        self.until(|| match self.failure() {
            Some(failure) => Some(Err(failure)),
            None => (self.delivered.load(Ordering::SeqCst) >= count).then_some(Ok(())),
        })
        .await
    }

    async fn until<T>(&self, condition: impl Fn() -> Option<T>) -> T {
        loop {
            // Bounded, because two waiters could take each other's wake-up.
            let changed = tokio::time::timeout(Duration::from_millis(100), self.changed.notified());
            if let Some(value) = condition() {
                return value;
            }
            let _ = changed.await;
        }
    }

    pub(crate) fn count_delivered(&self, offset: Offset) {
        if let Some(acks) = self.acks.get() {
            acks.one(offset);
        }
        let delivered = self.delivered.fetch_add(1, Ordering::SeqCst) + 1;
        if delivered == self.wanted.load(Ordering::SeqCst) {
            self.changed.notify_one();
        }
    }

    /// Keeps the first failure.
    pub(crate) fn fail(&self, failure: Failure) {
        self.has_failed.store(true, Ordering::Release);
        let mut first = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some((offset, _)), errors::Verdict::Refused) = (&failure.record, errors::verdict(failure.code)) {
            self.refused_up_to.fetch_max(offset.get(), Ordering::AcqRel);
        }
        match &*first {
            // The report names the record; a fatal error of the client only says that there was one.
            Some(kept) if kept.record.is_some() || failure.record.is_none() => return,
            _ => *first = Some(failure),
        }
        drop(first);
        self.changed.notify_one();
    }

    pub(crate) fn note_trouble(&self, code: Code, words: &str) {
        let is_refusal = errors::verdict_of(code, words) == errors::Verdict::Misconfigured;
        let mut trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // "all brokers are down" follows every other trouble and says less; other troubles follow a refusal.
        let says_more = trouble.as_ref().is_none_or(|known| !known.is_refusal && code != Code::AllBrokersDown);
        if is_refusal || says_more {
            *trouble = Some(Trouble { code, words: words.to_owned(), is_refusal });
        }
    }

    /// Forgets earlier troubles, once something was delivered.
    pub(crate) fn clear_trouble(&self) {
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

/// The context as rdkafka wants it: an owner of its own beside the session's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context(pub(crate) std::sync::Arc<Reports>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka says");
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports a trouble");
        let Some(code) = error.rdkafka_error_code() else { return };
        if errors::is_fatal(code) {
            self.0.fail(Failure { code, words: reason.to_owned(), record: None });
        } else {
            self.0.note_trouble(code, reason);
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    /// The event's offset.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let offset = Offset::new(opaque as u64);
        let (error, record) = match result {
            Ok(_) => return self.0.count_delivered(offset),
            Err((error, record)) => (error, record),
        };
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        if errors::is_purge(code) {
            return self.0.fail(Failure { code, words: error.to_string(), record: None });
        }
        // Another record of its batch is the cause and has a report of its own.
        if code == Code::InvalidDifferentRecord {
            return;
        }
        let key = record.key().and_then(|key| std::str::from_utf8(key).ok());
        let entity_ref = key.and_then(|key| EntityRef::parse(key).ok());
        self.0.fail(Failure { code, words: error.to_string(), record: entity_ref.map(|name| (offset, name)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64) -> Option<(Offset, EntityRef)> {
        Some((offset.into(), EntityRef::parse("component:default/a").expect("valid")))
    }

    fn failure(code: Code, offset: u64) -> Failure {
        Failure { code, words: code.to_string(), record: record(offset) }
    }

    #[test]
    fn the_first_failure_of_a_record_is_kept() {
        let reports = Reports::default();

        reports.fail(Failure { code: Code::Fatal, words: "fatal".to_owned(), record: None });
        reports.fail(failure(Code::MessageSizeTooLarge, 5));
        reports.fail(failure(Code::MessageSizeTooLarge, 6));
        reports.fail(failure(Code::OutOfOrderSequenceNumber, 7));

        assert_eq!(reports.failure(), Some(failure(Code::MessageSizeTooLarge, 5)));
        assert_eq!(reports.refused_up_to(), 6.into());
    }

    #[test]
    fn a_refusal_is_not_hidden_by_what_follows_from_it() {
        let reports = Reports::default();

        reports.note_trouble(Code::Authentication, "invalid credentials");
        reports.note_trouble(Code::AllBrokersDown, "1/1 brokers are down");

        assert_eq!(reports.trouble().map(|trouble| trouble.words).as_deref(), Some("invalid credentials"));
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_last_report() {
        let reports = std::sync::Arc::new(Reports::default());
        let waiting = tokio::spawn({
            let reports = reports.clone();
            async move { reports.delivered_all(2).await }
        });

        reports.count_delivered(1.into());
        assert!(!waiting.is_finished());
        reports.count_delivered(2.into());

        assert_eq!(waiting.await.expect("no panic"), Ok(()));
    }
}
