//! The `rabbitmq:` section of a sink.
//!
//! The URL is a secret as a whole: it is opened at the point of use and only host, port and virtual host of it are ever shown.

use std::path::PathBuf;

use catalog_bridge_api::{ConfigError, Secret, Template};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use schemars::JsonSchema;
use serde::Deserialize;

/// Delivers to an exchange of RabbitMQ by AMQP 0.9.1, with publisher confirms.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The broker, `amqp://user:password@host:5672/vhost` or `amqps://…:5671/vhost`; the virtual host `/` is written `%2f`.
    /// The value, `${VARIABLE}` or `file:/path`. Its other query parameters than `frame_max` and `channel_max` have no effect.
    pub(crate) url: Secret,
    /// The password, when it is not part of the URL: the value, `${VARIABLE}` or `file:/path`.
    #[serde(default)]
    pub(crate) password: Option<Secret>,
    /// How to log in; default `plain`.
    #[serde(default)]
    pub(crate) auth: Auth,
    /// Files for `amqps`. Without this section the system's authorities are trusted.
    #[serde(default)]
    pub(crate) tls: Option<Tls>,
    /// The exchange, with the places `{kind}`, `{namespace}` and `{name}`; it must exist unless `ensure` is true. An empty
    /// text is the default exchange, whose routing keys are names of queues.
    pub(crate) exchange: Template,
    /// The routing key; default `{kind}.{namespace}.{name}`. In a part, `.` is sent as `%2E`, `*` as `%2A`, `#` as `%23` and
    /// `%` as `%25`, so that the number of words is always the same. A key above 255 bytes ends in a hash of the whole.
    #[serde(default = "default_routing_key")]
    pub(crate) routing_key: Template,
    /// A queue that must be there before anything is sent. With `ensure: true` it is created, as a durable quorum queue, and
    /// bound to the exchange for every routing key.
    #[serde(default)]
    pub(crate) queue: Option<String>,
    /// With `ensure: true`: the type of a created exchange; default `topic`.
    #[serde(default)]
    pub(crate) exchange_type: ExchangeType,
    /// Largest message in bytes, 10,000 to 536,870,912; default 16,777,216. At most the broker's `max_message_size`. A larger
    /// event goes as a reference.
    #[serde(default = "default_message_bytes_max")]
    pub(crate) message_bytes_max: usize,
}

/// How to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auth {
    /// User and password.
    #[default]
    Plain,
    /// The client certificate of `tls` is the user (SASL EXTERNAL; the broker's plugin `rabbitmq_auth_mechanism_ssl`).
    External,
}

/// Files of TLS, all in PEM.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// Authorities to trust; default: the system's.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Our certificate, for brokers that ask clients for one.
    #[serde(default)]
    pub(crate) certificate_file: Option<PathBuf>,
    /// The key of our certificate, without a password.
    #[serde(default)]
    pub(crate) key_file: Option<PathBuf>,
}

/// The type of an exchange that `ensure` creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExchangeType {
    /// Queues are bound by patterns of the routing key.
    #[default]
    Topic,
    /// Every bound queue gets every message.
    Fanout,
}

/// AMQP's limit for names and keys, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Missed twice, the connection is dead on both sides; it bounds how long a dead owner's lock stays.
pub(crate) const HEARTBEAT_SECONDS: u16 = 10;

fn default_routing_key() -> Template {
    Template::parse("{kind}.{namespace}.{name}").expect("a valid template")
}

fn default_message_bytes_max() -> usize {
    16 * 1024 * 1024
}

impl Config {
    /// Where to connect, with everything that was configured. The error names no part of the URL.
    pub(crate) fn uri(&self) -> Result<AMQPUri, String> {
        let mut uri = self.parse_url()?;
        if let Some(password) = &self.password {
            uri.authority.userinfo.password = password.open().map_err(|error| error.to_string())?;
        }
        uri.query.heartbeat = Some(HEARTBEAT_SECONDS);
        uri.query.auth_mechanism = Some(match self.auth {
            Auth::Plain => SASLMechanism::Plain,
            Auth::External => SASLMechanism::External,
        });
        Ok(uri)
    }

