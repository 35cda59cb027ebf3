//! The client library, set so that nothing is sent twice behind our back and nothing hangs.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{Credentials, Region};
use catalog_bridge_api::ConnectorError;

use crate::REQUEST_TIMEOUT;
use crate::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client for one queue. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) queue_url: String,
    pub(crate) queue_name: String,
    /// For errors.
    pub(crate) endpoint: String,
}

impl Client {
    /// Reads credentials and region afresh, so that rotated ones count; sends nothing.
    pub(crate) async fn connect(config: &Config) -> Result<Self, ConnectorError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = config.region() {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
            let secret = secret.open().map_err(|error| {
                ConnectorError::misconfigured(config.endpoint_name(), format!("secret_access_key: {error}"))
            })?;
            loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "catalog-bridge"));
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            let reason = "no region is known; write region, or set AWS_REGION";
            return Err(ConnectorError::misconfigured(config.endpoint_name(), reason));
        }
        // The session repeats, alone and with the same ids, what failed: a retry here would repeat whole requests.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(REQUEST_TIMEOUT)
            .operation_timeout(REQUEST_TIMEOUT)
            .build();
        let mut settings =
            aws_sdk_sqs::config::Builder::from(&shared).retry_config(RetryConfig::disabled()).timeout_config(timeouts);
        if let Some(endpoint) = config.endpoint_override() {
            settings = settings.endpoint_url(endpoint);
        }
        Ok(Client {
            sqs: aws_sdk_sqs::Client::from_conf(settings.build()),
            queue_url: config.queue_url.to_string(),
            queue_name: config.queue_name().to_owned(),
            endpoint: config.endpoint_name(),
        })
    }
}
