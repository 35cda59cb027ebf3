//! The `kafka:` section of a sink, and the librdkafka settings that it stands for.
//!
//! Keeps P5 and P6 by what it always sets: idempotence, the gapless guarantee, messages that never expire. Secrets are
//! opened when a client is made, so that rotated files are read afresh.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use catalog_bridge_api::{BuildContext, ConfigError, ConnectorError, Ordering, Secret};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::properties;

/// Delivers to one topic of Apache Kafka or a compatible broker, keyed by entity ref.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Brokers to ask first, as `host:port`; the others are learned from them.
    pub brokers: Vec<String>,
    /// The topic. It must exist unless `ensure` is true.
    pub topic: String,
    /// `idempotent`: at least once, fastest, consumers need nothing special. `transactional`: exactly once for consumers that
    /// read committed records only, with a former owner fenced off by the broker; needs Read on the topic and rights on the
    /// transactional id.
    #[serde(default)]
    pub delivery: Delivery,
    /// Send a removed entity as a record without a value, as compacted topics want it. The headers stay.
    #[serde(default)]
    pub tombstones: bool,
    /// Largest record in bytes, 10,000 to 100,000,000; default 1,000,000. At most the topic's `max.message.bytes`. A larger
    /// event goes as a reference.
    #[serde(default = "default_message_bytes_max")]
    pub message_bytes_max: usize,
    /// Compression of batches; default none. `lz4` costs about 15 % of the throughput, `zstd` half of it.
    #[serde(default)]
    pub compression: Compression,
    /// How long to wait for more records before a batch is sent, in milliseconds, 0 to 1000; default 5.
    #[serde(default = "default_linger_ms")]
    pub linger_ms: u64,
    /// With `ensure: true`: how many partitions a created topic gets, 1 to 1000; default 6, or 1 with `ordering: stream`.
    #[serde(default)]
    pub partitions: Option<i32>,
    /// With `ensure: true`: how many replicas a created topic gets, 1 to 7; default 3, or as many as there are brokers.
    #[serde(default)]
    pub replication_factor: Option<i32>,
    /// Speak TLS. An empty section trusts the system's authorities.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Log in by SASL.
    #[serde(default)]
    pub sasl: Option<Sasl>,
    /// Other librdkafka settings, by their own names. Those that order or safety rest on are refused.
    #[serde(default)]
    pub properties: BTreeMap<String, Scalar>,
}

/// How sure a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// At least once: after a crash a suffix is repeated.
    #[default]
    Idempotent,
    /// Exactly once, for consumers with `isolation.level=read_committed`.
    Transactional,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// TLS settings; all files are PEM.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Authorities to trust; default: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Our certificate, for brokers that ask clients for one.
    #[serde(default)]
    pub certificate_file: Option<PathBuf>,
    /// The key of our certificate.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The password of the key, if it has one.
    #[serde(default)]
    pub key_password: Option<Secret>,
}

/// SASL settings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// `plain`, `scram-sha-256` or `scram-sha-512`.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The user's password: the value, `${VARIABLE}` or `file:/path`.
    pub password: Secret,
}

/// SASL mechanisms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// The password goes over the wire: only with `tls`.
    Plain,
    /// Challenge and response.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// Challenge and response.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

/// A setting's value as YAML writes it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Scalar {
    Bool(bool),
    Integer(i64),
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scalar::Bool(value) => value.fmt(formatter),
            Scalar::Integer(value) => value.fmt(formatter),
            Scalar::Text(value) => value.fmt(formatter),
        }
    }
}

/// Bytes that librdkafka may hold of what was not yet acknowledged; when they are used up, the session waits.
pub(crate) const BUFFER_BYTES: usize = 32 << 20;
/// Records that may be unacknowledged.
pub(crate) const WINDOW_EVENTS: usize = 20_000;
/// Headers, key framing and batch header that [`catalog_bridge_api::Message::size_bytes`] does not count.
const OVERHEAD_BYTES: usize = 1024;
/// A transaction is aborted by the broker after this time; consumers of committed records wait for it at worst.
pub(crate) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

fn default_message_bytes_max() -> usize {
    1_000_000
}

fn default_linger_ms() -> u64 {
    5
}

