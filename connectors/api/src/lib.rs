//! The vocabulary of the event log and the contract between the daemon and its connectors.
//!
//! Everything here is protocol-free: no broker, no SQL, no HTTP. Connectors and the daemon depend on this crate, and
//! never on each other.

mod acks;
mod connector;
mod encoding;
mod entity_ref;
mod error;
mod event;
mod feed;
mod json_text;
mod lease;
mod message;
mod name;
mod offset;
mod secret;
mod template;

pub use acks::{Ack, AckReceiver, Acks};
pub use connector::{
    BuildContext, CheckReport, Claim, ConfigError, Connector, ConnectorKind, Limits, Ordering, Session, parse_config,
};
pub use encoding::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, Encoder, EncoderSettings, Encoding};
pub use entity_ref::{EntityRef, InvalidEntityRef};
pub use error::{BoxError, ConnectorError};
pub use event::{Cause, Changed, Event, EventType, Reason};
pub use feed::{Feed, FeedSender, feed};
pub use json_text::{InvalidJson, JsonText};
pub use lease::Lease;
pub use message::{Message, MessageId};
pub use name::{InvalidName, SinkName, SourceName};
pub use offset::Offset;
pub use secret::Secret;
pub use template::{InvalidTemplate, Template};
