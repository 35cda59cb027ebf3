//! Which librdkafka settings a `properties:` map may carry.
//!
//! Keeps P5 and P6: a setting that order, completeness or the checkpoint rest on is refused with its reason, and so is one
//! that would weaken authentication, load foreign code or put a secret where it is printed.

/// Why `key` is not the operator's to set, or `None` when it is.
pub(crate) fn refusal(key: &str) -> Option<&'static str> {
    let reason = match key {
        "bootstrap.servers" | "metadata.broker.list" => "use brokers",
        "enable.idempotence" | "enable.gapless.guarantee" | "acks" | "request.required.acks" => {
            "order and completeness rest on it, so it is always on"
        }
        "max.in.flight" | "max.in.flight.requests.per.connection" => "more than 5 in flight would lose order",
        "retries" | "message.send.max.retries" => "a message given up leaves a gap before later ones",
        "message.timeout.ms" | "delivery.timeout.ms" => "an expired message would leave a gap before later ones",
        "queuing.strategy" => "another queue would lose order",
        "queue.buffering.max.messages" => "the window bounds it",
        "partitioner" | "sticky.partitioning.linger.ms" => {
            "partitions are computed as Java does, so that topics are co-partitioned with Java clients"
        }
        "transactional.id" => "use delivery: transactional; the id is the fence between owners of this sink",
        "transaction.timeout.ms" => "the checkpoint waits for commits, which are short",
        "message.max.bytes" => "use message_bytes_max",
        "compression.codec" | "compression.type" => "use compression",
        "linger.ms" | "queue.buffering.max.ms" => "use linger_ms",
        "security.protocol" => "use tls and sasl",
        "sasl.mechanism" | "sasl.mechanisms" | "sasl.username" | "sasl.password" => {
            "use sasl, which hides the password"
        }
        "ssl.ca.location" | "ssl.ca.pem" | "ssl.certificate.location" | "ssl.certificate.pem" => "use tls",
        "ssl.key.location" | "ssl.key.pem" | "ssl.key.password" => "use tls, which hides the key",
        "ssl.keystore.location" | "ssl.keystore.password" => "use tls with PEM files",
        "enable.ssl.certificate.verification" | "ssl.endpoint.identification.algorithm" => {
            "without it anybody on the way could be the broker; give tls.ca_file the authority that signed it"
        }
        "plugin.library.paths" | "ssl.engine.location" | "ssl.engine.id" | "ssl.providers" => "it loads foreign code",
        "allow.auto.create.topics" => "use ensure: true, which creates the topic with safe settings",
        "enable.sparse.connections" | "reconnect.backoff.max.ms" => "the sink's recovery rests on it",
        "log.queue" | "log_level" | "log.thread.name" => "the daemon's log level decides",
        _ if key.starts_with("sasl.oauthbearer.") => "OAUTHBEARER is not supported yet",
        _ if key.ends_with("_cb") || matches!(key, "opaque" | "interceptors" | "default_topic_conf") => {
            "it is no text setting"
        }
        _ if key.starts_with("test.mock.") => "it replaces the brokers by a simulation",
        _ => return None,
    };
    Some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_breaking_and_secret_settings_are_refused_and_harmless_ones_pass() {
        for key in ["acks", "message.timeout.ms", "partitioner", "sasl.password", "enable.idempotence", "oauth_cb"] {
            assert!(refusal(key).is_some(), "{key}");
        }
        for key in ["client.rack", "socket.timeout.ms", "debug", "batch.size", "client.dns.lookup", "ssl.cipher.suites"]
        {
            assert_eq!(refusal(key), None, "{key}");
        }
    }
}
