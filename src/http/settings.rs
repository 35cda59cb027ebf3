use std::collections::BTreeSet;
use std::time::Duration;

use catalog_bridge_api::{Secret, SourceName};

use crate::filter::Filter;

/// How the daemon serves; every value resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the readers' listener, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Address of the operator's listener; `None`: there is none.
    pub admin: Option<String>,
    /// Before every path but `/healthz`, `/readyz`, `/status`, `/metrics` and `/openapi.json`.
    pub base_path: BasePath,
    /// How readers reach us, such as `https://catalog.example.com`, for absolute links; without it links are paths.
    pub public_url: Option<String>,
    /// Who may do what.
    pub auth: Auth,
    /// The configured sources that take changes by HTTP.
    pub ingest_sources: BTreeSet<SourceName>,
    /// What one process bears.
    pub limits: Limits,
}

/// Who may do what.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Everybody may do everything. The config allows it on loopback, and elsewhere only when told `auth: none`.
    Open,
    /// Who brings one of these tokens may do what its scopes say.
    Tokens(Vec<Token>),
}

/// A static token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its name, for logs and idempotency keys.
    pub name: String,
    /// The token itself.
    pub secret: Secret,
    /// What it allows.
    pub scopes: BTreeSet<Scope>,
    /// What it sees: the view that its reader has of everything. Such a token only reads.
    pub filter: Option<Filter>,
}

/// What a token allows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Events, entities, status.
    Read,
    /// Changes of ingest sources.
    Ingest,
    /// Everything on the admin listener.
    Admin,
}

impl Scope {
    /// `read`, `ingest` or `admin`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Ingest => "ingest",
            Scope::Admin => "admin",
        }
    }
}

/// The beginning of our paths: empty, or `/…` without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePath(String);

/// A text that is no base path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no base path: write a path such as /api/catalog, of letters, digits, - . _ ~ and /")]
pub struct InvalidBasePath(String);

impl BasePath {
    /// Parses a path; a slash at the end is left out.
    pub fn parse(text: &str) -> Result<BasePath, InvalidBasePath> {
        let path = text.trim_end_matches('/');
        let is_path = path.is_empty() || (path.starts_with('/') && !path.contains("//"));
        let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte));
        if is_path && is_plain { Ok(BasePath(path.to_owned())) } else { Err(InvalidBasePath(text.to_owned())) }
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for BasePath {
    fn default() -> Self {
        BasePath("/api/catalog".to_owned())
    }
}

/// What one process bears; beyond it a request waits a little and is then refused with 503 or 429 and `Retry-After`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// Most parked long polls.
    pub waiters_max: usize,
    /// Most parked long polls of one token.
    pub waiters_per_token_max: usize,
    /// Most bytes of replies that are being built or sent.
    pub replies_bytes_max: usize,
    /// Most bytes of ingest requests that are being read and appended; each holds its body twice.
    pub ingests_bytes_max: usize,
    /// How long a request waits for its share of the above.
    pub queue_timeout: Duration,
    /// How long a client may take to send a request's headers, also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// How long a client may take to send a request's body.
    pub body_timeout: Duration,
    /// How long a client may take none of a reply that is being sent.
    pub stall_timeout: Duration,
    /// How long requests may go on when the daemon stops; long polls end at once.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 4_096,
            waiters_max: 2_000,
            waiters_per_token_max: 1_000,
            replies_bytes_max: 128 * 1024 * 1024,
            ingests_bytes_max: 128 * 1024 * 1024,
            queue_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// The defaults on these addresses: open, below `/api/catalog`.
    pub fn new(listen: impl Into<String>, admin: Option<String>) -> Settings {
        Settings {
            listen: listen.into(),
            admin,
            base_path: BasePath::default(),
            public_url: None,
            auth: Auth::Open,
            ingest_sources: BTreeSet::new(),
            limits: Limits::default(),
        }
    }

    /// A link to one of our paths, such as `/events`.
    pub(super) fn link(&self, path: &str) -> String {
        let origin = self.public_url.as_deref().unwrap_or_default().trim_end_matches('/');
        format!("{origin}{}{path}", self.base_path.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_paths_are_normalized() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(BasePath::parse(text).ok().as_ref().map(BasePath::as_str), expected, "{text}");
        };
        check("/api/catalog", Some("/api/catalog"));
        check("/api/catalog/", Some("/api/catalog"));
        check("/", Some(""));
        check("", Some(""));
        for bad in ["api", "/a//b", "/a b", "/{x}", "https://host/x"] {
            check(bad, None);
        }
    }
}
