use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Acks, ConnectorError, Encoding, Feed, Lease, Offset, SinkName};

/// How a sink keeps order (promise P5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// The first deliveries of each entity are in offset order.
    #[default]
    Entity,
    /// All first deliveries are in offset order; asks the destination for one lane (a one-partition topic, one queue).
    Stream,
}

/// What a connector can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, by [`crate::Message::size_bytes`]; a larger one goes as a reference. `None`: no limit.
    pub message_bytes_max: Option<usize>,
    /// True only if, whatever fails, what the destination stored is a prefix of what was sent (per key lane). Otherwise the
    /// driver offers a message only while no earlier one of the same entity is unacknowledged.
    pub prefix_safe: bool,
    /// How many messages may be in flight.
    pub window_events: usize,
    /// How many bytes of messages may be in flight.
    pub window_bytes: usize,
    /// The longest that a request once sent may still land: a taker of the lease waits so long after its expiry.
    pub flight: Duration,
    /// Encoding when the config names none.
    pub encoding: Encoding,
}

/// What `check` found; it changes nothing at the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What was found in order, a sentence each.
    pub facts: Vec<String>,
    /// What will work and should better be changed, a sentence each.
    pub warnings: Vec<String>,
}

/// What a session starts from.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The log. A destination's tail counts only if it carries this id and `generation`.
    pub log_id: Uuid,
    /// The sink's name, for fence names and headers.
    pub sink: SinkName,
    /// Part of every message id; bumped by a rewind and by any change of what is emitted.
    pub generation: u64,
    /// The lease's epoch. In no message, so that repeated bytes stay the same.
    pub epoch: u64,
    /// Everything up to here is acknowledged; the feed begins after it.
    pub checkpoint: Offset,
    /// The log's head when the claim was made: a tail of ours above it means that the log was restored.
    pub head: Offset,
    /// The order to keep.
    pub ordering: Ordering,
    /// What this connector handed to [`Acks::remember`] last.
    pub state: Option<serde_json::Value>,
    /// Whether we still own the sink.
    pub lease: Lease,
}

/// The code for one protocol with one destination's settings. Built once per sink at start; building dials nothing.
#[async_trait]
pub trait Connector: Send + Sync {
    /// What it can take. Constant.
    fn limits(&self) -> Limits;

    /// Names the destination, without secrets and without what may change freely (broker addresses, credentials). Part of
    /// the sink's fingerprint: another destination is another generation.
    fn destination(&self) -> String;

    /// A destination that tolerates one writer only (a JetStream stream): two sinks with the same value are a config error.
    fn exclusive_destination(&self) -> Option<String> {
        None
    }

    /// Dials, authenticates, looks at the topology; writes nothing. The driver also calls it each minute while misconfigured.
    async fn check(&self) -> Result<CheckReport, ConnectorError>;

    /// Fences the predecessor where the destination can, finds the tail, and returns a session. Called again after every
    /// end of a session, after a backoff.
    async fn open(&self, claim: Claim) -> Result<Box<dyn Session>, ConnectorError>;
}

/// One life of a connection that publishes.
#[async_trait]
pub trait Session: Send {
    /// Publishes in feed order until the feed ends (then flush what is in flight and return `Ok`) or something fails.
    /// Acknowledge only what is durably stored. After it returned, or its future was dropped, nothing more may be written by
    /// this session. The driver may drop the future at any await when the process must stop.
    async fn run(self: Box<Self>, feed: Feed, acks: Acks) -> Result<(), ConnectorError>;
}

/// What a connector may know when it is built.
#[derive(Debug, Clone)]
pub struct BuildContext {
    /// The sink's name.
    pub sink: SinkName,
    /// The sink's `ordering`.
    pub ordering: Ordering,
    /// The sink's `ensure`: create the topic, queue or stream with safe settings.
    pub ensure: bool,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// Where in the connector's section, such as `["tls", "ca_file"]`; the loader adds file and line.
    pub path: Vec<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl ConfigError {
    /// An error at one key of the section.
    pub fn at(key: &str, message: impl Into<String>) -> Self {
        ConfigError { path: vec![key.to_owned()], message: message.into() }
    }
}

/// A protocol: what `src/sinks.rs` lists. Config, schema, docs, CLI and `check` iterate over that list.
pub trait ConnectorKind: Sync {
    /// The key that chooses it in a sink's section, such as `kafka`.
    fn name(&self) -> &'static str;

    /// JSON Schema of its section; the doc comments of the config struct are its texts.
    fn schema(&self) -> schemars::Schema;

    /// Parses its section (use [`parse_config`]) and builds the connector; dials nothing.
    fn build(&self, section: serde_json::Value, context: BuildContext) -> Result<Box<dyn Connector>, ConfigError>;
}

/// Deserializes a connector's section; an error names the path of the key.
pub fn parse_config<T: DeserializeOwned>(section: serde_json::Value) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(section).map_err(|error| ConfigError {
        path: error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                serde_path_to_error::Segment::Map { key } => Some(key.clone()),
                serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
                _ => None,
            })
            .collect(),
        message: error.into_inner().to_string(),
    })
}
