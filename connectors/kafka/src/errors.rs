//! What a Kafka error code means for the sink: wait, tell the operator, or refuse the event.
//!
//! A frozen or absent broker also shows as "broker version < 0.10", "timed out" or "disconnected": all of these are waited
//! out. Only the broker's own words about rights, names and settings stop a sink.

use catalog_bridge_api::ConnectorError;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// What follows from an error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The broker will never take this record.
    Refused,
    /// The operator has to change something.
    Misconfigured,
    /// Another producer took over.
    Fenced,
    /// It may be otherwise next time.
    Transient,
}

/// What follows from a code.
pub(crate) fn verdict(code: Code) -> Verdict {
    match code {
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat => Verdict::Refused,
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic
        | Code::InvalidConfig
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidTransactionTimeout
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks => Verdict::Misconfigured,
        Code::Fenced | Code::ProducerFenced => Verdict::Fenced,
        _ => Verdict::Transient,
    }
}

/// What follows from a code and what was said with it: troubles of TLS come as one code, or as a broken connection, and only
/// those about certificates or the protocol do not pass by themselves.
pub(crate) fn verdict_of(code: Code, words: &str) -> Verdict {
    let words = words.to_ascii_lowercase();
    let is_tls = matches!(code, Code::SSL | Code::BrokerTransportFailure) && words.contains("ssl");
    let is_refusal = ["certificate", "plaintext broker", "unknown ca", "wrong version number"];
    if is_tls && is_refusal.iter().any(|part| words.contains(part)) {
        return Verdict::Misconfigured;
    }
    verdict(code)
}

/// True for an error that ends the client.
pub(crate) fn is_fatal(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::Fenced
            | Code::ProducerFenced
            | Code::GaplessGuarantee
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            | Code::Inconsistent
    )
}

/// True for a record that was taken out of the client's queues: by a fatal error, by a transaction that has to be aborted, or
/// by us.
pub(crate) fn is_purge(code: Code) -> bool {
    matches!(code, Code::PurgeQueue | Code::PurgeInflight)
}

/// The hint that belongs to a code of [`Verdict::Misconfigured`].
pub(crate) fn hint(code: Code) -> &'static str {
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId => {
            "create the topic or set ensure: true"
        }
        Code::TopicAuthorizationFailed => {
            "grant this user Describe and Write on the topic, with delivery: transactional also Read"
        }
        Code::ClusterAuthorizationFailed => "grant this user IdempotentWrite on the cluster, or Write on the topic",
        Code::TransactionalIdAuthorizationFailed => "grant this user Write and Describe on the transactional id",
        Code::SaslAuthenticationFailed | Code::Authentication => "check sasl.username and sasl.password",
        Code::SSL | Code::BrokerTransportFailure => {
            "check tls.ca_file, tls.certificate_file and that the port is a TLS listener"
        }
        Code::UnsupportedSASLMechanism => "choose a sasl.mechanism that this listener offers",
        _ => "see the broker's log",
    }
}

/// The connector's error for a failed call.
pub(crate) fn connector_error(action: &'static str, endpoint: &str, code: Option<Code>, words: &str) -> ConnectorError {
    let endpoint = endpoint.to_owned();
    match code.map(|code| (verdict_of(code, words), code)) {
        Some((Verdict::Misconfigured, code)) => {
            ConnectorError::Misconfigured { endpoint, reason: format!("{action}: {words}; {}", hint(code)) }
        }
        Some((Verdict::Fenced, _)) => ConnectorError::Fenced { endpoint, reason: format!("{action}: {words}") },
        _ => ConnectorError::transient(action, endpoint, words.to_owned()),
    }
}

/// The connector's error for an error of the client library. Never shows a setting's value: it may be a secret.
pub(crate) fn client_error(action: &'static str, endpoint: &str, error: &KafkaError) -> ConnectorError {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => {
            ConnectorError::misconfigured(endpoint, format!("librdkafka does not accept the value of {key}"))
        }
        KafkaError::ClientCreation(words) => ConnectorError::misconfigured(endpoint, words.clone()),
        KafkaError::AdminOp(code) => connector_error(action, endpoint, Some(*code), &error.to_string()),
        other => connector_error(action, endpoint, other.rdkafka_error_code(), &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_or_frozen_broker_is_waited_for() {
        for code in [Code::AllBrokersDown, Code::BrokerTransportFailure, Code::OperationTimedOut, Code::Resolve] {
            assert_eq!(verdict(code), Verdict::Transient, "{code:?}");
        }
    }

    #[test]
    fn certificates_are_told_from_broken_connections() {
        let refused = "ssl://b:9093/1: Receive failed: SSL routines::ssl/tls alert bad certificate";
        assert_eq!(verdict_of(Code::BrokerTransportFailure, refused), Verdict::Misconfigured);
        assert_eq!(verdict_of(Code::SSL, "SSL handshake failed: Disconnected"), Verdict::Transient);
        assert_eq!(verdict_of(Code::BrokerTransportFailure, "Connection reset by peer"), Verdict::Transient);
    }

    #[test]
    fn a_rejected_setting_is_named_without_its_value() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("security.protocol", "s3cret");
        let error = config.create_native_config().map(|_| ()).expect_err("no such protocol");

        let text = client_error("connect", "kafka", &error).to_string();

        assert!(!text.contains("s3cret") && text.contains("security.protocol"), "{text}");
    }
}
