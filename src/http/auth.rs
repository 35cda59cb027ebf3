use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tracing::warn;

use super::context::Context;
use super::problem::{Kind, Problem};
use super::settings::{Auth, Scope, Token};
use crate::filter::Filter;

/// How long secrets are used before their files are looked at again.
const SECRETS_AGE_MAX: Duration = Duration::from_secs(5);

/// What a request may do.
#[derive(Clone)]
pub(super) struct Access {
    /// The token's name; `anonymous` without tokens.
    pub(super) name: Arc<str>,
    /// What the token sees.
    pub(super) bound: Option<Filter>,
    /// Its places among the long polls.
    pub(super) waiters: Option<Arc<Semaphore>>,
}

/// May read.
pub(super) struct Reader(pub(super) Access);
/// May read what is not only about single entities; no token with a filter does.
pub(super) struct Overseer;
/// May append to ingest sources.
pub(super) struct Writer(pub(super) Access);
/// May command.
pub(super) struct Operator(pub(super) Access);

/// The configured tokens. Only digests are compared, in constant time and all of them, so that a response's time tells
/// nothing of a secret.
pub(super) struct Tokens {
    /// `None`: everybody may do everything.
    known: Option<Vec<Known>>,
    digests: Mutex<Option<Digests>>,
}

/// What the secrets were at this moment, in the tokens' order.
struct Digests {
    read_at: Instant,
    digests: Vec<Option<[u8; 32]>>,
}

struct Known {
    token: Token,
    access: Access,
}

impl Tokens {
    pub(super) fn new(auth: &Auth, waiters_max: usize) -> Tokens {
        let known = match auth {
            Auth::Open => None,
            Auth::Tokens(tokens) => Some(tokens.iter().map(|token| Known::new(token, waiters_max)).collect()),
        };
        Tokens { known, digests: Mutex::new(None) }
    }

    /// Who asks, if that one may do this.
    fn allow(&self, headers: &HeaderMap, scope: Scope) -> Result<Access, Problem> {
        let Some(known) = &self.known else { return Ok(Access::anonymous()) };
        let Some(given) = bearer(headers) else {
            return Err(unauthenticated("send a token as \"Authorization: Bearer <token>\""));
        };
        let Some(index) = self.find(known, given) else {
            return Err(unauthenticated("this token is not known; take one of the configured tokens"));
        };
        let Known { token, access } = &known[index];
        if !token.scopes.contains(&scope) {
            return Err(insufficient(&format!(
                "token \"{}\" lacks the scope {}; it has: {}",
                token.name,
                scope.as_str(),
                scopes_text(&token.scopes)
            )));
        }
        Ok(access.clone())
    }

    /// The same, for what a token with a filter cannot do.
    fn allow_whole(&self, headers: &HeaderMap, scope: Scope) -> Result<Access, Problem> {
        let access = self.allow(headers, scope)?;
        if access.bound.is_none() {
            return Ok(access);
        }
        Err(insufficient(&format!(
            "token \"{}\" is bound to a filter, so it only reads events and entities; take a token without a filter",
            access.name
        )))
    }

    fn find(&self, known: &[Known], given: &str) -> Option<usize> {
        let given: [u8; 32] = Sha256::digest(given.as_bytes()).into();
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = digests.as_ref().is_some_and(|known| known.read_at.elapsed() < SECRETS_AGE_MAX);
        if !is_fresh {
            *digests = Some(Digests { read_at: Instant::now(), digests: known.iter().map(Known::digest).collect() });
        }
        let mut found = None;
        for (index, digest) in digests.iter().flat_map(|known| &known.digests).enumerate() {
            if let Some(digest) = digest
                && bool::from(digest.ct_eq(&given))
            {
                found = Some(index);
            }
        }
        found
    }
}

