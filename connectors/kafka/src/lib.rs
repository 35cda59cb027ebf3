//! Delivers events to a topic of Apache Kafka, in order per entity.
//!
//! Keeps P5 and P6: what landed in a partition is, whatever fails, a prefix of what was sent there (`prefix_safe`), and only
//! acknowledged records move the checkpoint. With `delivery: transactional` nothing is repeated and a former owner is fenced
//! (P9). Knows nothing of the log's store, of filters or of encodings; the README states guarantees, settings and rights.

mod config;
mod errors;
mod native;
mod partition;
mod patience;
mod producer;
mod properties;
mod record;
mod reports;
mod session;
mod suspects;
mod tail;
mod topic;
mod transactional;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    BuildContext, CheckReport, Claim, ConfigError, Connector, ConnectorError, ConnectorKind, Encoding, Limits, Session,
    parse_config,
};
use rdkafka::producer::Producer as _;

use crate::native::Description;
use crate::producer::{Lane, Producer};
use crate::session::{IdempotentSession, Link};
use crate::suspects::Suspects;
use crate::topic::Told;
use crate::transactional::TransactionalSession;

pub use crate::config::{Compression, Config, Delivery, Mechanism, Sasl, Scalar, Tls};

/// The protocol, as `src/sinks.rs` lists it.
pub static KIND: Kafka = Kafka;

/// Apache Kafka.
#[derive(Debug)]
pub struct Kafka;

impl ConnectorKind for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(Config)
    }

    fn build(&self, section: serde_json::Value, context: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: Config = parse_config(section)?;
        config::validate(&config, &context)?;
        Ok(Box::new(KafkaConnector {
            config: Arc::new(config),
            context,
            suspects: Arc::default(),
            told: Told::default(),
        }))
    }
}

/// How long `init_transactions` may take: it waits for the end of what the predecessor left open.
const FENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that records of a former owner may still land, once it stopped sending and closed its connections.
const FLIGHT: Duration = Duration::from_secs(5);

struct KafkaConnector {
    config: Arc<Config>,
    context: BuildContext,
    suspects: Arc<Suspects>,
    told: Told,
}

#[async_trait]
impl Connector for KafkaConnector {
    fn limits(&self) -> Limits {
        let is_fenced = self.config.delivery == Delivery::Transactional;
        Limits {
            message_bytes_max: Some(self.config.message_limit()),
            prefix_safe: true,
            window_events: config::WINDOW_EVENTS,
            window_bytes: config::BUFFER_BYTES,
            flight: if is_fenced { Duration::ZERO } else { FLIGHT },
            encoding: Encoding::CloudeventsBinary,
        }
    }

    fn destination(&self) -> String {
        let tombstones = if self.config.tombstones { " with tombstones" } else { "" };
        format!("kafka topic {}{tombstones}", self.config.topic)
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        // Neither idempotent nor transactional: a check must not fence the owner.
        let producer = Producer::create(&self.config.client()?, &self.config.endpoint())?;
        let (producer, found) = self.describe(producer).await?;
        let mut report = CheckReport::default();
        match found {
            Ok(found) => self.judge(&found, &mut report).await?,
            Err(failure) if topic::is_missing(&failure) && self.context.ensure => {
                report.facts.push(format!("{} does not exist and will be created", self.config.endpoint()));
            }
            Err(failure) => return Err(topic::explain(&failure, &producer.reports, &self.config)),
        }
        producer.close().await;
        Ok(report)
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let is_careful = self.suspects.lie_after(claim.checkpoint);
        let mut settings = match self.config.delivery {
            Delivery::Idempotent => self.config.idempotent_producer()?,
            Delivery::Transactional => {
                self.config.transactional_producer(&format!("catalog-bridge/{}/{}", claim.log_id, claim.sink))?
            }
        };
        if is_careful {
            settings.set("batch.num.messages", "1");
        }
        let producer = Producer::create(&settings, &self.config.endpoint())?;
        let (producer, found) = self.describe_or_create(producer, &claim).await?;
        self.refuse_missing_rights(&found)?;
        let pin = topic::pin(&self.config, self.context.ordering, &found, &claim, &self.told)?;
        let lane = Lane {
            config: self.config.clone(),
            log_id: claim.log_id.to_string(),
            sink: claim.sink.to_string(),
            partitions: pin.partitions,
        };
        let link = Link { producer, lane, pin, suspects: self.suspects.clone(), is_careful };
        match self.config.delivery {
            Delivery::Idempotent => self.open_idempotent(claim, link).await,
            Delivery::Transactional => self.open_transactional(claim, link).await,
        }
    }
}

impl KafkaConnector {
    async fn open_idempotent(&self, claim: Claim, link: Link) -> Result<Box<dyn Session>, ConnectorError> {
        let config = self.config.clone();
        let pin = link.pin.clone();
        let head = claim.head;
        let tails =
            blocking("read the ends of the topic", &self.config, move || tail::glance(&config, &claim, &pin)).await;
        match tails {
            Ok(tails) => self.refuse_tail_above(head, &tails)?,
            // Only a hint here, and many producers may not read.
            Err(error) => tracing::debug!(%error, "the ends of the topic were not read"),
        }
        Ok(Box::new(IdempotentSession { link }))
    }

