//! The sink `webhook`: an HTTP endpoint that events are posted to, one request each, signed by Standard Webhooks.
//!
//! Invariants: P5 (requests run at once, and the driver's key gate has at most one of an entity among them), P6 (a repetition has
//! the same `webhook-id` and body; only timestamp and signature are those of the attempt), P7 (acknowledged is what was answered
//! with 2xx), P9 (no connection is used that was made after the lease was lost). HTTP has no tail and no fence: what was in
//! flight at a crash is sent again. Nothing is sent to an address of the inside unless the config names it.
//! Knows nothing of the log, of filters or of retries: those are the driver's.

mod address;
mod answer;
mod client;
mod config;
mod failure;
mod pace;
mod request;
mod session;
mod signature;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catalog_bridge_api::{
    BuildContext, CheckReport, Claim, ConfigError, Connector, ConnectorError, ConnectorKind, Encoding, Limits, Session,
    parse_config,
};
use client::Target;
use config::Config;
use pace::Pace;
use session::WebhookSession;

/// The connector `webhook`.
pub static KIND: WebhookKind = WebhookKind;

/// Messages that the driver may hold open: those behind an earlier one of their entity count as well.
const WINDOW_EVENTS: usize = 500;
const WINDOW_BYTES: usize = 32 << 20;
/// A dead owner's connections are closed; what the network still holds arrives moments later, and only repeats.
const FLIGHT: Duration = Duration::from_secs(1);

/// Builds `webhook` sinks.
#[derive(Debug)]
pub struct WebhookKind;

impl ConnectorKind for WebhookKind {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn schema(&self) -> schemars::Schema {
        schemars::schema_for!(Config)
    }

    fn build(&self, section: serde_json::Value, _: BuildContext) -> Result<Box<dyn Connector>, ConfigError> {
        let config: Config = parse_config(section)?;
        let endpoint = config.validate()?;
        let pace = Arc::new(Pace::new(config.max_rate));
        Ok(Box::new(WebhookConnector { config: Arc::new(config), endpoint, pace }))
    }
}

struct WebhookConnector {
    config: Arc<Config>,
    /// As the section says it; a URL in a file may not be mounted yet.
    endpoint: Option<String>,
    /// Outlives sessions, so that one that fails at once is no way around it.
    pace: Arc<Pace>,
}

#[async_trait]
impl Connector for WebhookConnector {
    fn limits(&self) -> Limits {
        Limits {
            message_bytes_max: Some(self.config.message_bytes_max),
            prefix_safe: false,
            window_events: WINDOW_EVENTS,
            window_bytes: WINDOW_BYTES,
            flight: FLIGHT,
            // The signature covers the body and no header but the id and the time.
            encoding: Encoding::Cloudevents,
        }
    }

    fn destination(&self) -> String {
        format!("webhook {}", self.endpoint.as_deref().unwrap_or_default()).trim_end().to_owned()
    }

    async fn check(&self) -> Result<CheckReport, ConnectorError> {
        let target = Target::open(&self.config).await?;
        target.dial().await?;
        let mut report = CheckReport::default();
        report.facts.push(format!("connected to {}", target.endpoint));
        report
            .facts
            .push("no request was sent: whether URL and secret are right shows with the first event".to_owned());
        if target.url.scheme() == "http" {
            report.warnings.push("http:// is not encrypted: whoever is on the way reads the catalog".to_owned());
        }
        Ok(report)
    }

    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError> {
        let target = Target::open(&self.config).await?;
        Ok(Box::new(WebhookSession::new(target, Arc::clone(&self.config), Arc::clone(&self.pace), &claim)?))
    }
}
