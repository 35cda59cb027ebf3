//! What a request without an answer means: wait, or tell the operator.
//!
//! Invariant: no text holds the URL's path, query or credentials.

use std::error::Error as StdError;
use std::io;

use catalog_bridge_api::ConnectorError;

use crate::address::Forbidden;

/// Why a delivery or a session ended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not sent: somebody else may own the sink.
    LeaseLost,
    Failed(ConnectorError),
}

/// What a connection that was made is refused with, so that no request follows on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unused {
    #[error("connected, and nothing was sent")]
    OnlyDialled,
    #[error("the lease is lost")]
    LeaseLost,
}

/// The meaning of the client's error.
pub(crate) fn failure(action: &'static str, endpoint: &str, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if unused(&error) == Some(Unused::LeaseLost) {
        return Failure::LeaseLost;
    }
    if let Some(forbidden) = causes(&error).find_map(|cause| cause.downcast_ref::<Forbidden>()) {
        return Failure::Failed(ConnectorError::misconfigured(endpoint, forbidden.to_string()));
    }
    let words = words(&error);
    if error.is_connect() && is_about_tls(&error) {
        let hint = "check the host name, tls.ca_file, and that the port speaks TLS";
        return Failure::Failed(ConnectorError::misconfigured(endpoint, format!("{action}: {words}; {hint}")));
    }
    Failure::Failed(ConnectorError::transient(action, endpoint, words))
}

/// Whether our own hand kept the connection from being used.
pub(crate) fn unused(error: &reqwest::Error) -> Option<Unused> {
    causes(error).find_map(|cause| cause.downcast_ref::<Unused>()).copied()
}

/// TLS speaks by errors of kind `InvalidData`; a connection that breaks has other kinds.
fn is_about_tls(error: &reqwest::Error) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// What the causes say, each once.
fn words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time (timeout_seconds)".to_owned();
    }
    let mut said: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if said.last().is_none_or(|last| !last.ends_with(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

/// The error and its causes; an `io::Error` hides the one that it wraps from `source`.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn StdError + 'static)),
        None => error.source(),
    })
}
