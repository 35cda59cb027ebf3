use serde::{Deserialize, Serialize};

/// Header (never a CloudEvents attribute) that carries the log id.
pub const BRIDGE_LOG_ID: &str = "catalog-bridge-log-id";
/// Header that carries the sink's generation.
pub const BRIDGE_GENERATION: &str = "catalog-bridge-generation";
/// Header that carries the offset, in decimal.
pub const BRIDGE_OFFSET: &str = "catalog-bridge-offset";

/// How an event becomes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// The event as REST serves it.
    Json,
    /// A CloudEvent 1.0 in structured JSON.
    Cloudevents,
    /// A CloudEvent 1.0 whose attributes are the protocol's headers and whose body is the data.
    CloudeventsBinary,
}
