//! What the client library's and the server's errors mean to the driver.
//!
//! The texts are the server's own words; none of them quotes a credential. Knows nothing of sessions.

use std::error::Error as StdError;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::{ConnectError, ConnectErrorKind, jetstream, rustls};
use catalog_bridge_api::ConnectorError;

/// What a refusal of the server asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It passes, or the tail says more.
    Transient,
    /// This message is never accepted.
    Refused,
    /// An operator must act.
    Misconfigured,
}

/// A failure to connect.
pub(crate) fn connect_error(endpoint: &str, error: &ConnectError) -> ConnectorError {
    let words = error.to_string();
    let is_operators = match error.kind() {
        ConnectErrorKind::AuthorizationViolation
        | ConnectErrorKind::Authentication
        | ConnectErrorKind::Tls
        | ConnectErrorKind::ServerParse => true,
        _ => is_about_tls(error) || is_about_rights(&words),
    };
    if is_operators {
        return ConnectorError::misconfigured(endpoint, format!("{words}; check credentials and tls"));
    }
    ConnectorError::transient("connect", endpoint, words)
}

/// A failed request about the stream.
pub(crate) fn stream_error(action: &'static str, endpoint: &str, error: &jetstream::Error) -> ConnectorError {
    match verdict(error.error_code()) {
        Verdict::Misconfigured => ConnectorError::misconfigured(endpoint, error.to_string()),
        Verdict::Transient | Verdict::Refused => ConnectorError::transient(action, endpoint, error.to_string()),
    }
}

/// What a code of the JetStream API means.
pub(crate) fn verdict(code: ErrorCode) -> Verdict {
    match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => Verdict::Refused,
        ErrorCode::STREAM_SEALED
        | ErrorCode::STREAM_NOT_FOUND
        | ErrorCode::STREAM_NOT_MATCH
        | ErrorCode::STREAM_INVALID_CONFIG
        | ErrorCode::STREAM_SUBJECT_OVERLAP
        | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED
        | ErrorCode::MAXIMUM_STREAMS_LIMIT
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => Verdict::Misconfigured,
        _ => Verdict::Transient,
    }
}

/// What the failure of one publication means.
pub(crate) fn publish_verdict(error: &PublishError) -> Verdict {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Verdict::Refused,
        PublishErrorKind::Other => api_error(error).map_or(Verdict::Transient, |error| verdict(error.error_code())),
        _ => Verdict::Transient,
    }
}

/// The JetStream error among the causes.
fn api_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a jetstream::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Whether the server says that we may not.
fn is_about_rights(words: &str) -> bool {
    let words = words.to_lowercase();
    is_about_permissions(&words)
        || ["authorization", "authentication", "expired", "revoked"].iter().any(|word| words.contains(word))
}

/// Whether the server says that who we are may not do this.
pub(crate) fn is_about_permissions(words: &str) -> bool {
    words.to_lowercase().contains("permissions violation")
}

fn is_about_tls(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|cause| match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => inner.is::<rustls::Error>(),
        None => cause.is::<rustls::Error>(),
    })
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_the_operators_and_silence_passes() {
        let refused = ConnectError::new(ConnectErrorKind::AuthorizationViolation);
        assert!(matches!(connect_error("x", &refused), ConnectorError::Misconfigured { .. }));

        let expired = ConnectError::with_source(ConnectErrorKind::Io, "user authentication expired");
        assert!(matches!(connect_error("x", &expired), ConnectorError::Misconfigured { .. }));

        let silent = ConnectError::new(ConnectErrorKind::TimedOut);
        assert!(matches!(connect_error("x", &silent), ConnectorError::Transient { .. }));
    }

    #[test]
    fn only_the_message_itself_can_be_refused() {
        let too_large = PublishError::new(PublishErrorKind::MaxPayloadExceeded);
        assert_eq!(publish_verdict(&too_large), Verdict::Refused);
        let behind = PublishError::new(PublishErrorKind::WrongLastSequence);
        assert_eq!(publish_verdict(&behind), Verdict::Transient);
        assert_eq!(verdict(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM), Verdict::Refused);
        assert_eq!(verdict(ErrorCode::STREAM_STORE_FAILED), Verdict::Transient);
        assert_eq!(verdict(ErrorCode::STREAM_SEALED), Verdict::Misconfigured);
    }
}
