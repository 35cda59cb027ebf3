//! The `webhook:` section of a sink.
//!
//! The URL is a secret as a whole, as many receivers put a token into path or query: only scheme, host and port are ever shown.

use std::path::PathBuf;
use std::time::Duration;

use catalog_bridge_api::{ConfigError, Secret};
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::address::Guard;
use crate::signature;

/// Posts each event to an HTTP endpoint, signed by Standard Webhooks, in order per entity.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to post to, `https://host/path`: the value, `${VARIABLE}` or `file:/path`. `user:password@` before the host is sent
    /// as basic authentication.
    pub(crate) url: Secret,
    /// What requests are signed with: `whsec_` and the base64 of 24 to 64 random bytes (`echo "whsec_$(openssl rand -base64
    /// 32)"`), as the value, `${VARIABLE}` or `file:/path` (read again within 10 s). While it is being replaced, a list: each of
    /// them signs, and a receiver accepts any signature that it knows.
    pub(crate) secret: Secrets,
    /// Files for `https`. Without this section the system's authorities are trusted.
    #[serde(default)]
    pub(crate) tls: Option<Tls>,
    /// Post to `http://` as well, where everybody on the way reads along. Default false.
    #[serde(default)]
    pub(crate) allow_http: bool,
    /// Addresses of the inside that may be posted to, such as `[10.0.0.0/8, "fd12:3456::/32", 127.0.0.1]`. All that are not public
    /// (private, loopback, link-local, shared, reserved, multicast) are refused otherwise, whatever name leads there. A cloud's
    /// metadata address is allowed only by itself, never by a network that holds it. Default: none.
    #[serde(default)]
    pub(crate) allow_addresses: Vec<String>,
    /// How many requests may wait for an answer, 1 to 256; default 16. Each is of another entity; with `ordering: stream` there
    /// is one.
    #[serde(default = "default_max_in_flight")]
    pub(crate) max_in_flight: usize,
    /// How many events are sent per second at most, 0.01 to 100000. Default: as many as are answered.
    #[serde(default)]
    pub(crate) max_rate: Option<f64>,
    /// How many seconds the endpoint has for an answer, connecting included, 1 to 60; default 20.
    #[serde(default = "default_timeout_seconds")]
    pub(crate) timeout_seconds: u64,
    /// Largest message in bytes, 10,000 to 536,870,912; default 1,000,000, which nginx takes as it comes. A larger event goes as a
    /// reference.
    #[serde(default = "default_message_bytes_max")]
    pub(crate) message_bytes_max: usize,
}

/// One signing secret, or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Secrets {
    One(Secret),
    /// Each signs.
    Several(Vec<Secret>),
}

/// Files of TLS, all in PEM.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// Authorities to trust; default: the system's.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
}

/// More would only make the header longer than receivers take.
const SECRETS_MAX: usize = 8;

fn default_max_in_flight() -> usize {
    16
}

fn default_timeout_seconds() -> u64 {
    20
}

fn default_message_bytes_max() -> usize {
    1_000_000
}

impl Secrets {
    pub(crate) fn as_slice(&self) -> &[Secret] {
        match self {
            Secrets::One(secret) => std::slice::from_ref(secret),
            Secrets::Several(secrets) => secrets,
        }
    }
}

