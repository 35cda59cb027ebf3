//! What an error of RabbitMQ or its client means for the sink: wait, or tell the operator.
//!
//! Only the broker's own words about rights, names and settings stop a sink; what a broker says while it starts, stops or
//! elects is waited out. Texts carry the broker's words and never the URL.

use catalog_bridge_api::ConnectorError;
use lapin::{Error, ErrorKind};

/// Reply codes of AMQP 0.9.1.
pub(crate) mod code {
    pub(crate) const ACCESS_REFUSED: u16 = 403;
    pub(crate) const NOT_FOUND: u16 = 404;
    pub(crate) const RESOURCE_LOCKED: u16 = 405;
    pub(crate) const PRECONDITION_FAILED: u16 = 406;
    pub(crate) const NOT_ALLOWED: u16 = 530;
    pub(crate) const NOT_IMPLEMENTED: u16 = 540;
}

/// What the broker says of a queue, exchange or virtual host that is there and not ready.
const PASSING: &[&str] =
    &["is down", "inaccessible", "stopped by supervisor", "timeout", "timed out", "limit", "no leader"];

/// The broker's code and words, if it was the broker who ended it.
pub(crate) fn broker_words(error: &Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

/// The connector's error for a failed call.
pub(crate) fn connector_error(action: &'static str, endpoint: &str, error: &Error) -> ConnectorError {
    if let Some((code, words)) = broker_words(error) {
        let passes = PASSING.iter().any(|part| words.contains(part));
        return match hint(code).filter(|_| !passes) {
            Some(hint) => ConnectorError::misconfigured(endpoint, format!("{action}: {words}; {hint}")),
            None => ConnectorError::transient(action, endpoint, words.to_owned()),
        };
    }
    match error.kind() {
        ErrorKind::IOError(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let hint = "check tls.ca_file, tls.certificate_file and that the port is a TLS listener";
            ConnectorError::misconfigured(endpoint, format!("{action}: {error}; {hint}"))
        }
        ErrorKind::IOError(error) if error.kind() == std::io::ErrorKind::ConnectionAborted && action == "connect" => {
            let words = "the broker hung up during the login; its log says why (for auth: external, enable its plugin \
                         rabbitmq_auth_mechanism_ssl and add EXTERNAL to auth_mechanisms)";
            ConnectorError::transient(action, endpoint, words.to_owned())
        }
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) if action == "connect" => {
            let reason =
                format!("{action}: {error}; check that the port speaks AMQP 0.9.1, and amqps:// for a TLS listener");
            ConnectorError::misconfigured(endpoint, reason)
        }
        _ => ConnectorError::transient(action, endpoint, error.clone()),
    }
}

/// What an operator can do; `None` for what passes by itself.
fn hint(code: u16) -> Option<&'static str> {
    match code {
        code::ACCESS_REFUSED => Some(
            "check user and password, and that the user may write to the exchange, read and configure what ensure creates, \
             and configure catalog-bridge.lock.*",
        ),
        code::NOT_FOUND => Some("create it or set ensure: true"),
        code::PRECONDITION_FAILED => Some("change the destination or its settings here"),
        code::NOT_ALLOWED => Some("check the virtual host and the user's permissions on it"),
        code::NOT_IMPLEMENTED => Some("use a RabbitMQ that supports it"),
        _ => None,
    }
}

/// The body size that the broker says it will not take.
pub(crate) fn refused_size(words: &str) -> Option<usize> {
    let rest = words.split_once("message size ")?.1;
    let (size, rest) = rest.split_once(' ')?;
    rest.starts_with("is larger than").then(|| size.parse().ok())?
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn broker(code: u16, words: &str) -> ConnectorError {
        let error = AMQPError::from_id(code, words.into()).expect("a code");
        connector_error("publish", "host:5672/vhost", &ErrorKind::ProtocolError(error).into())
    }

    #[test]
    fn rights_and_names_are_for_the_operator() {
        for (code, words) in [
            (403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"),
            (404, "NOT_FOUND - no exchange 'catalog' in vhost '/'"),
            (530, "NOT_ALLOWED - vhost nowhere not found"),
        ] {
            let error = broker(code, words);
            assert!(matches!(error, ConnectorError::Misconfigured { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_broker_that_starts_or_elects_is_waited_for() {
        for (code, words) in [
            (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"),
            (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor"),
            (541, "INTERNAL_ERROR - access to vhost '/' refused for user 'guest': vhost '/' is down"),
        ] {
            assert!(matches!(broker(code, words), ConnectorError::Transient { .. }), "{words}");
        }
    }

    #[test]
    fn the_size_of_a_refused_message_is_read_from_the_words() {
        let words = "PRECONDITION_FAILED - message size 20000 is larger than configured max size 1000";
        assert_eq!(refused_size(words), Some(20_000));
        assert_eq!(refused_size("PRECONDITION_FAILED - inequivalent arg 'x-queue-type'"), None);
    }
}
