//! A message as a Kafka record: key, headers, value.
//!
//! CloudEvents attributes go as `ce_*` headers (Kafka protocol binding); the bridge's own headers say which log, generation,
//! offset and sink a record is of, in every encoding, and are what a tail is recognized by.

use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, EventType, Message, Offset, SinkName};
use rdkafka::message::{BorrowedHeaders, Header, Headers, OwnedHeaders};
use uuid::Uuid;

/// Header that carries the sink's name: two sinks may write to one topic.
pub(crate) const BRIDGE_SINK: &str = "catalog-bridge-sink";

/// The headers of a message.
pub(crate) fn headers(message: &Message, log_id: &str, sink: &str) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(message.attributes.len() + 5);
    let mut name = String::with_capacity(32);
    for (attribute, value) in &message.attributes {
        // The binding maps this one to `content-type`.
        if *attribute != "datacontenttype" {
            name.clear();
            name.push_str("ce_");
            name.push_str(attribute);
            headers = headers.insert(Header { key: &name, value: Some(value) });
        }
    }
    headers
        .insert(Header { key: "content-type", value: Some(message.content_type) })
        .insert(Header { key: BRIDGE_LOG_ID, value: Some(log_id) })
        .insert(Header { key: BRIDGE_GENERATION, value: Some(&message.id.generation.to_string()) })
        .insert(Header { key: BRIDGE_OFFSET, value: Some(&message.id.offset.to_string()) })
        .insert(Header { key: BRIDGE_SINK, value: Some(sink) })
}

/// The value of a message; `None` is a tombstone.
pub(crate) fn value(message: &Message, tombstones: bool) -> Option<&[u8]> {
    let is_tombstone = tombstones && message.event_type == EventType::Removed;
    (!is_tombstone).then_some(&message.body)
}

/// Whose record it is, by the bridge's own headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) log_id: Uuid,
    pub(crate) generation: u64,
    pub(crate) offset: Offset,
    pub(crate) sink: Option<SinkName>,
}

/// Reads the bridge's headers; `None` for a record of somebody else.
pub(crate) fn origin(headers: &BorrowedHeaders) -> Option<Origin> {
    let text = |wanted: &str| {
        headers
            .iter()
            .find(|header| header.key == wanted)
            .and_then(|header| header.value)
            .and_then(|value| std::str::from_utf8(value).ok())
    };
    Some(Origin {
        log_id: text(BRIDGE_LOG_ID)?.parse().ok()?,
        generation: text(BRIDGE_GENERATION)?.parse().ok()?,
        offset: Offset::new(text(BRIDGE_OFFSET)?.parse().ok()?),
        sink: text(BRIDGE_SINK).and_then(|name| SinkName::parse(name).ok()),
    })
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{EntityRef, MessageId};

    use super::*;

    pub(crate) fn message(event_type: EventType) -> Message {
        Message {
            id: MessageId { log_id: Uuid::from_u128(7), generation: 3, offset: 42.into() },
            entity_ref: EntityRef::parse("component:default/a").expect("valid"),
            event_type,
            attributes: vec![("id", "42".to_owned()), ("datacontenttype", "application/json".to_owned())],
            content_type: "application/json",
            body: "{}".into(),
            is_reference: false,
        }
    }

    #[test]
    fn headers_carry_attributes_and_origin() {
        let headers = headers(&message(EventType::Added), "00000000-0000-0000-0000-000000000007", "platform");

        let list: Vec<(&str, &[u8])> =
            headers.iter().map(|header| (header.key, header.value.expect("a value"))).collect();
        assert_eq!(list[0], ("ce_id", b"42".as_slice()));
        assert_eq!(list[1], ("content-type", b"application/json".as_slice()));
        assert!(list.contains(&(BRIDGE_OFFSET, b"42".as_slice())));
        assert!(list.contains(&(BRIDGE_GENERATION, b"3".as_slice())));
        assert!(list.contains(&(BRIDGE_SINK, b"platform".as_slice())));
        assert_eq!(list.len(), 6);
    }

    #[test]
    fn only_a_removal_is_a_tombstone_and_only_when_asked_for() {
        assert_eq!(value(&message(EventType::Removed), true), None);
        assert_eq!(value(&message(EventType::Removed), false), Some(b"{}".as_slice()));
        assert_eq!(value(&message(EventType::Updated), true), Some(b"{}".as_slice()));
    }
}
