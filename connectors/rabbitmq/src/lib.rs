//! The sink `rabbitmq`: an exchange of RabbitMQ, by AMQP 0.9.1 with publisher confirms.
//!
//! Invariants: P5 (one channel, one publisher, and the driver's key gate: a nack or a returned message breaks the prefix of a channel,
//! never that of an entity), P7 (an event is acknowledged when the broker has confirmed it and had a queue for it), P9 (an
//! exclusive queue on the publishing connection keeps a second writer out). AMQP 0.9.1 has no tail and no dedupe: after a crash
//! what was in flight is repeated, with identical bytes and message ids.
//! Knows nothing of the log, of filters or of retries: those are the driver's.

mod config;
mod errors;
mod in_flight;
mod link;
mod publication;
mod session;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    BuildContext, CheckReport, Claim, ConfigError, Connector, ConnectorError, ConnectorKind, Encoding, Limits, Session,
    parse_config,
};
use config::Config;
use link::Link;
use session::{RabbitSession, WINDOW_EVENTS};

/// The connector `rabbitmq`.
pub static KIND: RabbitKind = RabbitKind;

/// Bytes of messages that may be unconfirmed; the client library keeps them twice until they are written.
const WINDOW_BYTES: usize = 32 << 20;
/// The broker refuses the lock while the former owner's connection lives; what that had sent is in the queues moments later.
const FLIGHT: Duration = Duration::from_secs(1);

/// Builds `rabbitmq` sinks.
#[derive(Debug)]
pub struct RabbitKind;

impl ConnectorKind for RabbitKind {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(Config)
    }

    fn build(&self, section: serde_json::Value, context: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: Config = parse_config(section)?;
        let vhost = config.validate(context.ensure)?;
        Ok(Box::new(RabbitConnector { config: Arc::new(config), vhost, ensure: context.ensure }))
    }
}

struct RabbitConnector {
    config: Arc<Config>,
    /// As the section says it; a URL in a file may not be mounted yet.
    vhost: Option<String>,
    ensure: bool,
}

#[async_trait]
impl Connector for RabbitConnector {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: Some(self.config.message_bytes_max),
            prefix_safe: false,
            window_events: WINDOW_EVENTS,
            window_bytes: WINDOW_BYTES,
            flight: FLIGHT,
            encoding: Encoding::CloudeventsBinary,
        }
    }

    fn destination(&self) -> String {
        let Config { exchange, routing_key, .. } = &*self.config;
        format!("rabbitmq {} {} {}", self.vhost.as_deref().unwrap_or_default(), exchange.as_str(), routing_key.as_str())
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        let link = Link::connect(&self.config, "catalog-bridge check".to_owned()).await?;
        let mut facts = vec![format!("connected to {}", link.endpoint)];
        let (found, warnings) = topology::look(&link, &self.config, self.ensure).await?;
        facts.extend(found);
        link.close().await;
        Ok(CheckReport { facts, warnings })
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let session = RabbitSession::open(Arc::clone(&self.config), self.ensure, &claim).await?;
        Ok(Box::new(session))
    }
}
