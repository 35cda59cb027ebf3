//! A message's headers, and whose message one is by its headers.
//!
//! CloudEvents attributes go as `ce-*` headers, percent-encoded as the NATS protocol binding wants it; the bridge's own headers
//! say which log, generation, offset and sink a message is of, in every encoding, and are what a tail is recognized by.

use std::borrow::Cow;

use async_nats::HeaderMap;
use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, Message, Offset};
use uuid::Uuid;

/// Header that carries the sink's name.
pub(crate) const BRIDGE_SINK: &str = "catalog-bridge-sink";

/// The headers of a message, without those that keep order.
pub(crate) fn headers(message: &Message, log_id: &str, sink: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut name = String::with_capacity(32);
    for (attribute, value) in &message.attributes {
        // The binding maps this one to `content-type`.
        if *attribute != "datacontenttype" {
            name.clear();
            name.push_str("ce-");
            name.push_str(attribute);
            headers.insert(name.as_str(), &*percent_encoded(value));
        }
    }
    headers.insert("content-type", message.content_type);
    headers.insert(BRIDGE_LOG_ID, log_id);
    headers.insert(BRIDGE_GENERATION, message.id.generation.to_string());
    headers.insert(BRIDGE_OFFSET, message.id.offset.to_string());
    headers.insert(BRIDGE_SINK, sink);
    headers
}

/// A header's value: printable ASCII without space, quote and percent sign stays, everything else goes by its bytes.
fn percent_encoded(value: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'%';
    if value.bytes().all(is_plain) {
        return value.into();
    }
    let mut encoded = String::with_capacity(value.len() + 8);
    for byte in value.bytes() {
        if is_plain(byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded.into()
}

/// Whose message it is, by the bridge's own headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) log_id: Uuid,
    pub(crate) generation: u64,
    pub(crate) offset: Offset,
    pub(crate) sink: String,
}

/// Reads the bridge's headers; `None` for a message of somebody else.
pub(crate) fn origin(headers: &HeaderMap) -> Option<Origin> {
    let text = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    Some(Origin {
        log_id: text(BRIDGE_LOG_ID)?.parse().ok()?,
        generation: text(BRIDGE_GENERATION)?.parse().ok()?,
        offset: Offset::new(text(BRIDGE_OFFSET)?.parse().ok()?),
        sink: text(BRIDGE_SINK)?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::{EntityRef, EventType, MessageId};

    use super::*;

    fn message() -> Message {
        Message {
            id: MessageId { log_id: Uuid::from_u128(7), generation: 3, offset: 42.into() },
            entity_ref: EntityRef::parse("component:default/a").expect("valid"),
            event_type: EventType::Added,
            attributes: vec![
                ("id", "42".to_owned()),
                ("subject", "component:default/ü \"%\"".to_owned()),
                ("datacontenttype", "application/json".to_owned()),
            ],
            content_type: "application/json",
            body: "{}".into(),
            is_reference: false,
        }
    }

    #[test]
    fn headers_carry_attributes_and_origin() {
        let headers = headers(&message(), &Uuid::from_u128(7).to_string(), "platform");

        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(text("ce-id").as_deref(), Some("42"));
        assert_eq!(text("ce-subject").as_deref(), Some("component:default/%C3%BC%20%22%25%22"));
        assert_eq!(text("content-type").as_deref(), Some("application/json"));
        assert_eq!(text("ce-datacontenttype"), None);
        let expected =
            Origin { log_id: Uuid::from_u128(7), generation: 3, offset: 42.into(), sink: "platform".to_owned() };
        assert_eq!(origin(&headers), Some(expected));
    }

    #[test]
    fn a_message_without_all_of_our_headers_is_somebody_elses() {
        let mut headers = HeaderMap::new();
        assert_eq!(origin(&headers), None);

        headers.insert(BRIDGE_LOG_ID, Uuid::from_u128(7).to_string());
        headers.insert(BRIDGE_GENERATION, "3");
        headers.insert(BRIDGE_OFFSET, "many");
        headers.insert(BRIDGE_SINK, "platform");

        assert_eq!(origin(&headers), None);
    }
}
