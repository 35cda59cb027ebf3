//! The sink under test, built from its section.

use catalog_bridge_api::{BuildContext, Claim, Connector, ConnectorKind, Ordering};
use catalog_bridge_conformance::by_hand::{claim, sink_name};
use serde_json::{Value, json};

/// Builds the connector from its section; `brokers` and `topic` are filled in.
pub(crate) fn connector(address: &str, topic: &str, settings: Value) -> Box<dyn Connector> {
    connector_with(address, topic, settings, Ordering::Entity, false)
}

pub(crate) fn connector_with(
    address: &str,
    topic: &str,
    settings: Value,
    ordering: Ordering,
    ensure: bool,
) -> Box<dyn Connector> {
    let brokers: Vec<&str> = address.split(',').collect();
    let mut section = json!({ "brokers": brokers, "topic": topic });
    let Value::Object(settings) = settings else { panic!("settings are an object") };
    for (key, value) in settings {
        section[key] = value;
    }
    let context = BuildContext { sink: sink_name(), ordering, ensure };
    catalog_bridge_kafka::KIND.build(section, context).expect("a valid section")
}

/// Makes claims of a log that no other test has: log and sink make the transactional id, whose next owner fences the last.
pub(crate) fn claims_of_own_log() -> impl Fn(u64, Option<Value>) -> Claim {
    let log_id = uuid::Uuid::new_v4();
    move |checkpoint, state| Claim { log_id, ..claim(checkpoint, state) }
}