/// Refuses what cannot work; dials nothing.
pub(crate) fn validate(config: &Config, context: &BuildContext) -> Result<(), ConfigError> {
    if config.brokers.is_empty() || config.brokers.iter().any(|broker| broker.is_empty() || broker.contains(',')) {
        return Err(ConfigError::at("brokers", "needs one host:port or more, each as an entry of the list"));
    }
    validate_topic(&config.topic)?;
    within("message_bytes_max", config.message_bytes_max as u64, 10_000..=100_000_000)?;
    within("linger_ms", config.linger_ms, 0..=1000)?;
    if let Some(partitions) = config.partitions {
        within("partitions", u64::try_from(partitions).unwrap_or(0), 1..=1000)?;
        if context.ordering == Ordering::Stream && partitions != 1 {
            return Err(ConfigError::at("partitions", "ordering: stream needs a topic of one partition"));
        }
    }
    if let Some(replicas) = config.replication_factor {
        within("replication_factor", u64::try_from(replicas).unwrap_or(0), 1..=7)?;
    }
    if let Some(tls) = &config.tls
        && tls.certificate_file.is_some() != tls.key_file.is_some()
    {
        return Err(ConfigError::at("tls", "certificate_file and key_file belong together"));
    }
    validate_properties(config)
}

fn validate_topic(topic: &str) -> Result<(), ConfigError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if topic.contains('{') {
        return Err(ConfigError::at("topic", "is one fixed name; use one sink per topic, each with its filter"));
    }
    if topic.is_empty() || topic.len() > 249 || !topic.bytes().all(is_legal) || topic == "." || topic == ".." {
        return Err(ConfigError::at("topic", "is 1 to 249 ASCII letters, digits, dots, underscores and hyphens"));
    }
    Ok(())
}

fn within(key: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::at(key, format!("must be {} to {}", range.start(), range.end())))
}

fn validate_properties(config: &Config) -> Result<(), ConfigError> {
    let at = |key: &str, message: String| ConfigError { path: vec!["properties".to_owned(), key.to_owned()], message };
    for (key, value) in &config.properties {
        if let Some(reason) = properties::refusal(key) {
            return Err(at(key, format!("may not be set here: {reason}")));
        }
        let mut probe = ClientConfig::new();
        probe.set(key, value.to_string());
        if let Err(error) = probe.create_native_config() {
            let words = match error {
                KafkaError::ClientConfig(_, words, _, _) => words,
                other => other.to_string(),
            };
            return Err(at(key, format!("is not accepted by librdkafka: {words}")));
        }
    }
    Ok(())
}

impl Config {
    /// The largest message by [`catalog_bridge_api::Message::size_bytes`].
    pub(crate) fn message_limit(&self) -> usize {
        self.message_bytes_max - OVERHEAD_BYTES
    }

    /// Names the topic and its brokers for messages.
    pub(crate) fn endpoint(&self) -> String {
        let shown = self.brokers.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(",");
        let more = if self.brokers.len() > 3 { ",…" } else { "" };
        format!("topic \"{}\" on {shown}{more}", self.topic)
    }

    /// Settings of any client: where to and who we are.
    pub(crate) fn client(&self) -> Result<ClientConfig, ConnectorError> {
        let mut client = ClientConfig::new();
        // Before ours, which therefore win whatever is in it.
        client.extend(self.properties.iter().map(|(key, value)| (key.clone(), value.to_string())));
        client
            .set("bootstrap.servers", self.brokers.join(","))
            .set("security.protocol", self.security_protocol())
            .set("allow.auto.create.topics", "false")
            // The default of 10 s is what one waits for after a broker came back (MEASURED section 1).
            .set("reconnect.backoff.max.ms", "500")
            .set_log_level(RDKafkaLogLevel::Warning);
        if !self.properties.contains_key("client.id") {
            client.set("client.id", "catalog-bridge");
        }
        if let Some(tls) = &self.tls {
            self.set_tls(&mut client, tls)?;
        }
        if let Some(sasl) = &self.sasl {
            client
                .set("sasl.mechanisms", sasl.mechanism.as_str())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", self.open("sasl.password", &sasl.password)?);
        }
        Ok(client)
    }

    /// Settings of a producer that keeps order.
    pub(crate) fn producer(&self) -> Result<ClientConfig, ConnectorError> {
        let mut client = self.client()?;
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("max.in.flight.requests.per.connection", "5")
            .set("message.max.bytes", self.message_bytes_max.to_string())
            .set("compression.type", self.compression.as_str())
            .set("linger.ms", self.linger_ms.to_string())
            .set("queue.buffering.max.messages", WINDOW_EVENTS.to_string());
        for (key, value) in [
            // One record of the largest size must always fit.
            ("queue.buffering.max.kbytes", (BUFFER_BYTES.max(self.message_bytes_max * 2) >> 10).to_string()),
            ("socket.timeout.ms", "30000".to_owned()),
        ] {
            if !self.properties.contains_key(key) {
                client.set(key, value);
            }
        }
        Ok(client)
    }