    async fn open_transactional(&self, claim: Claim, mut link: Link) -> Result<Box<dyn Session>, ConnectorError> {
        let head = claim.head;
        // A future that was dropped must not fence whoever was opened after it.
        let is_wanted = Wanted::default();
        let flag = is_wanted.0.clone();
        let (link, tails) = blocking("fence", &self.config.clone(), {
            let config = self.config.clone();
            move || {
                if !flag.load(Atomic::Acquire) {
                    return Err(ConnectorError::transient("fence", config.endpoint(), "no longer wanted"));
                }
                fence(&config, &link)?;
                let tails = tail::search(&config, &claim, &link.pin)?;
                link.pin.searched = tails.searched.clone();
                Ok((link, tails))
            }
        })
        .await?;
        self.refuse_tail_above(head, &tails)?;
        Ok(Box::new(TransactionalSession { link, stored: tails.stored }))
    }

    fn refuse_tail_above(&self, head: catalog_bridge_api::Offset, tails: &tail::Tails) -> Result<(), ConnectorError> {
        match tails.highest {
            Some(tail) if tail > head => Err(ConnectorError::AheadOfLog { endpoint: self.config.endpoint(), tail }),
            _ => Ok(()),
        }
    }

    async fn describe(
        &self,
        producer: Producer,
    ) -> Result<(Producer, Result<Description, native::Failure>), ConnectorError> {
        let topic = self.config.topic.clone();
        blocking("connect", &self.config, move || {
            let found = topic::describe(producer.native().client(), &producer.reports, &topic);
            Ok((producer, found))
        })
        .await
    }

    async fn describe_or_create(
        &self,
        producer: Producer,
        claim: &Claim,
    ) -> Result<(Producer, Description), ConnectorError> {
        let (mut producer, mut found) = self.describe(producer).await?;
        // A topic that this sink knew and that is gone is not silently replaced by an empty one.
        let is_known = topic::known(&self.config, claim).is_some();
        let may_create = self.context.ensure && !is_known;
        if found.as_ref().is_err_and(topic::is_missing) && may_create {
            let brokers;
            (producer, brokers) = self.broker_count(producer).await?;
            topic::create(&self.config, self.context.ordering, brokers).await?;
            tracing::info!(topic = %self.config.topic, "created the topic");
            // The other brokers learn of it a little later.
            for _ in 0..50 {
                (producer, found) = self.describe(producer).await?;
                if !found.as_ref().is_err_and(topic::is_missing) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        match found {
            Ok(found) => Ok((producer, found)),
            Err(failure) if topic::is_missing(&failure) && is_known => Err(ConnectorError::misconfigured(
                self.config.endpoint(),
                "the topic existed and is gone; if it was deleted, create it and rewind the sink to snapshot",
            )),
            Err(failure) => Err(topic::explain(&failure, &producer.reports, &self.config)),
        }
    }

    async fn broker_count(&self, producer: Producer) -> Result<(Producer, usize), ConnectorError> {
        let topic = self.config.topic.clone();
        blocking("connect", &self.config, move || {
            let metadata = producer.native().client().fetch_metadata(Some(&topic), topic::QUESTION_TIMEOUT);
            let count = metadata.map_or(1, |metadata| metadata.brokers().len());
            Ok((producer, count))
        })
        .await
    }

    fn refuse_missing_rights(&self, found: &Description) -> Result<(), ConnectorError> {
        let Some(rights) = found.operations else { return Ok(()) };
        let missing = if !rights.may_write {
            "Write"
        } else if !rights.may_read && self.config.delivery == Delivery::Transactional {
            "Read"
        } else {
            return Ok(());
        };
        let reason = format!("this user has no right to {missing} on the topic; grant it");
        Err(ConnectorError::misconfigured(self.config.endpoint(), reason))
    }

    async fn judge(&self, found: &Description, report: &mut CheckReport) -> Result<(), ConnectorError> {
        self.refuse_missing_rights(found)?;
        topic::first_pin(&self.config, self.context.ordering, found)?;
        report.facts.push(format!(
            "{} has {} partitions with {} replicas",
            self.config.endpoint(),
            found.partitions,
            found.replicas
        ));
        if found.replicas < 2 {
            report.warnings.push("one replica: what was acknowledged is lost with its broker".to_owned());
        }
        if found.operations.is_some_and(|rights| !rights.may_read) {
            report
                .warnings
                .push("no right to Read on the topic: a log restored to an older state is not noticed here".to_owned());
        }
        if let Some(limit) = topic::max_message_bytes(&self.config).await
            && limit < self.config.message_bytes_max
        {
            report.warnings.push(format!(
                "the topic's max.message.bytes is {limit}, below message_bytes_max {}: larger events are refused instead of \
                 going as a reference; set message_bytes_max to {limit}",
                self.config.message_bytes_max
            ));
        }
        Ok(())
    }
}

/// True until it is dropped.
struct Wanted(Arc<AtomicBool>);

impl Default for Wanted {
    fn default() -> Self {
        Wanted(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Atomic::Release);
    }
}

/// Takes the transactional id over: the broker aborts what its former holder left open, and refuses it from now on.
fn fence(config: &Config, link: &Link) -> Result<(), ConnectorError> {
    link.producer
        .native()
        .init_transactions(FENCE_TIMEOUT)
        .map_err(|error| errors::client_error("take the transactional id over", &config.endpoint(), &error))
}

/// Runs `call` on a blocking thread.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    config: &Config,
    call: impl FnOnce() -> Result<T, ConnectorError> + Send + 'static,
) -> Result<T, ConnectorError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(outcome) => outcome,
        Err(error) => Err(ConnectorError::transient(action, config.endpoint(), error)),
    }
}
