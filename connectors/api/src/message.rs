use bytes::Bytes;
use uuid::Uuid;

use crate::{EntityRef, EventType, Offset};

/// The identity of a message at the destination, `<log id, 8 hex>.<generation>.<offset>`: equal for every repetition of
/// the same delivery, and different after a rewind or a change of what is emitted, because every broker's dedupe swallows
/// replays (BROKERS.md, L4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// The log.
    pub log_id: Uuid,
    /// The sink's generation.
    pub generation: u64,
    /// The event.
    pub offset: Offset,
}

impl MessageId {
    /// With another separator than `.`, for protocols that do not allow it (Standard Webhooks).
    pub fn joined_by(&self, separator: char) -> String {
        let log_id = self.log_id.simple().to_string();
        format!("{}{separator}{}{separator}{}", &log_id[..8], self.generation, self.offset)
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.joined_by('.'))
    }
}

/// One event, encoded and ready to be sent.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its identity for dedupe and for the destination's tail.
    pub id: MessageId,
    /// The key that order is kept by.
    pub entity_ref: EntityRef,
    /// What happened.
    pub event_type: EventType,
    /// CloudEvents attributes of the binary encoding, without any protocol's prefix (`id`, `source`, `type`, …), to be sent
    /// as headers; empty for the structured encodings.
    pub attributes: Vec<(&'static str, String)>,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
    /// True when the body is only a reference, because the whole event exceeds the destination's limit.
    pub is_reference: bool,
}

impl Message {
    /// The event's offset.
    pub fn offset(&self) -> Offset {
        self.id.offset
    }

    /// Bytes of body, attributes and key: what windows and limits count.
    pub fn size_bytes(&self) -> usize {
        let attributes: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        self.body.len() + attributes + self.entity_ref.as_str().len() + 128
    }
}