    /// Settings of the idempotent producer: nothing expires, a gap is fatal.
    pub(crate) fn idempotent_producer(&self) -> Result<ClientConfig, ConnectorError> {
        let mut client = self.producer()?;
        client.set("message.timeout.ms", "0").set("enable.gapless.guarantee", "true");
        Ok(client)
    }

    /// Settings of the transactional producer; a message that expires there aborts the transaction, so no gap can arise.
    pub(crate) fn transactional_producer(&self, transactional_id: &str) -> Result<ClientConfig, ConnectorError> {
        let timeout = TRANSACTION_TIMEOUT.as_millis().to_string();
        let mut client = self.producer()?;
        client
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", &timeout)
            .set("message.timeout.ms", timeout);
        Ok(client)
    }

    fn security_protocol(&self) -> &'static str {
        match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), None) => "ssl",
            (Some(_), Some(_)) => "sasl_ssl",
        }
    }

    fn set_tls(&self, client: &mut ClientConfig, tls: &Tls) -> Result<(), ConnectorError> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        // The vendored OpenSSL knows no system directory: librdkafka must look for it.
        client.set("ssl.ca.location", tls.ca_file.as_ref().map_or_else(|| "probe".to_owned(), text));
        if let (Some(certificate), Some(key)) = (&tls.certificate_file, &tls.key_file) {
            client.set("ssl.certificate.location", text(certificate)).set("ssl.key.location", text(key));
        }
        if let Some(password) = &tls.key_password {
            client.set("ssl.key.password", self.open("tls.key_password", password)?);
        }
        Ok(())
    }

    fn open(&self, key: &str, secret: &Secret) -> Result<String, ConnectorError> {
        secret.open().map_err(|error| ConnectorError::misconfigured(self.endpoint(), format!("{key}: {error}")))
    }
}

impl Compression {
    fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

impl Mechanism {
    fn as_str(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{SinkName, parse_config};
    use serde_json::json;

    use super::*;

    fn context() -> BuildContext {
        let sink = SinkName::parse("platform").expect("a name");
        BuildContext { sink, ordering: Ordering::Entity, ensure: false }
    }

    fn parse(mut section: serde_json::Value) -> Result<Config, ConfigError> {
        let defaults = json!({ "brokers": ["kafka:9092"], "topic": "catalog.entities" });
        for (key, value) in defaults.as_object().expect("an object") {
            section.as_object_mut().expect("an object").entry(key).or_insert_with(|| value.clone());
        }
        let config = parse_config(section)?;
        validate(&config, &context())?;
        Ok(config)
    }

    #[track_caller]
    fn refused(section: serde_json::Value, path: &[&str], part: &str) {
        let error = parse(section).expect_err("refused");
        assert_eq!(error.path, path, "{error}");
        assert!(error.message.contains(part), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_at_its_key() {
        refused(json!({ "brokers": [] }), &["brokers"], "host:port");
        refused(json!({ "topic": "a/b" }), &["topic"], "249");
        refused(json!({ "topic": "catalog.{kind}" }), &["topic"], "one sink per topic");
        refused(json!({ "message_bytes_max": 10 }), &["message_bytes_max"], "10000");
        refused(json!({ "tls": { "key_file": "a" } }), &["tls"], "belong together");
        refused(json!({ "properties": { "acks": 1 } }), &["properties", "acks"], "always on");
        refused(json!({ "properties": { "no.such": 1 } }), &["properties", "no.such"], "librdkafka");
        refused(json!({ "sasl": { "mechanism": "gssapi" } }), &["sasl", "mechanism"], "scram-sha-256");
    }

    #[test]
    fn settings_of_ours_stand_whatever_the_properties_say() {
        let config = parse(json!({ "properties": { "batch.size": 500, "socket.timeout.ms": 7000 } })).expect("valid");

        let client = config.idempotent_producer().expect("settings");

        for (key, value) in [
            ("enable.idempotence", "true"),
            ("message.timeout.ms", "0"),
            ("enable.gapless.guarantee", "true"),
            ("reconnect.backoff.max.ms", "500"),
            ("batch.size", "500"),
            ("socket.timeout.ms", "7000"),
        ] {
            assert_eq!(client.get(key), Some(value), "{key}");
        }
        assert!(client.create_native_config().is_ok());
    }

    #[test]
    fn a_password_is_never_printed() {
        let config =
            parse(json!({ "sasl": { "mechanism": "plain", "username": "u", "password": "hunter2" } })).expect("valid");
        assert!(!format!("{config:?}{}", config.endpoint()).contains("hunter2"));
    }
}
