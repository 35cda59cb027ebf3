//! `http`: where readers and operators are served, and who may do what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use catalog_bridge_api::{Secret, SourceName};
use serde::Deserialize;

use super::refusal::Refusals;
use super::sinks::{OneOrMany, resolve_filter};
use crate::http::{Auth, BasePath, Scope, Settings, Token};

/// Where readers listen unless the config says so.
pub(super) const LISTEN: &str = "127.0.0.1:8219";
/// Where operators are served unless the config says so.
pub(super) const ADMIN: &str = "127.0.0.1:8220";

/// Where readers and operators are served, and who may do what.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HttpSection {
    /// Address of the readers' listener, `host:port`; port 0 takes a free one. Without tokens only a loopback address, unless
    /// `auth: none`. Default `127.0.0.1:8219`.
    listen: Option<String>,
    /// Address of the operator's listener (the commands `sinks`, `source`, `log new-id`, `redact` use it), or `off`. Elsewhere
    /// than on loopback it needs a token with the scope `admin`. Default `127.0.0.1:8220`.
    admin: Option<String>,
    /// Before every path but `/healthz`, `/readyz`, `/status`, `/metrics` and `/openapi.json`. Default `/api/catalog`.
    base_path: Option<String>,
    /// How readers reach us, such as `https://catalog.example.com`: the beginning of links in replies and in references to
    /// oversize events. Default: links are paths.
    public_url: Option<String>,
    /// `tokens`: who brings none may do nothing, once one is configured. `none`: everybody may do everything; no tokens then.
    auth: Option<AuthMode>,
    /// Who may do what.
    tokens: Vec<TokenSection>,
}

/// Whether tokens are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum AuthMode {
    Tokens,
    None,
}

/// A static token, sent as `Authorization: Bearer …`.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct TokenSection {
    /// Its name, for logs; unique.
    name: String,
    /// The token itself: `${VARIABLE}` or `file:/path`. At least 16 characters.
    token: Secret,
    /// What it allows: `read` (events, entities, status), `ingest` (changes of ingest sources), `admin` (the operator's listener).
    /// Default `[read]`.
    #[serde(default = "read_only")]
    scopes: BTreeSet<Scope>,
    /// What it sees, in Backstage's filter syntax; a list is OR. Only with the scope `read` alone.
    #[serde(default)]
    filter: Option<OneOrMany>,
}

fn read_only() -> BTreeSet<Scope> {
    BTreeSet::from([Scope::Read])
}

impl HttpSection {
    pub(super) fn resolve(&self, ingest_sources: BTreeSet<SourceName>, refusals: &mut Refusals<'_>) -> Settings {
        let listen = self.listen.clone().unwrap_or_else(|| LISTEN.to_owned());
        let admin = match self.admin.as_deref() {
            Some("off") => None,
            Some(address) => Some(address.to_owned()),
            None => Some(ADMIN.to_owned()),
        };
        let mut settings = Settings::new(listen, admin);
        settings.ingest_sources = ingest_sources;
        settings.auth = self.auth(refusals);
        self.refuse_open_doors(&settings, refusals);
        if let Some(text) = &self.base_path {
            match BasePath::parse(text) {
                Ok(path) => settings.base_path = path,
                Err(error) => refusals.add(&["http", "base_path"], error.to_string()),
            }
        }
        if let Some(text) = &self.public_url {
            let is_http = url::Url::parse(text).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.query().is_none()
                    && url.fragment().is_none()
            });
            if !is_http {
                refusals.add(&["http", "public_url"], "this is no address; write https://catalog.example.com");
            }
            settings.public_url = Some(text.trim_end_matches('/').to_owned());
        }
        settings
    }

    fn auth(&self, refusals: &mut Refusals<'_>) -> Auth {
        if self.tokens.is_empty() {
            if self.auth == Some(AuthMode::Tokens) {
                refusals.add(&["http", "auth"], "asks for tokens, and none is configured; add http.tokens");
            }
            return Auth::Open;
        }
        if self.auth == Some(AuthMode::None) {
            refusals.add(&["http", "auth"], "none stands beside tokens; remove one of the two");
        }
        let mut names = BTreeMap::new();
        let tokens = self.tokens.iter().enumerate().map(|(index, token)| {
            let index_text = index.to_string();
            if names.insert(token.name.as_str(), index).is_some() {
                refusals.add(
                    &["http", "tokens", &index_text, "name"],
                    format!("the name \"{}\" is used twice", token.name),
                );
            }
            token.resolve(&index_text, refusals)
        });
        Auth::Tokens(tokens.collect())
    }

    /// Without tokens everybody who reaches the port may do everything.
    fn refuse_open_doors(&self, settings: &Settings, refusals: &mut Refusals<'_>) {
        let is_told = self.auth == Some(AuthMode::None);
        let has_admin = match &settings.auth {
            Auth::Open => false,
            Auth::Tokens(tokens) => tokens.iter().any(|token| token.scopes.contains(&Scope::Admin)),
        };
        let is_open = matches!(settings.auth, Auth::Open);
        match is_loopback(&settings.listen) {
            None => refusals.add(&["http", "listen"], "this is no address; write host:port, such as 0.0.0.0:8219"),
            Some(false) if is_open && !is_told => refusals.add(
                &["http", "listen"],
                "without tokens only a loopback address (127.0.0.1) is served; add http.tokens, or write auth: none",
            ),
            Some(_) => {}
        }
        match settings.admin.as_deref().map(is_loopback) {
            Some(None) => {
                refusals.add(&["http", "admin"], "this is no address; write host:port, such as 127.0.0.1:8220, or off");
            }
            Some(Some(false)) if !has_admin && !is_told => refusals.add(
                &["http", "admin"],
                "elsewhere than on loopback this needs a token with the scope admin; add one, or write auth: none",
            ),
            _ => {}
        }
    }
}

impl TokenSection {
    fn resolve(&self, index: &str, refusals: &mut Refusals<'_>) -> Token {
        let at = |key| ["http", "tokens", index, key];
        if self.scopes.is_empty() {
            refusals.add(&at("scopes"), "allows nothing; write one or more of read, ingest, admin");
        }
        if !self.token.is_file() && self.token.open().is_ok_and(|text| text.len() < 16) {
            refusals.add(&at("token"), "is shorter than 16 characters; make one by: openssl rand -hex 32");
        }
        let filter = self.filter.as_ref().and_then(|filter| resolve_filter(filter, &at("filter"), refusals));
        if filter.is_some() && self.scopes != read_only() {
            refusals.add(&at("filter"), "binds what the token reads, so its scopes must be [read]");
        }
        Token { name: self.name.clone(), secret: self.token.clone(), scopes: self.scopes.clone(), filter }
    }
}

/// Whether an address is this machine only; `None`: it is no `host:port`.
fn is_loopback(address: &str) -> Option<bool> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return Some(address.ip().is_loopback());
    }
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let is_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    is_host.then(|| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for (address, expected) in [
            ("127.0.0.1:0", Some(true)),
            ("[::1]:8219", Some(true)),
            ("localhost:8219", Some(true)),
            ("0.0.0.0:8219", Some(false)),
            ("[::]:8219", Some(false)),
            ("catalog.example.com:80", Some(false)),
            ("8219", None),
            (":8219", None),
            ("host:99999", None),
            ("http://host:80", None),
        ] {
            assert_eq!(is_loopback(address), expected, "{address}");
        }
    }
}