    fn parse_url(&self) -> Result<AMQPUri, String> {
        let text = self.url.open().map_err(|error| error.to_string())?;
        let not_amqp = |_| "is no AMQP URL; write amqps://user:password@host:5671/vhost".to_owned();
        text.trim().parse().map_err(not_amqp)
    }

    /// Refuses what cannot work and returns the virtual host, where it is known before the secret is mounted; dials nothing.
    pub(crate) fn validate(&self, ensure: bool) -> Result<Option<String>, ConfigError> {
        let uri = match self.url.is_file() {
            true => None,
            false => Some(self.parse_url().map_err(|message| ConfigError::at("url", message))?),
        };
        if !(10_000..=536_870_912).contains(&self.message_bytes_max) {
            return Err(ConfigError::at("message_bytes_max", "must be 10000 to 536870912"));
        }
        if self.queue.as_ref().is_some_and(|queue| queue.is_empty() || queue.len() > NAME_BYTES_MAX) {
            return Err(ConfigError::at("queue", "is 1 to 255 bytes long"));
        }
        for (key, template) in [("exchange", &self.exchange), ("routing_key", &self.routing_key)] {
            if template.fixed().is_some_and(|text| text.len() > NAME_BYTES_MAX) {
                return Err(ConfigError::at(key, "is at most 255 bytes long"));
            }
        }
        if ensure && self.exchange.fixed() == Some("") && self.routing_key.fixed() != self.queue.as_deref() {
            let message = "on the default exchange the routing key is the queue's name; write the same as in queue";
            return Err(ConfigError::at("routing_key", message));
        }
        self.validate_tls(uri.as_ref())?;
        Ok(uri.map(|uri| uri.vhost))
    }

    fn validate_tls(&self, uri: Option<&AMQPUri>) -> Result<(), ConfigError> {
        let tls = self.tls.clone().unwrap_or_default();
        if tls.certificate_file.is_some() != tls.key_file.is_some() {
            return Err(ConfigError::at("tls", "certificate_file and key_file belong together"));
        }
        if self.tls.is_some() && uri.is_some_and(|uri| uri.scheme == AMQPScheme::AMQP) {
            return Err(ConfigError::at("tls", "has no effect with amqp://; write amqps:// in url"));
        }
        if self.auth == Auth::External && tls.certificate_file.is_none() {
            return Err(ConfigError::at("auth", "external needs tls.certificate_file and tls.key_file"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(section: serde_json::Value) -> Config {
        serde_json::from_value(section).expect("a section")
    }

    #[test]
    fn no_error_shows_a_part_of_the_url() {
        for url in
            ["http://bridge:s3cret@host/", "amqp://bridge:s3cret@host:port/", "s3cret", "amqp://h/?heartbeat=s3cret"]
        {
            let error = config(serde_json::json!({ "url": url, "exchange": "e" })).validate(false).expect_err(url);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_password_may_stand_apart() {
        let section = serde_json::json!({
            "url": "amqp://bridge@host/%2f?auth_mechanism=anonymous&heartbeat=0",
            "password": "s3cret",
            "exchange": "e"
        });
        let config = config(section);

        let uri = config.uri().expect("valid");

        assert_eq!((uri.authority.userinfo.password.as_str(), uri.vhost.as_str()), ("s3cret", "/"));
        assert_eq!((uri.query.heartbeat, uri.query.auth_mechanism), (Some(10), Some(SASLMechanism::Plain)));
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn what_cannot_work_is_refused_at_its_key() {
        let refused = |section: serde_json::Value, ensure| config(section).validate(ensure).expect_err("refused").path;
        let url = "amqp://host/";
        assert_eq!(refused(serde_json::json!({ "url": url, "exchange": "e", "auth": "external" }), false), ["auth"]);
        assert_eq!(refused(serde_json::json!({ "url": url, "exchange": "e", "tls": {} }), false), ["tls"]);
        assert_eq!(
            refused(serde_json::json!({ "url": url, "exchange": "e", "message_bytes_max": 1 }), false),
            ["message_bytes_max"]
        );
        assert_eq!(refused(serde_json::json!({ "url": url, "exchange": "", "queue": "q" }), true), ["routing_key"]);
    }
}
