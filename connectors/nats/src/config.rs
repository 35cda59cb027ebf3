//! The `nats:` section of a sink, and the connection options that it stands for.
//!
//! Secrets are opened when a connection is made, so that rotated files are read afresh.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use catalog_bridge_api::{ConfigError, ConnectorError, Secret, SinkName, Template};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::subject;

/// Delivers to one JetStream stream of NATS, in the order of the log. The stream must be written by this sink alone.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Servers to ask first, as `nats://host:port` or `tls://host:port`; the others of a cluster are learned from them.
    pub servers: Vec<String>,
    /// The stream. It must exist unless `ensure` is true, and take every subject of `subject`.
    pub stream: String,
    /// The subject of an entity's events; default `catalog.{kind}.{namespace}.{name}`. In the parts every byte that is no
    /// ASCII letter, digit, hyphen or underscore becomes `~` and two hexadecimal digits: `a.b` is `a~2Eb`.
    #[serde(default = "default_subject")]
    pub subject: Template,
    /// Largest message with its headers in bytes, 10,000 to 64,000,000; default 1,000,000. At most the server's
    /// `max_payload` and the stream's `max_msg_size`. A larger event goes as a reference.
    #[serde(default = "default_message_bytes_max")]
    pub message_bytes_max: usize,
    /// The JetStream domain, for leaf nodes.
    #[serde(default)]
    pub domain: Option<String>,
    /// What reply subjects begin with, for users whose permissions ask for one; default `_INBOX`.
    #[serde(default)]
    pub inbox_prefix: Option<String>,
    /// With `ensure: true`: how many replicas a created stream gets, 1 to 5; default 3, or 1 on a server without a cluster.
    #[serde(default)]
    pub replicas: Option<usize>,
    /// Log in with a credentials file (a user's JWT and seed, as `nsc` writes it). Read again for each connection, and so when the
    /// server ends one because its credentials expired.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Log in with an NKey: the user's seed, as value, `${VARIABLE}` or `file:/path`.
    #[serde(default)]
    pub nkey: Option<Secret>,
    /// Log in with a token: the value, `${VARIABLE}` or `file:/path`.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Log in with a user's name and `password`.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password: the value, `${VARIABLE}` or `file:/path`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Insist on TLS. An empty section trusts the system's authorities.
    #[serde(default)]
    pub tls: Option<Tls>,
}

/// TLS settings; all files are PEM.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Authorities to trust; default: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Our certificate, for servers that ask clients for one.
    #[serde(default)]
    pub certificate_file: Option<PathBuf>,
    /// The key of our certificate.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Shake hands before the server says anything, as servers with `handshake_first` want it; default false.
    #[serde(default)]
    pub handshake_first: bool,
}

/// Our headers and the protocol's, which [`catalog_bridge_api::Message::size_bytes`] does not count.
const OVERHEAD_BYTES: usize = 2048;
/// How long one server may take to let us in.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the server is asked whether it is still there; after two silent times the connection counts as lost.
const PING_INTERVAL: Duration = Duration::from_secs(5);

fn default_subject() -> Template {
    Template::parse("catalog.{kind}.{namespace}.{name}").expect("a valid template")
}

fn default_message_bytes_max() -> usize {
    1_000_000
}

/// Refuses what cannot work; dials nothing.
pub(crate) fn validate(config: &Config) -> Result<(), ConfigError> {
    validate_servers(config)?;
    let is_legal = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'.' | b'*' | b'>' | b'/' | b'\\');
    if config.stream.is_empty() || config.stream.len() > 255 || !config.stream.bytes().all(is_legal) {
        return Err(ConfigError::at("stream", "is 1 to 255 printable ASCII characters without . * > / \\ and spaces"));
    }
    if let Some(problem) = subject::problem(&config.subject) {
        return Err(ConfigError::at("subject", problem));
    }
    if !(10_000..=64_000_000).contains(&config.message_bytes_max) {
        return Err(ConfigError::at("message_bytes_max", "must be 10000 to 64000000"));
    }
    if config.replicas.is_some_and(|replicas| !(1..=5).contains(&replicas)) {
        return Err(ConfigError::at("replicas", "must be 1 to 5"));
    }
    for (key, value) in [("domain", &config.domain), ("inbox_prefix", &config.inbox_prefix)] {
        let is_usable = |text: &String| {
            !text.split('.').any(str::is_empty)
                && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*' && byte != b'>')
        };
        if value.as_ref().is_some_and(|text| !is_usable(text)) {
            return Err(ConfigError::at(key, "is made of words separated by single dots, without * and >"));
        }
    }
    validate_login(config)
}

fn validate_servers(config: &Config) -> Result<(), ConfigError> {
    if config.servers.is_empty() {
        return Err(ConfigError::at("servers", "needs one nats://host:port or more"));
    }
    for server in &config.servers {
        // The address may hold a password: it is not repeated here.
        let Ok(address) = server.parse::<ServerAddr>() else {
            return Err(ConfigError::at("servers", "each entry is one address such as nats://host:4222"));
        };
        if !matches!(address.scheme(), "nats" | "tls") || server.contains(',') {
            return Err(ConfigError::at("servers", "each entry is one nats:// or tls:// address"));
        }
        if address.username().is_some() || address.password().is_some() {
            let message =
                "addresses hold no credentials here; use username and password, token, nkey or credentials_file";
            return Err(ConfigError::at("servers", message));
        }
    }
    Ok(())
}

