//! A producer that ends cleanly whatever happens to its owner.
//!
//! Keeps the contract's "after `run` returned or was dropped, nothing more is written": what is queued or under way is
//! purged before the producer is let go, and an open transaction is aborted, so that no reader of committed records waits
//! for it. Closing joins threads and may take a second, so it runs on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use catalog_bridge_api::{ConnectorError, Lease, Message};
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig, ThreadedProducer};

use crate::config::Config;
use crate::errors;
use crate::partition::partition_of;
use crate::record;
use crate::reports::{Context, Failure, Reports};

/// The client with its polling thread.
pub(crate) type Native = ThreadedProducer<Context>;

/// A producer and who it writes for.
pub(crate) struct Producer {
    native: Option<Native>,
    pub(crate) reports: Arc<Reports>,
}

/// How long a dropped future waits for the purge, which takes milliseconds unless a thread hangs in name resolution.
const PURGE_WAIT: Duration = Duration::from_millis(500);
/// How long the abort of a transaction may take while closing.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a record is offered again to a full queue.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
/// It doubles up to this in an outage.
const QUEUE_FULL_PAUSE_MAX: Duration = Duration::from_millis(32);

impl Producer {
    /// Makes the client; dials in the background.
    pub(crate) fn create(settings: &ClientConfig, endpoint: &str) -> Result<Self, ConnectorError> {
        let context = Context::default();
        let reports = context.0.clone();
        let native = settings
            .create_with_context(context)
            .map_err(|error| errors::client_error("make a client", endpoint, &error))?;
        Ok(Producer { native: Some(native), reports })
    }

    /// The client.
    pub(crate) fn native(&self) -> &Native {
        self.native.as_ref().expect("taken only when closed")
    }

    /// Purges, aborts and lets go; when it returns nothing of the producer is left. A caller that drops this future leaves
    /// the closing to its thread.
    pub(crate) async fn close(mut self) {
        if let Some(native) = self.native.take() {
            let _ = tokio::task::spawn_blocking(move || close(native, || ())).await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let Some(native) = self.native.take() else { return };
        let (sender, purged) = mpsc::channel();
        let thread = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || {
            close(native, move || {
                let _ = sender.send(());
            });
        });
        // Without a thread the client was dropped with the closure, which purges too.
        if thread.is_ok() {
            let _ = purged.recv_timeout(PURGE_WAIT);
        }
    }
}

fn close(native: Native, purged: impl FnOnce()) {
    native.purge(PurgeConfig::default().queue().inflight());
    purged();
    // An error outside a transaction, and beside the point when fenced.
    let _ = native.abort_transaction(ABORT_TIMEOUT);
    drop(native);
}

/// Why nothing more is sent.
#[derive(Debug)]
pub(crate) enum End {
    /// Somebody else may own the sink by now.
    LeaseLost,
    /// A record or the client failed.
    Failed(Failure),
}

/// What turns a message into a record of this sink.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) config: Arc<Config>,
    pub(crate) log_id: String,
    pub(crate) sink: String,
    pub(crate) partitions: i32,
}

impl Lane {
    /// The partition of a message.
    pub(crate) fn partition_of(&self, message: &Message) -> i32 {
        partition_of(message.entity_ref.as_str().as_bytes(), self.partitions)
    }

    /// Hands one message to the client. While its queue is full, the same message is offered again: a later one must not
    /// overtake it; `look` is called meanwhile and may end it.
    pub(crate) async fn send(
        &self,
        producer: &Producer,
        message: &Message,
        lease: &Lease,
        mut look: impl FnMut() -> Result<(), End>,
    ) -> Result<(), End> {
        let offset = usize::try_from(message.offset().get()).expect("Kafka's client wants 64 bits, as we do");
        let mut record = BaseRecord::with_opaque_to(&self.config.topic, offset)
            .partition(self.partition_of(message))
            .key(message.entity_ref.as_str())
            .headers(record::headers(message, &self.log_id, &self.sink));
        if let Some(value) = record::value(message, self.config.tombstones) {
            record = record.payload(value);
        }
        let mut pause = QUEUE_FULL_PAUSE;
        loop {
            if let Some(failure) = producer.reports.failure() {
                return Err(End::Failed(failure));
            }
            if !lease.is_held() {
                return Err(End::LeaseLost);
            }
            let Err((error, same)) = producer.native().send(record) else { return Ok(()) };
            match error.rdkafka_error_code() {
                Some(Code::QueueFull) => {
                    record = same;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(QUEUE_FULL_PAUSE_MAX);
                    look()?;
                }
                code => {
                    let record = Some((message.offset(), message.entity_ref.clone()));
                    let code = code.unwrap_or(Code::InvalidRecord);
                    return Err(End::Failed(Failure { code, words: error.to_string(), record }));
                }
            }
        }
    }
}
