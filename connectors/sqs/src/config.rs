//! The `sqs:` section of a sink.

use catalog_bridge_api::{ConfigError, Secret};
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use url::Url;

/// Delivers to a FIFO queue of Amazon SQS.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The queue, `https://sqs.<region>.amazonaws.com/<account>/<name>.fifo`. It must exist unless `ensure` is true.
    #[serde(deserialize_with = "parse_url")]
    #[schemars(with = "String")]
    pub(crate) queue_url: Url,
    /// The region; default: the one that `queue_url` names, else `AWS_REGION` or the profile's.
    #[serde(default)]
    pub(crate) region: Option<String>,
    /// Where requests go, for a compatible server or a private endpoint; default: the service's address of the region, or, when
    /// `queue_url` is none of Amazon's, that server.
    #[serde(default, deserialize_with = "parse_optional_url")]
    #[schemars(with = "Option<String>")]
    pub(crate) endpoint: Option<Url>,
    /// Access key, together with `secret_access_key`. Default for both: the usual chain of environment, profile, web
    /// identity (IRSA), container and instance role.
    #[serde(default)]
    pub(crate) access_key_id: Option<String>,
    /// Secret key: the value, `${VARIABLE}` or `file:/path`.
    #[serde(default)]
    pub(crate) secret_access_key: Option<Secret>,
    /// Largest message in bytes with its attributes, 10,000 to 1,048,576; default 1,048,576. At most the queue's
    /// `MaximumMessageSize`. A larger event goes as a reference.
    #[serde(default = "default_message_bytes_max")]
    pub(crate) message_bytes_max: usize,
}

/// The service's limit for a message, and for all of a request together.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

fn default_message_bytes_max() -> usize {
    MESSAGE_BYTES_MAX
}

/// The error quotes nothing: somebody may have written credentials there.
fn parse_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let no_url = |_| D::Error::custom("is no URL; write https://sqs.<region>.amazonaws.com/<account>/<name>.fifo");
    String::deserialize(deserializer)?.parse().map_err(no_url)
}

fn parse_optional_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    parse_url(deserializer).map(Some)
}

impl Config {
    /// Refuses what cannot work; dials nothing.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let is_server = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        if !is_server(&self.queue_url) || !self.queue_url.path().ends_with(".fifo") {
            let message = "must be the URL of a FIFO queue: https://sqs.<region>.amazonaws.com/<account>/<name>.fifo";
            return Err(ConfigError::at("queue_url", message));
        }
        if self.endpoint.as_ref().is_some_and(|endpoint| !is_server(endpoint)) {
            return Err(ConfigError::at("endpoint", "must be an http:// or https:// URL"));
        }
        for (key, url) in [("queue_url", Some(&self.queue_url)), ("endpoint", self.endpoint.as_ref())] {
            if url.is_some_and(|url| !url.username().is_empty() || url.password().is_some()) {
                let message = "must not hold credentials; write access_key_id and secret_access_key";
                return Err(ConfigError::at(key, message));
            }
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(ConfigError::at("access_key_id", "belongs together with secret_access_key"));
        }
        if !(10_000..=MESSAGE_BYTES_MAX).contains(&self.message_bytes_max) {
            return Err(ConfigError::at("message_bytes_max", "must be 10000 to 1048576"));
        }
        Ok(())
    }

    /// The region that is written down or that the queue's address names.
    pub(crate) fn region(&self) -> Option<&str> {
        self.region.as_deref().or_else(|| amazon_region(self.queue_url.host_str()?))
    }

    /// Where to send requests to instead of the service's own address.
    pub(crate) fn endpoint_override(&self) -> Option<String> {
        if let Some(endpoint) = &self.endpoint {
            return Some(endpoint.as_str().trim_end_matches('/').to_owned());
        }
        let host = self.queue_url.host_str()?;
        (!is_amazon(host)).then(|| self.queue_url.origin().ascii_serialization())
    }

    /// For errors.
    pub(crate) fn endpoint_name(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => format!("{} by {endpoint}", self.queue_url),
            None => self.queue_url.to_string(),
        }
    }

    /// The queue's name, without its account.
    pub(crate) fn queue_name(&self) -> &str {
        self.queue_url.path().rsplit('/').next().unwrap_or_default()
    }
}

fn is_amazon(host: &str) -> bool {
    [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|end| host.ends_with(end))
}

/// Of `sqs.<region>.amazonaws.com`, `sqs-fips.…`, `<id>.sqs.<region>.vpce.amazonaws.com` and `<region>.queue.amazonaws.com`.
fn amazon_region(host: &str) -> Option<&str> {
    if !is_amazon(host) {
        return None;
    }
    let is_service = |label: &&str| matches!(*label, "sqs" | "sqs-fips");
    let mut labels = host.split('.');
    let first = labels.next()?;
    if labels.clone().next() == Some("queue") {
        return Some(first);
    }
    std::iter::once(first).chain(labels).skip_while(|label| !is_service(label)).nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(section: serde_json::Value) -> Config {
        serde_json::from_value(section).expect("a section")
    }

    #[track_caller]
    fn check(queue_url: &str, region: Option<&str>, endpoint: Option<&str>) {
        let config = config(serde_json::json!({ "queue_url": queue_url }));
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.region(), region);
        assert_eq!(config.endpoint_override().as_deref(), endpoint);
    }

    #[test]
    fn region_and_endpoint_are_taken_from_the_queues_address() {
        check("https://sqs.eu-west-1.amazonaws.com/1/a.fifo", Some("eu-west-1"), None);
        check("https://sqs.cn-north-1.amazonaws.com.cn/1/a.fifo", Some("cn-north-1"), None);
        check("https://sqs-fips.us-east-1.amazonaws.com/1/a.fifo", Some("us-east-1"), None);
        check("https://eu-west-1.queue.amazonaws.com/1/a.fifo", Some("eu-west-1"), None);
        check("https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/1/a.fifo", Some("eu-west-1"), None);
        check("https://sqs.eu-west-1.api.aws/1/a.fifo", Some("eu-west-1"), None);
        check("http://localhost:9324/000000000000/a.fifo", None, Some("http://localhost:9324"));
    }

    #[test]
    fn what_cannot_work_is_refused_at_its_key() {
        let refused = |section: serde_json::Value| config(section).validate().expect_err("refused");
        let url = "https://sqs.eu-west-1.amazonaws.com/1/a.fifo";
        let json = |extra: serde_json::Value| {
            let mut section = serde_json::json!({ "queue_url": url });
            section.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            section
        };

        let standard = serde_json::json!({ "queue_url": "https://sqs.eu-west-1.amazonaws.com/1/a" });
        assert_eq!(refused(standard).path, ["queue_url"]);
        assert_eq!(refused(json(serde_json::json!({ "endpoint": "ftp://host" }))).path, ["endpoint"]);
        assert_eq!(refused(json(serde_json::json!({ "access_key_id": "AK" }))).path, ["access_key_id"]);
        assert_eq!(refused(json(serde_json::json!({ "message_bytes_max": 1 }))).path, ["message_bytes_max"]);
        let error = refused(json(serde_json::json!({ "endpoint": "http://u:s3cret@host" })));
        assert!(error.path == ["endpoint"] && !error.to_string().contains("s3cret"), "{error}");
    }
}