impl Known {
    fn new(token: &Token, waiters_max: usize) -> Known {
        let access = Access {
            name: token.name.as_str().into(),
            bound: token.filter.clone(),
            waiters: Some(Arc::new(Semaphore::new(waiters_max))),
        };
        Known { token: token.clone(), access }
    }

    /// `None` when the secret cannot be read or is empty: then nobody has this token.
    fn digest(&self) -> Option<[u8; 32]> {
        match self.token.secret.open() {
            Ok(secret) if secret.is_empty() => {
                warn!(token = self.token.name, "the token's secret is empty; nobody can use it");
                None
            }
            Ok(secret) => Some(Sha256::digest(secret.as_bytes()).into()),
            Err(error) => {
                warn!(token = self.token.name, %error, "the token's secret cannot be read; nobody can use it");
                None
            }
        }
    }
}

impl Access {
    fn anonymous() -> Access {
        Access { name: "anonymous".into(), bound: None, waiters: None }
    }
}

impl FromRequestParts<Arc<Context>> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Arc<Context>) -> Result<Self, Problem> {
        context.tokens.allow(&parts.headers, Scope::Read).map(Reader)
    }
}

impl FromRequestParts<Arc<Context>> for Overseer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Arc<Context>) -> Result<Self, Problem> {
        context.tokens.allow_whole(&parts.headers, Scope::Read).map(|_| Overseer)
    }
}

impl FromRequestParts<Arc<Context>> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Arc<Context>) -> Result<Self, Problem> {
        refuse_other_sites(parts)?;
        context.tokens.allow_whole(&parts.headers, Scope::Ingest).map(Writer)
    }
}

impl FromRequestParts<Arc<Context>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Arc<Context>) -> Result<Self, Problem> {
        refuse_other_sites(parts)?;
        context.tokens.allow_whole(&parts.headers, Scope::Admin).map(Operator)
    }
}

/// What a request without tokens to a loopback listener may call us. A web page whose name was made to lead to this machine
/// (DNS rebinding) is of our own origin to the browser, and gives itself away only by that name.
pub(super) fn refuse_other_names(headers: &HeaderMap, public_url: Option<&str>) -> Result<(), Problem> {
    // Browsers always send it.
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let name = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let public = public_url.and_then(|url| url.parse::<Uri>().ok());
    let is_ours = name.as_ref().map(Authority::host).is_some_and(|name| {
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.to_canonical().is_loopback())
            || public.as_ref().and_then(Uri::host).is_some_and(|public| public.eq_ignore_ascii_case(name))
    });
    if is_ours {
        return Ok(());
    }
    let detail = "without tokens this listener answers only to localhost, a loopback address or the host of http.public_url; \
                  ask for one of them, or configure tokens";
    Err(Problem::of_field(Kind::CrossOrigin, "Host", detail))
}

/// Without tokens, loopback is the only fence, and a web page in a browser of this machine is inside it. Browsers say where
/// a request comes from.
fn refuse_other_sites(parts: &Parts) -> Result<(), Problem> {
    let Some(origin) = parts.headers.get(header::ORIGIN) else { return Ok(()) };
    if parts.method == Method::GET || parts.method == Method::HEAD {
        return Ok(());
    }
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_ours = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.parse::<Uri>().ok())
        .and_then(|origin| origin.authority().map(ToString::to_string))
        .is_some_and(|authority| Some(authority.as_str()) == host);
    if is_ours {
        return Ok(());
    }
    let detail = "the request comes from a web page of another site; send it from a program, without Origin";
    Err(Problem::of_field(Kind::CrossOrigin, "Origin", detail))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn unauthenticated(detail: &str) -> Problem {
    Problem::of_field(Kind::Unauthenticated, "Authorization", detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"catalog-bridge\""))
}

fn insufficient(detail: &str) -> Problem {
    Problem::of_field(Kind::InsufficientScope, "Authorization", detail)
}

fn scopes_text(scopes: &BTreeSet<Scope>) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ")
}
