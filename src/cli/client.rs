//! Speaks to the running daemon by HTTP.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use catalog_bridge_api::Secret;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::{Global, WrongUse};
use crate::config::Config;
use crate::http::{Auth, Scope};

/// Which of the daemon's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    Readers,
    Operators,
}

/// A daemon's listener.
pub(super) struct Client {
    base: String,
    token: Option<String>,
    http: reqwest::Client,
    hint: String,
}

impl Client {
    /// The operator's listener: as `--admin` says, else as the config says.
    pub(super) fn operators(global: &Global) -> Result<Client> {
        match &global.admin {
            Some(base) => {
                // The config, where there is one, knows the token.
                let token = match global.load() {
                    Ok(config) => token(global, Some(&config), Listener::Operators)?,
                    Err(_) => token(global, None, Listener::Operators)?,
                };
                Client::new(base, token, &format!("--admin names {base}"))
            }
            None => Client::of(global, &global.load()?, Listener::Operators),
        }
    }

    /// A listener of the config.
    pub(super) fn of(global: &Global, config: &Config, listener: Listener) -> Result<Client> {
        let address = match listener {
            Listener::Readers => config.http.listen.as_str(),
            Listener::Operators => config.http.admin.as_deref().ok_or_else(|| {
                WrongUse(
                    "http.admin is off in the config, so no command reaches the daemon; name an address there"
                        .to_owned(),
                )
            })?,
        };
        let hint = format!("start it: catalog-bridge run --config {}", global.config.display());
        let token = token(global, Some(config), listener)?;
        Client::new(&format!("http://{}", reachable(address)), token, &hint)
    }

    /// A listener at a base URL.
    pub(super) fn new(base: &str, token: Option<String>, hint: &str) -> Result<Client> {
        let base = base.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(WrongUse(format!("\"{base}\" is no address; write http://127.0.0.1:8220")).into());
        }
        let http =
            reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build().context("preparing HTTP")?;
        Ok(Client { base, token, http, hint: hint.to_owned() })
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)], patience: Duration) -> Result<Value> {
        let reply = self.send(self.http.get(self.url(path, query)?).timeout(patience)).await?;
        read(reply).await
    }

    pub(super) async fn post(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        let request = self.http.post(self.url(path, query)?).timeout(Duration::from_secs(60));
        read(self.send(request).await?).await
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> Result<url::Url> {
        let mut url = url::Url::parse(&format!("{}{path}", self.base))
            .map_err(|error| WrongUse(format!("\"{}\" is no address: {error}", self.base)))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query.iter().map(|(name, value)| (name, value.as_str())));
        }
        Ok(url)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        match request.send().await {
            Ok(reply) => Ok(reply),
            Err(error) if error.is_connect() => {
                Err(anyhow!("{}", root_cause(&error))
                    .context(format!("no daemon answers at {}; {}", self.base, self.hint)))
            }
            Err(error) => {
                Err(anyhow!("{}", root_cause(&error)).context(format!("the daemon at {} did not answer", self.base)))
            }
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The daemon refused; its `status` says whether trying again makes sense.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

async fn read(reply: Response) -> Result<Value> {
    let status = reply.status();
    let body = reply.bytes().await.context("reading the daemon's answer")?;
    let value: Result<Value, _> = serde_json::from_slice(&body);
    if status.is_success() {
        return value.context("the daemon's answer is no JSON; is this catalog-bridge?");
    }
    let detail = value.ok().and_then(|problem| Some(problem.get("detail")?.as_str()?.to_owned()));
    let mut detail = detail.unwrap_or_else(|| format!("the daemon answered {status}; is this catalog-bridge?"));
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        detail.push_str(" (name one with --token-file)");
    }
    Err(Refused { status, detail }.into())
}

/// The token: as `--token-file` says, else the first of the config that allows it.
fn token(global: &Global, config: Option<&Config>, listener: Listener) -> Result<Option<String>> {
    if let Some(path) = &global.token_file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| WrongUse(format!("--token-file {}: {error}", path.display())))?;
        return Ok(Some(text.trim().to_owned()));
    }
    let Some(Auth::Tokens(tokens)) = config.map(|config| &config.http.auth) else { return Ok(None) };
    let scope = match listener {
        Listener::Readers => Scope::Read,
        Listener::Operators => Scope::Admin,
    };
    let fitting = tokens.iter().filter(|token| token.scopes.contains(&scope));
    // One without a filter sees more.
    match fitting.min_by_key(|token| token.filter.is_some()) {
        Some(token) => open(&token.secret).map(Some),
        None => {
            let scope = scope.as_str();
            let message = format!(
                "no token of the config has the scope {scope}; add one to http.tokens, or name one with --token-file"
            );
            Err(WrongUse(message).into())
        }
    }
}

fn open(secret: &Secret) -> Result<String> {
    secret.open().context("reading a token of the config; name another with --token-file")
}

/// Where a listener on this address is reached from here.
fn reachable(address: &str) -> String {
    for (any, loopback) in [("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")] {
        if let Some(port) = address.strip_prefix(any) {
            return format!("{loopback}{port}");
        }
    }
    address.to_owned()
}

/// A path segment, with what would end it escaped.
pub(super) fn segment(name: &str) -> Result<&str> {
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !is_plain {
        bail!(WrongUse(format!("\"{name}\" is no name of a source or sink; catalog-bridge status lists them")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:8220"), "127.0.0.1:8220");
        assert_eq!(reachable("[::]:8220"), "[::1]:8220");
        assert_eq!(reachable("10.0.0.1:8220"), "10.0.0.1:8220");
    }
}
