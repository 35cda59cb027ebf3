//! The sink under test, built from its section.

use catalog_bridge_api::{BuildContext, Connector, ConnectorKind, Ordering};
use catalog_bridge_conformance::by_hand::sink_name;
use serde_json::{Value, json};

/// Builds the connector from its section; `servers` and `stream` are filled in.
pub(crate) fn connector(address: &str, stream: &str, settings: Value) -> Box<dyn Connector> {
    connector_with(address, stream, settings, false)
}

pub(crate) fn connector_with(address: &str, stream: &str, settings: Value, ensure: bool) -> Box<dyn Connector> {
    // Tests share a server: the stream's name keeps their subjects apart.
    let subject = format!("{stream}.{{kind}}.{{namespace}}.{{name}}");
    let servers: Vec<&str> = address.split(',').collect();
    let mut section = json!({ "servers": servers, "stream": stream, "subject": subject });
    let Value::Object(settings) = settings else { panic!("settings are an object") };
    for (key, value) in settings {
        section[key] = value;
    }
    let context = BuildContext { sink: sink_name(), ordering: Ordering::Entity, ensure };
    catalog_bridge_nats::KIND.build(section, context).expect("a valid section")
}
