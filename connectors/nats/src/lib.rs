//! Delivers events to a JetStream stream of NATS, in the order of the log.
//!
//! Keeps P5 and P6: what landed is, whatever fails, a prefix of what was sent (`prefix_safe`), and what the tail holds already
//! is not sent again. Keeps P8: messages of others and lost ones are told, never passed over. Knows nothing of the log's store,
//! of filters or of encodings; the README states guarantees, settings and rights.

mod config;
mod connection;
mod errors;
mod record;
mod session;
mod stream;
mod subject;
mod tail;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    BuildContext, CheckReport, Claim, ConfigError, Connector, ConnectorError, ConnectorKind, Encoding, Limits, Session,
    parse_config,
};

use crate::connection::Connection;
use crate::session::NatsSession;
use crate::tail::{Mark, Trouble};

pub use crate::config::{Config, Tls};

/// The protocol, as `src/sinks.rs` lists it.
pub static KIND: Nats = Nats;

/// NATS JetStream.
#[derive(Debug)]
pub struct Nats;

impl ConnectorKind for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(Config)
    }

    fn build(&self, section: serde_json::Value, context: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: Config = parse_config(section)?;
        config::validate(&config)?;
        Ok(Box::new(NatsConnector { config, context, told_epoch: Mutex::default() }))
    }
}

/// Bytes of messages in flight.
const WINDOW_BYTES: usize = 8 << 20;

struct NatsConnector {
    config: Config,
    context: BuildContext,
    /// In which epoch the operator was told of a divergence last.
    ///
    /// After `Diverged` the driver opens again under the same lease only when an operator said so, so that is an acceptance.
    told_epoch: Mutex<Option<u64>>,
}

#[async_trait]
impl Connector for NatsConnector {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: Some(self.config.message_limit()),
            prefix_safe: true,
            window_events: session::WINDOW_EVENTS,
            window_bytes: WINDOW_BYTES,
            // A late message of a former owner is the right next one or is refused: each names the sequence it follows.
            flight: Duration::ZERO,
            encoding: Encoding::CloudeventsBinary,
        }
    }

    fn destination(&self) -> String {
        format!("nats {} subject {}", self.stream_name(), self.config.subject.as_str())
    }

    fn exclusive_destination(&self) -> Option<String> {
        // Streams of one name exist on several clusters; with other addresses of one cluster the streams' own checks tell.
        let mut servers = self.config.servers.clone();
        servers.sort();
        servers.dedup();
        Some(format!("nats {} on {}", self.stream_name(), servers.join(",")))
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        let connection = Connection::open(&self.config, &self.context.sink).await?;
        let mut report = CheckReport::default();
        match stream::find(&connection, &self.config).await? {
            Some(stream) => {
                let info = stream.cached_info();
                stream::refuse_unfit(&self.config, info)?;
                stream::judge(&self.config, info, connection.server().max_payload, &mut report);
            }
            None if self.context.ensure => {
                report.facts.push(format!("{} does not exist and will be created", self.config.endpoint()));
            }
            None => return Err(stream::missing(&self.config)),
        }
        Ok(report)
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let connection = Connection::open(&self.config, &self.context.sink).await?;
        let stream = match stream::find(&connection, &self.config).await? {
            Some(stream) => stream,
            // A stream that this sink knew and that is gone is not silently replaced by an empty one.
            None if Mark::known(&claim, &self.config.stream).is_some() => {
                let reason =
                    "the stream existed and is gone; if it was deleted, create it and rewind the sink to snapshot";
                return Err(ConnectorError::misconfigured(self.config.endpoint(), reason));
            }
            None if self.context.ensure => stream::create(&connection, &self.config).await?,
            None => return Err(stream::missing(&self.config)),
        };
        stream::refuse_unfit(&self.config, stream.cached_info())?;
        let is_chained = stream::takes_chain(stream.cached_info());
        let is_accepted = self.told() == Some(claim.epoch);
        let start = match connection.within(tail::search(&connection, &stream, &claim, is_accepted)).await? {
            Ok(start) => start,
            Err(Trouble::Diverged { reason }) => {
                self.tell(Some(claim.epoch));
                return Err(ConnectorError::Diverged { endpoint: self.config.endpoint(), reason });
            }
            Err(Trouble::Lost { kept, reason }) => {
                return Err(ConnectorError::TailLost { endpoint: self.config.endpoint(), kept, reason });
            }
        };
        if let Some(tail) = start.stored.filter(|tail| *tail > claim.head) {
            return Err(ConnectorError::AheadOfLog { endpoint: self.config.endpoint(), tail });
        }
        self.tell(None);
        Ok(Box::new(NatsSession {
            connection,
            template: self.config.subject.clone(),
            sink: claim.sink,
            checkpoint: claim.checkpoint,
            start,
            is_chained,
        }))
    }
}

impl NatsConnector {
    fn stream_name(&self) -> String {
        let domain = self.config.domain.as_ref().map(|domain| format!(" of domain {domain}")).unwrap_or_default();
        format!("stream {}{domain}", self.config.stream)
    }

    fn told(&self) -> Option<u64> {
        *self.told_epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, epoch: Option<u64>) {
        *self.told_epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }
}
