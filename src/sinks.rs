//! The one list of connectors: config, schema, docs, CLI and `check` iterate over it. A new connector is one line here and
//! its dependency in the root manifest.

use catalog_bridge_api::ConnectorKind;

/// Every connector of this build, in the order in which docs and errors name them.
pub static CONNECTORS: &[&dyn ConnectorKind] = &[
    #[cfg(feature = "kafka")]
    &catalog_bridge_kafka::KIND,
    #[cfg(feature = "rabbitmq")]
    &catalog_bridge_rabbitmq::KIND,
    #[cfg(feature = "nats")]
    &catalog_bridge_nats::KIND,
    #[cfg(feature = "sqs")]
    &catalog_bridge_sqs::KIND,
    #[cfg(feature = "webhook")]
    &catalog_bridge_webhook::KIND,
    &catalog_bridge_file::KIND,
    &catalog_bridge_file::STDOUT_KIND,
];

/// The connector that a sink's section names.
pub fn connector_kind(name: &str) -> Option<&'static dyn ConnectorKind> {
    CONNECTORS.iter().find(|kind| kind.name() == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connector_has_a_name_of_its_own_and_an_object_as_section() {
        for (index, kind) in CONNECTORS.iter().enumerate() {
            assert!(CONNECTORS[..index].iter().all(|other| other.name() != kind.name()), "{}", kind.name());
            assert_eq!(kind.schema().get("type").and_then(|kind| kind.as_str()), Some("object"), "{}", kind.name());
        }
    }
}
