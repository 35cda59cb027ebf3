//! The sink `sqs`: a FIFO queue of Amazon SQS, or of a server that speaks its protocol.
//!
//! Invariants: P5 (a message group per entity, and the driver's key gate: of a group at most one message is under way, so an entry
//! that fails in the middle of a request is overtaken by no later one of its entity), P6 (repetitions carry the same
//! deduplication id: inside five minutes the queue stores none of them again), P8 (a message that the queue never takes is named
//! by its offset). A queue has no tail that could be read without taking messages out of it.
//! Knows nothing of the log, of filters or of encodings: those are the driver's.

mod client;
mod config;
mod entry;
mod errors;
mod outgoing;
mod queue;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    BuildContext, CheckReport, Claim, ConfigError, Connector, ConnectorError, ConnectorKind, Encoding, Limits, Session,
    parse_config,
};
use client::Client;
use config::Config;
use session::SqsSession;

/// The connector `sqs`.
pub static KIND: SqsKind = SqsKind;

/// Messages under way or waiting behind one of their entity.
const WINDOW_EVENTS: usize = 1_000;
/// Bytes of them; the client library holds each three times while it is sent.
const WINDOW_BYTES: usize = 8 << 20;
/// How long one request may take, and so how long what it carries may still land.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds `sqs` sinks.
#[derive(Debug)]
pub struct SqsKind;

impl ConnectorKind for SqsKind {
    fn name(&self) -> &'static str {
        "sqs"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(Config)
    }

    fn build(&self, section: serde_json::Value, context: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: Config = parse_config(section)?;
        config.validate()?;
        Ok(Box::new(SqsConnector { config: Arc::new(config), ensure: context.ensure }))
    }
}

struct SqsConnector {
    config: Arc<Config>,
    ensure: bool,
}

#[async_trait]
impl Connector for SqsConnector {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: Some(self.config.message_bytes_max - entry::ATTRIBUTE_BYTES_MAX),
            prefix_safe: false,
            window_events: WINDOW_EVENTS,
            window_bytes: WINDOW_BYTES,
            flight: REQUEST_TIMEOUT,
            encoding: Encoding::Cloudevents,
        }
    }

    fn destination(&self) -> String {
        let path = self.config.queue_url.path();
        format!("sqs {} {path}", self.config.region().unwrap_or_default())
    }

    /// Two sinks of one log would use the same deduplication ids: the queue would swallow the messages of one of them.
    fn exclusive_destination(&self) -> Option<String> {
        Some(format!("sqs {}", self.config.endpoint_name()))
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        let client = Client::connect(&self.config).await?;
        queue::check(&client, &self.config, self.ensure).await
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let client = Client::connect(&self.config).await?;
        let state = queue::prepare(&client, self.ensure, claim.state.as_ref()).await?;
        Ok(Box::new(SqsSession::new(client, &self.config, &claim, state)))
    }
}
