//! The topic: its identity, its partitions, and its creation where the operator asked for that.
//!
//! Keeps P5: the partition count that keys were mapped with, and the topic's id, are pinned in the sink's state. A topic that
//! was created anew or has grown is another topic to its readers, and an operator decides.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use catalog_bridge_api::{Claim, ConnectorError, Ordering};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::error::RDKafkaErrorCode as Code;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::errors;
use crate::native::{self, Description, Failure};
use crate::reports::{Context, Reports};

/// How long a question to the brokers may take.
pub(crate) const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What a sink keeps of its topic (in [`catalog_bridge_api::Claim::state`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub(crate) topic: String,
    /// Absent when the brokers are older than topic ids (Kafka 2.8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) topic_id: Option<String>,
    pub(crate) partitions: i32,
    /// The generation that this was pinned for; 0 in states that do not say.
    #[serde(default)]
    pub(crate) generation: u64,
    /// Of partitions where a long search found nothing of ours: the Kafka offset up to which the next search need not look.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) searched: BTreeMap<i32, i64>,
}

/// The divergence that the operator was told of last.
///
/// After `Diverged` the driver opens again under the same lease only when an operator said so (resume or rewind), so finding
/// the same topic a second time in one epoch means that it was accepted.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<(u64, Pin)>>);

impl Told {
    /// Whether this topic was told of in this epoch before; from now on it was.
    fn tell(&self, epoch: u64, found: &Pin) -> bool {
        let now = Some((epoch, found.clone()));
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
        before == now
    }
}

/// Describes the topic. Blocking, up to [`QUESTION_TIMEOUT`]; ends early when the brokers refuse us.
pub(crate) fn describe(client: &Client<Context>, reports: &Reports, topic: &str) -> Result<Description, Failure> {
    let is_refused = || reports.trouble().is_some_and(|trouble| trouble.is_refusal);
    native::describe_topic(client, topic, QUESTION_TIMEOUT, is_refused)
}

/// The connector's error for a topic that could not be described: the brokers' last words say more than "timed out".
pub(crate) fn explain(failure: &Failure, reports: &Reports, config: &Config) -> ConnectorError {
    let endpoint = config.endpoint();
    if errors::verdict(failure.code) == errors::Verdict::Misconfigured {
        return errors::connector_error("look at the topic", &endpoint, Some(failure.code), &failure.words);
    }
    match reports.trouble() {
        Some(trouble) if trouble.is_refusal => ConnectorError::misconfigured(endpoint, trouble.words),
        Some(trouble) => ConnectorError::transient("connect", endpoint, trouble.words),
        None => ConnectorError::transient("connect", endpoint, failure.words.clone()),
    }
}

/// True when the brokers answer that there is no such topic.
pub(crate) fn is_missing(failure: &Failure) -> bool {
    matches!(failure.code, Code::UnknownTopicOrPartition | Code::UnknownTopic)
}

/// Compares the topic with what the sink started with; answers what to pin from now on.
pub(crate) fn pin(
    config: &Config,
    ordering: Ordering,
    found: &Description,
    claim: &Claim,
    told: &Told,
) -> Result<Pin, ConnectorError> {
    let current = Pin { generation: claim.generation, ..first_pin(config, ordering, found)? };
    let Some(pinned) = known(config, claim) else { return Ok(current) };
    match difference(&pinned, &current) {
        None => Ok(Pin { topic_id: current.topic_id.or(pinned.topic_id), searched: pinned.searched, ..current }),
        // A rewind came between: the new generation counts on nothing that the topic was before.
        Some(_) if pinned.generation != 0 && pinned.generation != claim.generation => Ok(current),
        Some(_) if told.tell(claim.epoch, &current) => Ok(current),
        Some(reason) => Err(ConnectorError::Diverged { endpoint: config.endpoint(), reason }),
    }
}

/// What the sink knows of this topic from earlier sessions.
pub(crate) fn known(config: &Config, claim: &Claim) -> Option<Pin> {
    let pin: Pin = serde_json::from_value(claim.state.clone()?).ok()?;
    (pin.topic == config.topic).then_some(pin)
}

/// What to pin of a topic that is new to the sink.
pub(crate) fn first_pin(config: &Config, ordering: Ordering, found: &Description) -> Result<Pin, ConnectorError> {
    if ordering == Ordering::Stream && found.partitions != 1 {
        return Err(ConnectorError::misconfigured(
            config.endpoint(),
            format!(
                "ordering: stream needs a topic of one partition, this one has {}; create another or set ordering: entity",
                found.partitions
            ),
        ));
    }
    Ok(Pin {
        topic: config.topic.clone(),
        topic_id: found.topic_id.clone(),
        partitions: found.partitions,
        generation: 0,
        searched: BTreeMap::new(),
    })
}

fn difference(pinned: &Pin, current: &Pin) -> Option<String> {
    if let (Some(before), Some(now)) = (&pinned.topic_id, &current.topic_id)
        && before != now
    {
        return Some(format!(
            "the topic was deleted and created again (id {before} before, {now} now), so what was delivered is gone; \
             rewind the sink to snapshot to fill it anew, or resume it to go on after the checkpoint"
        ));
    }
    (pinned.partitions != current.partitions).then(|| {
        format!(
            "the topic has {} partitions and had {} when this sink started, so most keys change their partition and \
             readers may see an entity's events out of order; resume the sink to use the new count once readers are ready, \
             or rewind it to snapshot",
            current.partitions, pinned.partitions
        )
    })
}

/// Creates the topic with settings under which an acknowledged record survives the loss of a broker.
pub(crate) async fn create(config: &Config, ordering: Ordering, broker_count: usize) -> Result<(), ConnectorError> {
    let admin = admin(&config.client()?, config)?;
    let brokers = i32::try_from(broker_count.clamp(1, 3)).unwrap_or(1);
    let replicas = config.replication_factor.unwrap_or(brokers);
    let partitions = match ordering {
        Ordering::Stream => 1,
        Ordering::Entity => config.partitions.unwrap_or(6),
    };
    let record_bytes_max = config.message_bytes_max.max(1_048_588).to_string();
    let mut topic = NewTopic::new(&config.topic, partitions, TopicReplication::Fixed(replicas))
        .set("min.insync.replicas", if replicas >= 3 { "2" } else { "1" })
        .set("unclean.leader.election.enable", "false")
        .set("max.message.bytes", &record_bytes_max);
    if config.tombstones {
        topic = topic.set("cleanup.policy", "compact");
    }
    let options = AdminOptions::new().request_timeout(Some(QUESTION_TIMEOUT)).operation_timeout(Some(QUESTION_TIMEOUT));
    let endpoint = config.endpoint();
    let answers = admin
        .create_topics([&topic], &options)
        .await
        .map_err(|error| errors::client_error("create the topic", &endpoint, &error))?;
    match answers.into_iter().next() {
        Some(Err((_, code))) if code != Code::TopicAlreadyExists => {
            Err(errors::connector_error("create the topic", &endpoint, Some(code), &code.to_string()))
        }
        _ => Ok(()),
    }
}

/// The topic's own limit of a batch, where this user may read it.
pub(crate) async fn max_message_bytes(config: &Config) -> Option<usize> {
    let admin = admin(&config.client().ok()?, config).ok()?;
    let options = AdminOptions::new().request_timeout(Some(QUESTION_TIMEOUT));
    let answers = admin.describe_configs([&ResourceSpecifier::Topic(&config.topic)], &options).await.ok()?;
    let settings = answers.into_iter().next()?.ok()?;
    settings.get("max.message.bytes")?.value.as_ref()?.parse().ok()
}

fn admin(client: &ClientConfig, config: &Config) -> Result<AdminClient<DefaultClientContext>, ConnectorError> {
    client.create().map_err(|error| errors::client_error("connect", &config.endpoint(), &error))
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::parse_config;
    use serde_json::json;

    use super::*;

    fn config() -> Config {
        parse_config(json!({ "brokers": ["b:9092"], "topic": "catalog" })).expect("valid")
    }

    fn found(id: &str, partitions: i32) -> Description {
        Description { topic_id: Some(id.to_owned()), partitions, replicas: 1, operations: None }
    }

    fn pinned(id: &str, partitions: i32) -> Pin {
        first_pin(&config(), Ordering::Entity, &found(id, partitions)).expect("fits")
    }

    #[test]
    fn a_topic_that_is_not_what_it_was_diverges() {
        let same = difference(&pinned("A", 4), &pinned("A", 4));
        let anew = difference(&pinned("A", 4), &pinned("B", 4));
        let grown = difference(&pinned("A", 4), &pinned("A", 6));

        assert_eq!(same, None);
        assert!(anew.is_some_and(|reason| reason.contains("deleted and created again")));
        assert!(grown.is_some_and(|reason| reason.contains("had 4 when this sink started")));
    }

    #[test]
    fn a_rewind_takes_the_topic_as_it_is() {
        let state = |generation| serde_json::to_value(Pin { generation, ..pinned("A", 4) }).expect("plain data");
        let claim = |kept| Claim {
            log_id: uuid::Uuid::nil(),
            sink: catalog_bridge_api::SinkName::parse("platform").expect("a name"),
            generation: 2,
            epoch: 1,
            checkpoint: 0.into(),
            head: 9.into(),
            ordering: Ordering::Entity,
            state: Some(state(kept)),
            lease: catalog_bridge_api::Lease::unlimited(),
        };
        let pin = |kept| pin(&config(), Ordering::Entity, &found("B", 6), &claim(kept), &Told::default());

        assert!(matches!(pin(2), Err(ConnectorError::Diverged { .. })));
        assert!(matches!(pin(0), Err(ConnectorError::Diverged { .. })), "a state that does not say when");
        assert_eq!(pin(1).expect("accepted"), Pin { generation: 2, ..pinned("B", 6) });
    }

    #[test]
    fn a_divergence_counts_as_accepted_only_in_the_epoch_in_which_it_was_told() {
        let told = Told::default();

        assert!(!told.tell(1, &pinned("B", 4)));
        assert!(told.tell(1, &pinned("B", 4)));
        assert!(!told.tell(2, &pinned("B", 4)));
        assert!(!told.tell(2, &pinned("C", 4)));
    }

    #[test]
    fn a_stream_needs_one_partition() {
        let refused = first_pin(&config(), Ordering::Stream, &found("A", 2));
        assert!(matches!(refused, Err(ConnectorError::Misconfigured { .. })));
        assert!(first_pin(&config(), Ordering::Stream, &found("A", 1)).is_ok());
    }
}
