//! The stream: whether it can hold this sink's events, and its creation where the operator asked for that.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config as StreamConfig, Info, PersistenceMode, RetentionPolicy, StorageType, Stream,
};
use catalog_bridge_api::{CheckReport, ConnectorError};

use crate::config::Config;
use crate::connection::Connection;
use crate::errors;
use crate::subject;

/// Replicas of a created stream where the config names no number and there is a cluster.
const REPLICAS: usize = 3;

/// Looks the stream up; `None` when there is none.
pub(crate) async fn find(connection: &Connection, config: &Config) -> Result<Option<Stream>, ConnectorError> {
    let endpoint = &connection.endpoint;
    connection
        .within(async {
            match connection.context.get_stream(&config.stream).await {
                Ok(stream) => Ok(Some(stream)),
                Err(error) => match error.kind() {
                    GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                        Ok(None)
                    }
                    GetStreamErrorKind::JetStream(error) => {
                        Err(errors::stream_error("look at the stream", endpoint, &error))
                    }
                    _ => {
                        let words = format!("{error}; is JetStream enabled for this account?");
                        Err(ConnectorError::transient("look at the stream", endpoint, words))
                    }
                },
            }
        })
        .await
}

/// Creates the stream with settings that keep what was acknowledged.
pub(crate) async fn create(connection: &Connection, config: &Config) -> Result<Stream, ConnectorError> {
    let is_clustered = connection.server().cluster.is_some();
    let replicas = config.replicas.unwrap_or(if is_clustered { REPLICAS } else { 1 });
    let wanted = StreamConfig {
        name: config.stream.clone(),
        subjects: vec![subject::filter(&config.subject)],
        storage: StorageType::File,
        num_replicas: replicas,
        allow_direct: true,
        ..StreamConfig::default()
    };
    let endpoint = &connection.endpoint;
    let created = connection
        .within(async {
            connection.context.create_stream(wanted).await.map_err(|error| match error.kind() {
                CreateStreamErrorKind::JetStream(error) => errors::stream_error("create the stream", endpoint, &error),
                _ => ConnectorError::transient("create the stream", endpoint, error),
            })
        })
        .await?;
    tracing::info!(stream = %config.stream, replicas, "created the stream");
    Ok(created)
}

/// The error for a stream that does not exist.
pub(crate) fn missing(config: &Config) -> ConnectorError {
    let filter = subject::filter(&config.subject);
    let reason = format!("the stream does not exist; create it with subjects {filter}, or set ensure: true");
    ConnectorError::misconfigured(config.endpoint(), reason)
}

/// Refuses a stream that cannot keep what this sink promises.
pub(crate) fn refuse_unfit(config: &Config, info: &Info) -> Result<(), ConnectorError> {
    let found = &info.config;
    let reason = if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        "it copies from other streams, and this sink must be its only writer; use another stream".to_owned()
    } else if found.sealed {
        "it is sealed; use another stream".to_owned()
    } else if found.no_ack {
        "it acknowledges nothing (no_ack); set no_ack to false".to_owned()
    } else if !found.subjects.iter().any(|filter| subject::covers(filter, &config.subject)) {
        let subjects = found.subjects.join(", ");
        format!("its subjects ({subjects}) do not take {}; add that", subject::filter(&config.subject))
    } else {
        return Ok(());
    };
    Err(ConnectorError::misconfigured(config.endpoint(), reason))
}

/// Whether a message may name the one before it: replicas that catch up do not bear it (see `session`).
pub(crate) fn takes_chain(info: &Info) -> bool {
    info.config.num_replicas <= 1
}

/// Tells what `check` found.
pub(crate) fn judge(config: &Config, info: &Info, server_max_payload: usize, report: &mut CheckReport) {
    let found = &info.config;
    let (replicas, last) = (found.num_replicas, info.state.last_sequence);
    report.facts.push(format!("{} has {replicas} replicas and last sequence {last}", config.endpoint()));
    let mut warn = |text: String| report.warnings.push(text);
    if found.storage == StorageType::Memory {
        warn("the stream is kept in memory: a restart of its servers loses what was acknowledged".to_owned());
    } else if replicas < 2 {
        warn(
            "one replica: a power failure loses what was acknowledged in the last two minutes, unless the server's \
             sync_interval is always"
                .to_owned(),
        );
    }
    if found.persist_mode == Some(PersistenceMode::Async) {
        warn("persist_mode is async: the stream acknowledges what it has not stored yet".to_owned());
    }
    if found.retention != RetentionPolicy::Limits {
        warn("consumed messages leave the stream: after a crash of the bridge they cannot be recognized and are repeated".to_owned());
    }
    let limits = [
        ("the server's max_payload", server_max_payload),
        ("the stream's max_msg_size", usize::try_from(found.max_message_size).unwrap_or(0)),
    ];
    for (name, limit) in limits {
        if limit > 0 && limit < config.message_bytes_max {
            warn(format!(
                "{name} is {limit}, below message_bytes_max {}: larger events are refused instead of going as a reference; \
                 set message_bytes_max to {limit}",
                config.message_bytes_max
            ));
        }
    }
}