fn validate_login(config: &Config) -> Result<(), ConfigError> {
    if config.username.is_some() != config.password.is_some() {
        return Err(ConfigError::at("password", "username and password belong together"));
    }
    let ways =
        [config.credentials_file.is_some(), config.nkey.is_some(), config.token.is_some(), config.username.is_some()];
    if ways.iter().filter(|is_set| **is_set).count() > 1 {
        let message = "use one way to log in: credentials_file, nkey, token, or username and password";
        return Err(ConfigError { path: Vec::new(), message: message.to_owned() });
    }
    if config.tls.as_ref().is_some_and(|tls| tls.certificate_file.is_some() != tls.key_file.is_some()) {
        return Err(ConfigError::at("tls", "certificate_file and key_file belong together"));
    }
    Ok(())
}

impl Config {
    /// The largest message by [`catalog_bridge_api::Message::size_bytes`].
    pub(crate) fn message_limit(&self) -> usize {
        self.message_bytes_max - OVERHEAD_BYTES
    }

    /// Names the stream and its servers for messages.
    pub(crate) fn endpoint(&self) -> String {
        let shown = self.servers.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(",");
        let more = if self.servers.len() > 3 { ",…" } else { "" };
        format!("stream \"{}\" on {shown}{more}", self.stream)
    }

    /// The servers as parsed by [`validate`].
    pub(crate) fn addresses(&self) -> Vec<ServerAddr> {
        self.servers.iter().filter_map(|server| server.parse().ok()).collect()
    }

    /// How to connect; opens the secrets.
    pub(crate) fn connect_options(&self, sink: &SinkName) -> Result<ConnectOptions, ConnectorError> {
        let mut options = ConnectOptions::new()
            .name(format!("catalog-bridge {sink}"))
            .connection_timeout(CONNECTION_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .no_echo();
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if let Some(tls) = &self.tls {
            options = options.require_tls(true);
            if let Some(file) = &tls.ca_file {
                options = options.add_root_certificates(file.clone());
            }
            if let (Some(certificate), Some(key)) = (&tls.certificate_file, &tls.key_file) {
                options = options.add_client_certificate(certificate.clone(), key.clone());
            }
            if tls.handshake_first {
                options = options.tls_first();
            }
        }
        self.log_in(options)
    }

    fn log_in(&self, options: ConnectOptions) -> Result<ConnectOptions, ConnectorError> {
        if let Some(file) = &self.credentials_file {
            let refused = |problem: &str| self.misconfigured(format!("credentials_file {}: {problem}", file.display()));
            let text = std::fs::read_to_string(file).map_err(|error| refused(&error.to_string()))?;
            // Its error may quote what it read.
            return options.credentials(&text).map_err(|_| refused("holds no user JWT and seed as nsc writes them"));
        }
        if let Some(seed) = &self.nkey {
            return Ok(options.nkey(self.open("nkey", seed)?));
        }
        if let Some(token) = &self.token {
            return Ok(options.token(self.open("token", token)?));
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            return Ok(options.user_and_password(username.clone(), self.open("password", password)?));
        }
        Ok(options)
    }

    fn open(&self, key: &str, secret: &Secret) -> Result<String, ConnectorError> {
        secret.open().map_err(|error| self.misconfigured(format!("{key}: {error}")))
    }

    fn misconfigured(&self, reason: String) -> ConnectorError {
        ConnectorError::misconfigured(self.endpoint(), reason)
    }
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::parse_config;
    use serde_json::{Value, json};

    use super::*;

    fn parse(settings: &Value) -> Result<Config, ConfigError> {
        let mut section = json!({ "servers": ["nats://n1:4222"], "stream": "CATALOG" });
        for (key, value) in settings.as_object().expect("an object") {
            section[key] = value.clone();
        }
        let config = parse_config(section)?;
        validate(&config)?;
        Ok(config)
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        for (settings, key) in [
            (json!({ "servers": [] }), "servers"),
            (json!({ "servers": ["ws://n1:80"] }), "servers"),
            (json!({ "servers": ["nats://u:hunter2@n1:4222"] }), "servers"),
            (json!({ "stream": "a.b" }), "stream"),
            (json!({ "subject": "catalog.>" }), "subject"),
            (json!({ "subject": "{kidn}" }), "subject"),
            (json!({ "message_bytes_max": 5 }), "message_bytes_max"),
            (json!({ "replicas": 6 }), "replicas"),
            (json!({ "username": "u" }), "password"),
            (json!({ "tls": { "certificate_file": "a.crt" } }), "tls"),
            (json!({ "inbox_prefix": "a.*" }), "inbox_prefix"),
            (json!({ "strem": "x" }), "strem"),
        ] {
            let error = parse(&settings).expect_err("refused");
            assert_eq!(error.path.first().map(String::as_str), Some(key), "{settings}: {error}");
            assert!(!error.message.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn there_is_one_way_to_log_in() {
        let error = parse(&json!({ "token": "t", "username": "u", "password": "p" })).expect_err("refused");
        assert!(error.message.contains("one way"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = parse(&json!({ "username": "u", "password": "hunter2" })).expect("valid");
        assert!(!format!("{config:?}{}", config.endpoint()).contains("hunter2"));
    }
}