impl Config {
    /// Where to post to. The error names no part of the URL beyond its host.
    pub(crate) fn parse_url(&self) -> Result<Url, String> {
        let text = self.url.open().map_err(|error| error.to_string())?;
        let no_url = || "is no URL of an endpoint; write https://host/path".to_owned();
        let url = Url::parse(text.trim()).map_err(|_| no_url())?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => {
                return Err("is http://, which is not encrypted; write https:// or set allow_http: true".to_owned());
            }
            _ => return Err(no_url()),
        }
        Ok(url)
    }

    pub(crate) fn guard(&self) -> Result<Guard, ConfigError> {
        Guard::new(&self.allow_addresses).map_err(|(index, message)| ConfigError {
            path: vec!["allow_addresses".to_owned(), index.to_string()],
            message,
        })
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Refuses what cannot work and returns the endpoint, where it is known before the secret is mounted; dials nothing.
    pub(crate) fn validate(&self) -> Result<Option<String>, ConfigError> {
        let guard = self.guard()?;
        let url = match self.url.is_file() {
            true => None,
            false => Some(self.parse_url().map_err(|message| ConfigError::at("url", message))?),
        };
        if let Some(url) = &url {
            guard.check_literal(url).map_err(|error| ConfigError::at("url", error.to_string()))?;
        }
        self.validate_secrets()?;
        for (key, is_right, message) in [
            ("max_in_flight", (1..=256).contains(&self.max_in_flight), "must be 1 to 256"),
            ("timeout_seconds", (1..=60).contains(&self.timeout_seconds), "must be 1 to 60"),
            (
                "message_bytes_max",
                (10_000..=536_870_912).contains(&self.message_bytes_max),
                "must be 10000 to 536870912",
            ),
            ("max_rate", self.max_rate.is_none_or(|rate| (0.01..=100_000.0).contains(&rate)), "must be 0.01 to 100000"),
        ] {
            if !is_right {
                return Err(ConfigError::at(key, message));
            }
        }
        if self.tls.is_some() && url.as_ref().is_some_and(|url| url.scheme() == "http") {
            return Err(ConfigError::at("tls", "has no effect with http://; write https:// in url"));
        }
        Ok(url.map(|url| endpoint(&url)))
    }

    fn validate_secrets(&self) -> Result<(), ConfigError> {
        let secrets = self.secret.as_slice();
        if secrets.is_empty() || secrets.len() > SECRETS_MAX {
            return Err(ConfigError::at("secret", format!("is one secret, or a list of 1 to {SECRETS_MAX}")));
        }
        for secret in secrets.iter().filter(|secret| !secret.is_file()) {
            signature::read_key(secret).map_err(|message| ConfigError::at("secret", message))?;
        }
        Ok(())
    }
}

/// `https://host:port`, all of a URL that is ever shown.
pub(crate) fn endpoint(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn refusal(change: Value) -> Option<String> {
        let mut section = json!({ "url": "https://hooks.example/catalog", "secret": SECRET });
        for (key, value) in change.as_object().expect("an object") {
            section[key] = value.clone();
        }
        let config: Config = catalog_bridge_api::parse_config(section).expect("well formed");
        config.validate().err().map(|error| format!("{}: {}", error.path.join("."), error.message))
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        assert_eq!(refusal(json!({})), None);
        assert_eq!(refusal(json!({ "secret": [SECRET, "file:/run/old"], "url": "file:/run/url" })), None);
        for (change, key) in [
            (json!({ "url": "http://hooks.example/catalog" }), "url"),
            (json!({ "url": "ftp://hooks.example/catalog", "allow_http": true }), "url"),
            (json!({ "url": "hooks.example/catalog" }), "url"),
            (json!({ "url": "https://10.1.2.3/catalog" }), "url"),
            (json!({ "secret": "whsec_c2hvcnQ=" }), "secret"),
            (json!({ "secret": "plain text of enough length" }), "secret"),
            (json!({ "secret": [] }), "secret"),
            (json!({ "allow_addresses": ["10.0.0.0/8", "10.0.0.0/33"] }), "allow_addresses.1"),
            (json!({ "max_in_flight": 0 }), "max_in_flight"),
            (json!({ "max_rate": 0.0 }), "max_rate"),
            (json!({ "timeout_seconds": 61 }), "timeout_seconds"),
            (json!({ "message_bytes_max": 10 }), "message_bytes_max"),
            (json!({ "url": "http://hooks.example/", "allow_http": true, "tls": {} }), "tls"),
        ] {
            let refusal = refusal(change.clone()).unwrap_or_else(|| panic!("{change} is taken"));
            assert!(refusal.starts_with(&format!("{key}: ")), "{change}: {refusal}");
        }
    }

    #[test]
    fn no_refusal_shows_a_secret() {
        let secret = refusal(json!({ "secret": "whsec_c2hvcnQ=" })).expect("refused");
        assert!(!secret.contains("c2hvcnQ"), "{secret}");
        let url = refusal(json!({ "url": "http://me:hunter2@hooks.example/T0KEN" })).expect("refused");
        assert!(!url.contains("hunter2") && !url.contains("T0KEN"), "{url}");
    }
}
